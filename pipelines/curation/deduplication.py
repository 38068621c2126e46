"""Each problem once.

Rows with the same prompt (whitespace and case aside) form a cluster. If their answers contradict each other nobody knows
which is right, so all of them go; else one stays: a row with a worked solution before one without, then the first by
source, source id and problem id. Rows that repeat one of `known` go as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pipelines import verifiers
from pipelines.curation.steps import Inputs, prompt_key
from pipelines.errors import InfrastructureError
from pipelines.records import Dropped, Outcome, Problem


def exact_dedup(problems: list[Problem], inputs: Inputs) -> tuple[list[Problem], list[Dropped]]:
    """One row per prompt; the rest dropped as `duplicate`, `known` or `conflicting_answers`."""
    clusters: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        clusters[prompt_key(problem.prompt)].append(problem)
    for cluster in clusters.values():
        cluster.sort(key=preference)
    known = {prompt_key(problem.prompt): problem for problem in inputs.known}
    against = _contradictions(cluster for key, cluster in clusters.items() if key not in known)
    kept, dropped = [], []
    for key, cluster in clusters.items():
        first = cluster[0]
        if key in known:
            dropped += [Dropped(row, "exact_dedup", "known", f"same prompt as {label(known[key])}") for row in cluster]
        elif key in against:
            one, other = against[key]
            detail = f"{label(one)} says {one.answer!r}, {label(other)} says {other.answer!r}"
            dropped += [Dropped(row, "exact_dedup", "conflicting_answers", detail) for row in cluster]
        else:
            kept.append(first)
            dropped += [Dropped(row, "exact_dedup", "duplicate", f"same prompt as {label(first)}") for row in cluster[1:]]
    return kept, dropped


def preference(problem: Problem) -> tuple[bool, str, str, str, str]:
    """Sorts a row that should stay before one that may go: with a worked solution, then by source, source id and problem id."""
    return (problem.solution is None, problem.source, problem.source_id, problem.problem_id, problem.solution or "")


def label(problem: Problem) -> str:
    """A row for a reader."""
    return f"{problem.source} {problem.source_id}"


def _contradictions(clusters: Iterable[list[Problem]]) -> dict[str, tuple[Problem, Problem]]:
    """Key of a cluster -> two of its rows whose answers differ in value. Programs never contradict: their tests judge them."""
    pairs = [
        (cluster[0], other)
        for cluster in clusters
        if cluster[0].answer_type != "program"
        for other in cluster[1:]
        if other.answer != cluster[0].answer
    ]
    verdicts = verifiers.verify_batch([(one, verifiers.gold_response(other)) for one, other in pairs]) if pairs else []
    found: dict[str, tuple[Problem, Problem]] = {}
    for (one, other), verdict in zip(pairs, verdicts, strict=True):
        if verdict.outcome is Outcome.INFRASTRUCTURE:
            raise InfrastructureError(f"curation: answers cannot be compared: {verdict.detail}")
        if not verdict.correct:
            found.setdefault(prompt_key(one.prompt), (one, other))
    return found
