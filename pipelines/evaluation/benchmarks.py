"""Responses of a checkpoint to a benchmark, judged and kept: every number can be recomputed from these rows.

Work is done and stored in parts (pipelines/parts.py), so an interrupted evaluation continues where it stopped. A response
depends on (seed, problem, sample) alone, and problems are taken in the order of their ids: the rows do not depend on parts, batches
(but for the last digits of `logp`) or the order of the benchmark, and every checkpoint draws from the same streams (paired design).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from pipelines import seeding
from pipelines.config.common import GenerationSettings
from pipelines.errors import InfrastructureError
from pipelines.evaluation.samples import SAMPLE_SCHEMA
from pipelines.generation import Generator, Sample, respond
from pipelines.lineage.code import code_sha256
from pipelines.lineage.digests import combine
from pipelines.parts import in_parts
from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers import VerifierPool
from pipelines.verifiers.confidence import stated_confidence
from pipelines.verifiers.voting import equal_answers

PART = 2048
"""Responses between two stores."""
PURPOSE = "evaluation"


def parts_of(
    cache: Path, model: str, problems: Sequence[Problem], samples: int, generation: GenerationSettings, seed: int, device: str, judge: str = ""
) -> Path:
    """The folder below `cache` for the parts of one piece of work: its name covers all that responses and verdicts depend on.

    model: digest of its files, or a hub id. judge: of a reward model that judges, and how.
    """
    named = {
        "code": _code(),
        "sampling": f"{samples} {generation.model_dump_json(exclude={'batch_size'})}",
        "model": model,
        "problems": combine({problem.problem_id: repr(problem) for problem in problems}),
        "run": f"{seed} {device} {PART}",
        "judge": judge,
    }
    return cache / combine(named)


@functools.cache
def _code() -> str:
    """Digest of the code that samples and judges: this process loaded it once."""
    return code_sha256("pipelines.evaluation.benchmarks")


def collect(
    generator: Callable[[], Generator],
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    pool: VerifierPool,
    parts: Path,
    progress: Callable[[int, int], None],
) -> pa.Table:
    """`samples` judged responses to every problem as SAMPLE_SCHEMA, by problem id and sample.

    generator: called once at the first part that is missing. parts: folder of this checkpoint's and benchmark's finished parts.
    progress(done, total): counts responses.

    Raises:
        InfrastructureError: not one response could be judged.
    """
    problems = sorted(problems, key=lambda problem: problem.problem_id)
    generator, size = functools.cache(generator), max(1, PART // samples)

    def answered(start: int, chunk: Sequence[Problem]) -> pa.Table:
        show = functools.partial(_offset, progress, start * samples, len(problems) * samples)
        return judge(chunk, respond(generator(), chunk, samples, (seed, PURPOSE), show), seed, pool)

    whole = pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *in_parts(problems, size, parts, answered)])
    if len(whole) and set(whole["outcome"].to_pylist()) == {Outcome.INFRASTRUCTURE.value}:
        raise InfrastructureError(f"not one of {len(whole)} responses could be judged: {whole['detail'][0]}")
    return whole


def _offset(progress: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    """Progress of a part as progress of the whole."""
    progress(before + done, total)


def judge(problems: Sequence[Problem], responses: Sequence[Sequence[Sample]], seed: int, pool: VerifierPool) -> pa.Table:
    """Verdicts for the responses to each problem, and which of its answers are equal."""
    flat = [(problem, sample) for problem, group in zip(problems, responses, strict=True) for sample in group]
    verdicts = iter(pool.verify_batch([(problem, sample.text) for problem, sample in flat]))
    groups = [[(sample, next(verdicts)) for sample in group] for group in responses]
    rows = [
        _row(problem, i, sample, verdict, vote, seed)
        for problem, group, votes in zip(problems, groups, _votes(problems, groups, pool), strict=True)
        for i, ((sample, verdict), vote) in enumerate(zip(group, votes, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def _votes(problems: Sequence[Problem], groups: Sequence[Sequence[tuple[Sample, Verdict]]], pool: VerifierPool) -> list[list[int | None]]:
    """For each response the first of its problem with an equal answer. Correct ones are one party, by the verifier's word."""
    silent = (Outcome.CORRECT, Outcome.UNPARSABLE, Outcome.INFRASTRUCTURE)
    others = [
        [] if problem.answer_type == "program" else [i for i, (_, v) in enumerate(group) if v.outcome not in silent and v.extracted is not None]
        for problem, group in zip(problems, groups, strict=True)
    ]
    asked = [(problem, [group[i][1].extracted or "" for i in places]) for problem, group, places in zip(problems, groups, others, strict=True)]
    votes: list[list[int | None]] = []
    for problem, group, places, leaders in zip(problems, groups, others, equal_answers(asked, pool.verify_batch), strict=True):
        right = [i for i, (_, verdict) in enumerate(group) if verdict.correct and problem.answer_type != "program"]
        place = dict.fromkeys(right, right[0] if right else None) | {i: places[leader] for i, leader in zip(places, leaders, strict=True)}
        votes.append([place.get(i) for i in range(len(group))])
    return votes


def _row(problem: Problem, index: int, sample: Sample, verdict: Verdict, vote: int | None, seed: int) -> dict[str, object]:
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
        "vote": vote,
        "confidence": stated_confidence(sample.text),
        "logp": float(sum(sample.logp)),
    }
