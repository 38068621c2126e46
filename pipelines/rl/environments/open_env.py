"""An environment behind an OpenEnv server, over its WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from pipelines import prompting, seeding
from pipelines.config.common import PromptSettings
from pipelines.errors import InfrastructureError
from pipelines.extras import require
from pipelines.generation import Engine
from pipelines.records import PROMPT, Problem
from pipelines.rl.environments.calls import Results
from pipelines.rl.environments.conversation import Conversation, judged, turn_keys
from pipelines.rl.episodes import Episode, Prompt, Task

PAUSE_SECONDS = 0.1
"""Before a server that is full is asked again."""
Ask = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""(kind of message, data) -> data of the observation."""


class OpenEnv:
    """The policy's whole turn is an action, and the observation is the next turn of the user, until the environment is done. The rewards of its steps
    add up to the episode's, in [0, 1].

    url: of the server, ws://host:port/ws; its plain HTTP keeps no state. action: name of the action's field that the text goes into, and `more`
    what stands beside it. observation: name of the observation's field that the policy reads. turns: of the policy, at most. tokens: of all after
    the prompt. seconds: of one answer; a slower one ends the episode as `infrastructure`. sessions: most at once, of this process; a server has
    one unless it says that it supports more.
    """

    def __init__(
        self,
        *,
        url: str,
        action: str = "message",
        more: Mapping[str, Any] | None = None,
        observation: str = "text",
        turns: int = 8,
        tokens: int = 1024,
        seconds: float = 10.0,
        sessions: int = 1,
    ) -> None:
        require("websockets", "environment 'open_env'")
        self._url, self._action, self._more, self._observation = url, action, dict(more or {}), observation
        self._turns, self._tokens, self._seconds, self._sessions = turns, tokens, seconds, sessions
        self._results: Results | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def prompt(self, tokenizer: Any, problem: Problem, settings: PromptSettings) -> Prompt:
        """See `Environment.prompt`."""
        if self._results is None:
            self._results = Results(tokenizer, "user")
        return Prompt(prompting.prompt_ids(tokenizer, problem, settings), prompting.conversation(tokenizer, problem, settings))

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """See `Environment.run`."""
        async with engine.place(self, self._sessions), self._session() as ask:
            first = await ask("reset", {"seed": seeding.key(*task.key, path) >> 33})
            asked = replace(task.problem, prompt="\n".join(filter(None, [task.problem.prompt, self._text(first)])))
            task = replace(task, prompt=self.prompt(engine.tokenizer, asked, engine.settings.prompt))
            conversation = Conversation(engine, task.start, turn_keys((*task.key, path)), self._tokens, task.prompt.messages)
            said: list[str] = []
            value, reason = 0.0, "turns"
            for _ in range(self._turns):
                turn = await conversation.turn()
                said.append(turn.text)
                if turn.finish_reason != "stop":
                    reason = turn.finish_reason
                    break
                told = await ask("step", self._more | {self._action: turn.text})
                value += float(told.get("reward") or 0.0)
                if told.get("done"):
                    reason = "stop"
                    break
                assert self._results is not None
                if not conversation.read(self._results([self._text(told)]), PROMPT):
                    reason = "length"
                    break
                said.append(self._text(told))
        verdict = judged(min(max(value, 0.0), 1.0))
        return Episode(conversation.segments, reason, "\n".join(said), said[-1], verdict, {"turns": float((len(said) + 1) // 2)})

    def _text(self, told: Mapping[str, Any]) -> str:
        """
        Raises:
            InfrastructureError: the observation has no such field.
        """
        observation = told.get("observation")
        if not isinstance(observation, Mapping) or self._observation not in observation:
            raise InfrastructureError(f"the observation of {self._url} has no field '{self._observation}': {str(told)[:200]}")
        return str(observation[self._observation])

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Ask]:
        """An environment of one's own: ask(kind, data) -> data.

        Raises:
            InfrastructureError: the server cannot be reached, is too slow, or refuses.
        """
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, WebSocketException

        async def opened() -> Any:
            return await connect(self._url, open_timeout=self._seconds, max_size=1 << 20, proxy=None, ping_interval=None)

        async def told(socket: Any, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
            with contextlib.suppress(ConnectionClosed):  # it may have said why before it left
                await socket.send(json.dumps({"type": kind, "data": data}))
            return json.loads(await asyncio.wait_for(socket.recv(), self._seconds))

        socket, until = None, time.monotonic() + self._seconds

        async def ask(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal socket
            while True:
                socket = socket or await self._aside(opened())
                answer = await self._aside(told(socket, kind, data))
                if answer.get("type") == "observation":
                    return answer["data"]
                if kind != "reset" or (answer.get("data") or {}).get("code") != "CAPACITY_REACHED" or time.monotonic() > until:
                    raise InfrastructureError(f"{self._url} answered {kind} with {str(answer)[:200]}")
                # the session of the episode before may not have ended there yet
                await self._aside(socket.close())
                socket = None
                await asyncio.sleep(PAUSE_SECONDS)

        try:
            yield ask
        except (OSError, WebSocketException, TimeoutError) as error:
            raise InfrastructureError(f"{self._url}: {str(error) or type(error).__name__}") from None
        finally:
            if socket is not None:
                await self._aside(socket.close())

    async def _aside(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do this in a loop that goes on while the policy decodes or trains: servers ask whether somebody is there, and leave who does not answer."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="open_env").start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
