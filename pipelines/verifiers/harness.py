"""Runs candidate programs inside the sandbox and reports what they did. The package compiles this file and sends it in; it never imports it.

`sandbox.LAUNCHER` provides `stream` and `execute`. The job follows this code on standard input (`stream`; marshal, written by the
trusted side); standard streams then point to /dev/null, and the descriptors named in argv become 3, 4, 5. By the job's role:

    single     one program with its call or stdin tests. Events leave as JSON lines on 3: [nonce, item, test, status, payload]. Expected values
               never come in here, so a program that forges lines can only forge answers it would have to know
    batch      many trusted programs, each in a forked child
    candidate  one program that waits for calls on 3 and answers on 4: plain values, as Python literals
    examiner   tests that are code. What they call is answered by a candidate in another sandbox (calls on 4, answers on 5), so the program
               sees arguments and nothing else, and its answers are plain values whatever its classes do

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
HIGH = 1000
"""Where descriptors wait while their places are made free; the usual limit of open files is 1024."""
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


def to_literal(value: Any, depth: int = 0) -> str:
    """Plain data as a Python literal; what is of a subclass is seen as its base."""
    if depth > 100:
        raise ValueError("nested deeper than 100")
    if value is None or value is True or value is False:
        return {None: "None", True: "True", False: "False"}[value]
    base: Any
    for base in (str, bytes, int, complex):
        if isinstance(value, base):
            return base.__repr__(value)
    if isinstance(value, float):
        text = float.__repr__(value)
        if text == "nan":
            raise ValueError("returned nan")
        return text.replace("inf", "1e999")
    if isinstance(value, dict):
        return "{" + ",".join([f"{to_literal(key, depth + 1)}:{to_literal(cell, depth + 1)}" for key, cell in dict.items(value)]) + "}"
    for base, opening, closing, empty in ((list, "[", "]", "[]"), (tuple, "(", ",)", "()"), (set, "{", "}", "set()"), (frozenset, "{", "}", "set()")):
        if isinstance(value, base):
            cells = [to_literal(cell, depth + 1) for cell in base.__iter__(value)]
            return opening + ",".join(cells) + closing if cells else empty
    raise TypeError(f"returned {type(value).__name__}, which is no plain data")


def plain(value: Any) -> str:
    """The literal of a value; of anything that is no plain data, such as a match of a pattern, whether it is true."""
    try:
        return to_literal(value)
    except TypeError:
        return "True" if value else "False"


def describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 -- the candidate's own exception class may raise from __str__
        text = type(error).__name__
    return text[:300]


def limit(item: dict[str, Any]) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:  # on a machine that runs out of memory the sandbox goes first
        file.write("1000")
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


def send_frame(descriptor: int, frame: bytes) -> None:
    rest = len(frame).to_bytes(4, "big") + frame
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read_frame(descriptor: int, most: int) -> bytes | None:
    """The next frame; None at the end, or when it is longer than `most`."""

    def exactly(count: int) -> bytes:
        parts = b""
        while len(parts) < count and (part := os.read(descriptor, count - len(parts))):
            parts += part
        return parts

    length = int.from_bytes(exactly(4), "big")
    frame = exactly(length) if 0 < length <= most else b""
    return frame if length and len(frame) == length else None


def run_candidate(item: dict[str, Any]) -> None:
    """Answer calls: `V` and the literal of (value, arguments, keyword arguments) after the call, or `E` and what was raised."""
    limit(item)
    try:
        names = load(item, "solution")
    except BaseException as error:  # noqa: BLE001 -- whatever the candidate raises is its result
        return send_frame(4, b"E" + describe(error).encode("utf-8", "replace"))
    send_frame(4, b"L")
    while (call := read_frame(3, 1 << 30)) is not None:
        name, args, kwargs = marshal.loads(call)
        try:
            value = names[name](*args, **kwargs)
            answer = b"V" + f"({plain(value)},{to_literal(args)},{to_literal(kwargs)})".encode("utf-8", "surrogatepass")
        except BaseException as error:  # noqa: BLE001 -- as above
            answer = b"E" + describe(error).encode("utf-8", "replace")
        send_frame(4, answer)
    return None


class CandidateError(Exception):
    """The candidate raised, or is gone."""


def answered(most: int) -> bytes:
    frame = read_frame(5, most)
    if frame is None:
        raise CandidateError("the program ended early, or its answer is too large")
    if frame[:1] == b"E":
        said = frame[1:].decode("utf-8", "replace")
        kind = vars(__import__("builtins")).get(said.partition(":")[0])
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not AssertionError:
            raise kind(said.partition(": ")[2])
        raise CandidateError(said)
    return frame[1:]


def stub(name: str, most: int) -> Callable[..., Any]:
    """A function that asks the candidate; changes that it makes to lists, dicts and sets it is given are made here, too."""
    from ast import literal_eval

    def call(*args: Any, **kwargs: Any) -> Any:
        send_frame(4, marshal.dumps((name, args, kwargs)))
        frame = answered(most)
        try:
            value, after, named = literal_eval(frame.decode("utf-8", "surrogatepass"))
            pairs = [*zip(args, after, strict=True), *((cell, named[key]) for key, cell in kwargs.items())]
        except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
            raise CandidateError("the answer is no plain data") from None
        for before, now in pairs:
            if isinstance(before, list) and isinstance(now, list):
                before[:] = now
            elif isinstance(before, (dict, set)) and type(before) is type(now):
                before.clear()
                before.update(now)
        return value

    call.__name__ = name
    return call


def run_examiner(item: dict[str, Any], emit: Emit) -> None:
    limit(item)
    names: dict[str, Any] = {"__name__": "tests"}
    try:
        globals()["execute"](item["setup"], names)
        answered(item["output"])
    except BaseException as error:  # noqa: BLE001 -- the candidate did not load, or the tests' own set-up is broken
        return emit(-1, "error", quote(describe(error)))
    emit(-1, "loaded", "null")
    names |= {name: stub(name, item["output"]) for name in item["names"]}
    for test, (_, statement) in enumerate(item["tests"]):
        try:
            globals()["execute"](statement, names)
        except BaseException as error:  # noqa: BLE001 -- as above
            return emit(test, "failed" if isinstance(error, AssertionError) else "error", quote(describe(error)))
        emit(test, "passed", "null")
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
    given = [int(descriptor) for descriptor in sys.argv[1:]]
    for place, descriptor in enumerate(given):
        os.dup2(descriptor, HIGH + place)
    for place in range(len(given)):
        os.dup2(HIGH + place, RESULTS + place)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(RESULTS + len(given), 1024)
    sys.argv = [""]
    if job["role"] == "candidate":
        run_candidate(job["items"][0])
        os._exit(0)
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
    if job["role"] == "examiner":
        run_examiner(job["items"][0], reporter(0, None))
        os._exit(0)
    batch = job["role"] == "batch"
    for module in COMMON if batch else ():
        __import__(module)
    for index, item in enumerate(job["items"]):
        if batch:
            held: list[bytes] = []
            run_forked(item, reporter(index, held), lambda held=held: send(b"".join(held)))
            send(b"".join(held))
        else:
            run_item(item, reporter(index, None))
    os._exit(0)


if __name__ == "__main__":
    main()
