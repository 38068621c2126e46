"""Chat messages as outside programs send them: what of them counts, and their token ids through a chat template.

What is said in them cannot open or close a turn: special tokens that stand in a message are tokenised as the characters that they are written with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import UserError
from pipelines.rl.environments.calls import require_shown

_SAID = re.compile("\ue000([0-9]{1,5})\ue001")
"""Stands for a special token that was said, by its number, while the template writes the conversation."""

Message = dict[str, Any]
"""role, content (a string), and for an assistant that called tools `tool_calls` [{function: {name, arguments}}] with the arguments parsed."""


ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""As they are sent -> as templates know them."""
_NO_CALLS = "tool_calls is a list of {id, type: function, function: {name, arguments}}"


class BadRequest(Exception):
    """What was asked for is not to be had; the text is for who asked."""


def read(given: object) -> Message:
    """A message without what does not count.

    Raises:
        BadRequest: it is none, or has other content than text.
    """
    role = ROLES.get(str(given.get("role"))) if isinstance(given, Mapping) else None
    if role is None:
        raise BadRequest(f"every message needs a role, one of {', '.join(ROLES)}")
    assert isinstance(given, Mapping)
    message: Message = {"role": role, "content": _text(given.get("content"))}
    if role == "assistant":
        message["content"] = message["content"].strip()
        calls = given.get("tool_calls") or []
        if not isinstance(calls, list):
            raise BadRequest(_NO_CALLS)
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
    return message


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
            raise BadRequest("content parts other than text cannot be shown to this policy")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequest("the content of a message is a string or a list of text parts")
    return content


def _call(call: object) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRequest(_NO_CALLS)
    arguments = function.get("arguments", "")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass  # a template may write it as it is
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


class Template:
    """The chat template of a tokenizer. described: whether it shows tools and calls; else the policy has to know the tools, and calls stand in the
    content, as JSON between `<tool_call>` and `</tool_call>`."""

    def __init__(self, tokenizer: Any, described: bool) -> None:
        """
        Raises:
            UserError: the tokenizer has none.
        """
        self._name = tokenizer.name_or_path or "the tokenizer"
        if tokenizer.chat_template is None:
            raise UserError(f"{self._name} has no chat template, so there are no conversations with it")
        self._tokenizer, self._described = tokenizer, described
        self._special = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)

    def whole(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a conversation, up to where the policy answers.

        Raises:
            BadRequest: the template cannot express it.
            UserError: the template does not show tools.
        """
        return self._ids(self._rendered(messages, tools, answers=True))

    def added(self, before: Sequence[Message], new: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int] | None:
        """Ids of what comes after the end of the turn that `before` ends with, up to where the policy answers; None where the template writes earlier
        turns in another way once others follow.

        Raises: as `whole`.
        """
        short, long = self._rendered(before, tools, answers=False), self._rendered([*before, *new], tools, answers=True)
        end = short.rfind(self._tokenizer.eos_token) + len(self._tokenizer.eos_token)
        return self._ids(long[end:]) if self._tokenizer.eos_token in short and long.startswith(short[:end]) else None

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], answers: bool) -> str:
        """The conversation as text."""
        from jinja2 import TemplateError  # what chat templates are written for

        said = [self._marked(message if self._described else _written(message)) for message in messages]
        shown = [self._marked(dict(tool)) for tool in tools] if self._described else None
        try:
            text = self._tokenizer.apply_chat_template(said, tools=shown or None, tokenize=False, add_generation_prompt=answers)
        except TemplateError as error:
            raise BadRequest(f"the chat template of {self._name} cannot express this conversation: {error}") from None
        require_shown(self._tokenizer, text, [tool["function"]["name"] for tool in shown or ()])
        return text

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            for number, token in enumerate(self._special):
                value = value.replace(token, f"\ue000{number}\ue001")
            return value
        if isinstance(value, Mapping):
            return {self._marked(key): self._marked(inside) for key, inside in value.items()}
        return [self._marked(inside) for inside in value] if isinstance(value, list) else value

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, piece in enumerate(_SAID.split(text)):
            if place % 2 == 0:
                ids += self._tokenizer(piece, add_special_tokens=False)["input_ids"]
            elif int(piece) < len(self._special):
                ids += self._tokenizer(self._special[int(piece)], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def _written(message: Message) -> Message:
    """With its calls in the content."""
    calls = "".join(f"<tool_call>{json.dumps(call['function'], ensure_ascii=False)}</tool_call>" for call in message.get("tool_calls", ()))
    return {"role": message["role"], "content": message["content"] + calls}
