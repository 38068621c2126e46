"""Several turns, in which the policy may call tools."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.errors import UserError
from pipelines.generation import Engine, Key
from pipelines.records import TOOL, Outcome, Problem, Segment, Verdict
from pipelines.rl.environments.calls import FORMATS, Call, Malformed, Results, outside_thought
from pipelines.rl.environments.hosted import Hosted
from pipelines.rl.environments.toolbox import Builtin, Session, Toolbox
from pipelines.rl.episodes import Episode, Prompt, Task

CUT = " ..."
"""Ends a result that was too long."""


class Tools:
    """The policy answers, and where its turn calls tools it reads their results and answers again; the turn that calls none is judged.

    tools: those that come with Touchstone. factory: instead of them, MODULE:CLASS of an environment class as TRL's `environment_factory` takes it,
    which runs in `workers` processes of the interpreter `python` (host.py); it may judge the episode itself. call: how calls are written
    (`hermes` is the JSON of Qwen and others; `function` is name(argument)). turns: of the policy, at most. calls: of one turn that are heeded.
    tokens: of all after the prompt, results included. result_tokens: of one result; seconds: of one call. malformed: whether a call that cannot be
    read is an `error` that the policy reads, or the `end`. described: whether the chat template shows the tools in the prompt; else the policy has
    to know them.
    """

    def __init__(
        self,
        *,
        tools: tuple[str, ...] = ("calculator",),
        factory: str | None = None,
        workers: int = 2,
        python: str | None = None,
        call: Literal["hermes", "function"] = "hermes",
        turns: int = 4,
        calls: int = 4,
        tokens: int = 512,
        result_tokens: int = 64,
        seconds: float = 5.0,
        malformed: Literal["error", "end"] = "error",
        described: bool = True,
    ) -> None:
        self._box: Toolbox = Builtin(tools, seconds) if factory is None else Hosted(factory, seconds, workers, python)
        self._parse, self._turns, self._calls = FORMATS[call], turns, calls
        self._tokens, self._result_tokens, self._malformed, self._described = tokens, result_tokens, malformed, described
        self._results: Results | None = None

    def prompt(self, tokenizer: Any, problem: Problem, settings: PromptSettings) -> Prompt:
        """See `Environment.prompt`."""
        if self._results is None:
            self._results = Results(tokenizer)
        schemas = list(self._box.schemas.values()) if self._described else []
        ids = prompting.prompt_ids(tokenizer, problem, settings, schemas)
        if schemas and (missing := [name for name in self._box.schemas if name not in tokenizer.decode(ids)]):
            raise UserError(
                f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} does not show tools, here {missing[0]!r}: describe them in "
                "generation.prompt.system and set `described: false`"
            )
        return Prompt(ids, prompting.conversation(tokenizer, problem, settings))

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """See `Environment.run`."""
        session = await self._box.begin(task.problem)
        try:
            if session.said:  # as TRL does, behind the problem
                asked = replace(task.problem, prompt=task.problem.prompt + session.said)
                task = replace(task, prompt=self.prompt(engine.tokenizer, asked, engine.settings.prompt))
            episode = await _Conversation(self, task, (*task.key, path), engine, session).run()
            worth = await session.reward()
        finally:
            await session.end()
        if worth is None:
            return episode
        return replace(episode, verdict=Verdict(Outcome.CORRECT if worth == 1 else Outcome.WRONG, worth, detail="by the environment"))


class _Conversation:
    """One episode, turn by turn."""

    def __init__(self, how: Tools, task: Task, key: Key, engine: Engine, session: Session) -> None:
        self._how, self._task, self._key, self._engine, self._session = how, task, key, engine, session
        self._segments = task.start
        self._used = sum(len(segment.ids) for segment in task.opening)
        self._room = min(how._tokens, engine.context - len(task.prompt.ids))
        self._counts = {"turns": 0.0, "tool_calls": 0.0, "tool_errors": 0.0}

    async def run(self) -> Episode:
        opening = [token for segment in self._task.opening for token in segment.ids]
        said = [self._engine.tokenizer.decode(opening) if opening else ""]
        reason = "turns"
        while self._counts["turns"] < self._how._turns:
            turn = await self._turn()
            said = [said[0] + turn.text] if self._counts["turns"] == 1 else [*said, turn.text]
            found = self._how._parse(outside_thought(said[-1]))[: self._how._calls]
            unreadable = self._how._malformed == "end" and any(isinstance(call, Malformed) for call in found)
            if turn.finish_reason != "stop" or not found or unreadable:
                reason = turn.finish_reason
                break
            results = [await self._result(call) for call in found]
            if not self._read(results):
                reason = "length"
                break
            said += results
        return Episode(self._segments, reason, "\n".join(said), said[-1], figures=self._counts)

    async def _turn(self) -> Any:
        """What the policy says next."""
        number = int(self._counts["turns"])
        key = (*self._key, number) if number else self._key
        ids = [token for segment in self._segments for token in segment.ids]
        turn = await self._engine.sample(ids, key, max(int(self._room) - self._used, 1), self._task.prompt.messages)
        self._segments.append(turn.segment)
        self._used += len(turn.segment.ids)
        self._counts["turns"] += 1
        return turn

    def _read(self, results: list[str]) -> bool:
        """Let the policy read these, if there is room left to answer."""
        assert self._how._results is not None
        ids = self._how._results(results)
        if self._used + len(ids) >= self._room:
            return False
        self._segments.append(Segment(TOOL, ids))
        self._used += len(ids)
        return True

    async def _result(self, call: Call | Malformed) -> str:
        """What the policy reads of a call."""
        self._counts["tool_calls"] += 1
        try:
            if isinstance(call, Malformed):
                raise ValueError(call.reason)
            if call.tool not in self._how._box.schemas:
                raise ValueError(f"there is no tool {call.tool[:40]!r}; known: {', '.join(self._how._box.schemas)}")
            text = await self._session.call(call.tool, call.arguments)
        except ValueError as error:
            self._counts["tool_errors"] += 1
            text = f"error: {error}"
        return self._cut(text)

    def _cut(self, text: str) -> str:
        """A result in at most `result_tokens`; of a flood only the beginning is tokenised."""
        most, tokenizer = self._how._result_tokens, self._engine.tokenizer
        start = text[: 16 * most]
        ids = tokenizer(start, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return text if len(ids) <= most and start == text else tokenizer.decode(ids[:most]) + CUT
