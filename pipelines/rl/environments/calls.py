"""Calls of tools as a policy writes them, and results as its chat template puts them before it. Nothing that was sampled is tokenised again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError
from pipelines.prompting import END_THINK, THINK


@dataclass(frozen=True)
class Call:
    """arguments: by name, or the one argument as it was written."""

    tool: str
    arguments: dict[str, Any] | str


@dataclass(frozen=True)
class Malformed:
    """What was meant as a call, and why it is none."""

    reason: str


_MARKED = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*([A-Za-z_]\w{0,63})\((.*)\)\s*", re.DOTALL)


def hermes(text: str) -> list[Call | Malformed]:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them: Qwen2.5, Qwen3, Hermes."""
    return [_object(inside) if closed else Malformed("<tool_call> is never closed") for inside, closed in _MARKED.findall(text)]


def function(text: str) -> list[Call | Malformed]:
    """`<tool_call>name(argument)</tool_call>`, for tools of one argument, which is taken as it is written: short enough for the embedded model."""
    found: list[Call | Malformed] = []
    for inside, closed in _MARKED.findall(text):
        match = _FUNCTION.fullmatch(inside)
        if closed and match:
            found.append(Call(match[1], match[2]))
        else:
            found.append(Malformed("expected name(argument)" if closed else "<tool_call> is never closed"))
    return found


FORMATS: dict[str, Callable[[str], list[Call | Malformed]]] = {"hermes": hermes, "function": function}


def outside_thought(text: str) -> str:
    """What a turn says aloud: nothing of what stands in its thinking, closed or not."""
    if END_THINK in text:
        return text.rpartition(END_THINK)[2]
    return text.partition(THINK)[0]


def aside(text: str) -> str:
    """What a turn says beside its calls."""
    aloud = outside_thought(text)
    place = len(text) - len(aloud) if END_THINK in text else 0
    return text[:place] + _MARKED.sub("", aloud) + text[place + len(aloud) :]


def require_shown(tokenizer: Any, text: str, names: Sequence[str]) -> None:
    """
    Raises:
        UserError: the text that the chat template made does not name these tools.
    """
    if missing := [name for name in names if name not in text]:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} does not show tools, here {missing[0]!r}: describe them in "
            "generation.prompt.system and set `described: false`"
        )


def _object(text: str) -> Call | Malformed:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Malformed(f"no JSON ({str(error)[:80]})")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not isinstance(given.get("arguments"), dict):
        return Malformed('expected {"name": ..., "arguments": {...}}')
    return Call(given["name"], given["arguments"])


class Results:
    """Token ids of turns of another `role` than the policy's, up to where the policy answers, as a chat template writes them after a turn that ended.

    They are what the template adds to a conversation for such messages. What it writes itself is tokenised with its special tokens, what was said
    without: a result cannot open or close a turn.
    """

    def __init__(self, tokenizer: Any, role: str = "tool") -> None:
        """
        Raises:
            UserError: the template cannot express results, or changes what stands before them.
        """
        self._tokenizer, self._role, self._name = tokenizer, role, tokenizer.name_or_path or "the tokenizer"
        self(["1"])

    def __call__(self, results: Sequence[str]) -> list[int]:
        marks = [f"Result{number}Here" for number in range(len(results))]
        pieces = self._added([{"role": self._role, "content": mark} for mark in marks])
        ids: list[int] = []
        for mark, result in zip(marks, results, strict=True):
            before, found, pieces = pieces.partition(mark)
            if not found:
                raise UserError(f"the chat template of {self._name} drops what role '{self._role}' says; choose a model whose template has it")
            ids += self._tokenizer(before, add_special_tokens=False)["input_ids"]
            ids += self._tokenizer(result, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids + self._tokenizer(pieces, add_special_tokens=False)["input_ids"]

    def _added(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError  # what chat templates are written for

        if self._tokenizer.chat_template is None:
            raise UserError(f"{self._name} has no chat template, so there is no other turn than its own")
        before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            short = self._tokenizer.apply_chat_template(before, tokenize=False)
            long = self._tokenizer.apply_chat_template([*before, *messages], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UserError(f"the chat template of {self._name} has no turns of role '{self._role}': {error}") from None
        end = short.rfind(self._tokenizer.eos_token)
        kept = short[: end + len(self._tokenizer.eos_token)]
        if end < 0 or not long.startswith(kept):
            raise UserError(f"the chat template of {self._name} rewrites earlier turns after role '{self._role}': ids would not stay those sampled")
        return long[len(kept) :]
