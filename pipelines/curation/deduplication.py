"""Each problem once.

Rows with the same prompt (whitespace and case aside) form a cluster. If their answers contradict each other nobody knows
which is right, so all of them go; else one stays: a row with a worked solution before one without, then the first by
source, source id and problem id. Rows that repeat one of `known` go as well.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from pipelines import verifiers
from pipelines.curation.steps import Apply, Batch, Decided, Inputs, Reason, Rows, label, prompt_key
from pipelines.errors import InfrastructureError
from pipelines.records import Outcome, Problem


def exact_dedup(rows: Rows, inputs: Inputs) -> Apply:
    """One row per prompt; the rest go as `duplicate`, `known` or `conflicting_answers`."""
    sketch = rows.sketch(_keys).combine_chunks()
    numbers, answers, high, low = (sketch.column(name).to_numpy() for name in ("row", "answer", "high", "low"))
    best_first = in_order(numbers, rows.preferred())
    place = best_first[np.lexsort((low[best_first], high[best_first]))]  # stable: within a cluster the best first
    new = np.ones(len(place), bool)
    new[1:] = (high[place][1:] != high[place][:-1]) | (low[place][1:] != low[place][:-1])
    clusters = np.split(place, np.flatnonzero(new)[1:]) if len(place) else []
    known = {_digest(row.prompt): label(row) for row in inputs.known}
    goes: dict[int, Reason] = {}
    several = []
    for cluster in clusters:
        key = (int(high[cluster[0]]), int(low[cluster[0]]))
        if key in known:
            goes |= dict.fromkeys(numbers[cluster].tolist(), ("known", f"same prompt as {known[key]}"))
        elif len(cluster) > 1:
            several.append(cluster)
    others = [_first_of_each(answers, cluster) for cluster in several]
    needed = [numbers[cluster[:1]] for cluster in several] + [numbers[other] for other in others]
    problems = rows.take(np.unique(np.concatenate(needed))) if needed else {}
    pairs = [[(problems[numbers[cluster[0]]], problems[numbers[at]]) for at in other] for cluster, other in zip(several, others, strict=True)]
    against = _contradictions(pairs)
    for number, cluster in enumerate(several):
        if number in against:
            one, other = against[number]
            detail = f"{label(one)} says {one.answer!r}, {label(other)} says {other.answer!r}"
            goes |= dict.fromkeys(numbers[cluster].tolist(), ("conflicting_answers", detail))
        else:
            detail = f"same prompt as {label(problems[numbers[cluster[0]]])}"
            goes |= dict.fromkeys(numbers[cluster[1:]].tolist(), ("duplicate", detail))
    return Decided(goes)


def in_order(numbers: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Where in `numbers` each row number of `order` stands."""
    by_number = np.argsort(numbers)
    return by_number[np.searchsorted(numbers[by_number], order)]


def _keys(batch: Batch) -> pa.Table:
    """row; the digest of the prompt in two halves; a hash of the answer, the same for all programs, whose tests judge them."""
    digests = np.array([_digest(prompt) for prompt in batch.texts("prompt")], np.uint64).reshape(-1, 2)
    given = zip(batch.texts("answer"), batch.texts("answer_type"), strict=True)
    answers = [0 if kind == "program" else int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=8).digest()) for answer, kind in given]
    return pa.table({"row": batch.rows, "high": digests[:, 0], "low": digests[:, 1], "answer": np.array(answers, np.uint64)})


def _digest(prompt: str) -> tuple[int, int]:
    digest = hashlib.blake2b(prompt_key(prompt).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:])


def _first_of_each(answers: np.ndarray, cluster: np.ndarray) -> list[int]:
    """The first row of each answer in a cluster but that of its first row."""
    first: dict[int, int] = {}
    for at in cluster.tolist():
        first.setdefault(int(answers[at]), at)
    return list(first.values())[1:]


def _contradictions(pairs: list[list[tuple[Problem, Problem]]]) -> dict[int, tuple[Problem, Problem]]:
    """Number of a cluster -> two of its rows whose answers differ in value."""
    numbered = [(number, pair) for number, of_cluster in enumerate(pairs) for pair in of_cluster]
    verdicts = verifiers.verify_batch([(one, verifiers.gold_response(other)) for _, (one, other) in numbered]) if numbered else []
    found: dict[int, tuple[Problem, Problem]] = {}
    for (number, (one, other)), verdict in zip(numbered, verdicts, strict=True):
        if verdict.outcome is Outcome.INFRASTRUCTURE:
            raise InfrastructureError(f"curation: answers cannot be compared: {verdict.detail}")
        if not verdict.correct:
            found.setdefault(number, (one, other))
    return found
