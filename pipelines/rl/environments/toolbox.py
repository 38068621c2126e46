"""Tools that come with Touchstone, and what any box of tools is to an environment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.methods import choose
from pipelines.records import Problem
from pipelines.rl.environments.calculator import calculate
from pipelines.verifiers import ProgramLimits
from pipelines.verifiers.programs import printed

MARK = "\x1e"
"""Printed between the output of earlier programs and that of the last."""


class Session(Protocol):
    """The tools of one episode. said: what the box adds to the problem at its start."""

    said: str

    async def call(self, tool: str, arguments: dict[str, Any] | str) -> str:
        """What the policy reads of a call. arguments: by name, or the one argument as it was written.

        Raises:
            ValueError: what the policy did wrong, whose text it reads too.
            InfrastructureError: what it did not do: the episode says nothing about it.
        """
        ...

    async def reward(self) -> float | None:
        """What the episode is worth, in [0, 1]; None where the problem's verifier says."""
        ...

    async def end(self) -> None:
        """The episode is over, however it came."""
        ...


class Toolbox(Protocol):
    """The tools of a run."""

    @property
    def schemas(self) -> Mapping[str, dict[str, Any]]:
        """Of every tool by name, as chat templates take them."""
        ...

    async def begin(self, problem: Problem) -> Session: ...


@dataclass
class State:
    """What one episode has done so far. cells: programs that ran, in order."""

    cells: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tool:
    """A function of one string. work(argument, state, seconds) -> what the policy reads; it raises ValueError for what the policy did wrong."""

    description: str
    argument: str
    work: Callable[[str, State, float], str]

    def schema(self, name: str) -> dict[str, Any]:
        """As chat templates take it."""
        parameters = {"type": "object", "properties": {self.argument: {"type": "string"}}, "required": [self.argument]}
        return {"type": "function", "function": {"name": name, "description": self.description, "parameters": parameters}}


def _calculator(expression: str, state: State, seconds: float) -> str:
    return calculate(expression)


def _python(code: str, state: State, seconds: float) -> str:
    """What the program prints, after those of earlier calls: they run again, so that nothing outlives the sandbox."""
    before = "\n".join(state.cells)
    done = printed(f"{before}\nprint({MARK!r})\n{code}" if state.cells else code, ProgramLimits(seconds=seconds, total_seconds=seconds))
    if not done.ok:
        raise ValueError(done.text)
    state.cells.append(code)
    return (done.text.rpartition(f"{MARK}\n")[2] if before else done.text).rstrip("\n") or "(nothing was printed)"


TOOLS = {
    "calculator": Tool("Exact value of an arithmetic expression with + - * / and brackets.", "expression", _calculator),
    "python": Tool("Run a Python program; what it prints is the result. Names of earlier programs stay.", "code", _python),
}


class Builtin:
    """Tools of `TOOLS`. seconds: of one call."""

    def __init__(self, names: Sequence[str], seconds: float) -> None:
        self.tools = {name: choose("environment 'tools': tool", TOOLS, name) for name in names}
        self.schemas = {name: tool.schema(name) for name, tool in self.tools.items()}
        self.seconds = seconds

    async def begin(self, problem: Problem) -> _BuiltinSession:
        return _BuiltinSession(self)


class _BuiltinSession:
    said = ""

    def __init__(self, box: Builtin) -> None:
        self._box, self._state = box, State()

    async def call(self, tool: str, arguments: dict[str, Any] | str) -> str:
        """See `Session.call`."""
        known = self._box.tools[tool]
        argument = arguments if isinstance(arguments, str) else arguments.get(known.argument)
        if not isinstance(argument, str):
            raise ValueError(f"{tool} takes {known.argument!r}, a string")
        return await asyncio.to_thread(known.work, argument, self._state, self._box.seconds)

    async def reward(self) -> None: ...

    async def end(self) -> None: ...
