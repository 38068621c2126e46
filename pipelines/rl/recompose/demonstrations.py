"""Worked solutions, written as the policy should write them, beside the policy's answers or in place of some."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pipelines import prompting
from pipelines.records import GUIDE, Outcome, Trajectory, one_turn
from pipelines.rl.account import REPLACED, SPARE, by_group, drop, episodes, training
from pipelines.rl.demands import Need, needs, passes
from pipelines.rl.history import tallied
from pipelines.rl.recompose.recomposition import Recomposition

FIRST = 1 << 20
"""Numbers of the demonstrations of a group begin here, above those of all answers."""
Asked = tuple[str, int, Sequence[str | None]]
"""Id of a problem, id of the group that its demonstrations join, and its worked solutions."""


@needs(Need.SOLUTIONS)
def demonstrations(
    rollouts: list[Trajectory],
    at: Recomposition,
    *,
    below: float = math.inf,
    place: Literal["added", "last"] = "added",
    without: Sequence[str] = (),
    no_better: bool = False,
) -> list[Trajectory]:
    """The worked solution of its problem joins each group with a smaller share of right answers than `below`: as a member more (ViSurf, arXiv
    2510.10606; LUFFY, arXiv 2504.14945), or in place of the `last` answer (EasyVideoR1, arXiv 2604.16893). It is judged as answers are, and trains by
    the policy's own log-probabilities before the update. One that is longer than an answer may be is left out.

    without: parts of the reward that it gets 0 of. no_better: where an answer earns as much, its reward is the mean of the answers', so that nothing
    draws the policy to it.
    """
    groups = {g: group for g, group in by_group(training(rollouts)).items() if rate(group) < below}
    asked = [(group[0].problem_id, g, [at.problems[group[0].problem_id].solution]) for g, group in groups.items()]
    gone, shown = set[tuple[int, int]](), [t for found in at.judged(asked, functools.partial(demonstrated, at)) for t in found]
    for demonstration in shown:
        if demonstration.outcome == Outcome.INFRASTRUCTURE:
            continue
        for part in without:
            demonstration.reward_parts[part] = 0.0
        demonstration.reward = at.rewards.combined(demonstration.reward_parts)
        earned = [t.reward for t in judged(groups[demonstration.group_id])]
        if no_better and max(earned) >= demonstration.reward:
            demonstration.reward = sum(earned) / len(earned)
        if place == "last":
            gone.add((demonstration.group_id, groups[demonstration.group_id][-1].sample_id))
    return [*(drop(t, REPLACED) if (t.group_id, t.sample_id) in gone else t for t in rollouts), *shown]


@needs(Need.TEACHER)
@passes("the policy on what teachers wrote")
def teachers_for_failures(
    rollouts: list[Trajectory], at: Recomposition, solutions: Mapping[str, Sequence[str]], *, most: int = 2, least_reward: float = 1.0
) -> list[Trajectory]:
    """AMPO (arXiv 2510.02227): in a group without a right answer up to `most` wrong ones give way to what teachers have written: first what makes the
    policy hold the right answer likeliest, of equals the shortest. Its reward is at least `least_reward`.

    solutions: by id of a problem the workings of its teachers, which the stage names under `demonstrations`.
    """
    groups = {g: group for g, group in by_group(training(rollouts)).items() if rate(group) == 0}
    asked = [(group[0].problem_id, g, solutions.get(group[0].problem_id, ())) for g, group in groups.items()]
    written = at.judged(asked, functools.partial(demonstrated, at))
    flat = [t for found in written for t in found]
    likely = iter(at.foresee([(at.problems[t.problem_id], t.prompt_ids, t.response_ids) for t in flat]))
    gone, chosen = set[tuple[int, int]](), set[tuple[int, int]]()
    for group, found in zip(groups.values(), written, strict=True):
        order = ranked([(next(likely), len(t.response_ids)) for t in found])
        known = [found[place] for place in order if found[place].outcome != Outcome.INFRASTRUCTURE]
        for wrong, right in zip(judged(group), known[:most], strict=False):
            right.reward = max(right.reward, least_reward)
            gone.add((wrong.group_id, wrong.sample_id))
            chosen.add((right.group_id, right.sample_id))
    return [
        *(drop(t, REPLACED) if (t.group_id, t.sample_id) in gone else t for t in rollouts),
        *(t if (t.group_id, t.sample_id) in chosen else drop(t, SPARE) for t in flat),
    ]


def ranked(found: Sequence[tuple[float, int]]) -> list[int]:
    """Places of these, each a probability and a length, by falling probability, of equals by length."""
    return sorted(range(len(found)), key=lambda place: (-found[place][0], found[place][1]))


@needs(Need.SOLUTIONS)
def demonstration_buffer(rollouts: list[Trajectory], at: Recomposition, *, size: int = 128) -> list[Trajectory]:
    """ReLIFT (arXiv 2506.07527): problems without a right answer go to the front of a buffer; in a step that finds `size` there, the worked solutions
    of the first `size` leave it and train, in an optimiser step of their own. What stands in the buffer follows from the history, so a run that was
    killed has it again."""
    past = [at.history.tallies[step] for step in sorted(at.history.tallies) if step < at.step]
    failed = [[p for p, t in tallies.items() if not t.right and at.problems[p].solution is not None] for tallies in (*past, tallied(rollouts))]
    first = max((t.group_id for t in rollouts), default=-1) + 1
    asked = [(problem_id, first + place, [at.problems[problem_id].solution]) for place, problem_id in enumerate(leaving(failed, size))]
    return [*rollouts, *(t for found in at.judged(asked, functools.partial(demonstrated, at)) for t in found)]


def leaving(failed: Sequence[Sequence[str]], size: int) -> list[str]:
    """Of a buffer that these have come to, step by step, those that leave it in the last step."""
    buffer: list[str] = []
    left: list[str] = []
    for came in failed:
        buffer = [*came, *buffer]
        left, buffer = (buffer[:size], buffer[size:]) if len(buffer) >= size else ([], buffer)
    return left


def rate(group: Sequence[Trajectory]) -> float:
    """Share of right answers among those that could be judged; infinite where none could."""
    known = [t.outcome == Outcome.CORRECT for t in judged(group)]
    return sum(known) / len(known) if known else math.inf


def judged(group: Sequence[Trajectory]) -> list[Trajectory]:
    """One trajectory of each episode that could be judged."""
    return [t for t in episodes(group) if t.outcome != Outcome.INFRASTRUCTURE]


def demonstrated(at: Recomposition, asked: Sequence[Asked]) -> list[list[Trajectory]]:
    """The solutions as answers of a guide, not yet judged; those that are too long are left out."""
    return [
        [t for number, text in enumerate(texts) if text is not None and (t := _answer(at, problem_id, group_id, number, text))]
        for problem_id, group_id, texts in asked
    ]


def _answer(at: Recomposition, problem_id: str, group_id: int, number: int, solution: str) -> Trajectory | None:
    worked = replace(at.problems[problem_id], solution=solution)
    prompt, ids = at.asking.prompt(worked).ids, prompting.response_ids(at.asking.tokenizer, worked, at.asking.settings)
    if len(ids) > at.rewards.limit or len(prompt) > at.asking.longest:
        return None
    return Trajectory(
        problem_id=problem_id,
        group_id=group_id,
        sample_id=FIRST + number,
        step=at.step,
        policy=GUIDE,
        segments=one_turn(prompt, ids, [], [], GUIDE),
        finish_reason="stop",
        response=prompting.response(worked, at.asking.settings),
        origin=GUIDE,
    )
