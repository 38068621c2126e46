"""Runs a user's environment class in a process of its own: `python host.py MODULE:CLASS`, JSON lines in and out. Standard library alone, so that the
interpreter may be that of another virtual environment.

The class is as TRL's `environment_factory` takes it: `reset(**row)` returns None or a text that is added to the problem, `get_reward()` a number
(it may be missing), and every other public method is a tool, whose type hints and docstring are its schema. Coroutines may stand for any of them. One
process holds many instances, by the number of the episode.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import re
import sys
import typing

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
RESERVED = ("reset", "get_reward")


def tools(kind: type) -> dict[str, dict]:
    """Schema of every public method but the reserved ones."""
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {name: schema(name, method) for name, method in methods if not name.startswith("_") and name not in RESERVED}


def schema(name: str, method: typing.Callable) -> dict:
    """Of one method: types from its hints, descriptions from a docstring with `Args:` in Google's form."""
    text = inspect.getdoc(method) or ""
    about = dict(re.findall(r"^\s+(\w+)(?:\s*\([^)]*\))?:\s*(.+)$", text.partition("Args:")[2].partition("Returns:")[0], re.MULTILINE))
    hints = typing.get_type_hints(method)
    properties, required = {}, []
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        kind = hints.get(parameter.name, str)
        properties[parameter.name] = {"type": TYPES.get(typing.get_origin(kind) or kind, "string"), "description": about.get(parameter.name, "")}
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": text.partition("\n\n")[0], "parameters": parameters}}


def called(function: typing.Callable, arguments: dict) -> typing.Any:
    """What it returns, awaited if need be."""
    made = function(**arguments)
    return asyncio.run(awaited(made)) if inspect.isawaitable(made) else made


async def awaited(value: typing.Awaitable) -> typing.Any:
    return await value


def answer(kind: type, episodes: dict, request: dict) -> typing.Any:
    """What one request is worth."""
    number, method = request["episode"], request["method"]
    if method == "end":
        episodes.pop(number, None)
        return None
    if method == "reset":
        episodes[number] = kind()
    instance = episodes[number]
    if method == "get_reward" and not hasattr(instance, "get_reward"):
        return None
    return called(getattr(instance, method), request["arguments"])


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the user's code prints is no answer
    module, _, name = sys.argv[1].partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
        told: dict = {"tools": tools(kind)}
    except Exception as error:  # noqa: BLE001 -- whatever the user's code raises is told
        told = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(told), file=out, flush=True)
    episodes: dict = {}
    for line in sys.stdin:
        try:
            told = {"value": answer(kind, episodes, json.loads(line))}
            text = json.dumps(told, default=str)
        except Exception as error:  # noqa: BLE001 -- likewise
            text = json.dumps({"error": f"{type(error).__name__}: {error}"})
        print(text, file=out, flush=True)


if __name__ == "__main__":
    main()
