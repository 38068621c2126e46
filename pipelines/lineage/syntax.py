"""What a file of code says to Python: a digest without comments, layout and docstrings, what it imports, the words in it.

The digest is of the syntax tree, written as words in one fixed order. Trees differ between versions of Python, so digests do too.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.store import read_json, write_json

DOCSTRING_READERS = frozenset({"$__doc__", "'__doc__'", "$getdoc", "'getdoc'"})
"""Words of a file that reads docstrings."""
FILE_NAME = re.compile(r"[\w.-]+\.\w+")
"""What a string must look like to be the name of a file."""
REMEMBERED = 2000
"""So many texts are remembered."""
_MARKED = frozenset({ast.If, ast.Import, ast.ImportFrom})


@dataclass(frozen=True)
class Source:
    """What a module's text says. imports: (level, module, names), where a plain `import a.b` is (0, a.b, ()). names: strings that may be files'."""

    sha256: str
    documented_sha256: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    names: tuple[str, ...]
    reads_docstrings: bool


@contextmanager
def no_collection() -> Iterator[None]:
    """Syntax trees are many small objects without cycles: looking for garbage among them takes longer than parsing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@functools.cache
def read(text: bytes) -> Source:
    """
    Raises:
        SyntaxError: the text is no Python.
    """
    reader = _Reader()
    reader.visit(ast.parse(text))
    code, words = " ".join(reader.words), set(reader.words)
    return Source(
        sha256=hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest(),
        documented_sha256=hashlib.sha256(f"{code} {reader.bare!r}".encode("utf-8", "surrogatepass")).hexdigest(),
        imports=tuple(reader.imports),
        names=tuple(sorted(name for name in reader.strings if FILE_NAME.fullmatch(name))),
        reads_docstrings=not words.isdisjoint(DOCSTRING_READERS),
    )


class Memory:
    """What texts say, by their digest, in a file from which later processes take it: parsing a hundred files takes half a second."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._format = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()
        self._known: dict[str, Any] = {}
        self._new = False
        try:
            kept = read_json(file)
            self._known = kept["sources"] if kept["format"] == self._format else {}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no file, or not ours: everything is read again

    def read(self, text: bytes) -> Source:
        """`read`, remembered."""
        digest = hashlib.sha256(text).hexdigest()
        if digest not in self._known:
            self._known[digest] = astuple(read(text))
            self._new = True
        sha256, documented_sha256, imports, names, reads_docstrings = self._known[digest]
        found = tuple((level, module, tuple(names)) for level, module, names in imports)
        return Source(sha256, documented_sha256, found, tuple(names), reads_docstrings)

    def keep(self) -> None:
        """Write the file if there is anything new, and a folder for it."""
        if self._new and self._file.parent.is_dir():
            newest = dict(list(self._known.items())[-REMEMBERED:])
            write_json(self._file, {"format": self._format, "sources": newest})
            self._new = False


class _Reader:
    """One walk over a syntax tree: its words in order, without positions and bare strings, and what it imports."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.strings: set[str] = set()
        self.bare: list[str] = []
        self.imports: list[tuple[int, str, tuple[str, ...]]] = []
        self.type_checking = 0

    def visit(self, node: Any) -> None:
        kind = type(node)
        if kind is ast.Name:  # half of all nodes are names and constants
            self.words.append("$" + node.id)
        elif kind is ast.Constant:
            self.words.append(repr(node.value))
            if type(node.value) is str:
                self.strings.add(node.value)
        else:
            self.words.append(kind.__name__)
            if kind in _MARKED:
                self._mark(node)
            for name in _fields(kind):
                value = getattr(node, name)
                if type(value) is list:
                    self._list(value)
                elif isinstance(value, ast.AST):
                    self.visit(value)
                else:
                    self.words.append(repr(value))
            if kind is ast.If and _checks_types(node):
                self.type_checking -= 1

    def _list(self, values: list[Any]) -> None:
        self.words.append("[")
        for value in values:
            if type(value) is ast.Expr and type(value.value) is ast.Constant and type(value.value.value) is str:
                self.bare.append(value.value.value)  # a docstring, or a string below a field
            elif isinstance(value, ast.AST):
                self.visit(value)
            else:
                self.words.append(repr(value))
        self.words.append("]")

    def _mark(self, node: ast.AST) -> None:
        if isinstance(node, ast.If):
            self.type_checking += _checks_types(node)
        elif isinstance(node, ast.Import) and not self.type_checking:
            self.imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not self.type_checking:
            self.imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))


def _checks_types(node: Any) -> bool:
    return "TYPE_CHECKING" in (getattr(node.test, "id", ""), getattr(node.test, "attr", ""))


@functools.cache
def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    """What a node says: whether a name is read or set follows from where it stands."""
    return tuple(name for name in kind._fields if name not in ("ctx", "kind", "type_comment"))


@functools.cache
def table_sha256(suffix: str, text: bytes) -> str:
    """Digest of a data file: of YAML and JSON what they say, in their order; of anything else its bytes."""
    if suffix in (".yaml", ".yml"):
        text = repr(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))).encode("utf-8", "surrogatepass")
    elif suffix == ".json":
        text = repr(json.loads(text)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()
