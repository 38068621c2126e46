"""Several turns, in which the policy may call tools."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.generation import Engine
from pipelines.records import TOOL, Problem
from pipelines.rl.environments.calls import FORMATS, Call, Malformed, Results, outside_thought, require_shown
from pipelines.rl.environments.conversation import Conversation, judged, turn_keys
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
        require_shown(tokenizer, tokenizer.decode(ids), list(self._box.schemas) if schemas else [])
        return Prompt(ids, prompting.conversation(tokenizer, problem, settings))

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """See `Environment.run`."""
        session = await self._box.begin(task.problem)
        try:
            if session.said:  # as TRL does, behind the problem
                asked = replace(task.problem, prompt=task.problem.prompt + session.said)
                task = replace(task, prompt=self.prompt(engine.tokenizer, asked, engine.settings.prompt))
            conversation = Conversation(engine, task.start, turn_keys((*task.key, path)), self._tokens, task.prompt.messages)
            episode = await _Turns(self, conversation, session, engine.tokenizer).run()
            value = await session.reward()
        finally:
            await session.end()
        return episode if value is None else replace(episode, verdict=judged(value))


class _Turns:
    """One episode, turn by turn."""

    def __init__(self, how: Tools, conversation: Conversation, session: Session, tokenizer: Any) -> None:
        self._how, self._conversation, self._session, self._tokenizer = how, conversation, session, tokenizer
        self._counts = {"turns": 0.0, "tool_calls": 0.0, "tool_errors": 0.0}

    async def run(self) -> Episode:
        said: list[str] = []
        reason, answer = "turns", ""
        while self._counts["turns"] < self._how._turns:
            turn = await self._conversation.turn()
            self._counts["turns"] += 1
            answer = turn.text
            said.append(answer)
            found = self._how._parse(outside_thought(answer))[: self._how._calls]
            unreadable = self._how._malformed == "end" and any(isinstance(call, Malformed) for call in found)
            if turn.finish_reason != "stop" or not found or unreadable:
                reason = turn.finish_reason
                break
            results = [await self._result(call) for call in found]
            assert self._how._results is not None
            if not self._conversation.read(self._how._results(results), TOOL):
                reason = "length"
                break
            said += results
        return Episode(self._conversation.segments, reason, "\n".join(said), answer, figures=self._counts)

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
        most, tokenizer = self._how._result_tokens, self._tokenizer
        start = text[: 16 * most]
        ids = tokenizer(start, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return text if len(ids) <= most and start == text else tokenizer.decode(ids[:most]) + CUT
