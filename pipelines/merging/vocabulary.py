"""Models with different vocabularies: one tokenizer for the result, and every embedding row found by its token.

The policy names whose tokens the result has: those of the base, of all models (`union`: the base's, then what each other model has
besides, in the order of its ids, as added tokens), or of one model folder. A row that a model lacks is the base's; where the base lacks
it too, the mean over the models that have it; where nobody has one (padding), zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.config.evaluation import TokenizerPolicy
from pipelines.errors import UserError
from pipelines.merging.checkpoints import Slice

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight")
"""Ends of the names of matrices that have a row for every token."""
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Rows:
    """An embedding as rows of the result's vocabulary: for every row the places that it is the mean of."""

    file: Path
    slices: tuple[Slice, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    take: tuple[tuple[tuple[int, int], ...], ...]
    """Row -> (number of the slice, row in it), none for a row of zeros."""

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def size(self) -> int:
        return self.elements * self.dtype.itemsize

    def read(self, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Elements `start` to `stop`, flat, as `Slice.read`; whole rows are gathered and cut."""
        width = self.shape[1]
        first, last = start // width, -(-stop // width)
        rows = torch.zeros(last - first, width, dtype=self.dtype)
        at = first
        while at < last:
            run = 1
            places = self.take[at]
            # one read for rows that lie one after another in one file
            while len(places) == 1 and at + run < last and self.take[at + run] == ((places[0][0], places[0][1] + run),):
                run += 1
            if places:
                blocks = [self.slices[i].read(row * width, (row + run) * width).float() for i, row in places]
                rows[at - first : at - first + run] = torch.stack(blocks).mean(0).to(self.dtype).view(run, width)
            at += run
        return rows.view(-1)[start - first * width : stop - first * width]


@dataclass(frozen=True)
class Vocabulary:
    """The result's tokens, and per folder where each has its row.

    source: folder that the tokenizer's files come from. added: tokens that it lacks, by their new ids, as tokenizer.json writes them.
    """

    source: Path
    tokens: tuple[str, ...]
    height: int
    added: tuple[dict[str, Any], ...]
    known: Mapping[Path, Mapping[str, int]]
    base: Path

    def rows(self, name: str, folder: Path, slices: Mapping[Path, Slice]) -> Rows:
        """The embedding `name` of `folder` by the result's rows. slices: that of every folder.

        Raises:
            UserError: the matrices have other widths, or fewer rows than tokens.
        """
        folders = list(slices)
        own = slices[folder]
        for other, place in slices.items():
            if len(place.shape) != 2 or place.shape[1] != own.shape[1]:
                raise UserError(f"{other}: tensor '{name}' has shape {list(place.shape)}, expected rows of {own.shape[1]} as in {folder}")
        order = [folder, self.base]

        def places(token: str) -> tuple[tuple[int, int], ...]:
            for first in order:
                if (row := self.known[first].get(token)) is not None and row < slices[first].shape[0]:
                    return ((folders.index(first), row),)
            having = [(other, self.known[other][token]) for other in folders if token in self.known[other]]
            return tuple((folders.index(other), row) for other, row in having if row < slices[other].shape[0])

        take = [*(places(token) for token in self.tokens), *(() for _ in range(self.height - len(self.tokens)))]
        return Rows(own.file, tuple(slices.values()), own.dtype, (self.height, own.shape[1]), tuple(take))

    def write(self, folder: Path) -> None:
        """Add what the source's tokenizer lacks to the copy of it in `folder`."""
        if self.added:
            content = json.loads((folder / TOKENIZER).read_text())
            content["added_tokens"] = sorted([*content.get("added_tokens", []), *self.added], key=lambda token: token["id"])
            (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def plan_vocabulary(policy: TokenizerPolicy, folders: Sequence[Path], configs: Mapping[Path, Mapping[str, Any]]) -> Vocabulary:
    """The result's vocabulary under `policy`; the first folder is the base.

    Raises:
        UserError: a folder without tokenizer.json, or ids with gaps between them.
    """
    base = folders[0]
    source = base if policy.source in ("base", "union") else Path(policy.source)
    known = {}
    for folder in dict.fromkeys((*folders, source)):
        vocabulary = tokens_of(folder)
        if vocabulary is None:
            raise UserError(f"{folder / TOKENIZER}: no such file; a tokenizer policy needs it")
        # ids beyond the embedding have no row: unused tokens of a padded tokenizer
        known[folder] = {token: i for token, i in vocabulary.items() if i < int(configs.get(folder, {}).get("vocab_size", i + 1))}
    tokens = sorted(known[source], key=known[source].__getitem__)
    if [known[source][token] for token in tokens] != list(range(len(tokens))):
        raise UserError(f"{source / TOKENIZER}: its ids have gaps, so rows cannot be counted by token")
    added = []
    if policy.source == "union":
        for folder in folders[1:]:
            special = {token["content"]: token for token in read_tokenizer(folder).get("added_tokens", [])}
            for token in sorted(known[folder].keys() - set(tokens), key=known[folder].__getitem__):
                form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False} | special.get(token, {})
                added.append(form | {"id": len(tokens), "content": token})
                tokens.append(token)
    multiple = policy.pad_to_multiple_of or 1
    return Vocabulary(source, tuple(tokens), -(-len(tokens) // multiple) * multiple, tuple(added), known, base)


def tokens_of(folder: Path) -> dict[str, int] | None:
    """Token -> id of a fast tokenizer, added tokens included; None for a model without one."""
    if not (folder / TOKENIZER).is_file():
        return None
    content = read_tokenizer(folder)
    vocabulary = content.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: [token, score] in order of ids
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in content.get("added_tokens", [])}


def read_tokenizer(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / TOKENIZER).read_text())
    except ValueError as error:
        raise UserError(f"{folder / TOKENIZER}: not valid JSON: {error}") from None
