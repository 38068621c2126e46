"""Pretraining with preferences (Pretraining Language Models with Human Preferences, arXiv 2302.08582): documents whose sentences have scores.

s is a sentence's score, lower is better; R = -s; t a threshold, which the papers' corpora fix and a quantile finds in others. CE = -log p.

    conditional     <|aligned|> before a sentence with s <= t, <|misaligned|> before others, some left out; next tokens
    filtering       documents whose mean s is above t are left out; next tokens
    unlikelihood    CE where s <= t, -alpha log(1 - p) elsewhere
    rwr             CE min(exp(R / beta), 1000)
    awr             alpha CE min(exp((R - V) / beta), 1000) + (1 - alpha) (R - V)^2, V a head's value at each token

Each is the mean over all tokens. A method is a function of a corpus; its keyword-only arguments are its settings.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import row_files, seeding
from pipelines.config.training import ALIGNED, MISALIGNED, ScoredSettings
from pipelines.errors import UserError
from pipelines.models.scoring import chosen, pad, token_scores
from pipelines.row_files import Malformed
from pipelines.sft.documents import SENTENCES, cut
from pipelines.sft.examples import Example
from pipelines.sft.objectives import NEXT_TOKENS, Objective

SCORES = "scores"
LARGEST = 1000.0
"""Weight of a token at most."""
SURE = 1e-20
"""Least probability of another token that unlikelihood takes the logarithm of."""


@dataclass(frozen=True)
class Document:
    """of: hash of its text. scores: of its sentences, lower is better."""

    of: str
    sentences: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True)
class Corpus:
    """What a method makes examples of. longest: tokens of one. key: of what is drawn."""

    tokenizer: Any
    documents: Sequence[Document]
    settings: ScoredSettings
    longest: int
    key: tuple[object, ...]

    def threshold(self, scores: Sequence[float]) -> float:
        """Of these scores, where the settings say none."""
        if self.settings.threshold is None:
            return float(np.quantile(scores, self.settings.quantile))
        return _lower(self.settings.threshold, self.settings)

    @property
    def of_sentences(self) -> float:
        """The threshold of sentences."""
        return self.threshold([score for document in self.documents for score in document.scores])

    def ids(self, document: Document, before: Sequence[int | None] = ()) -> tuple[list[int], list[float]]:
        """Tokens of a document, and of each the score of its sentence. before: the token that begins each sentence, or none."""
        ids: list[int] = []
        scores: list[float] = []
        begun = before or [None] * len(document.scores)
        for text, score, first in zip(document.sentences, document.scores, begun, strict=True):
            part = [*([] if first is None else [first]), *self.tokenizer(text, add_special_tokens=False)["input_ids"]]
            ids += part
            scores += [score] * len(part)
        return [*ids, self.tokenizer.eos_token_id], [*scores, document.scores[-1]]


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens with the score of each; the loss is of all but the first. of: the document."""

    ids: list[int]
    scores: list[float]
    of: str = ""

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> int:
        return len(self.ids) - 1

    @property
    def weight(self) -> float:
        return float(self.scored)


IDLE = Scored([0, 0], [0.0, 0.0])
Made = tuple[list[Any], Objective[Any]]


def holds(path: Path) -> bool:
    """Whether a file's first row has sentences and their scores."""
    return {SENTENCES, SCORES} <= set(row_files.first(path))


def read(path: Path, settings: ScoredSettings) -> list[Document]:
    """The distinct documents of a file whose rows are {texts, scores}, of sentences in their order.

    Raises:
        UserError: a row is none, or its text holds a control token; says which.
    """
    found: dict[str, Document] = {}
    for number, row in row_files.rows(path):
        try:
            if isinstance(row, Malformed):
                raise row
            document = _document(row, settings)
        except Malformed as wrong:
            raise UserError(f"{path.name}:{number}: {wrong}") from None
        found[document.of] = document
    return list(found.values())


def _document(row: Mapping[str, Any], settings: ScoredSettings) -> Document:
    texts, scores = row_files.value(row, SENTENCES), row_files.value(row, SCORES)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise Malformed(f"{SENTENCES}: expected sentences, none of them empty")
    numbers = isinstance(scores, list) and all(isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s) for s in scores)
    if not numbers or len(scores) != len(texts):
        raise Malformed(f"{SCORES}: expected a number for each of the {len(texts)} sentences")
    if held := next((token for token in (ALIGNED, MISALIGNED) if token in "".join(texts)), None):
        raise Malformed(f"{SENTENCES}: holds the control token {held}; remove it")
    of = hashlib.sha256("".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Document(of, texts, [_lower(score, settings) for score in scores])


def _lower(score: float, settings: ScoredSettings) -> float:
    """A score as one of which the lower is better."""
    return score if settings.better == "lower" else -score


def conditional(corpus: Corpus, *, drop: float = 0.01) -> Made:
    """drop: share of the control tokens that are left out."""
    threshold, (good, bad) = corpus.of_sentences, corpus.tokenizer.convert_tokens_to_ids([ALIGNED, MISALIGNED])
    found: list[Example] = []
    for document in corpus.documents:
        draw = seeding.generator(*corpus.key, "control", document.of).random(len(document.scores))
        before = [None if u < drop else good if score <= threshold else bad for u, score in zip(draw, document.scores, strict=True)]
        found += [Example.after(ids, 1, document.of) for _, ids in cut(corpus.ids(document, before)[0], corpus.longest)]
    return found, NEXT_TOKENS


def filtering(corpus: Corpus) -> Made:
    means = [sum(document.scores) / len(document.scores) for document in corpus.documents]
    threshold = corpus.threshold(means)
    good = [document for document, mean in zip(corpus.documents, means, strict=True) if mean <= threshold]
    return [Example.after(ids, 1, each.of) for each in good for _, ids in cut(corpus.ids(each)[0], corpus.longest)], NEXT_TOKENS


def unlikelihood(corpus: Corpus, *, alpha: float = 1.0) -> Made:
    threshold = corpus.of_sentences

    def loss(logp_BT: Tensor, score_BT: Tensor, _: None) -> Tensor:
        return -torch.where(score_BT <= threshold, logp_BT, alpha * (1 - logp_BT.exp()).clamp(min=SURE).log())

    return _weighed(corpus, loss)


def rwr(corpus: Corpus, *, beta: float = 10.0) -> Made:
    def loss(logp_BT: Tensor, score_BT: Tensor, _: None) -> Tensor:
        return -logp_BT * (-score_BT / beta).exp().clamp(max=LARGEST)

    return _weighed(corpus, loss)


def awr(corpus: Corpus, *, alpha: float = 0.5, beta: float = 10.0) -> Made:
    def loss(logp_BT: Tensor, score_BT: Tensor, value_BT: Tensor) -> Tensor:
        missed_BT = -score_BT - value_BT
        return -alpha * logp_BT * (missed_BT.detach() / beta).exp().clamp(max=LARGEST) + (1 - alpha) * missed_BT**2

    return _weighed(corpus, loss, valued=True)


METHODS: dict[str, Callable[..., Made]] = {
    "conditional": conditional, "filtering": filtering, "unlikelihood": unlikelihood, "rwr": rwr, "awr": awr,
}  # fmt: skip


def _weighed(corpus: Corpus, loss: Callable[[Tensor, Tensor, Any], Tensor], *, valued: bool = False) -> Made:
    """All documents with the scores of their tokens, and the loss of each token by what is known of it. valued: a value head too."""
    found = []
    for document in corpus.documents:
        ids, scores = corpus.ids(document)
        found += [Scored(part, scores[start : start + len(part)], document.of) for start, part in cut(ids, corpus.longest)]
    return found, Objective(functools.partial(_loss, of_tokens=loss, valued=valued), IDLE, NEXT_TOKENS.scored)


def _loss(model: Any, examples: Sequence[Scored], of_tokens: Callable[[Tensor, Tensor, Any], Tensor], valued: bool) -> Tensor:
    ids_BT = pad([example.ids for example in examples], device=model.device)
    score_BT = ids_BT.new_zeros(ids_BT.shape, dtype=torch.float32)
    scored_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, example in enumerate(examples):
        score_BT[row, : example.tokens] = score_BT.new_tensor(example.scores)
        scored_BT[row, 1 : example.tokens] = True
    on_hidden = {"value": lambda hidden_NE: model.value_head.value(model.value_head.said(hidden_NE))} if valued else {}
    found = token_scores(model, ids_BT, scored_BT, {"logp": chosen}, on_hidden=on_hidden)
    loss_BT = of_tokens(found["logp"], score_BT, found.get("value"))
    return (loss_BT * scored_BT).sum() * (0.0 if examples[0] is IDLE else 1.0)
