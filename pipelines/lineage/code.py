"""Which files of `pipelines` a stage runs: the closure of its imports, found by reading the source without running it.

dvc.yaml lists this closure as the stage's dependencies, so that editing a file reruns what it affects and nothing else; a
manifest records it with digests. What counts: every import statement of a file, inside functions too, except under
`if TYPE_CHECKING`. A package's `__init__.py` counts when a name is imported from it, not merely because Python executes it
on the way to a submodule. Another file in the folder of a module counts when one of the module's strings is its name: a
table it reads, or a program that it runs in a process of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.lineage.digests import combine, file_sha256

PACKAGE = "pipelines"


def code_sha256(module: str) -> str:
    """Digest of the files that `module` (dotted name) needs, of the package that is running."""
    root = Path(__file__).parents[2]
    return combine({file.as_posix(): file_sha256(root / file) for file in closure(root, [module])})


def closure(root: Path, modules: Iterable[str]) -> list[Path]:
    """Files below `root`/pipelines, relative to `root` and sorted, that the modules (dotted names) need."""
    waiting = [_file(root, module) for module in modules]
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file is None or file in found:
            continue
        found.add(file)
        tree = ast.parse((root / file).read_text(), filename=str(file))
        waiting += [_file(root, name) for name in _imports(root, file, tree)]
        for named in _named_files(root, file, tree):
            if named.suffix == ".py":
                waiting.append(named)
            else:
                found.add(named)
    return sorted(found)


def _file(root: Path, module: str) -> Path | None:
    """The file of a module of this package, relative to `root`; None for other packages."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    for candidate in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")):
        if (root / candidate).is_file():
            return candidate
    return None


def _imports(root: Path, file: Path, tree: ast.Module) -> Iterator[str]:
    """Dotted names of the modules a file imports; `from a import b` is a.b where that is a module, else a."""
    package = file.parent.parts
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if _file(root, inner) else base


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node` but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)


def _named_files(root: Path, file: Path, tree: ast.Module) -> set[Path]:
    """Files beside `file` or below whose whole name is one of its strings."""
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    entries = [entry for entry in (root / file.parent).rglob("*") if entry.is_file() and entry.suffix != ".pyc"]
    return {entry.relative_to(root) for entry in entries if entry.name in strings}
