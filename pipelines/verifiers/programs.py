"""`code`: run the last fenced Python program of a response against tests, in the sandbox.

verifier_args, in order of preference:
  {"entry_point": "f", "tests": [{"args": [...], "kwargs": {...}, "expected": JSON}, ...]}       call tests
  {"stdin_tests": [{"input": "...", "output": "..."}, ...], "compare": "exact" | "tokens" | "float"}
  {"asserts": ["assert f(1) == 2", ...], "test_imports": [...]}                                  MBPP
  {"check": "def check(candidate): ...", "entry_point": "f"}                                     HumanEval
and for all: "setup" (lines before the program), "time_limit" (seconds per test).

Expected values of call and stdin tests stay on this side. An assert of the form `f(literals) == literal` is turned into
a call test; other asserts and `check` run beside the program and a program that tampers with its process can pass them: use them for
training only where nothing better exists. Comparison is of plain JSON: a tuple is a list, True is not 1, floats agree
to 1e-6 (relative or absolute), integers exactly, NaN equals nothing.
"""

from __future__ import annotations

import ast
import json
import math
import time
from typing import Any

from pipelines.errors import InfrastructureError
from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.judgement import Engines, Job, failed, judged
from pipelines.verifiers.sandbox import Event, ProgramLimits, Run, require_sandbox, resources, run
from pipelines.verifiers.text import program

TOLERANCE = 1e-6
Expected = list[tuple[bool, Any]]


def verify_code(problem: Problem, text: str) -> Verdict | Job:
    source = program(text)
    if source is None:
        return failed(Outcome.UNPARSABLE, "no fenced Python program in the final text")
    return lambda engines: judge_program(problem, source, engines)


def judge_program(problem: Problem, source: str, engines: Engines) -> Verdict:
    """One program in a sandbox of its own."""
    started = time.monotonic()
    try:
        require_sandbox()
        item, expected, seconds = harness_item(problem, source, engines.limits.program)
        outcome = run([item], engines.limits.program, quiet_seconds=seconds, total_seconds=item["wall"])
    except InfrastructureError as error:
        return failed(Outcome.INFRASTRUCTURE, str(error), source)
    return conclude(outcome, outcome.events, expected, problem, source, time.monotonic() - started)


def harness_item(problem: Problem, source: str, limits: ProgramLimits) -> tuple[dict[str, Any], Expected, float]:
    """What the harness is to run, what must come out (known, value) per test, and the seconds per test."""
    arguments = problem.args
    entry = arguments.get("entry_point", "")
    setup = "\n".join([arguments.get("setup", ""), *arguments.get("test_imports", [])])
    seconds = min(float(arguments.get("time_limit", limits.seconds)), limits.total_seconds)
    tests: list[tuple[str, Any]] = []
    expected: Expected = []
    try:
        for test in arguments.get("tests", []):
            tests.append(("args", (test["args"], test.get("kwargs", {}))))
            expected.append((True, test["expected"]))
        for test in arguments.get("stdin_tests", []) if not tests else []:
            tests.append(("stdin", test["input"].encode()))
            expected.append((True, test["output"]))
    except KeyError as error:
        raise InfrastructureError(f"problem {problem.problem_id}: a test of verifier_args lacks {error}.") from error
    for statement in arguments.get("asserts", []) if not tests else []:
        call = _as_call(statement)
        tests.append(("expression", call[0]) if call else ("assert", statement))
        expected.append((True, call[1]) if call else (False, None))
    if not tests and "check" in arguments:
        tests.append(("assert", f"{arguments['check']}\ncheck({entry})"))
        expected.append((False, None))
    if not tests:
        raise InfrastructureError(f"problem {problem.problem_id}: verifier_args name no tests (tests, stdin_tests, asserts or check).")
    wall = min(seconds * (len(tests) + 1), limits.total_seconds)
    item = {"setup": setup, "program": source, "entry_point": entry, "tests": tests} | resources(limits, wall)
    return item, expected, seconds


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
    mode = problem.args.get("compare", "exact")
    results = {test: (status, payload) for _, test, status, payload in reversed(events)}
    if results.get(-1, ("", ""))[0] == "error":
        return Verdict(Outcome.CRASH, 0.0, source, str(results[-1][1]), seconds)
    for test, (known, value) in enumerate(expected):
        passed = f"{test} of {len(expected)} tests passed; test {test + 1}: "
        if test not in results:
            late = outcome.end == "timeout" or results.get(-1, ("", ""))[0] == "timeout"
            reason = "time limit exceeded" if late else "output limit exceeded" if outcome.end == "output" else "the program ended early"
            return Verdict(Outcome.TIMEOUT if late else Outcome.CRASH, 0.0, source, passed + reason, seconds)
        status, payload = results[test]
        if status == "error":
            return Verdict(Outcome.CRASH, 0.0, source, passed + str(payload), seconds)
        if known and status in ("value", "output"):
            right = same_output(value, payload, mode) if status == "output" else same_value(value, payload)
            if not right:
                return Verdict(Outcome.WRONG, 0.0, source, f"{passed}expected {_short(value)}, got {_short(payload)}", seconds)
        elif known or status != "passed":
            return Verdict(Outcome.WRONG, 0.0, source, f"{passed}{payload}", seconds)
    verdict = judged(True, source, f"{len(expected)} of {len(expected)} tests passed")
    return Verdict(verdict.outcome, verdict.score, source, verdict.detail, seconds)


def same_value(expected: Any, got: Any) -> bool:
    """Equality of two JSON values under the rules of the module docstring."""
    if isinstance(expected, bool) or isinstance(got, bool) or expected is None or got is None:
        return expected is got
    if isinstance(expected, int) and isinstance(got, int):
        return expected == got
    if isinstance(expected, int | float) and isinstance(got, int | float):
        return _close(expected, got)
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(same_value, expected, got))
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(same_value(value, got[key]) for key, value in expected.items())
    return isinstance(expected, str) and isinstance(got, str) and expected == got


def _close(expected: float, got: float) -> bool:
    try:
        return math.isclose(expected, got, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:
        return False


def same_output(expected: str, got: str, mode: str = "exact") -> bool:
    """Printed text: trailing spaces and trailing blank lines never count. tokens: any spacing. float: numbers to the tolerance."""
    wanted, printed = ([line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")] for text in (expected, got))
    if mode == "exact":
        return wanted == printed
    left, right = " ".join(wanted).split(), " ".join(printed).split()
    return len(left) == len(right) and all(one == two or (mode == "float" and _close_tokens(one, two)) for one, two in zip(left, right, strict=True))


def _close_tokens(expected: str, got: str) -> bool:
    try:
        return _close(float(expected), float(got)) and not (expected.lstrip("-").isdigit() and got.lstrip("-").isdigit())
    except ValueError:
        return False


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
