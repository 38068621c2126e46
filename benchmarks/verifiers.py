"""Are the verifiers right, fast and bounded: `python -m benchmarks.verifiers [--data ../shared/data]`.

Right: agreement with labels on public verifier test suites, adversarial pairs and graded model outputs, beside Math-Verify called the way its
README says, in series, in the same run. Fast: verdicts a second on the graded sets against Math-Verify, on the exact path alone, and milliseconds a
sandboxed program. Bounded: a thousand hostile items in a row, with the longest verdict, processes left and memory before and after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipelines.records import Outcome, Problem
from pipelines.verifiers import Limits, ProgramLimits, VerifierPool

Row = dict[str, Any]
HOSTILE_LIMITS = Limits(engine_seconds=0.5, program=ProgramLimits(seconds=0.5, total_seconds=0.5))
HOSTILE_MATHS = (
    r"\boxed{9^9^9^9}",
    r"\boxed{10000000!}",
    r"\boxed{(7^{99999})^{99999}}",
    r"\boxed{\sum_{n=1}^{99999999} \sin(n^n)}",
    r"\boxed{" + "(" * 900 + "}",
    r"\boxed{" + r"\frac{1}{" * 150 + "x" + "}" * 150 + "}",
    r"\boxed{" + "+".join(f"x_{n}^{n}" for n in range(99)) + "}",
    r"\boxed{\int_0^1 \frac{\sin(x^x)}{x^{x^x}} dx}",
    r"\boxed{__import__('os').system('true')}",
    r"\boxed{" * 200,
    "\x00\ud800\\boxed{1}",
    "1" * 100_000,
    "$" * 5_000,
)
HOSTILE_PROGRAMS = (
    "while True: pass",
    "import os\nwhile True: os.fork()",
    "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "while True: print('x' * 65536)",
    "import os; os._exit(0)",
    "def f(x): return 9 ** 9 ** 9",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(600)",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verifiers", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with verifier/, graded/ and tasks/")
    parser.add_argument("--hostile", type=int, default=1000, help="hostile items in a row")
    options = parser.parse_args()
    figures: dict[str, Any] = {"agreement": []}
    print(f"{'set':<28}{'rows':>6}{'right':>8}{'share':>8}{'false +':>9}{'false -':>9}{'seconds':>9}    math-verify: right  false +  seconds")
    math_verify("x + 1", "$1 + x$")
    with VerifierPool() as pool:
        pool.verify_batch([(maths("x+1"), rf"\boxed{{{n}+x}}") for n in range(8)])  # both have loaded their libraries
        for name, file, wanted, response, label in sets():
            rows = [row for row in read(options.data / file) if wanted(row)]
            figures["agreement"].append(agreement(pool, name, rows, response, label))
    ours, theirs = (sum(entry[key] for entry in figures["agreement"] if entry["set"] in GRADED) for key in ("seconds", "math_verify_seconds"))
    figures["times_math_verify"] = round(theirs / ours, 1)
    figures |= exact_path(options.data) | sandbox() | golds(options.data) | hostile(options.hostile)
    for name, value in figures.items():
        if name != "agreement":
            print(f"{name:<46}{value!s:>14}")
    print(json.dumps(figures))


GRADED = ("math_qwen25_100x8", "gsm8k_openai_solutions", "gsm8k_tora")


def sets() -> list[tuple[str, str, Callable[[Row], bool], str, str]]:
    """(name, file, which rows, field of the response, field of the label)."""
    return [
        ("peer maths, undisputed", "verifier/peer_tests.jsonl", lambda row: row["kind"] == "math" and not row["disputed"], "prediction", "expected"),
        ("adversarial, no policy", "verifier/adversarial.jsonl", lambda row: not row["policy"], "prediction", "expected"),
        ("math_qwen25_100x8", "graded/math_qwen25_100x8.jsonl", _all, "output", "label"),
        ("gsm8k_openai_solutions", "graded/gsm8k_openai_solutions.jsonl", _all, "output", "label"),
        ("gsm8k_tora", "graded/gsm8k_tora.jsonl", _all, "prediction", "label"),
    ]


def _all(_: Row) -> bool:
    return True


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def maths(answer: object) -> Problem:
    return Problem("benchmark", "math", "", str(answer), "expression", "math")


def code(**arguments: Any) -> Problem:
    return Problem("benchmark", "code", "", "", "program", "code", json.dumps(arguments))


def agreement(pool: VerifierPool, name: str, rows: Sequence[Row], response: str, label: str) -> Row:
    """Ours and Math-Verify on one set."""
    started = time.perf_counter()
    verdicts = pool.verify_batch([(maths(row["gold"]), row[response]) for row in rows])
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    peer = [math_verify(str(row["gold"]), row[response]) for row in rows]
    peer_seconds = time.perf_counter() - started
    ours = Counter((verdict.correct, bool(row[label])) for verdict, row in zip(verdicts, rows, strict=True))
    theirs = Counter((said, bool(row[label])) for said, row in zip(peer, rows, strict=True))
    entry = {
        "set": name,
        "rows": len(rows),
        "right": ours[True, True] + ours[False, False],
        "false_positives": ours[True, False],
        "false_negatives": ours[False, True],
        "seconds": round(seconds, 2),
        "math_verify_right": theirs[True, True] + theirs[False, False],
        "math_verify_false_positives": theirs[True, False],
        "math_verify_seconds": round(peer_seconds, 2),
    }
    print(
        f"{name:<28}{len(rows):>6}{entry['right']:>8}{entry['right'] / len(rows):>8.2%}{entry['false_positives']:>9}{entry['false_negatives']:>9}"
        f"{seconds:>9.2f}{entry['math_verify_right']:>22}{entry['math_verify_false_positives']:>9}{peer_seconds:>9.2f}",
        flush=True,
    )
    return entry


def math_verify(gold: str, response: str) -> bool:
    """The library's own way: parse both, verify; a gold without a dollar sign or a box is put between dollar signs."""
    from math_verify import parse, verify

    marked = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
    return bool(verify(parse(marked), parse(response)))


def exact_path(data: Path) -> Row:
    """Verdicts a second where no engine is needed."""
    rows = read(data / "graded/gsm8k_tora.jsonl")
    pairs = [(maths(row["gold"]), f"\\boxed{{{row['prediction']}}}") for row in rows] * 20
    with VerifierPool() as pool:
        started = time.perf_counter()
        pool.verify_batch(pairs)
        return {"exact_path_per_second": round(len(pairs) / (time.perf_counter() - started))}


def sandbox() -> Row:
    """Milliseconds a trivial program, alone and two at a time; and busy programs two at a time that need most of their limit."""
    trivial = code(entry_point="f", tests=[{"args": [1], "expected": 2}])
    programs = [f"```python\ndef f(x): return x + 1  # {n}\n```" for n in range(100)]
    with VerifierPool(1) as pool:
        alone = [pool.verify(trivial, program).seconds for program in programs]
    with VerifierPool(2) as pool:
        started = time.perf_counter()
        pool.verify_batch([(trivial, program + " ") for program in programs])
        both = (time.perf_counter() - started) / len(programs)
        busy = code(entry_point="f", tests=[{"args": [n], "expected": n} for n in range(3)], time_limit=2.0)
        spin = "import time\ndef f(x):\n    while time.process_time() < 0.5 * (x + 1): pass\n    return x"
        verdicts = pool.verify_batch([(busy, f"```python\n{spin}  # {n}\n```") for n in range(8)])
    return {
        "sandbox_ms_median_alone": round(1000 * statistics.median(alone), 1),
        "sandbox_ms_each_two_at_once": round(1000 * both, 1),
        "busy_programs_correct_of_8_two_at_once": sum(verdict.correct for verdict in verdicts),
    }


def golds(data: Path) -> Row:
    """Canonical solutions of HumanEval and MBPP, each in sandboxes of its own."""
    humaneval, mbpp = read(data / "tasks/humaneval.jsonl"), read(data / "tasks/mbpp_sanitized.jsonl")
    pairs = [
        (code(check=row["test"], entry_point=row["entry_point"], setup=row["prompt"]), row["prompt"] + row["canonical_solution"]) for row in humaneval
    ]
    pairs += [(code(asserts=row["test_list"], test_imports=row["test_imports"]), row["canonical_solution"]) for row in mbpp]
    with VerifierPool() as pool:
        verdicts = pool.verify_batch([(task, f"```python\n{source}\n```") for task, source in pairs])
    passed = [verdict.correct for verdict in verdicts]
    return {"humaneval_golds": f"{sum(passed[: len(humaneval)])}/{len(humaneval)}", "mbpp_golds": f"{sum(passed[len(humaneval) :])}/{len(mbpp)}"}


def hostile(count: int) -> Row:
    """A pool under fire: `count` items that hang, crash or bomb, each a little different so that no verdict is remembered."""
    me = psutil.Process()
    task = code(entry_point="f", tests=[{"args": [1], "expected": "never"}])
    slowest, late, outcomes = 0.0, 0, Counter[str]()
    with VerifierPool(2, limits=HOSTILE_LIMITS) as pool:
        pool.verify(maths("x+1"), r"\boxed{1+x}")
        before = me.memory_info().rss
        for n in range(0, count, 20):
            batch = [(maths(f"x+{k}"), HOSTILE_MATHS[k % len(HOSTILE_MATHS)] + f" % {k}") for k in range(n, n + 14)]
            batch += [(task, f"```python\n{HOSTILE_PROGRAMS[k % len(HOSTILE_PROGRAMS)]}\n# {k}\n```") for k in range(n, n + 6)]
            for verdict in pool.verify_batch(batch):
                outcomes[verdict.outcome.value] += 1
                slowest = max(slowest, verdict.seconds)
                late += verdict.seconds > 0.5 + 0.5
        workers = me.children(recursive=True)
        largest = max((child.memory_info().rss for child in workers), default=0)
        after = me.memory_info().rss
        fine = pool.verify(maths("x^2-1"), r"\boxed{(x-1)(x+1)}").outcome is Outcome.CORRECT
    left = len(me.children(recursive=True))
    return {
        "hostile_outcomes": dict(sorted(outcomes.items())),
        "hostile_slowest_verdict_seconds": round(slowest, 2),
        "hostile_verdicts_over_limit_plus_half_second": late,
        "hostile_memory_grown_mb": round((after - before) / 1e6, 1),
        "hostile_workers_at_the_end": len(workers),
        "hostile_largest_worker_mb": round(largest / 1e6, 1),
        "hostile_processes_left": left,
        "hostile_next_verdict_right": fine,
    }


if __name__ == "__main__":
    main()
