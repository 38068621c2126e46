"""The pool: same verdicts from any thread, one judgement per key, no process left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from verifier_cases import fenced, increment, problem

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers import Limits, ProgramLimits, VerifierPool, audit_batch, probe, verify, verify_batch
from pipelines.verifiers.answers import answer_text
from pipelines.verifiers.workers import Workers

PAIRS: list[tuple[Problem, str]] = [
    (problem("12"), r"\boxed{12}"),
    (problem("12"), r"\boxed{13}"),
    (problem("(x+1)^2"), r"\boxed{x^2+2x+1}"),
    (problem("(x+1)^2"), r"\boxed{x^2+2x+2}"),
    (problem("yes", "exact"), "Yes."),
    (problem("yes", "exact", accept=["correct"]), r"\boxed{\text{Correct}}"),
    (problem("yes", "exact"), "no"),
]
EXPECTED = [Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_main_thread_worker_thread_and_asyncio_agree() -> None:
    async def judge() -> list[Verdict]:
        return await asyncio.to_thread(verify_batch, PAIRS)

    async def block() -> list[Verdict]:
        return verify_batch(PAIRS)

    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.extend(verify_batch(PAIRS)))
    thread.start()
    thread.join()
    for verdicts in (verify_batch(PAIRS), found, asyncio.run(judge()), asyncio.run(block()), [verify(*pair) for pair in PAIRS]):
        assert [verdict.outcome for verdict in verdicts] == EXPECTED


def test_same_final_text_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    ask = Workers.ask
    monkeypatch.setattr(Workers, "ask", lambda self, kind, request: (asked.append(request), ask(self, kind, request))[1])
    pair = (problem("(x+1)^2"), r"<think>one</think>\boxed{x^2+2x+1}")
    other = (pair[0], r"<think>two</think>\boxed{x^2+2x+1}")
    with VerifierPool(2) as pool:
        assert all(verdict.correct for verdict in pool.verify_batch([pair, other, pair]))
        assert pool.verify(*other).correct
        assert pool.counts == {"correct": 4}
    assert len(asked) == 1


def test_infrastructure_is_masked_and_never_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.verifiers.programs.require_sandbox", _broken)
    with VerifierPool(1) as pool:
        task, response = increment(1, 2), fenced("def f(x): return x + 1")
        verdict = pool.verify(task, response)
        assert verdict.outcome is Outcome.INFRASTRUCTURE
        assert "apt-get install bubblewrap" in verdict.detail
        monkeypatch.undo()
        assert probe() or pool.verify(task, response).correct


def _broken() -> None:
    from pipelines.errors import InfrastructureError

    raise InfrastructureError("The sandbox needs bubblewrap: install it with `apt-get install bubblewrap`.")


def test_a_bad_row_does_not_end_the_batch() -> None:
    verdicts = verify_batch([(problem("1", "nonsense"), "1"), (problem("1", "logic"), "1"), *PAIRS[:1]])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.INFRASTRUCTURE, Outcome.INFRASTRUCTURE, Outcome.CORRECT]
    assert "nonsense" in verdicts[0].detail


def test_close_leaves_no_process() -> None:
    before = children()
    pool = VerifierPool(2)
    pool.verify_batch(PAIRS)
    assert children() - before
    pool.close()
    assert children() <= before
    with pytest.raises(RuntimeError):
        pool.verify(*PAIRS[2])


HOSTILE = (r"\boxed{9^9^9^9}", r"\boxed{(7^{99999})^{99999}}", r"\boxed{" + "(" * 900 + "}", r"\boxed{\sum_{n=1}^{99999999} \sin(n^n)}", "\x00\ud800")


def test_a_pool_under_fire_is_bounded_and_leaks_nothing() -> None:
    limits = Limits(engine_seconds=0.3, program=ProgramLimits(seconds=0.3, total_seconds=0.3))
    before, descriptors = children(), len(os.listdir("/proc/self/fd"))
    with VerifierPool(2, limits=limits) as pool:
        assert pool.verify(*PAIRS[2]).correct
        open_now, memory = len(os.listdir("/proc/self/fd")), psutil.Process().memory_info().rss
        maths = [(problem(f"x+{n}"), HOSTILE[n % len(HOSTILE)] + f" % {n}") for n in range(60)]
        programs = [] if probe() else [(increment(1), fenced(f"while True: pass  # {n}")) for n in range(6)]
        verdicts = pool.verify_batch(maths + programs)
        assert not any(verdict.correct for verdict in verdicts)
        assert Outcome.TIMEOUT in {verdict.outcome for verdict in verdicts}
        assert Outcome.INFRASTRUCTURE not in {verdict.outcome for verdict in verdicts}
        assert max(verdict.seconds for verdict in verdicts) < 0.3 + 0.5 + 1.0  # the last for a busy machine
        assert len(os.listdir("/proc/self/fd")) <= open_now + 8, "two workers of each kind, four descriptors each"
        assert psutil.Process().memory_info().rss - memory < 20e6
        assert pool.verify(problem("x^2-1"), r"\boxed{(x-1)(x+1)}").correct
    assert children() <= before
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_an_engine_that_was_killed_is_started_again() -> None:
    before = children()
    with VerifierPool(1) as pool:
        assert pool.verify(*PAIRS[2]).correct
        (engine,) = children() - before
        os.kill(engine, signal.SIGKILL)
        time.sleep(0.2)
        assert pool.verify(problem("y^2-1"), r"\boxed{(y-1)(y+1)}").outcome in (Outcome.CORRECT, Outcome.CRASH)
        assert pool.verify(problem("z^2-1"), r"\boxed{(z-1)(z+1)}").correct


def test_workers_die_with_a_killed_parent() -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipelines.verifiers import VerifierPool; from pipelines.records import Problem\n"
        "pool = VerifierPool(1); pool.verify(Problem('i','math','p','x+1','expression','math'), r'\\boxed{1+x+0}')\n"
        "print(*[c for t in Path('/proc/self/task').iterdir() for c in (t / 'children').read_text().split()], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert workers
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_answer_text() -> None:
    assert answer_text("<answer> a b </answer>") == "a b"
    assert answer_text("So the answer is yes.") == "yes"


@pytest.mark.skipif(bool(probe()), reason=probe())
def test_logic_uses_the_dataset_scorer() -> None:
    entry = {"question": "", "answer": "2*3", "metadata": {"numbers": [2, 3], "target": 6, "expression": "2*3"}}
    task = problem("2*3", "logic", task="countdown", entry=entry)
    hostile = "__import__('os').system('touch /tmp/owned') or 2*3"
    verdicts = verify_batch([(task, "<answer>3*2</answer>"), (task, "<answer>3+2</answer>"), (task, f"<answer>{hostile}</answer>")])
    assert [verdict.correct for verdict in verdicts] == [True, False, False]
    poison = "exec('import builtins; builtins.float = lambda x: 1.0') or 2*3"
    with VerifierPool(1) as pool:
        pool.verify(task, f"<answer>{poison}</answer>")
        assert pool.verify(task, "<answer>2+3</answer>").outcome is Outcome.WRONG
    assert not Path("/tmp/owned").exists()


def test_audit_finds_the_broken_gold() -> None:
    problems = [problem("12"), problem(r"\frac{1}{2}"), problem("yes", "exact"), problem("(x+1)^2")]
    assert all(verdict.correct for verdict in audit_batch(problems))
    if not probe():
        verdicts = audit_batch([increment(1, 2), increment(1, 3), *problems[:1]])
        assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT]
