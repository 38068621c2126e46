"""Responses of a checkpoint to a benchmark, judged and kept: every number can be recomputed from these rows.

Work is done and stored in parts, so an interrupted evaluation continues where it stopped. A response depends on (seed,
problem, sample) alone: not on parts, batches or order, and every checkpoint draws from the same streams (paired design).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import seeding
from pipelines.errors import InfrastructureError
from pipelines.generation import Generator, Sample, respond
from pipelines.records import Outcome, Problem, Verdict
from pipelines.store import write_table
from pipelines.verifiers import VerifierPool

PART = 2048
"""Responses between two stores."""
PURPOSE = "evaluation"

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("topics", pa.list_(pa.string()), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("answer_type", pa.string(), nullable=False),
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("response_tokens", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""One row per response. `seed` keys the stream the response was drawn from."""


def collect(
    generator: Callable[[], Generator],
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    pool: VerifierPool,
    parts: Path,
    progress: Callable[[int, int], None],
) -> pa.Table:
    """`samples` judged responses to every problem, in order, as SAMPLE_SCHEMA.

    generator: called once at the first part that is missing. parts: folder of this checkpoint's and benchmark's finished parts.
    progress(done, total): counts responses.

    Raises:
        InfrastructureError: not one response could be judged.
    """
    size = max(1, PART // samples)
    tables: list[pa.Table] = []
    for start in range(0, len(problems), size):
        file = parts / f"{start:08d}.parquet"
        if file.is_file():
            tables.append(pq.read_table(file, schema=SAMPLE_SCHEMA))
            continue
        chunk = problems[start : start + size]
        show = functools.partial(_offset, progress, start * samples, len(problems) * samples)
        responses = respond(generator(), chunk, samples, (seed, PURPOSE), show)
        table = judge(chunk, responses, seed, pool)
        # What the machine failed to judge is judged again next time, so such a part is used but not kept.
        if Outcome.INFRASTRUCTURE.value not in set(table["outcome"].to_pylist()):
            write_table(file, table)
        tables.append(table)
    whole = pa.concat_tables(tables) if tables else SAMPLE_SCHEMA.empty_table()
    if len(whole) and set(whole["outcome"].to_pylist()) == {Outcome.INFRASTRUCTURE.value}:
        raise InfrastructureError(f"not one of {len(whole)} responses could be judged: {whole['detail'][0]}")
    return whole


def _offset(progress: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    """Progress of a part as progress of the whole."""
    progress(before + done, total)


def judge(problems: Sequence[Problem], responses: Sequence[Sequence[Sample]], seed: int, pool: VerifierPool) -> pa.Table:
    """Verdicts for the responses to each problem."""
    flat = [(problem, i, sample) for problem, group in zip(problems, responses, strict=True) for i, sample in enumerate(group)]
    verdicts = pool.verify_batch([(problem, sample.text) for problem, _, sample in flat])
    rows = [_row(problem, i, sample, verdict, seed) for (problem, i, sample), verdict in zip(flat, verdicts, strict=True)]
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def _row(problem: Problem, index: int, sample: Sample, verdict: Verdict, seed: int) -> dict[str, object]:
    return {
        "problem_id": problem.problem_id,
        "topics": list(problem.topics),
        "prompt": problem.prompt,
        "answer": problem.answer,
        "answer_type": problem.answer_type,
        "sample": index,
        "seed": seeding.key(seed, PURPOSE, problem.problem_id, index),
        "response": sample.text,
        "response_tokens": len(sample.token_ids),
        "finish_reason": sample.finish_reason,
        "outcome": verdict.outcome.value,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "detail": verdict.detail,
    }
