"""A wrong answer whose beginning is right: the policy keeps that, and a guide writes the rest."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

from pipelines.generation import Generator
from pipelines.records import Outcome, Trajectory, cut
from pipelines.rl.account import REPLACED, SPARE, by_group, drop, episodes, free, place, training
from pipelines.rl.demands import passes, takes
from pipelines.rl.episodes import Beginning
from pipelines.rl.inputs.probes import step_starts
from pipelines.rl.recompose.inject import guide_answers
from pipelines.rl.recompose.recomposition import Recomposition


@takes(lambda n, *, most, **_: (n, n + most))
@passes("the policy on steps of its wrong answers")
def corrected_prefixes(
    rollouts: list[Trajectory],
    at: Recomposition,
    guide: Generator,
    *,
    below: float = 0.5,
    most: int = 2,
    delimiters: Sequence[str] = (".\n\n", "\n", ". "),
) -> list[Trajectory]:
    """SCOPE (arXiv 2602.24110): a wrong answer is cut before the first step whose score is below `below`, and the guide (the stage's `reference`)
    goes on from there; where that is right, it takes the place of the wrong one. Up to `most` of a group, those with the longest beginnings. Answers
    without such a step, or whose first is one, stay as they are.

    A step's score is how likely the policy holds the right answer to be after it, in place of a process reward model's. delimiters: what ends a step.
    The beginning trains as what the policy has sampled, the rest as a guide's.
    """
    groups = by_group(training(rollouts))
    wrong = [t for group in groups.values() for t in episodes(group) if t.outcome not in (Outcome.CORRECT, Outcome.INFRASTRUCTURE)]
    ends = [[*step_starts(at.asking.tokenizer, t.response_ids, delimiters)[1:], len(t.response_ids)] for t in wrong]
    asked = [(at.problems[t.problem_id], t.prompt_ids, t.response_ids[:end]) for t, of_t in zip(wrong, ends, strict=True) for end in of_t]
    scores = iter(at.foresee(asked))
    kept: dict[int, list[tuple[int, Trajectory]]] = defaultdict(list)
    for t, of_t in zip(wrong, ends, strict=True):
        steps = right_steps([next(scores) for _ in of_t], below)
        if 0 < steps < len(of_t) and len(t.prompt_ids) + of_t[steps - 1] <= at.asking.longest:
            kept[t.group_id].append((of_t[steps - 1], t))
    numbers, begun = free(rollouts), []
    for group_id, found in kept.items():
        longest = sorted(found, key=lambda each: -each[0])[:most]
        begun += [Beginning(t, cut(t.turns, end), 1, numbers[group_id] + number) for number, (end, t) in enumerate(longest)]
    corrected = [t for (t,) in at.judged(begun, functools.partial(guide_answers, at, guide))]
    gone = {place(b.sibling) for b, t in zip(begun, corrected, strict=True) if t.outcome == Outcome.CORRECT}
    return [
        *(drop(t, REPLACED) if place(t) in gone else t for t in rollouts),
        *(t if t.outcome == Outcome.CORRECT else drop(t, SPARE) for t in corrected),
    ]


def right_steps(scores: Sequence[float], below: float) -> int:
    """How many steps come before the first whose score is below."""
    return next((place for place, score in enumerate(scores) if score < below), len(scores))
