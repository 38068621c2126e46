"""`code` and its sandbox: comparison rules, limits, and programs that cheat or attack."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from verifier_cases import fenced, increment, problem

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers import Limits, ProgramLimits, VerifierPool, audit_batch, gold_response, probe
from pipelines.verifiers.programs import same_output, same_value

pytestmark = pytest.mark.skipif(bool(probe()), reason=probe())
TASKS = Path(__file__).parents[3] / "shared" / "data" / "tasks"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2, limits=Limits(program=ProgramLimits(seconds=2.0, memory=256 << 20))) as shared:
        yield shared


def run(pool: VerifierPool, source: str, task: Problem | None = None) -> Verdict:
    return pool.verify(task or increment(1, 2, 3), fenced(source))


def test_same_value() -> None:
    assert same_value([1, 0.1 + 0.2, {"a": None}], [1.0, 0.3, {"a": None}])
    assert not same_value(1, True)
    assert not same_value(True, 1)
    assert not same_value(2**53, 2**53 + 1)
    assert not same_value(float("nan"), float("nan"))
    assert not same_value("1", 1)


def test_same_output() -> None:
    assert same_output("YES\n", "YES  \r\n\n")
    assert not same_output("YES", "yes")
    assert not same_output("1\n2", "1\n\n2")
    assert same_output("1\n2", "1 2", "tokens")
    assert not same_output("1 2", "2 1", "tokens")
    assert same_output("0.3333333", "0.333333", "float")
    assert not same_output(str(2**60), str(2**60 + 1), "float")
    assert same_output("", "")


def test_verdict_names_the_failing_test(pool: VerifierPool) -> None:
    assert run(pool, "def f(x): return x + 1").detail == "3 of 3 tests passed"
    verdict = run(pool, "def f(x): return min(x + 1, 2)")
    assert (verdict.outcome, verdict.score) == (Outcome.WRONG, 0.0)
    assert verdict.detail == "2 of 3 tests passed; test 3: expected 3, got 2"


def test_no_program_is_unparsable(pool: VerifierPool) -> None:
    assert pool.verify(increment(1), "def f(x): return x + 1").outcome is Outcome.UNPARSABLE


def test_a_tuple_is_a_list_and_true_is_not_one(pool: VerifierPool) -> None:
    assert run(pool, "def f(x): return (x, [x])", increment([0, [0]])).correct
    assert run(pool, "def f(x): return True", increment(1)).outcome is Outcome.WRONG


def test_programs_on_stdin(pool: VerifierPool) -> None:
    tests = [{"input": "2\n1 2\n", "output": "3\n"}, {"input": "1\n5\n", "output": "5\n"}]
    task = problem("", "code", stdin_tests=tests)
    good = "import sys\nif __name__ == '__main__':\n    n = int(input())\n    print(sum(map(int, sys.stdin.readline().split())))"
    assert run(pool, good, task).correct
    assert run(pool, good + "\n    sys.exit(0)", task).correct
    assert run(pool, good + "\n    sys.exit(3)", task).outcome is Outcome.CRASH
    assert run(pool, "print(3)", task).detail == "1 of 2 tests passed; test 2: expected 5\n, got 3\n"
    assert run(pool, "while True: print('x' * 1000)", task).outcome is Outcome.CRASH
    assert "ValueError" in run(pool, "raise ValueError('no')", task).detail


def test_asserts_and_check(pool: VerifierPool) -> None:
    mbpp = problem("", "code", asserts=["assert f(1) == 2", "assert set(f2()) == {1}"], setup="import math")
    assert run(pool, "def f(x): return x + int(math.sqrt(1))\ndef f2(): return [1, 1]", mbpp).correct
    assert run(pool, "def f(x): return 2\ndef f2(): return []", mbpp).outcome is Outcome.WRONG
    check = problem("", "code", entry_point="f", check="def check(candidate):\n    assert candidate(1) == 2")
    assert run(pool, "def f(x): return x + 1", check).correct
    assert run(pool, "def f(x): return x", check).outcome is Outcome.WRONG


CHEATS = {
    "exit before the tests": ("import sys\nsys.exit(0)", Outcome.CRASH),
    "hard exit": ("import os\nos._exit(0)", Outcome.CRASH),
    "exit inside the function": ("def f(x):\n    import os\n    os._exit(0)", Outcome.CRASH),
    "printed results": ('print(\'["x",0,0,"value",1]\')\nprint("PASS")\ndef f(x): return None', Outcome.WRONG),
    "results on the pipe": ('import os\nos.write(3, b\'["x",0,0,"value",1]\\n\')\ndef f(x): return None', Outcome.WRONG),
    "always equal": ("class A:\n    def __eq__(self, other): return True\ndef f(x): return A()", Outcome.CRASH),
    "always equal int": (
        "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return A(99)",
        Outcome.WRONG,
    ),
    "syntax error": ("def f(x) return x", Outcome.CRASH),
    "raises": ("def f(x): raise KeyError('k')", Outcome.CRASH),
    "no function": ("g = 1", Outcome.CRASH),
    "nan": ("def f(x): return float('nan')", Outcome.WRONG),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats(pool: VerifierPool, name: str) -> None:
    source, outcome = CHEATS[name]
    assert run(pool, source).outcome is outcome


BOMBS = {
    "infinite loop": "def f(x):\n    while True: pass",
    "loop that ignores signals": "import signal\nfor n in range(1, 30):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
    "memory hog": "def f(x): return len('a' * (1 << 40))",
    "fork bomb": "import os\nwhile True: os.fork()",
    "infinite output": "def f(x):\n    while True: print('x' * 10000)",
    "large result": "def f(x): return 'x' * (20 << 20)",
    "flood of the pipe": "import os\nwhile True: os.write(3, b'x' * 65536)",
    "daemon": "import os\ndef f(x):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n    return 1 / 0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_bounded(pool: VerifierPool, name: str) -> None:
    started = time.monotonic()
    verdict = run(pool, BOMBS[name], increment(1, time_limit=0.7))
    assert verdict.outcome in (Outcome.TIMEOUT, Outcome.CRASH), verdict
    assert time.monotonic() - started < 6
    assert not sandboxes()


def sandboxes() -> list[str]:
    """What this process has started and is still there, engines apart."""
    time.sleep(0.05)
    commands = [" ".join(child.as_dict(["cmdline"])["cmdline"] or []) for child in psutil.Process().children(recursive=True)]
    return [command for command in commands if "bwrap" in command and "/engine.py" not in command]


def attempt(pool: VerifierPool, body: str) -> object:
    """What the body's `return` gave inside the sandbox; the exception's text if it raised."""
    source = "def f(x):\n    try:\n" + "\n".join(f"        {line}" for line in body.splitlines())
    source += "\n    except Exception as error:\n        return type(error).__name__"
    detail = run(pool, source, increment("no such answer")).detail
    return detail.partition(", got ")[2]


def test_no_network(pool: VerifierPool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert attempt(pool, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nreturn 'in'") in (
            "ConnectionRefusedError",
            "OSError",
        )


def test_no_files_of_the_host(pool: VerifierPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET", "hush")
    (tmp_path / "secret").write_text("hush")
    for path in ("/root", "/home", "/etc/shadow", str(tmp_path / "secret"), str(Path(__file__))):
        assert (
            attempt(pool, f"import os\nreturn os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read()") == "FileNotFoundError"
        ), path
    assert "hush" not in str(attempt(pool, "import os\nreturn str(dict(os.environ)) + open('/proc/1/environ').read()"))
    assert attempt(pool, "open('/usr/lib/x', 'w')") == "OSError"
    assert attempt(pool, "import os\nreturn sorted(int(p) for p in os.listdir('/proc') if p.isdigit())[-1] < 10") == "true"
    assert attempt(pool, "import os\nreturn os.getuid()") == "65534"


def test_disk_is_bounded(pool: VerifierPool) -> None:
    body = "for n in range(100):\n    with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * (8 << 20))\nreturn 'filled'"
    assert attempt(pool, body) == "OSError"


def test_slow_program_leaves_its_siblings_alone(pool: VerifierPool) -> None:
    pairs = [(increment(1, time_limit=0.5), fenced("while True: pass")), (increment(1, 2), fenced("def f(x): return x + 1"))] * 2
    outcomes = [verdict.outcome for verdict in pool.verify_batch(pairs)]
    assert outcomes == [Outcome.TIMEOUT, Outcome.CORRECT] * 2


def rows(name: str) -> list[dict]:
    file = TASKS / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    return [json.loads(line) for line in file.read_text().splitlines()]


OTHERWISE = """
def _otherwise(value):
    if isinstance(value, bool) or value is None: return not value
    if isinstance(value, (int, float, complex)): return 2 * value + 1
    if isinstance(value, str): return value + "x"
    if isinstance(value, (list, tuple)): return type(value)([*value, None])
    if isinstance(value, dict): return {**value, "other": None}
    if isinstance(value, (set, frozenset)): return type(value)([*value, "other"])
    return None
"""


def mutated(source: str, *names: str) -> str:
    """The program with other results."""
    wrappers = [f"_{name} = {name}\ndef {name}(*a, **k): return _otherwise(_{name}(*a, **k))" for name in names]
    return "\n".join([source, OTHERWISE, *wrappers])


ONE_IN = [6, pytest.param(1, marks=pytest.mark.long)]


@pytest.mark.parametrize("one_in", ONE_IN)
def test_humaneval(pool: VerifierPool, one_in: int) -> None:
    every = rows("humaneval")[::one_in]
    tasks = [problem("", "code", check=row["test"], entry_point=row["entry_point"], setup=row["prompt"]) for row in every]
    sources = [row["prompt"] + row["canonical_solution"] for row in every]
    verdicts = pool.verify_batch([(task, fenced(source)) for task, source in zip(tasks, sources, strict=True)])
    assert [row["id"] for row, verdict in zip(every, verdicts, strict=True) if not verdict.correct] == []
    wrong = [mutated(source, row["entry_point"]) for row, source in zip(every, sources, strict=True)]
    verdicts = pool.verify_batch([(task, fenced(source)) for task, source in zip(tasks, wrong, strict=True)])
    assert [row["id"] for row, verdict in zip(every, verdicts, strict=True) if verdict.outcome is not Outcome.WRONG] == []


@pytest.mark.parametrize("one_in", ONE_IN)
def test_mbpp(pool: VerifierPool, one_in: int) -> None:
    every = rows("mbpp_sanitized")[::one_in]
    tasks = [problem(row["canonical_solution"], "code", asserts=row["test_list"], test_imports=row["test_imports"], time_limit=10) for row in every]
    verdicts = pool.verify_batch([(task, gold_response(task)) for task in tasks])
    assert [row["id"] for row, verdict in zip(every, verdicts, strict=True) if not verdict.correct] == []
    defined = [re.findall(r"^def (\w+)", row["canonical_solution"], re.MULTILINE) for row in every]
    wrong = [mutated(row["canonical_solution"], *(name for name in names if name in " ".join(row["test_list"])))
             for row, names in zip(every, defined, strict=True)]  # fmt: skip
    verdicts = pool.verify_batch([(task, fenced(source)) for task, source in zip(tasks, wrong, strict=True)])
    assert [row["id"] for row, verdict in zip(every, verdicts, strict=True) if verdict.correct] == []
    assert all(verdict.correct for verdict in audit_batch(tasks[: 60 // one_in]))


CONTESTS = {
    "code_contests/139": "for _ in range(int(input())):\n    s = input()\n    h = len(s) // 2\n    print('YES' if s[:h] == s[h:] else 'NO')",
    "code_contests/140": (
        "def root(n, k):\n    r = round(n ** (1 / k))\n    while r ** k > n: r -= 1\n    while (r + 1) ** k <= n: r += 1\n    return r\n"
        "for _ in range(int(input())):\n    n = int(input())\n    print(root(n, 2) + root(n, 3) - root(n, 6))"
    ),
}


@pytest.mark.parametrize("name", CONTESTS)
def test_contest_problems_from_stdin(pool: VerifierPool, name: str) -> None:
    (row,) = [row for row in rows("code_contests_test") if row["id"] == name]
    task = problem("", "code", stdin_tests=row["tests"], compare="tokens")
    assert run(pool, CONTESTS[name], task).correct
    broken = CONTESTS[name].replace("// 2", "// 3").replace("- root(n, 6)", "")
    assert run(pool, broken, task).outcome is Outcome.WRONG


SUM = "def check(input, expected, output):\n    return sum(map(int, output.split())) == int(input)"


def test_a_checker_decides_where_many_outputs_are_right(pool: VerifierPool) -> None:
    task = problem("", "code", stdin_tests=[{"input": "7"}, {"input": "3"}], compare="checker", checker=SUM)
    assert run(pool, "n = int(input())\nprint(1, n - 1)", task).correct
    assert run(pool, "n = int(input())\nprint(2, 5)", task).detail == "1 of 2 tests passed; the checker refuses test 2"
    broken = problem("", "code", stdin_tests=[{"input": "7"}], compare="checker", checker="def check(*a): return 'yes'")
    assert run(pool, "print(7)", broken).outcome is Outcome.INFRASTRUCTURE


BROKEN = [
    {"asserts": ["assert f(1) =="]},
    {"asserts": [["assert f(1) == 2"]]},
    {"stdin_tests": {"inputs": ["1", "2"], "outputs": ["1"]}},
    {"stdin_tests": [{"input": 1, "output": "1"}]},
    {"stdin_tests": [{"input": "1", "output": "1"}], "compare": "tokenz"},
    {"stdin_tests": [{"input": "1", "output": "1"}], "tolerance": "small"},
    {"stdin_tests": [{"input": "1"}]},
    {"entry_point": "f", "tests": [{"args": [1]}]},
    {},
]


def test_broken_settings_are_the_rows_own_and_end_no_batch(pool: VerifierPool) -> None:
    tasks = [problem("def f(x): return x", "code", **settings) for settings in BROKEN]
    verdicts = pool.verify_batch([(task, fenced("def f(x): return x")) for task in tasks])
    for task, verdict in zip(tasks, verdicts, strict=True):
        assert verdict.outcome is Outcome.INFRASTRUCTURE
        assert verdict.detail.startswith(f"problem {task.problem_id}:"), verdict
    assert [verdict.outcome for verdict in audit_batch(tasks)] == [Outcome.INFRASTRUCTURE] * len(tasks)


def test_order_and_tolerance_are_the_problems_to_say(pool: VerifierPool) -> None:
    loose, strict = (problem("", "code", entry_point="f", tests=[{"args": [], "expected": [1, 2, 2.5]}], **more)
                     for more in ({"compare": "unordered", "tolerance": 0.1}, {}))  # fmt: skip
    assert run(pool, "def f(): return [2.51, 1, 2]", loose).correct
    assert not run(pool, "def f(): return [2.51, 1, 1]", loose).correct
    assert not run(pool, "def f(): return [2.51, 1, 2]", strict).correct
    lines = problem("", "code", stdin_tests={"inputs": [""], "outputs": ["a\nb"]}, compare="unordered")
    assert run(pool, "print('b')\nprint('a')", lines).correct
    assert not run(pool, "print('b')\nprint('b')", lines).correct


def test_tests_that_are_code_see_what_the_program_does_to_their_arguments(pool: VerifierPool) -> None:
    check = "def check(candidate):\n    values = [3, 1]\n    assert candidate(values) is None\n    assert values == [1, 3]\n"
    check += "    try:\n        candidate(5)\n        assert False\n    except AttributeError:\n        pass"
    task = problem("", "code", check=check, entry_point="f")
    assert run(pool, "def f(x): x.sort()", task).correct
    assert run(pool, "def f(x): pass", task).outcome is Outcome.WRONG
    assert run(pool, "def f(x): return sorted(x)", task).outcome is Outcome.WRONG
    assert "early" in run(pool, "import os\ndef f(x): os._exit(0)", task).detail
    assert "no module" in run(pool, "import no_such_module\ndef f(x): x.sort()", task).detail.casefold()
