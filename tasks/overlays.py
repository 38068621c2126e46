"""Overlays of params.yaml: a small file that says what differs, merged in so that comments and order stay."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import checks
from pipelines.config import read_yaml
from pipelines.errors import UserError
from pipelines.store import replacing

Change = tuple[str, Any, Any]


def apply(params: Path, overlay: Path, root: Path | None = None) -> list[Change]:
    """Merge `overlay` into `params` and write it, if the result holds. A null deletes its key. Returns (key, before, after).

    root: where relative paths in params start, by default their folder.

    Raises:
        UserError: the overlay is no mapping, or params.yaml would not hold; nothing is written then.
    """
    changes = read_yaml(overlay)
    read_yaml(params)
    yaml = _yaml()
    document = yaml.load(params)
    checks.refuse_earlier(changes, str(overlay))
    checks.refuse_earlier(document, str(params))
    told = list(_merge(document, changes, ""))
    text = io.StringIO()
    yaml.dump(document, text)
    with replacing(params) as temporary:
        temporary.write_text(text.getvalue())
        try:
            checks.load(temporary, root or params.parent, str(overlay))
        except UserError as error:
            raise UserError(f"{error}\n{params.name} is left as it was") from None
    return told


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The text of a params file, with these values in place of its own; what stays keeps its comments and its lines."""
    yaml = _yaml()
    document = yaml.load(text)
    _become(document, values)
    written = io.StringIO()
    yaml.dump(document, written)
    return written.getvalue()


def _become(into: Any, values: Mapping[str, Any]) -> None:
    for key in [key for key in into if key not in values]:
        del into[key]
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), Mapping):
            _become(into[key], value)
        elif key not in into or into[key] != value:
            into[key] = value


def _yaml() -> Any:
    """Reader and writer of YAML that keeps comments, order, quotes and lines."""
    from ruamel.yaml import YAML  # comes with DVC

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _merge(into: Any, changes: dict[str, Any], above: str) -> Iterator[Change]:
    """Mappings merge key by key, all else replaces. A mapping with another `kind` is another thing, so it replaces too."""
    for key, value in changes.items():
        name = f"{above}.{key}" if above else str(key)
        before = into.get(key)
        if value is None:
            if key in into:
                del into[key]
                yield name, before, "(deleted)"
        elif isinstance(value, dict) and isinstance(before, dict) and value.get("kind", before.get("kind")) == before.get("kind"):
            yield from _merge(before, value, name)
        elif before != value:
            into[key] = value
            yield name, "(none)" if before is None else before, value
