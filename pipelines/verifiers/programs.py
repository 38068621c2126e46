"""`code`: run the last fenced Python program of a response against tests, in the sandbox.

verifier_args, in order of preference:
  {"entry_point": "f", "tests": [{"args": [...], "kwargs": {...}, "expected": JSON}, ...]}       call tests
  {"stdin_tests": [{"input": "...", "output": "..."}, ...] or {"inputs": [...], "outputs": [...]}}   programs that read and print
  {"asserts": ["assert f(1) == 2", ...], "test_imports": [...]}                                   MBPP
  {"check": "def check(candidate): ...", "entry_point": "f"}                                      HumanEval
and for all: "setup" (lines before the program), "time_limit" (seconds per test), "tolerance" (of floats, 1e-6 relative or absolute),
"compare": "exact" | "unordered" (lines, or the items of a list, in any order), for stdin tests also "tokens" (any spacing), "float" (numbers to
the tolerance) and "checker" with {"checker": "def check(input, expected, output): -> bool"}, which runs in a sandbox of its own.

No expected value ever stands beside the program. Values of call and stdin tests are compared on this side, as plain JSON: a tuple is
a list, True is not 1, integers agree exactly, NaN equals nothing. An assert of the form `f(literals) == literal` is turned into a call
test; other asserts and `check` run in a second sandbox, which gets the program's answers as plain values (harness.py).
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import InfrastructureError
from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.judgement import Engines, Job, failed, judged
from pipelines.verifiers.sandbox import Event, ProgramLimits, Run, require_sandbox, resources, run
from pipelines.verifiers.text import program

TOLERANCE = 1e-6
COMPARISONS = ("exact", "unordered", "tokens", "float", "checker")
ENDS = {"output": "output limit exceeded", "memory": "memory limit of all its processes and files exceeded"}
"""How a sandbox was killed -> what is told."""
Expected = list[tuple[bool, Any]]


def verify_code(problem: Problem, text: str) -> Verdict | Job:
    source = program(text)
    if source is None:
        return failed(Outcome.UNPARSABLE, "no fenced Python program in the final text")
    return Job(source, lambda engines: judge_program(problem, source, engines))


def judge_program(problem: Problem, source: str, engines: Engines) -> Verdict:
    """One program in a sandbox of its own."""
    started = time.monotonic()
    limits = engines.limits.program
    try:
        require_sandbox()
        item, expected, seconds = harness_item(problem, source, limits)
        candidate = None
        if any(kind == "assert" for kind, _ in item["tests"]):
            candidate, item = item, _examiner(problem, item)
        outcome = run([item], limits, quiet_seconds=seconds, total_seconds=item["wall"], candidate=candidate)
        verdict = conclude(outcome, outcome.events, expected, problem, source, 0.0)
        if verdict.correct and problem.args.get("compare") == "checker":
            verdict = _checked(problem, outcome, source, limits)
    except InfrastructureError as error:
        return failed(Outcome.INFRASTRUCTURE, str(error), source)
    return replace(verdict, seconds=time.monotonic() - started)


def _examiner(problem: Problem, item: dict[str, Any]) -> dict[str, Any]:
    """The item of the sandbox where the tests run: set-up and tests, but not the program; `names` are what it asks the program for."""
    with _settings_of(problem):
        return _examining(problem, item)


def _examining(problem: Problem, item: dict[str, Any]) -> dict[str, Any]:
    statements = [text if kind == "assert" else f"assert {text} == {_literal(problem, test)}" for test, (kind, text) in enumerate(item["tests"])]
    entry = problem.args.get("entry_point", "")
    names = {entry} if "check" in problem.args else _called(statements, item["setup"])
    modules = names & sys.stdlib_module_names  # tests of MBPP use modules that only the program imports
    setup = "\n".join([item["setup"], *(f"import {module}" for module in sorted(modules))])
    return item | {"setup": setup, "program": "", "tests": [("assert", text) for text in statements], "names": sorted(names - modules - {""})}


def _literal(problem: Problem, test: int) -> str:
    """The right side of an assert that is a call test, as its author wrote it."""
    (statement,) = ast.parse(problem.args["asserts"][test]).body
    assert isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)
    return ast.unparse(statement.test.comparators[0])


def _called(statements: Sequence[str], setup: str) -> set[str]:
    """Names that the statements use and neither Python, nor the set-up, nor they themselves define."""
    used: set[str] = set()
    bound = set(dir(builtins))
    for text in (*statements, setup):
        try:
            tree = ast.walk(ast.parse(text))
        except (SyntaxError, RecursionError) as error:
            raise ValueError(f"a test is no Python: {error}") from error
        for node in tree:
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
    return used - bound


def _checked(problem: Problem, outcome: Run, source: str, limits: ProgramLimits) -> Verdict:
    """The word of the problem's own checker on what the program printed."""
    tests = _stdin_tests(problem.args)
    printed = {test: payload for _, test, status, payload in outcome.events if status == "output"}
    calls = [("args", ([given, output, printed[number]], {})) for number, (given, output) in enumerate(tests)]
    wall = min(limits.seconds * (len(calls) + 1), limits.total_seconds)
    item = {"setup": "", "program": problem.args.get("checker", ""), "entry_point": "check", "tests": calls} | resources(limits, wall)
    said = run([item], limits, quiet_seconds=limits.seconds, total_seconds=wall)
    verdicts = {test: (status, payload) for _, test, status, payload in said.events}
    for test in range(len(tests)):
        status, payload = verdicts.get(test, ("error", said.end))
        if status != "value" or not isinstance(payload, bool):
            raise InfrastructureError(f"problem {problem.problem_id}: its checker gave no verdict on test {test + 1} ({payload}).")
        if not payload:
            return Verdict(Outcome.WRONG, 0.0, source, f"{test} of {len(tests)} tests passed; the checker refuses test {test + 1}")
    return judged(True, source, f"{len(tests)} of {len(tests)} tests passed")


@contextmanager
def _settings_of(problem: Problem) -> Iterator[None]:
    """Broken settings are told as those of this row: they never end a batch."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        what = f"a test lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InfrastructureError(f"problem {problem.problem_id}: verifier_args cannot be used ({what}).") from error


def harness_item(problem: Problem, source: str, limits: ProgramLimits) -> tuple[dict[str, Any], Expected, float]:
    """What the harness is to run, what must come out (known, value) per test, and the seconds per test.

    Raises:
        InfrastructureError: the row's verifier_args cannot be used; the message begins with `problem ID:`.
    """
    with _settings_of(problem):
        return _harness_item(problem, source, limits)


def _harness_item(problem: Problem, source: str, limits: ProgramLimits) -> tuple[dict[str, Any], Expected, float]:
    arguments = problem.args
    entry = arguments.get("entry_point", "")
    if (mode := arguments.get("compare", "exact")) not in COMPARISONS:
        raise ValueError(f"compare is one of {', '.join(COMPARISONS)}, got {mode!r}")
    float(arguments.get("tolerance", TOLERANCE))
    setup = "\n".join([arguments.get("setup", ""), *arguments.get("test_imports", [])])
    seconds = min(float(arguments.get("time_limit", limits.seconds)), limits.total_seconds)
    tests: list[tuple[str, Any]] = []
    expected: Expected = []
    for test in arguments.get("tests", []):
        tests.append(("args", (test["args"], test.get("kwargs", {}))))
        expected.append((True, test["expected"]))
    for given, output in _stdin_tests(arguments) if not tests else []:
        tests.append(("stdin", given.encode()))
        expected.append((True, output))
    if not tests and "asserts" in arguments:
        calls = [_as_call(statement) for statement in arguments["asserts"]]
        for statement, call in zip(arguments["asserts"], calls, strict=True):
            tests.append(("expression", call[0]) if call else ("assert", statement))
            expected.append((True, call[1]) if call and all(calls) else (False, None))
    if not tests and "check" in arguments:
        tests.append(("assert", f"{arguments['check']}\ncheck({entry})"))
        expected.append((False, None))
    if not tests:
        raise ValueError("there are no tests: name tests, stdin_tests, asserts or check")
    wall = min(seconds * (len(tests) + 1), limits.total_seconds)
    item = {"setup": setup, "program": source, "entry_point": entry, "tests": tests} | resources(limits, wall)
    return item, expected, seconds


def _stdin_tests(arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """(input, output) of each test, from rows or from two columns; a checker may do without outputs."""
    tests = arguments.get("stdin_tests", [])
    if isinstance(tests, dict):
        return list(zip(tests["inputs"], tests["outputs"], strict=True))
    needed = arguments.get("compare") != "checker"
    return [(test["input"], test["output"] if needed else test.get("output", "")) for test in tests]


def _as_call(statement: str) -> tuple[str, Any] | None:
    """`assert f(...) == literal` as (call, expected JSON); None if it says anything else."""
    try:
        parsed = ast.parse(statement).body
        match parsed:
            case [ast.Assert(test=ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[right]))]:
                return ast.unparse(call), json.loads(json.dumps(ast.literal_eval(right)))
    except (SyntaxError, ValueError, TypeError, RecursionError):
        return None
    return None


def conclude(outcome: Run, events: list[Event], expected: Expected, problem: Problem, source: str, seconds: float) -> Verdict:
    """The verdict on one program from the events of its item: the first test that is not passed decides."""
    mode, tolerance = problem.args.get("compare", "exact"), float(problem.args.get("tolerance", TOLERANCE))
    results = {test: (status, payload) for _, test, status, payload in reversed(events)}
    if results.get(-1, ("", ""))[0] == "error":
        return Verdict(Outcome.CRASH, 0.0, source, str(results[-1][1]), seconds)
    for test, (known, value) in enumerate(expected):
        passed = f"{test} of {len(expected)} tests passed; test {test + 1}: "
        if test not in results:
            late = outcome.end == "timeout" or results.get(-1, ("", ""))[0] == "timeout"
            reason = "time limit exceeded" if late else ENDS.get(outcome.end, "the program ended early")
            return Verdict(Outcome.TIMEOUT if late else Outcome.CRASH, 0.0, source, passed + reason, seconds)
        status, payload = results[test]
        if status == "error":
            return Verdict(Outcome.CRASH, 0.0, source, passed + str(payload), seconds)
        if known and status in ("value", "output"):
            same = same_output if status == "output" else same_value
            if mode != "checker" and not same(value, payload, mode, tolerance):
                return Verdict(Outcome.WRONG, 0.0, source, f"{passed}expected {_short(value)}, got {_short(payload)}", seconds)
        elif known or status != "passed":
            return Verdict(Outcome.WRONG, 0.0, source, f"{passed}{payload}", seconds)
    verdict = judged(True, source, f"{len(expected)} of {len(expected)} tests passed")
    return replace(verdict, seconds=seconds)


def same_value(expected: Any, got: Any, mode: str = "exact", tolerance: float = TOLERANCE) -> bool:
    """Equality of two JSON values under the rules of the module docstring; `unordered` is about the outermost list."""
    if isinstance(expected, bool) or isinstance(got, bool) or expected is None or got is None:
        return expected is got
    if isinstance(expected, int) and isinstance(got, int):
        return expected == got
    if isinstance(expected, int | float) and isinstance(got, int | float):
        return _close(expected, got, tolerance)
    if isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return False
        if mode == "unordered":
            left = list(got)
            return all(_taken(value, left, tolerance) for value in expected)
        return all(same_value(one, other, "exact", tolerance) for one, other in zip(expected, got, strict=True))
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(same_value(value, got[key], "exact", tolerance) for key, value in expected.items())
    return isinstance(expected, str) and isinstance(got, str) and expected == got


def _taken(value: Any, left: list[Any], tolerance: float) -> bool:
    """Whether one of `left` is the same; it is taken out."""
    found = next((i for i, other in enumerate(left) if same_value(value, other, "exact", tolerance)), None)
    if found is None:
        return False
    left.pop(found)
    return True


def _close(expected: float, got: float, tolerance: float) -> bool:
    try:
        return math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:
        return False


def same_output(expected: str, got: str, mode: str = "exact", tolerance: float = TOLERANCE) -> bool:
    """Printed text: trailing spaces and trailing blank lines never count. See the module docstring for the modes."""
    wanted, printed = ([line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")] for text in (expected, got))
    if mode == "exact":
        return wanted == printed
    if mode == "unordered":
        return sorted(wanted) == sorted(printed)
    left, right = " ".join(wanted).split(), " ".join(printed).split()
    if len(left) != len(right):
        return False
    return all(one == two or (mode == "float" and _close_tokens(one, two, tolerance)) for one, two in zip(left, right, strict=True))


def _close_tokens(expected: str, got: str, tolerance: float) -> bool:
    try:
        return _close(float(expected), float(got), tolerance) and not (expected.lstrip("-").isdigit() and got.lstrip("-").isdigit())
    except ValueError:
        return False


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True)
class Printed:
    """ok: whether the program ended well. text: what it printed, else why it did not."""

    ok: bool
    text: str


def printed(source: str, limits: ProgramLimits, given: str = "") -> Printed:
    """What a program prints that reads `given`, in a sandbox of its own.

    Raises:
        InfrastructureError: the sandbox did not work.
    """
    require_sandbox()
    item = {"setup": "", "program": source, "entry_point": "", "tests": [("stdin", given.encode())]} | resources(limits, limits.seconds)
    done = run([item], limits, quiet_seconds=limits.seconds, total_seconds=limits.total_seconds)
    for _, _, status, payload in done.events:
        if status in ("output", "error"):
            return Printed(status == "output", payload)
    ends = {**ENDS, "timeout": f"still running after {limits.seconds:g} seconds"}
    return Printed(False, ends.get(done.end, "the program was killed"))
