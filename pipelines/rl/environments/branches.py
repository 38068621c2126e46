"""What the requests of a harness make of an episode: conversations that grow by sampled ids, and a new one where a request follows none of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.generation import Engine
from pipelines.records import PROMPT, TOOL, Segment, Verdict
from pipelines.rl.environments.calls import FORMATS, Malformed, aside, outside_thought
from pipelines.rl.environments.conversation import Conversation, turn_keys
from pipelines.rl.environments.door import MODEL, Asked
from pipelines.rl.environments.messages import BadRequest, Message, Template, read
from pipelines.rl.episodes import Episode, Task


@dataclass(frozen=True)
class Limits:
    """turns: of an episode. tokens: of a conversation after its prompt."""

    turns: int
    tokens: int


@dataclass(frozen=True)
class Request:
    """What counts of a request. limit: tokens of the answer."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    limit: int | None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Request:
        """How the policy samples the run says, so of those settings only the limit is read.

        Raises:
            BadRequest: it cannot be answered; says why.
        """
        if body.get("n") not in (None, 1):
            raise BadRequest("n: one answer to a request, ask again for another")
        messages, tools = body.get("messages"), body.get("tools") or []
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages: a list of at least one message")
        if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
            raise BadRequest("tools: a list of {type: function, function: {name, description, parameters}}")
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise BadRequest("max_completion_tokens: a positive integer")
        return cls([read(message) for message in messages], tools, limit)


def _is_tool(tool: object) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


class Full(Exception):
    """The policy has no room or no turn left."""


@dataclass
class Branch:
    """A conversation, and the messages that it stands for, the policy's last one included. said: all after the prompt, in words."""

    conversation: Conversation
    messages: list[Message]
    tools: list[dict[str, Any]]
    said: list[str]
    finish_reason: str = ""
    ended: bool = False
    """The last turn closed itself: another may follow it."""

    def precedes(self, request: Request) -> bool:
        """The request goes on from here."""
        before = len(self.messages)
        return len(request.messages) > before and request.messages[:before] == self.messages and request.tools == self.tools


class Branches:
    """All conversations of one episode, the one that was last spoken in at the end."""

    def __init__(self, engine: Engine, template: Template, task: Task, path: int, call: str, limits: Limits) -> None:
        self._engine, self._template, self._task, self._parse, self._limits = engine, template, task, FORMATS[call], limits
        self._keys = turn_keys((*task.key, path))
        self._branches: list[Branch] = []
        self.turns = self._calls = 0
        self.refused: list[str] = []
        """Why, of every request that was."""
        self.full = ""
        """`turns` or `length` where the policy has used up what it had of them."""

    async def answer(self, asked: Asked) -> None:
        """Let the policy answer, or refuse."""
        try:
            request = Request.of(asked.body)
            if self.turns == self._limits.turns:
                self.full = "turns"
                raise Full
            branch = self._branch(request)
        except BadRequest as error:
            self.refused.append(str(error))
            return asked.refuse(str(error))
        except Full:
            self.full = self.full or "length"
            self.refused.append("no room")
            return asked.refuse(f"the maximum context length is reached, in {self.full}: the policy answers no more", "context_length_exceeded")
        before = len(branch.conversation.ids)
        turn = await branch.conversation.turn(request.limit)
        self.turns += 1
        calls = self._found(turn.text, request.tools) if turn.finish_reason == "stop" else []
        message: Message = {"role": "assistant", "content": aside(turn.text).strip() if calls else turn.text}
        if calls:
            message["tool_calls"] = calls
        branch.messages = [*request.messages, read(message)]
        branch.said.append(turn.text)
        branch.finish_reason, branch.ended = turn.finish_reason, turn.segment.ids[-1:] == [self._engine.tokenizer.eos_token_id]
        written = len(turn.segment.ids)
        return asked.answer({
            "id": f"chatcmpl-{self.turns}", "object": "chat.completion", "created": 0, "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if calls else turn.finish_reason}],
            "usage": {"prompt_tokens": before, "completion_tokens": written, "total_tokens": before + written},
        })  # fmt: skip

    def episode(self, verdict: Verdict | None, figures: Mapping[str, float]) -> Episode:
        """What has come of it; at least one turn was answered. figures: what the harness counted, beside ours."""
        *earlier, last = self._branches
        ours = {"turns": float(self.turns), "tool_calls": float(self._calls), "prefix_breaks": float(len(earlier))}
        return Episode(
            last.conversation.segments, self.full or last.finish_reason, "\n".join(last.said), self._last_turn, verdict, {**figures, **ours},
            [branch.conversation.segments for branch in earlier],
        )  # fmt: skip

    @property
    def _last_turn(self) -> str:
        return self._branches[-1].said[-1]

    def _branch(self, request: Request) -> Branch:
        """The one that the request goes on from, which has read what is new, or a new one.

        Raises:
            BadRequest: the chat template cannot express it.
            Full: no room is left to answer.
        """
        for branch in sorted((each for each in self._branches if each.precedes(request)), key=lambda each: -len(each.messages)):
            if branch.conversation.room < 1:
                raise Full
            new = request.messages[len(branch.messages) :]
            ids = self._template.added(branch.messages, new, request.tools) if branch.ended else None
            if ids is None:
                continue
            if not branch.conversation.read(ids, TOOL if all(message["role"] == "tool" for message in new) else PROMPT):
                raise Full
            branch.said += [message["content"] for message in new]
            self._branches.remove(branch)
            self._branches.append(branch)
            return branch
        start = [Segment(PROMPT, self._template.whole(request.messages, request.tools)), *(() if self._branches else self._task.opening)]
        conversation = Conversation(self._engine, start, self._keys, self._limits.tokens, request.messages)
        if conversation.room < 1:
            raise Full
        self._branches.append(Branch(conversation, request.messages, request.tools, []))
        return self._branches[-1]

    def _found(self, text: str, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The calls that the policy wrote and that can be read, as OpenAI's clients take them."""
        found: list[dict[str, Any]] = []
        properties = {tool["function"]["name"]: list((tool["function"].get("parameters") or {}).get("properties") or ()) for tool in tools}
        for call in self._parse(outside_thought(text)) if tools else ():
            if isinstance(call, Malformed):
                continue
            arguments = call.arguments
            if isinstance(arguments, str):
                if len(properties.get(call.tool, ())) != 1:
                    continue
                arguments = {properties[call.tool][0]: arguments}
            function = {"name": call.tool, "arguments": json.dumps(arguments, ensure_ascii=False)}
            found.append({"id": f"call_{self.turns}_{len(found)}", "type": "function", "function": function})
        self._calls += len(found)
        return found
