"""`touchstone verify`: a verdict for every row of a file, streamed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.records import Outcome, Problem, Verdict
from pipelines.row_files import Malformed, lines, value
from pipelines.sources import loose

BATCH = 512
"""Rows judged together."""
QUIET = 5.0
"""Seconds between lines of progress where there is no terminal."""
MALFORMED = "malformed"
"""Outcome of a row that is no pair of gold and prediction; it says nothing about a response."""


def verify(options: argparse.Namespace) -> int:
    from pipelines.outputs import output_file
    from pipelines.store import replacing
    from pipelines.verifiers import VerifierPool, enforced

    output_file(options.out, [options.input])
    if options.agreement is not None and not 0 <= options.agreement <= 1:
        raise UserError(f"--agreement: {options.agreement:g} is no share from 0 to 1")
    outcomes: Counter[str] = Counter()
    confusion: Counter[tuple[str, str]] = Counter()
    programs = False
    read, spoke = _pairs(options.input), time.monotonic()
    with VerifierPool() as pool, replacing(options.out) as temporary, temporary.open("w", encoding="utf-8") as out:
        while batch := list(islice(read, BATCH)):
            verdicts = iter(pool.verify_batch([pair for _, pair in batch if isinstance(pair, tuple)]))
            programs = programs or any(isinstance(pair, tuple) and pair[0].verifier == "code" for _, pair in batch)
            for row, pair in batch:
                judged = _judged(next(verdicts)) if isinstance(pair, tuple) else {"outcome": MALFORMED, "score": None, "detail": str(pair)}
                outcomes[judged["outcome"]] += 1
                if "expected" in row:
                    confusion[str(row["expected"]), judged["outcome"]] += 1
                out.write(json.dumps({"id": row.get("id"), **judged}, ensure_ascii=False) + "\n")
            spoke = _progress(outcomes.total(), spoke)
        if outcomes.total() == outcomes[MALFORMED]:
            raise UserError(f"{options.input}: no row can be judged" + (f"; the first: {judged['detail']}" if outcomes else ", the file is empty"))
    print(f"{outcomes.total():,} rows: " + ", ".join(f"{name} {count:,}" for name, count in sorted(outcomes.items())))
    for (expected, outcome), count in sorted(confusion.items()):
        print(f"  expected {expected}, judged {outcome}: {count:,}")
    refused = _refused(confusion, options.agreement)
    if programs and outcomes[Outcome.INFRASTRUCTURE.value] == 0:
        print("  programs ran with " + "; ".join(f"{what} {how}" for what, how in enforced().items()))
    return refused


def _refused(confusion: Counter[tuple[str, str]], least: float | None) -> int:
    """Tell how often verdicts agree with what was expected on whether a response is correct. Returns 1 where they may agree less than they must.

    Rows without a verdict on the response count on neither side.

    Raises:
        UserError: they must agree, and no row says what is expected.
    """
    from pipelines.evaluation.statistics import wilson

    held = {pair: count for pair, count in confusion.items() if pair[1] not in (MALFORMED, Outcome.INFRASTRUCTURE)}
    judged = sum(held.values())
    if least is not None and not judged:
        raise UserError("--agreement: no judged row says under `expected` what its verdict should be")
    if not judged:
        return 0
    agreed = sum(count for (expected, outcome), count in held.items() if (expected == Outcome.CORRECT) == (outcome == Outcome.CORRECT))
    low, high = wilson(agreed, judged)
    bad = least is not None and low < least
    bound = "" if least is None else f"; {'REFUSED' if bad else 'accepted'}: the lower end must be at least {least:.3f}"
    print(f"agreement on whether a response is correct: {agreed / judged:.3f} [{low:.3f}, {high:.3f}] of {judged:,} verdicts{bound}")
    return int(bad)


def _progress(rows: int, spoke: float) -> float:
    """Tell how far it is: a live figure on a terminal, elsewhere a line every few seconds. Returns when it last spoke."""
    live, now = sys.stderr.isatty(), time.monotonic()
    if now - spoke < (0.1 if live else QUIET):
        return spoke
    print(f"\r{rows:,} rows" if live else f"{rows:,} rows", end="" if live else "\n", file=sys.stderr, flush=True)
    return now


def _pairs(path: Path) -> Iterator[tuple[dict[str, Any], tuple[Problem, str] | Malformed]]:
    """Each row with the problem and prediction it holds, or why it holds none."""
    for number, row in lines(path):
        where = f"line {number}: "
        if isinstance(row, Malformed):
            yield {}, Malformed(f"{where}{row}")
            continue
        try:
            prediction = value(row, "prediction")
            if not isinstance(prediction, str):
                raise Malformed(f"expected `prediction` to be a string, got {prediction!r}")
            yield row, (loose.problem(row), prediction)
        except Malformed as reason:
            yield row, Malformed(f"{where}{reason}")


def _judged(verdict: Verdict) -> dict[str, Any]:
    return {
        "outcome": verdict.outcome.value,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
        "seconds": round(verdict.seconds, 6),
    }
