"""The engine: loads what judges once, then forks a worker for whoever asks. Math-Verify, reasoning-gym scorers, patterns, measures of likeness.

Run as a script, `python -P engine.py KIND MEMORY PARENT_PID CONTROL_FD [FILTER]`, never imported by the package: the libraries take a second
to import, keep caches that grow, hang on hostile input and only work on a main thread. So they live here, and a fork, which takes
milliseconds, judges behind a memory limit until `workers.py` kills it for taking too long. Math-Verify's own SIGALRM timeouts are off for
that reason. The engine dies with its parent, a fork with the engine or at the end of its input (PR_SET_PDEATHSIG).

On the control socket every byte with two descriptors (requests in, replies out; one line of JSON each) makes a fork; its pidfd goes back.

reasoning-gym scorers call `eval` on the response, so KIND=logic is only ever started inside the sandbox, and a fork judges one item under a
filter of its own (seccomp.py, the last argument): it makes no process and no file and signals nobody. The engine itself cannot be traced.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

TAIL = 4000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2


def _math_judge() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # units=True takes the last letter of 5 - 5c for cents
    exact = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    boxed = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=exact), ExprExtractionConfig()]
    prose = [LatexExtractionConfig(), ExprExtractionConfig()]

    def read(text: str, configuration: Any = boxed) -> list[Any]:
        wrapped = "\\boxed{" + text + "}" if configuration is boxed else text
        return parse(wrapped, configuration, parsing_timeout=None)  # pyright: ignore[reportArgumentType]

    def judge(item: dict[str, Any]) -> dict[str, Any]:
        if "text" in item:
            gold = read(item["prose_gold"][-TAIL:], prose) if item["gold"] is None else read(item["gold"])
            answer = read(item["text"][-TAIL:], prose)
            extracted = str(answer[-1]) if answer else None
            return {"equal": same_expression(gold, answer), "gold_read": bool(gold), "answer_read": bool(answer), "extracted": extracted}
        parsed = {text: read(text) for pair in item["pairs"] for text in pair}
        equal = []
        for gold, answer in item["pairs"]:
            same = same_expression(parsed[gold], parsed[answer])
            if not same and "\\log" in gold and "\\ln" in answer:  # many golds mean the natural logarithm
                same = same_expression(read(gold.replace("\\log", "\\ln")), parsed[answer])
            equal.append(same)
        return {
            "equal": equal,
            "gold_read": [bool(parsed[gold]) for gold, _ in item["pairs"]],
            "answer_read": [bool(parsed[answer]) for _, answer in item["pairs"]],
        }

    judge({"pairs": [["x^2-1", "(x-1)(x+1)"]]})  # the first parse builds tables for a second: not at the cost of an item
    return judge


NEGATIVE = ("-1.3247", "0.8192")
"""One more sample, which tells |x| from x; where a branch of a logarithm or root makes a value complex there, it does not count."""
MOST_SYMBOLS = 12
POINTS = (("0.3719", "0.8391"), ("1.6180", "0.4142"), ("0.7071", "2.2361"))
"""First value and ratio to the next symbol's, of each sample of `agree_at_points`."""


def same_expression(gold: list[Any], answer: list[Any]) -> bool:
    """Math-Verify's word, corrected where it rounds, and agreement at points where it gives up."""
    from math_verify import verify
    from sympy import Expr

    if not gold or not answer:
        return False
    one, other = gold[0], answer[0]
    both = isinstance(one, Expr) and isinstance(other, Expr)
    if both and one.is_number and other.is_number:
        return nearly_equal(one, other)
    if verify(gold, answer, timeout_seconds=None):
        return True
    return both and agree_at_points(one, other)


def nearly_equal(gold: Any, value: Any) -> bool:
    """Two numbers to a relative 1e-6. Math-Verify rounds to six decimals, which makes all tiny numbers equal."""
    from sympy import N, nan, zoo

    if zoo in (gold, value) or nan in (gold, value):
        return False
    if gold == value or gold.is_finite is False or value.is_finite is False:
        return gold == value
    try:
        return abs(complex(N(((gold - value) / gold).doit(), 30) if gold != 0 else N(value.doit(), 30))) <= 1e-6
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return False


def agree_at_points(gold: Any, answer: Any) -> bool:
    """Whether two expressions in the same symbols have the same values at three points; `i` is the imaginary unit where only one has it."""
    from sympy import Float, I, N, Symbol

    gold, answer = (side.subs({symbol: Symbol(symbol.name) for symbol in side.free_symbols}) for side in (gold, answer))  # without assumptions
    if gold.free_symbols != answer.free_symbols:
        gold, answer = (side.subs({Symbol("i"): I, Symbol("I"): I}) for side in (gold, answer))
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not names:
        return nearly_equal(gold.doit(), answer.doit())
    if len(names) > MOST_SYMBOLS:
        return False
    for first, ratio in (*POINTS, NEGATIVE):
        point = {name: Float(first, 30) * Float(ratio, 30) ** k for k, name in enumerate(names)}
        try:
            left, right = (complex(N(side.subs(point).doit(), 25)) for side in (gold, answer))
        except (TypeError, ValueError, OverflowError, ZeroDivisionError, AttributeError):
            return False
        real = abs(left.imag) + abs(right.imag) < 1e-12
        if not abs(left - right) <= 1e-9 * max(1e-6, abs(left)) and (real or first != NEGATIVE[0]):
            return False
    return True


def _logic_judge() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from reasoning_gym import get_score_answer_fn

    def judge(item: dict[str, Any]) -> dict[str, Any]:
        score: Any = get_score_answer_fn(item["task"])
        return {"score": float(score(answer=item["answer"], entry=item["entry"]))}

    return judge


def _text_judge() -> Callable[[dict[str, Any]], dict[str, Any]]:
    import difflib
    import re

    def judge(item: dict[str, Any]) -> dict[str, Any]:
        answer = item["answer"]
        if item["measure"] == "regex":
            try:
                found = re.fullmatch(item["pattern"], answer, sum(getattr(re, flag.upper()) for flag in set(item["flags"])))
                return {"matched": found is not None, "group": found[item["group"] or 0] if found else None}
            except (re.error, IndexError, OverflowError) as error:
                return {"unusable": str(error)}
        return {"score": difflib.SequenceMatcher(None, answer, item["gold"], autojunk=False).ratio()}

    return judge


def _similarity_judge() -> Callable[[dict[str, Any]], dict[str, Any]]:
    import sacrebleu

    measures = {"chrf": sacrebleu.sentence_chrf, "bleu": sacrebleu.sentence_bleu, "ter": sacrebleu.sentence_ter}

    def judge(item: dict[str, Any]) -> dict[str, Any]:
        score = measures[item["measure"]](item["answer"], [item["gold"]]).score
        return {"score": min(1.0, max(0.0, (100 - score if item["measure"] == "ter" else score) / 100))}

    return judge


def _die_with(parent: int) -> None:
    if parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _confine(rules: bytes) -> None:
    """Take on a filter of system calls (struct sock_filter[] of 8 bytes each), for good."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))

    program, libc = Program(len(rules) // 8, rules), ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")


def serve(judge: Callable[[dict[str, Any]], dict[str, Any]], memory: int, requests: int, replies: int) -> None:
    """Judge what comes until the input ends; after an error that may have left the interpreter unsound, no more."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(requests, "rb") as lines, open(replies, "wb", buffering=0) as out:
        for line in lines:
            try:
                reply = judge(json.loads(line))
            except Exception as error:  # noqa: BLE001 -- whatever a library raises on hostile text is this item's result, never the next item's
                reply = {"error": f"{type(error).__name__}: {str(error)[:200]}", "fatal": isinstance(error, MemoryError | RecursionError)}
            out.write(json.dumps(reply).encode() + b"\n")
            if reply.get("fatal"):
                return


def main() -> None:
    kind, memory, parent, control_fd = sys.argv[1], *map(int, sys.argv[2:5])
    rules = bytes.fromhex(sys.argv[5]) if len(sys.argv) > 5 else b""
    _die_with(parent)
    judge = {"math": _math_judge, "text": _text_judge, "similarity": _similarity_judge, "logic": _logic_judge}[kind]()
    if kind == "logic":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are reaped by the kernel
    control = socket.socket(fileno=control_fd)
    control.send(b"r")
    engine = os.getpid()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        child = os.fork()
        if child == 0:
            _die_with(engine)
            control.close()
            if rules:
                _confine(rules)
            serve(judge, memory, *descriptors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        handle = os.pidfd_open(child)
        socket.send_fds(control, [b"f"], [handle])
        os.close(handle)


if __name__ == "__main__":
    main()
