"""Conversations of several turns, with tools: rows in the form of the chat APIs, and the examples that a chat template makes of them.

A turn is tokenised by itself, as it is when a policy answers turn by turn. Where a template rewrites earlier turns (cuts their thinking), a later
turn does not follow from the ids before it: then an example ends, and the next begins with all that the template shows at that turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines import row_files
from pipelines.config.training import Role
from pipelines.errors import UserError
from pipelines.prompting import END_THINK, THINK
from pipelines.row_files import Malformed
from pipelines.sft.examples import Example, Span

FIELD = "messages"
"""Where a row holds its messages; a file whose first row has it holds conversations."""


class _Called(BaseModel):
    name: str
    arguments: dict[str, Any]

    @field_validator("arguments", mode="before")
    @classmethod
    def _decoded(cls, given: Any) -> Any:
        """The APIs give arguments as JSON text."""
        try:
            return json.loads(given) if isinstance(given, str) else given
        except (ValueError, RecursionError):
            raise ValueError("are no JSON") from None


class _Call(BaseModel):
    model_config = ConfigDict(extra="allow")
    function: _Called


class _Message(BaseModel):
    """Further fields, such as `reasoning_content` or `name`, go to the template as they are."""

    model_config = ConfigDict(extra="allow")
    role: Role
    content: str = ""
    tool_calls: list[_Call] = []
    weight: float = Field(default=1.0, ge=0.0)

    @field_validator("content", mode="before")
    @classmethod
    def _said(cls, given: Any) -> Any:
        return "" if given is None else given  # a message that only calls tools

    def shown(self) -> dict[str, Any]:
        """What the template sees."""
        message = self.model_dump(exclude={"weight", "tool_calls"})
        return message | ({"tool_calls": [call.model_dump() for call in self.tool_calls]} if self.tool_calls else {})


class _Row(BaseModel):
    messages: list[_Message] = Field(min_length=2)
    tools: list[dict[str, Any]] = []
    weight: float = Field(default=1.0, ge=0.0)

    @field_validator("tools", mode="before")
    @classmethod
    def _some(cls, given: Any) -> Any:
        return given or []

    @field_validator("tools")
    @classmethod
    def _named(cls, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if unnamed := next((tool for tool in given if not _name(tool)), None):
            raise ValueError(f"a tool has no name: {str(unnamed)[:60]}")
        return given

    @model_validator(mode="after")
    def _answered(self) -> _Row:
        if not any(message.role == "assistant" for message in self.messages):
            raise ValueError("no message is the assistant's")
        return self


def _name(tool: Mapping[str, Any]) -> str:
    """Of a tool's schema, as the APIs write it or bare; "" where it has none."""
    bare = tool.get("function", tool)
    return str(bare.get("name") or "") if isinstance(bare, Mapping) else ""


@dataclass(frozen=True)
class Conversation:
    """of: hash of its content, by which it is known. weights: one for each message. tools: their schemas."""

    of: str
    messages: Sequence[dict[str, Any]]
    roles: Sequence[Role]
    weights: Sequence[float]
    tools: Sequence[dict[str, Any]]


def holds(path: Path) -> bool:
    """Whether a file's first row has messages."""
    return FIELD in row_files.first(path)


def read(path: Path) -> list[Conversation]:
    """The conversations of a JSONL or Parquet file.

    Raises:
        UserError: a row is none; says which, and what is wrong with it.
    """
    return [_conversation(row, f"{path.name}:{number}") for number, row in row_files.rows(path)]


def _conversation(given: Any, where: str) -> Conversation:
    if isinstance(given, Malformed):
        raise UserError(f"{where}: {given}")
    try:
        row = _Row.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {f'{place}: ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from None
    messages = [message.shown() for message in row.messages]
    of = hashlib.sha256(json.dumps([messages, row.tools], sort_keys=True).encode()).hexdigest()[:16]
    return Conversation(of, messages, [m.role for m in row.messages], [row.weight * m.weight for m in row.messages], row.tools)


def framing(tokenizer: Any) -> list[str]:
    """Tokens that open or close what text must not: turns and whole texts."""
    return [token for token in tokenizer.all_special_tokens if token not in (THINK, END_THINK)]


class Renderer:
    """Conversations to examples, by the chat template of a tokenizer. roles: whose messages the loss is of."""

    def __init__(self, tokenizer: Any, roles: Sequence[Role]) -> None:
        self._tokenizer, self._roles = tokenizer, roles
        self._template = f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
        self._framing = framing(tokenizer)

    def examples(self, conversation: Conversation) -> list[Example]:
        """
        Raises:
            UserError: the template cannot express the conversation, or its text would open or close a turn.
        """
        self._check(conversation)
        found: list[Example] = []
        text, ids, spans = "", list[int](), list[Span]()
        for place, (role, weight) in enumerate(zip(conversation.roles, conversation.weights, strict=True)):
            if role not in self._roles or not weight:
                continue
            before = self._text(conversation, place, answering=role == "assistant")
            after = self._text(conversation, place + 1)
            if not after.startswith(before):
                raise UserError(f"{self._template} writes a turn otherwise once it has been answered: message {place} of {conversation.of}")
            if not before.startswith(text):
                found.append(Example(ids, tuple(spans), conversation.of))
                text, ids, spans = "", [], []
            ids += self._ids(before[len(text) :])
            said = self._said(after[len(before) :], role)
            said_ids = self._ids(said)
            spans.append((len(ids), len(ids) + len(said_ids), weight))
            ids += said_ids
            text = before + said
        if spans:
            found.append(Example(ids, tuple(spans), conversation.of))
        return found

    def _said(self, text: str, role: str) -> str:
        """What of a turn a policy would write: all up to the end of the turn."""
        if role != "assistant":
            return text
        end = text.rfind(self._tokenizer.eos_token)
        if end < 0:
            raise UserError(f"{self._template} does not end the assistant's turns with the end token {self._tokenizer.eos_token}")
        return text[: end + len(self._tokenizer.eos_token)]

    def _text(self, conversation: Conversation, count: int, answering: bool = False) -> str:
        """The first `count` messages as the template writes them. answering: up to where the assistant's next turn starts."""
        from jinja2 import TemplateError  # what chat templates are written for

        if not count and not answering:
            return ""
        try:
            return self._tokenizer.apply_chat_template(
                list(conversation.messages[:count]), tools=list(conversation.tools) or None, tokenize=False, add_generation_prompt=answering
            )
        except TemplateError as error:
            raise UserError(f"{self._template} cannot express conversation {conversation.of}: {error}") from None

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _check(self, conversation: Conversation) -> None:
        said = json.dumps([conversation.messages, conversation.tools], ensure_ascii=False)
        if framing := next((token for token in self._framing if token in said), None):
            raise UserError(f"conversation {conversation.of} holds {framing}, which frames turns: its text could open or close one; remove it")
        whole = self._text(conversation, len(conversation.messages))
        for message in conversation.messages:
            calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
            lost = [message["content"]] if message["role"] == "tool" else calls
            if missing := next((text for text in lost if text.strip() not in whole), None):
                raise UserError(f"{self._template} drops calls of tools or their results, here {missing[:40]!r}: choose a model that has them")
        shown, plain = self._text(conversation, 1), self._text(replace(conversation, tools=()), 1)
        for tool in conversation.tools:
            name = _name(tool)
            if shown.count(name) <= plain.count(name):
                raise UserError(f"{self._template} does not show tools, here {name!r}: describe them in a system message and leave `tools` out")
