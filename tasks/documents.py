"""YAML files that people write, changed by programs: comments, order and quotes stay."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pipelines.config import read_yaml


def load(file: Path) -> Any:
    """A mapping that remembers how it was written.

    Raises:
        UserError: no such file, not YAML, a key given twice, or not a mapping.
    """
    read_yaml(file)
    return _yaml().load(file)


def text(document: Any) -> str:
    """What `load` gave, changed or not, as text."""
    written = io.StringIO()
    _yaml().dump(document, written)
    return written.getvalue()


def _yaml() -> Any:
    from ruamel.yaml import YAML  # comes with DVC

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # a line that somebody wrote stays one
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml
