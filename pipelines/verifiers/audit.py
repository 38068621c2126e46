"""Is every gold its own correct answer? Judges each problem's gold as if it were a response.

A gold that its own verifier refuses is a broken row: no rollout can ever be rewarded, or only a wrong one. Programs go
through the sandbox's batch mode, many to a sandbox, some ten times as fast as one each; whatever is not plainly correct there
is judged again in a sandbox of its own, so a neighbour cannot spoil a verdict. Batch mode must never decide a reward: see sandbox.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.errors import InfrastructureError
from pipelines.records import Problem, Verdict
from pipelines.verifiers.judgement import Limits
from pipelines.verifiers.pool import DEFAULT_WORKERS, VerifierPool
from pipelines.verifiers.programs import conclude, harness_item
from pipelines.verifiers.sandbox import probe, run
from pipelines.verifiers.text import program

BATCH = 200
BATCH_SECONDS = 120.0


def gold_response(problem: Problem) -> str:
    """The gold in the form that its verifier expects of a response."""
    if problem.verifier == "code":
        return problem.answer if "```" in problem.answer else f"```python\n{problem.answer}\n```"
    return f"\\boxed{{{problem.answer}}}" if problem.verifier == "math" else problem.answer


def audit_batch(problems: Sequence[Problem], workers: int = DEFAULT_WORKERS, *, limits: Limits | None = None) -> list[Verdict]:
    """The verdict on each problem's own gold, in order."""
    limits = limits or Limits()
    codes = [index for index, problem in enumerate(problems) if problem.verifier == "code"] if not probe() else []
    size = max(1, min(BATCH, -(-len(codes) // workers)))
    chunks = [codes[start : start + size] for start in range(0, len(codes), size)]
    verdicts: dict[int, Verdict] = {}
    with ThreadPoolExecutor(workers) as threads:
        for chunk, found in zip(chunks, threads.map(lambda chunk: run_programs([problems[index] for index in chunk], limits), chunks), strict=True):
            verdicts |= {index: verdict for index, verdict in zip(chunk, found, strict=True) if verdict is not None and verdict.correct}
    rest = [index for index in range(len(problems)) if index not in verdicts]
    with VerifierPool(workers, limits=limits) as pool:
        judged = pool.verify_batch([(problems[index], gold_response(problems[index])) for index in rest])
    verdicts |= dict(zip(rest, judged, strict=True))
    return [verdicts[index] for index in range(len(problems))]


def run_programs(problems: Sequence[Problem], limits: Limits) -> list[Verdict | None]:
    """The gold programs of up to BATCH problems in one sandbox; None where it could not tell."""
    prepared = []
    for index, problem in enumerate(problems):
        source = program(gold_response(problem))
        try:
            prepared.append((index, source, *harness_item(problem, source, limits.program)) if source is not None else None)
        except (InfrastructureError, ValueError):  # told, with its reason, by the single path
            prepared.append(None)
    ready = [entry for entry in prepared if entry is not None]
    if not ready:
        return [None] * len(problems)
    longest = max(item["wall"] for _, _, item, _, _ in ready)
    try:
        outcome = run([item for _, _, item, _, _ in ready], limits.program, quiet_seconds=longest + 5, total_seconds=BATCH_SECONDS, batch=True)
    except InfrastructureError:
        return [None] * len(problems)
    verdicts: list[Verdict | None] = [None] * len(problems)
    for position, (index, source, _, expected, _) in enumerate(ready):
        events = [event for event in outcome.events if event[0] == position]
        if events:
            verdicts[index] = conclude(outcome, events, expected, problems[index], source or "", 0.0)
    return verdicts
