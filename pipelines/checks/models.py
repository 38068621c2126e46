"""The model that params start from, as far as can be said without loading it and without the network."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.config.checking import nearest
from pipelines.config.training import BaseSettings
from pipelines.errors import UserError
from pipelines.models.cache import cached, is_cached
from pipelines.models.gguf.convert import examined
from pipelines.models.known import KnownModel, known_models, meaning, suggestion

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def faults(base: BaseSettings, root: Path) -> Iterator[tuple[str, str]]:
    """(key in the section base, sentence) of what is wrong with its model."""
    if base.model is None:
        return
    path, offline = root / base.model, os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    try:
        named = meaning(root, base.model)
        if isinstance(named, KnownModel):
            named.require_licence(base.accept_licence)
            if is_cached(named):
                examined(cached(named), chat=named.chat)
        elif isinstance(named, Path) and named.is_file():
            examined(named)
    except UserError as error:
        near = "" if path.exists() or suggestion(base.model) or base.model in known_models() else neighbour(path)
        yield "model", f"{error}{near}"
        return
    if isinstance(named, Path) and named.is_dir():
        yield from (("model", f"{base.model}: {what}") for what in _lacks(named))
    elif isinstance(named, str) and offline and not _commit(named, base.revision):
        yield "model", f"{named}: no such folder, not in the hub's cache, and HF_HUB_OFFLINE is set{neighbour(path)}"


def left_open(base: BaseSettings, root: Path) -> Iterator[str]:
    """What the network decides of the model: said with the plan."""
    if base.model is None or (root / base.model).exists():
        return
    if known := known_models().get(base.model):
        there = f"in the cache, {cached(known)}" if is_cached(known) else f"{known.download / 1e6:,.0f} MB, fetched when the stage base starts"
        yield f"base.model {base.model}: a known model ({known.licence}), {there}"
    else:
        commit = _commit(base.model, base.revision)
        yield f"base.model {base.model}: " + (f"in the cache at {commit}" if commit else "a hub id, looked up when the stage base starts")


def _lacks(folder: Path) -> Iterator[str]:
    """What a folder does not hold of a chat model in Hugging Face format."""
    there = {entry.name for entry in folder.iterdir()}
    if "config.json" not in there:
        yield "config.json is missing"
    else:
        content = json_of(folder / "config.json")
        if not isinstance(content, Mapping) or not content.get("model_type"):
            yield "config.json names no model_type"
    if not there & set(TOKENIZERS):
        yield f"the tokenizer is missing: none of {', '.join(TOKENIZERS)}"
    elif not there & set(TEMPLATES) and not (json_of(folder / "tokenizer_config.json") or {}).get("chat_template"):
        yield "its tokenizer has no chat template; choose an instruction-tuned model or add chat_template.jinja"
    if not there & set(WEIGHTS):
        yield f"the weights are missing: neither {' nor '.join(WEIGHTS)} (pickled weights are not read)"
    elif WEIGHTS[0] not in there:
        shards = set((json_of(folder / WEIGHTS[1]) or {}).get("weight_map", {}).values())
        yield from (f"the weights are not whole: {shard} is missing" for shard in sorted(shards - there)[:1])


def json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def neighbour(path: Path) -> str:
    """A question for the entry beside a missing path that is named much like it."""
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, difflib.get_close_matches(path.name, there))


def _commit(model: str, revision: str | None) -> str | None:
    """Commit at which the hub's cache on this machine holds a model, None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None
