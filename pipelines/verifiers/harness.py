"""Runs candidate programs inside the sandbox and reports what they did. The package compiles this file and sends it in; it never imports it.

`sandbox.LAUNCHER` provides `stream` and `execute`. The job follows this code on standard input (`stream`; marshal, written by the
trusted side); standard streams then point to /dev/null, and each event leaves as one JSON line on fd 3 (a duplicate of the
descriptor named in argv): [nonce, item, test, status, payload]. Expected values of call and stdin tests never come in here, so a
program that forges lines can only forge answers it would have to know. Assert tests carry their expectation with them and can be
forged by a program that inspects its process: they are the weaker kind.

Only modules that the interpreter has already loaded, or that are built in, are imported: start-up time is paid per verdict. For the same
reason JSON is written by hand (the json package needs re), which also fixes how subclasses with clever methods are seen.
"""

from __future__ import annotations

import marshal
import os
import resource
import signal
import sys
from _json import encode_basestring_ascii as quote  # pyright: ignore[reportMissingImports]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Emit = Callable[[int, str, str], None]

RESULTS = 3
COMMON = ("bisect", "collections", "copy", "functools", "heapq", "itertools", "math", "operator", "random", "re", "string", "typing")
"""Imported once before the items of a batch are forked: programs import them, and each import costs milliseconds."""


def to_json(value: Any, depth: int = 0) -> str:
    if depth > 100:
        raise ValueError("nested deeper than 100")
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(float.__repr__(value), float.__repr__(value))
    if isinstance(value, list | tuple):
        cells = list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value)
        return "[" + ",".join([to_json(cell, depth + 1) for cell in cells]) + "]"
    if isinstance(value, dict):
        pairs = [(key if isinstance(key, str) else to_json(key, depth + 1), cell) for key, cell in dict.items(value)]
        return "{" + ",".join([quote(key) + ":" + to_json(cell, depth + 1) for key, cell in pairs]) + "}"
    raise TypeError(f"returned {type(value).__name__}, which is not JSON")


def describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 -- the candidate's own exception class may raise from __str__
        text = type(error).__name__
    return text[:300]


def limit(item: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (item["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (item["cpu"], item["cpu"] + 1))
    resource.setrlimit(resource.RLIMIT_NPROC, (item["processes"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (item["file_size"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def load(item: dict[str, Any], name: str) -> dict[str, Any]:
    module = type(sys)(name)
    sys.modules[name] = module
    globals()["execute"](item["setup"] + "\n" + item["program"], module.__dict__)
    return module.__dict__


def run_calls(item: dict[str, Any], emit: Emit) -> None:
    try:
        names = load(item, "solution")
    except BaseException as error:  # noqa: BLE001 -- SystemExit and KeyboardInterrupt of a candidate are crashes too
        return emit(-1, "error", quote(describe(error)))
    emit(-1, "loaded", "null")
    for test, (kind, call) in enumerate(item["tests"]):
        try:
            if kind == "args":
                emit(test, "value", to_json(names[item["entry_point"]](*call[0], **call[1])))
            elif kind == "expression":
                emit(test, "value", to_json(eval(call, names)))
            else:
                globals()["execute"](call, names)
                emit(test, "passed", "null")
        except BaseException as error:  # noqa: BLE001 -- as above: whatever the candidate raises is its result
            emit(test, "failed" if kind == "assert" and isinstance(error, AssertionError) else "error", quote(describe(error)))
            return None
    return None


def run_stdin(item: dict[str, Any], emit: Emit) -> None:
    for test, (_, text) in enumerate(item["tests"]):
        with open("/tmp/input", "wb") as file:
            file.write(text)
        child = os.fork()
        if child == 0:
            stdin_child(item)
        _, status = os.waitpid(child, 0)
        with open("/tmp/output", "rb") as file:
            output = file.read(item["output"] + 1)
        if len(output) > item["output"]:
            return emit(test, "error", quote("output limit exceeded"))
        if status:
            with open("/tmp/error", "rb") as file:
                last = file.read(400).decode("utf-8", "replace").strip()
            code = os.waitstatus_to_exitcode(status)
            return emit(test, "error", quote(last or f"exited with status {code}"))
        emit(test, "output", quote(output.decode("utf-8", "replace")))
    return None


def stdin_child(item: dict[str, Any]) -> None:
    os.close(RESULTS)
    for path, flags, target in (("input", os.O_RDONLY, 0), ("output", os.O_WRONLY, 1), ("error", os.O_WRONLY, 4)):
        descriptor = os.open("/tmp/" + path, flags | os.O_CREAT | os.O_TRUNC * (target > 0), 0o600)
        os.dup2(descriptor, target)
    code = 0
    try:
        load(item, "__main__")
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:  # noqa: BLE001 -- reported by the parent as the reason of the crash
        os.write(4, describe(error).encode("utf-8", "replace"))
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        code = code or 1
    os._exit(code & 255)


def run_item(item: dict[str, Any], emit: Emit) -> None:
    limit(item)
    (run_stdin if item["tests"][0][0] == "stdin" else run_calls)(item, emit)


def run_forked(item: dict[str, Any], emit: Emit, flush: Callable[[], None]) -> None:
    """One item of a batch in its own process group, killed at its wall limit. Its events leave together: each write wakes the other side."""
    child = os.fork()
    if child == 0:
        os.setsid()
        run_item(item, emit)
        flush()
        os._exit(0)
    late = False

    def kill(*_: object) -> None:
        nonlocal late
        late = True
        os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, item["wall"])
    os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    emit(-1, "timeout" if late else "end", "null")


def main() -> None:
    job = marshal.load(globals()["stream"])
    os.dup2(int(sys.argv[1]), RESULTS)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(RESULTS + 1, 64)
    sys.argv = [""]
    nonce, write = job["nonce"], os.write

    def send(line: bytes) -> None:
        while line:
            line = line[write(RESULTS, line) :]

    def reporter(item: int, held: list[bytes] | None) -> Emit:
        def emit(test: int, status: str, payload: str) -> None:
            line = f'["{nonce}",{item},{test},"{status}",{payload}]\n'.encode()
            held.append(line) if held is not None else send(line)

        return emit

    reporter(-1, None)(-1, "ready", "null")
    if job["batch"]:
        for module in COMMON:
            __import__(module)
    for index, item in enumerate(job["items"]):
        if job["batch"]:
            held: list[bytes] = []
            run_forked(item, reporter(index, held), lambda held=held: send(b"".join(held)))
            send(b"".join(held))
        else:
            run_item(item, reporter(index, None))
    os._exit(0)


if __name__ == "__main__":
    main()
