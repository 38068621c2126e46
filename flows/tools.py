"""Subcommands of `touchstone` that work on files alone: the same science as the stages, for scripts."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

BATCH = 512
"""Rows judged together by `verify`."""


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the subcommands; `add(name, function, text)` makes one."""
    sub = add("methods", methods, "the table of recipes, or one row with its formula, paper and slots")
    sub.add_argument("name", nargs="?", help="a row")
    sub.add_argument("--diff", nargs=2, metavar=("A", "B"), help="the slots in which two rows differ")
    sub = add("verify", verify, "judge rows {gold or problem fields, prediction, verifier} of a JSONL file")
    sub.add_argument("input", type=Path, metavar="IN.jsonl")
    sub.add_argument("--out", type=Path, required=True, metavar="OUT.jsonl", help="one verdict per row, in order")
    sub = add("decontaminate", decontaminate, "drop the rows of a JSONL file that overlap with a benchmark")
    sub.add_argument("input", type=Path, metavar="IN.jsonl", help="rows with `prompt` (or question, problem) and `answer`")
    sub.add_argument("--against", type=Path, required=True, metavar="B.jsonl")
    sub.add_argument("--out", type=Path, required=True, metavar="KEPT.jsonl")
    sub.add_argument("--dropped", type=Path, required=True, metavar="DROPPED.jsonl", help="with rule, benchmark item and shared span")
    sub = add("merge", merge, "merge model folders as a YAML file says: base, models, method, settings, dtype")
    sub.add_argument("config", type=Path)
    sub.add_argument("--out", type=Path, required=True)


def methods(options: argparse.Namespace) -> int:
    from pipelines.rl import RECIPES, recipe

    if options.diff:
        first, second = (recipe(name) for name in options.diff)
        rows = [(slot, first.slots[slot], second.slots[slot]) for slot in first.slots]
        rows.append(("regularisers", list(first.regularisers), list(second.regularisers)))  # type: ignore[arg-type]
        for slot, left, right in rows:
            if left != right:
                print(f"{slot}:\n  {first.name}: {_slot(left)}\n  {second.name}: {_slot(right)}")
        return 0
    if options.name:
        row = recipe(options.name)
        print(f"{row.name}\n  {row.paper}\n  {row.formula}")
        for slot, value in row.slots.items():
            print(f"  {slot}: {_slot(value)}")
        print(f"  regularisers: {_slot(list(row.regularisers))}")
        return 0
    for row in RECIPES.values():
        print(f"{row.name:<12} {row.paper}")
    return 0


def _slot(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_slot, value)) or "none"
    settings = ", ".join(f"{key} {setting}" for key, setting in value.items() if key != "name")
    return value["name"] + (f" ({settings})" if settings else "")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line.

    Raises:
        UserError: no such file, or a line that is no JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected an object, got {type(row).__name__}")
            yield number, row


def _problem(row: dict[str, Any], where: str) -> Any:
    """A Problem from a loose row: `answer` or `gold`; prompt, verifier and verifier_args where they are given."""
    from pipelines.records import Problem, problem_id

    answer = row.get("answer", row.get("gold"))
    if not isinstance(answer, str | int | float):
        raise UserError(f"{where}: expected `gold` or `answer` to be a string or number, got {answer!r}")
    prompt = next((str(row[key]) for key in ("prompt", "question", "problem", "text") if key in row), "")
    args = row.get("verifier_args", {})
    return Problem(
        problem_id=problem_id(prompt, str(answer)),
        domain=str(row.get("domain", "math")),
        prompt=prompt,
        answer=str(answer),
        answer_type=str(row.get("answer_type", "expression")),
        verifier=str(row.get("verifier", "math")),
        verifier_args=args if isinstance(args, str) else json.dumps(args),
        source_id=str(row.get("id", row.get("source_id", ""))),
    )


def verify(options: argparse.Namespace) -> int:
    from pipelines.store import replacing
    from pipelines.verifiers import VerifierPool

    outcomes: Counter[str] = Counter()
    confusion: Counter[tuple[str, str]] = Counter()
    with VerifierPool() as pool, replacing(options.out) as temporary, temporary.open("w") as out:
        batch: list[tuple[dict[str, Any], tuple[Any, str]]] = []

        def flush() -> None:
            for (row, _), verdict in zip(batch, pool.verify_batch([pair for _, pair in batch]), strict=True):
                outcomes[verdict.outcome.value] += 1
                if "expected" in row:
                    confusion[str(row["expected"]), verdict.outcome.value] += 1
                judged = {"outcome": verdict.outcome.value, "score": verdict.score, "extracted": verdict.extracted, "detail": verdict.detail}
                out.write(json.dumps({"id": row.get("id"), **judged, "seconds": round(verdict.seconds, 6)}, ensure_ascii=False) + "\n")
            batch.clear()

        for number, row in _rows(options.input):
            where = f"{options.input}:{number}"
            if not isinstance(row.get("prediction"), str):
                raise UserError(f"{where}: expected `prediction` to be a string, got {row.get('prediction')!r}")
            batch.append((row, (_problem(row, where), row["prediction"])))
            if len(batch) == BATCH:
                flush()
                print(f"\r{sum(outcomes.values()):,} rows", end="", file=sys.stderr, flush=True)
        flush()
    print(f"{sum(outcomes.values()):,} rows: " + ", ".join(f"{name} {count:,}" for name, count in sorted(outcomes.items())))
    for (expected, outcome), count in sorted(confusion.items()):
        print(f"  expected {expected}, judged {outcome}: {count:,}")
    return 0


def decontaminate(options: argparse.Namespace) -> int:
    from pipelines.config.curation import CurationSettings
    from pipelines.curation import curate
    from pipelines.store import replacing

    rows = [(row, _problem({"answer": "", **row}, f"{options.input}:{number}")) for number, row in _rows(options.input)]
    against = [_problem({"answer": "", **row}, f"{options.against}:{number}") for number, row in _rows(options.against)]
    curated = curate([problem for _, problem in rows], {options.against.stem: against}, CurationSettings(steps=("decontaminate",)))
    reasons = {id(dropped.problem): dropped for dropped in curated.dropped}
    dropped = [{**row, "reason": hit.reason, "detail": hit.detail} for row, problem in rows if (hit := reasons.get(id(problem)))]
    kept = [row for row, problem in rows if id(problem) not in reasons]
    for path, chosen in ((options.out, kept), (options.dropped, dropped)):
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen))
    print(f"{len(rows):,} rows: {len(curated.kept):,} kept, {len(curated.dropped):,} dropped")
    return 0


def merge(options: argparse.Namespace) -> int:
    from pipelines.config import check, read_yaml
    from pipelines.merging import MergeConfig
    from pipelines.merging import merge as run

    config = check(MergeConfig, read_yaml(options.config), str(options.config))
    summary = run(config, options.out)
    print(f"{options.out}: {config.method} of {len(config.models)} models, {summary.tensors} tensors, {summary.parameters:,} parameters")
    return 0
