"""A guide's right answer stands in for one of the policy's wrong ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from pipelines.generation import Generator, Sample, respond
from pipelines.records import GUIDE, Outcome, Trajectory, one_turn
from pipelines.rl.account import REPLACED, SPARE, by_group, drop, training
from pipelines.rl.answering import trainable
from pipelines.rl.demands import takes
from pipelines.rl.recompose.recomposition import Recomposition


@takes(lambda n, *, tries, **_: (n, n + tries))
def inject(rollouts: list[Trajectory], at: Recomposition, guide: Generator, *, at_most: float = 0.25, tries: int = 4) -> list[Trajectory]:
    """NPO (arXiv 2604.20733): in a group whose pass rate is at most `at_most`, one failed rollout gives way to a verified right one of a
    later checkpoint, if `tries` samples of it hold one."""
    groups = by_group(training(rollouts))
    hard = {g: group for g, group in groups.items() if sum(r.outcome == Outcome.CORRECT for r in group) <= at_most * len(group)}
    guided = dict(zip(hard, at.judged(list(hard.values()), functools.partial(_ask_guide, at, guide, tries)), strict=True))
    out = [rollout for rollout in rollouts if rollout.dropped or rollout.group_id not in hard]
    for group_id, group in hard.items():
        wrong = next((r for r in group if r.outcome not in (Outcome.CORRECT, Outcome.INFRASTRUCTURE)), None)
        right = next((r for r in guided[group_id] if r.outcome == Outcome.CORRECT), None)
        swapped = wrong is not None and right is not None
        out += [drop(r, REPLACED) if swapped and r is wrong else r for r in group]
        out += [r if swapped and r is right else drop(r, SPARE) for r in guided[group_id]]
    return out


def _ask_guide(at: Recomposition, guide: Generator, tries: int, groups: Sequence[list[Trajectory]]) -> list[list[Trajectory]]:
    """`tries` responses of the guide to the problem of each of these groups, numbered on from it."""
    problems = [at.problems[group[0].problem_id] for group in groups]
    samples = respond(guide, problems, tries, (*at.seed, GUIDE, at.step), slots=[group[0].group_id for group in groups])
    return [
        [_guided(group[0], len(group) + number, sample) for number, sample in enumerate(guide_samples)]
        for group, guide_samples in zip(groups, samples, strict=True)
    ]


def _guided(sibling: Trajectory, number: int, sample: Sample) -> Trajectory:
    """The guide's answer number `number` to what a sibling was asked."""
    segments = one_turn(sibling.prompt_ids, sample.token_ids, sample.logp, [sample.policy_version] * len(sample.token_ids), GUIDE)
    return replace(
        sibling,
        sample_id=number,
        policy=GUIDE,
        origin=GUIDE,
        segments=trainable(segments),
        finish_reason=sample.finish_reason,
        response=sample.text,
        reward_parts={},
    )
