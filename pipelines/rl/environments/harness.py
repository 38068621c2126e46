"""An outside program plays the episode, and asks the policy over an OpenAI-compatible endpoint of ours."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Engine
from pipelines.progress import is_figure
from pipelines.records import Problem
from pipelines.rl.environments.branches import Branches, Limits
from pipelines.rl.environments.conversation import judged, worth
from pipelines.rl.environments.door import Asked, Door, Line
from pipelines.rl.environments.messages import Template
from pipelines.rl.environments.process import Process, told_of
from pipelines.rl.episodes import Episode, Prompt, Task

HOST = Path(__file__).with_name("harness_host.py")
STARTUP_SECONDS = 300.0
"""For the program to be loaded with its rows."""
END_SECONDS = 5.0
"""For an episode to end when it is told to."""
REFUSALS = 16
"""Requests that may be refused before the episode is ended."""
METRICS = 32
"""Figures of one episode that are kept."""


@dataclass(frozen=True)
class Ended:
    """What a harness said of an episode."""

    reward: Any = None
    metrics: object = None
    error: str = ""


class Harness:
    """A program of its own virtual environment leads the episode: it asks the policy over HTTP as it would ask OpenAI, does what it wants between two
    answers, and says what the episode was worth. What was sampled trains as it was sampled; a request that does not go on from what was said (a
    harness that drops thinking, summarises, or asks in parallel) begins another trajectory of the same episode.

    program: which. kind: what it is: `function` (MODULE:FUNCTION, called as (row, base_url, **arguments), which returns the reward, or {reward,
    metrics}), `verifiers` (an environment of verifiers 0.3, loaded by its name with the arguments) or `verifiers_v1` (a taskset of verifiers 0.4,
    with the other settings of its environment as arguments; by default its agent is the `null` harness on this machine). A reward of None leaves
    the verdict to the problem's verifier. python: the interpreter that has them. workers: processes, each of which plays many episodes at once.
    call: how the policy writes calls of tools. described: whether the chat template shows tools; else the policy has to know them. turns: of the
    policy, of one episode, at most. tokens: of a conversation after its prompt. seconds: of the program's work between two answers; past them the
    episode is `infrastructure`.
    """

    def __init__(
        self,
        *,
        program: str,
        kind: Literal["function", "verifiers", "verifiers_v1"] = "function",
        arguments: Mapping[str, Any] | None = None,
        python: str | None = None,
        workers: int = 1,
        call: Literal["hermes", "function"] = "hermes",
        described: bool = True,
        turns: int = 16,
        tokens: int = 2048,
        seconds: float = 60.0,
    ) -> None:
        self._call, self._described, self._limits, self._seconds = call, described, Limits(turns, tokens), seconds
        command = [python or sys.executable, json.dumps({"kind": kind, "name": program, "arguments": dict(arguments or {})})]
        self._workers = [_Worker(*command) for _ in range(workers)]
        try:
            self._workers[0].start()
        except InfrastructureError as error:
            raise UserError(f"environment '{program}' cannot be had: {error}") from None
        self._numbers = itertools.count()
        self._door = Door()
        self._template: Template | None = None

    def prompt(self, tokenizer: Any, problem: Problem, settings: PromptSettings) -> Prompt:
        """See `Environment.prompt`. The program puts the problem in its own words; this is what stands for it where it never did."""
        if self._template is None:
            self._template = Template(tokenizer, self._described)
        return Prompt(prompting.prompt_ids(tokenizer, problem, settings), prompting.conversation(tokenizer, problem, settings))

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """See `Environment.run`.

        Raises:
            UserError: guidance has changed the prompt, which the program does not know.
        """
        if task.trained_prompt is not None:
            raise UserError("environment 'harness' puts problems in its own words, so guidance cannot hint in the prompt")
        assert self._template is not None
        number = next(self._numbers)
        worker = self._workers[number % len(self._workers)]
        branches = Branches(engine, self._template, task, path, self._call, self._limits)
        line = self._door.line()
        try:
            await asyncio.to_thread(worker.begin, number, told_of(task.problem), line)
            ended = await self._listen(line, branches)
        finally:
            line.close()
            await asyncio.to_thread(worker.end, number)
        if ended.error and not branches.full:
            raise InfrastructureError(ended.error)
        if not branches.turns:
            raise InfrastructureError("the harness ended without asking the policy")
        value = None if ended.error else worth(ended.reward, "the harness")
        return branches.episode(None if value is None else judged(value), _figures(ended.metrics))

    async def _listen(self, line: Line, branches: Branches) -> Ended:
        """Answer until the program has ended, or asks on and on for what it cannot have.

        Raises:
            InfrastructureError: it does nothing.
        """
        while len(branches.refused) <= REFUSALS:
            try:
                event = await line.next(self._seconds)
            except TimeoutError:
                raise InfrastructureError(f"the harness did nothing for {self._seconds:g} seconds") from None
            if not isinstance(event, Asked):
                return event
            await branches.answer(event)
        return Ended(error=f"the harness sent {len(branches.refused)} requests that were refused, the last: {branches.refused[-1]}")


def _figures(metrics: object) -> dict[str, float]:
    """Those that are numbers, by names that a journal can take."""
    given = sorted(metrics.items()) if isinstance(metrics, Mapping) else []
    numbers = [(name, float(value)) for name, value in given if is_figure(name, value)]
    return dict(numbers[:METRICS])


@dataclass
class _Playing:
    process: Process
    line: Line
    over: threading.Event = field(default_factory=threading.Event)


class _Worker:
    """A process that plays many episodes at once; a new one where it is gone."""

    def __init__(self, python: str, what: str) -> None:
        self._python, self._what = python, what
        self._process: Process | None = None
        self._lock = threading.Lock()
        self._playing: dict[int, _Playing] = {}

    def start(self) -> Process:
        """
        Raises:
            InfrastructureError: it cannot be had; says why.
        """
        self._process = process = Process(self._python, HOST, self._what)
        told = process.receive(STARTUP_SECONDS)
        if "error" in told:
            process.kill()
            raise InfrastructureError(str(told["error"]))
        threading.Thread(target=self._listen, args=(process,), daemon=True, name="harness").start()
        return process

    def begin(self, number: int, row: Mapping[str, Any], line: Line) -> None:
        """Have an episode played, whose end the line hears."""
        with self._lock:
            process = self._process if self._process is not None and not self._process.gone else self.start()
            self._playing[number] = _Playing(process, line)
            process.send({"episode": number, "row": row, "url": line.url})

    def end(self, number: int) -> None:
        """Have it stop, if it has not; where it does not, the process ends, with all that it plays."""
        playing = self._playing.get(number)
        try:
            if playing is None or playing.over.is_set() or playing.process.gone:
                return
            with self._lock:
                playing.process.send({"cancel": number})
            if not playing.over.wait(END_SECONDS):
                playing.process.kill()
        except InfrastructureError:
            pass  # it is gone, so the episode is over all the more
        finally:
            self._playing.pop(number, None)

    def _listen(self, process: Process) -> None:
        """Pass on what the process says, while it lives."""
        try:
            while True:
                told = process.receive(None)
                number = told.get("episode")
                playing = self._playing.get(number) if isinstance(number, int) else None
                if playing is not None and playing.process is process:
                    self._over(playing, Ended(told.get("reward"), told.get("metrics"), str(told.get("error", ""))[:2000]))
        except InfrastructureError as error:
            for playing in list(self._playing.values()):
                if playing.process is process:
                    self._over(playing, Ended(error=str(error)))

    def _over(self, playing: _Playing, ended: Ended) -> None:
        playing.over.set()
        playing.line.put(ended)
