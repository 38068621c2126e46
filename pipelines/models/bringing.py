"""A known model or a GGUF file brought into a Hugging Face folder, with its model card and with what a manifest says of where it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.lineage.digests import file_sha256
from pipelines.lineage.external import Origin
from pipelines.models.fetching import Show, fetch
from pipelines.models.gguf.convert import convert
from pipelines.models.known import KnownModel

CARD = "README.md"


@dataclass(frozen=True)
class Brought:
    """A model that was written into a folder. sha256: of the GGUF file. parameters: weights in it."""

    origin: Origin
    sha256: str
    parameters: int


def bring_in(
    model: KnownModel | Path, folder: Path, accepted: str | None, *, show: Show = lambda *_: None, say: Callable[[str], None] = lambda _: None
) -> Brought:
    """Write a known model, or the GGUF file at a path, into `folder`, which is there. accepted: the licence that was accepted. show, say: told
    how far it is.

    Raises:
        UserError: the licence is not accepted, it cannot be fetched, or the file cannot be converted.
    """
    if isinstance(model, Path):
        source, name, chat, known = model, model.name, True, {}
    else:
        source, name, chat = fetch(model, accepted, show), model.name, model.chat
        packages = [package for package, _ in model.wheels()]
        known = {"origin": model.origin, "licence": model.licence, "packages": packages}
    converted = convert(source, folder, chat=chat, say=say)
    facts = known | {key: converted[key] for key in ("architecture", "quantisation", "converted")}
    sha256 = model.sha256 if isinstance(model, KnownModel) else file_sha256(source)
    (folder / CARD).write_text(_card(name, sha256, facts))
    return Brought({"uri": f"known:{name}", "digest": {"sha256": sha256}, "annotations": facts}, sha256, converted["parameters"])


def _card(name: str, sha256: str, facts: dict[str, Any]) -> str:
    """The model card: what it is, from which bytes, and what was done to them."""
    head = {"base_model": facts.get("origin"), "license": facts.get("licence", "").lower()}
    by = " and ".join(f"{library} {version}" for library, version in facts["converted"]["by"].items())
    kinds = ", ".join(f"{count} tensors in {kind}" for kind, count in facts["quantisation"].items())
    packages = f", which lies in the packages {', '.join(facts['packages'])}" if "packages" in facts else ""
    lines = [
        *(["---", *(f"{key}: {value}" for key, value in head.items()), "---", ""] if "origin" in facts else []),
        f"# {name}",
        "",
        f"Made from the GGUF file with SHA-256 `{sha256}`{packages}.",
        f"Its weights ({kinds}) were turned into {facts['converted']['to']} by {by}; what quantisation took from them is lost.",
    ]
    return "\n".join(lines) + "\n"
