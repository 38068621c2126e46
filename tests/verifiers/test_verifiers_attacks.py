"""No program of attacks.py passes, escapes, fills the machine, outlives its limit or leaves something behind.

Every attack faces call tests and a stdin test, or a `check` and asserts, whose answers cannot be guessed, and all four in the long set. What it does is measured on the machine
(host_effects.py), not read off its score.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import ATTACKS, TOKEN
from host_effects import Effects, measured
from verifier_cases import fenced, problem

from pipelines.verifiers import Limits, ProgramLimits, VerifierPool, probe

pytestmark = pytest.mark.skipif(bool(probe()), reason=probe())
SECONDS = 1.0
LIMITS = ProgramLimits(seconds=SECONDS, total_seconds=3.0, memory=128 << 20, tmpfs=16 << 20, file_size=8 << 20)
BETWEEN_LOOKS = 256 << 20
"""What can be had beyond the bound on memory before it is seen, on a busy machine. Without a bound 32 processes have 4 GiB."""
OTHERS = 128 << 20
"""What the machine's other work may add to its shared and kernel memory meanwhile."""
ANSWERS = [918273, 645549, 192837]
KINDS = {
    "calls": problem("", "code", entry_point="f", tests=[{"args": [n], "expected": answer} for n, answer in enumerate(ANSWERS)], time_limit=SECONDS),
    "check": problem(
        "",
        "code",
        entry_point="f",
        check="def check(candidate):\n" + "\n".join(f"    assert candidate({n}) == {answer}" for n, answer in enumerate(ANSWERS)),
        time_limit=SECONDS,
    ),
    "asserts": problem("", "code", asserts=[f"assert [f({n})] == [{answer}]" for n, answer in enumerate(ANSWERS)], time_limit=SECONDS),
    "stdin": problem("", "code", stdin_tests=[{"input": f"{n}\n", "output": f"{answer}\n"} for n, answer in enumerate(ANSWERS)], time_limit=SECONDS),
}
@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2, limits=Limits(program=LIMITS)) as shared:
        yield shared


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server on the host that nobody may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.fixture(scope="module")
def honest(pool: VerifierPool) -> Effects:
    """What a program that only waits does."""
    with measured() as effects:
        pool.verify_batch([(task, fenced("import time\ntime.sleep(0.3)\ndef f(x): return None")) for task in KINDS.values()])
    return effects


def test_there_are_at_least_a_hundred() -> None:
    assert len(ATTACKS) >= 100


def test_the_measure_sees_a_sandbox(honest: Effects) -> None:
    assert honest.processes >= 2 and honest.memory > 1 << 20 and honest.mounts == {"/tmp"} and not honest.left
    assert honest.capabilities == {"0" * 16}


TRIES = 4
"""Where memory is bounded by looking, a machine that is busy with other work looks late: an attack is held if it is once it is seen in time."""


PAIRS = {name: [("calls", "stdin"), ("check", "asserts")][number % 2] for number, name in enumerate(ATTACKS)}
CASES = [(name, PAIRS[name]) for name in ATTACKS] + [pytest.param(name, tuple(KINDS), marks=pytest.mark.long) for name in ATTACKS]


@pytest.mark.parametrize(("name", "kinds"), CASES, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_no_attack_passes_escapes_or_stays(pool: VerifierPool, port: int, honest: Effects, name: str, kinds: tuple[str, ...]) -> None:
    source = fenced(ATTACKS[name].replace("PORT", str(port)))
    for _ in range(TRIES):
        started = time.monotonic()
        with measured() as effects:
            verdicts = dict(zip(kinds, pool.verify_batch([(KINDS[kind], source) for kind in kinds]), strict=True))
        seconds = time.monotonic() - started
        assert not [kind for kind, verdict in verdicts.items() if verdict.score > 0 or verdict.correct], verdicts
        assert effects.files <= LIMITS.tmpfs and effects.mounts <= {"/tmp"}
        assert effects.processes <= LIMITS.processes + honest.processes
        assert effects.namespaces <= honest.namespaces and effects.capabilities <= {"0" * 16}
        assert effects.shared <= 4 * LIMITS.tmpfs + OTHERS
        assert effects.memory <= 2 * LIMITS.processes * LIMITS.memory  # whatever the look misses: two at a time
        assert not effects.left and not traces()
        # two at a time, each at most the total limit, and a start on a busy machine
        in_time = seconds < len(kinds) / 2 * (3.0 + 0.5) + 3.0 and "infrastructure" not in {verdict.outcome.value for verdict in verdicts.values()}
        seen = effects.memory <= LIMITS.memory + LIMITS.tmpfs + BETWEEN_LOOKS and effects.kernel <= 2 * (LIMITS.memory + LIMITS.tmpfs) + OTHERS
        if in_time and seen:
            return
    pytest.fail(f"in {TRIES} tries never held: {seconds:.1f} s, {effects}, {verdicts}")


def test_many_processes_that_hold_too_much_together_are_stopped_and_told(pool: VerifierPool) -> None:
    started = time.monotonic()
    verdict = pool.verify(KINDS["calls"], fenced(ATTACKS["memory in many processes"]))
    assert (verdict.outcome.value, time.monotonic() - started < 2.0) == ("crash", True)
    assert verdict.detail == "0 of 3 tests passed; test 1: memory limit of all its processes and files exceeded"


def traces() -> list[str]:
    """Where an attack that could write there has left its file."""
    folders = ("/tmp", "/var/tmp", "/dev/shm", "/usr", "/usr/lib", "/", "/root", "/home", os.getcwd())
    return [folder for folder in folders if (Path(folder) / TOKEN).exists()]


def test_a_solution_passes_each_kind(pool: VerifierPool) -> None:
    honest = f"ANSWERS = {ANSWERS}\ndef f(x): return ANSWERS[x]\nif __name__ == '__main__': print(f(int(input())))"
    verdicts = pool.verify_batch([(task, fenced(honest)) for task in KINDS.values()])
    assert all(verdict.correct for verdict in verdicts), verdicts


def test_the_program_never_sees_what_it_is_judged_by(pool: VerifierPool) -> None:
    """A program that searches every object of its interpreter finds no expected value, but finds one that was put there."""
    reversed_answers = [str(answer)[::-1] for answer in ANSWERS]
    spy = (
        "import gc, re\n"
        f"WANTED = {reversed_answers}\n"
        "NUMBER = r'(?<!\\w)%s(?!\\w)'  # no part of an address that happens to hold it\n"
        "def f(x):\n"
        "    objects = (o for o in gc.get_objects() if isinstance(o, (tuple, list, dict)))\n"
        "    return 'seen' if any(re.search(NUMBER % wanted, str(o)[::-1]) for o in objects for wanted in WANTED) else 'blind'\n"
        "if __name__ == '__main__': print(f(input()))\n"
    )
    for kind, task in KINDS.items():
        assert "seen" not in pool.verify(task, fenced(spy)).detail, kind
    told = problem("", "code", **{**KINDS["calls"].args, "setup": f"SECRET = {ANSWERS}"})
    assert "seen" in pool.verify(told, fenced(spy)).detail
