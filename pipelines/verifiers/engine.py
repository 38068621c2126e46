"""The worker process: judges one item per line of JSON with Math-Verify or a reasoning-gym scorer.

Run as a script, `python -P engine.py KIND MEMORY PARENT_PID REPLY_FD`, never imported by the package: the libraries take a second
to import, keep caches that grow, hang on hostile input and only work on a main thread. So they live here, behind a
memory limit, and `workers.py` kills the process when an item takes too long. Math-Verify's own SIGALRM timeouts are
off for that reason. The process dies with its parent (PR_SET_PDEATHSIG) and at the end of its input.

reasoning-gym scorers call `eval` on the response, so KIND=logic is only ever started inside the sandbox.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

TAIL = 4000
PR_SET_PDEATHSIG = 1


def _math_judge() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy import Expr, N

    latex = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    default = [LatexExtractionConfig(), ExprExtractionConfig()]

    def nearly_equal(gold: Any, value: Any) -> bool:
        """Math-Verify rounds to six decimals, which makes all tiny numbers equal: compare relative to the gold instead."""
        if not (isinstance(gold, Expr) and isinstance(value, Expr) and gold.is_number and value.is_number):
            return True
        try:
            return abs(complex(N(((gold - value) / gold).doit(), 30) if gold != 0 else N(value.doit(), 30))) <= 1e-6
        except (TypeError, ValueError, OverflowError):  # no ordinary number, such as an infinity: Math-Verify's word stands
            return True

    def judge(item: dict[str, Any]) -> dict[str, Any]:
        gold = parse("\\boxed{" + item["gold"] + "}", latex, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        if item["answer"] is not None:
            answer = parse("\\boxed{" + item["answer"] + "}", latex, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        else:
            answer = parse(item["text"][-TAIL:], default, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        equal = bool(gold and answer) and verify(gold, answer, timeout_seconds=None) and nearly_equal(gold[0], answer[0])
        return {"equal": equal, "gold_read": bool(gold), "answer_read": bool(answer), "extracted": str(answer[-1]) if answer else None}

    judge({"gold": "x^2-1", "answer": "(x-1)(x+1)", "text": ""})  # the first parse builds tables for a second: not at the cost of an item
    return judge


def _logic_judge() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from reasoning_gym import get_score_answer_fn

    def judge(item: dict[str, Any]) -> dict[str, Any]:
        score: Any = get_score_answer_fn(item["task"])
        return {"score": float(score(answer=item["answer"], entry=item["entry"]))}

    return judge


def _die_with(parent: int) -> None:
    if parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def main() -> None:
    kind, memory, parent, reply_fd = sys.argv[1], *map(int, sys.argv[2:5])
    _die_with(parent)
    replies = os.fdopen(reply_fd, "w", encoding="utf-8")
    judge = {"math": _math_judge, "logic": _logic_judge}[kind]()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies.write(json.dumps({"ready": True}) + "\n")
    replies.flush()
    for line in sys.stdin:
        try:
            reply = judge(json.loads(line))
        except Exception as error:  # noqa: BLE001 -- whatever a library raises on hostile text is this item's result, never the next item's
            reply = {"error": f"{type(error).__name__}: {str(error)[:200]}", "fatal": isinstance(error, MemoryError | RecursionError)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if reply.get("fatal"):
            return


if __name__ == "__main__":
    main()
