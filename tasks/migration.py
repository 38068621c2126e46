"""`touchstone migrate`: params.yaml, or an overlay, from the form with a section per stage to the mapping `stages`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.checks import EARLIER
from pipelines.store import replacing
from tasks import documents

FIXED = {
    "sft": ("sft", {"kind": "sft", "init": "base", "data": "curation/sft"}),
    "difficulty": ("difficulty", {"kind": "grade", "init": "sft", "data": "curation/rl"}),
    "synthesis": ("synthesis", {"kind": "synthesise", "data": "difficulty/graded"}),
    "merging": ("merged", {"kind": "merge", "init": "sft"}),
}
"""Section -> the name of its stage now, and what was understood."""


def migrate(file: Path) -> list[str]:
    """Rewrite the file, whose comments stay with what they stood at. Returns what was done, a line each; nothing where it has the new form.

    Raises:
        UserError: no such file, or not a mapping.
    """
    document = documents.load(file)
    if not set(document) & set(EARLIER):
        return []
    whole = "seed" in document  # an overlay says only what differs
    told = list(_rewrite(document, whole))
    with replacing(file) as temporary:
        temporary.write_text(documents.text(document))
    return told


def _rewrite(document: Any, whole: bool) -> Iterator[str]:
    """Move every section of the earlier form to its stage, in place."""
    place = min(list(document).index(name) for name in EARLIER if name in document)
    stages = type(document)()
    for section in ("sft", "difficulty", "synthesis"):
        if section in document:
            name, understood = FIXED[section]
            stages[name] = _with(document.pop(section), understood if whole else {})
            yield f"{section} -> stages.{name}" + (f" {understood}" if whole else "")
    experts = (document.pop("rl", None) or {}).get("stages") or {}
    for name, given in experts.items():
        stages[name] = _rl(given)
        yield f"rl.stages.{name} -> stages.{name}" + ("" if given is None else f", data {stages[name].get('data', 'as before')}")
    if "merging" in document:
        merged = _with(document.pop("merging"), FIXED["merging"][1] if whole else {})
        if "base" in merged:
            merged.pop("init", None)
            documents.renamed(merged, "base", "init")
        if whole and not merged.get("models"):
            merged.insert(2, "models", documents.listed(*sorted(experts)))
        if merged.get("search"):
            merged["search"]["data"] = "difficulty/ungraded"
        stages["merged"] = merged
        yield f"merging -> stages.merged, models {merged.get('models', 'as before')}"
    if not whole and None in experts.values():
        yield "look at this: a stage is deleted; say in stages.merged.models which are merged"
    document.insert(place, "stages", stages)


def _rl(given: Any) -> Any:
    """One RL stage; null deletes it in an overlay."""
    if given is None:
        return None
    stage = _with(given, {"kind": "rl"} if "init" in given else {})
    if "domains" in stage:
        documents.renamed(stage, "domains", "where")
        domains = stage["where"]
        stage["where"] = type(stage)(domain=domains)
        stage["where"].fa.set_flow_style()
        stage.insert(list(stage).index("where"), "data", documents.listed("difficulty", "synthesis"))
    if "init" in stage and stage.get("reference") == stage["init"]:
        del stage["reference"]
    return stage


def _with(given: Any, understood: dict[str, Any]) -> Any:
    """What was given, with what was understood before it."""
    for place, (key, value) in enumerate(understood.items()):
        given.insert(place, key, value)
    return given
