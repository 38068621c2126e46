"""The policy answers once more from where its best answer had come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipelines import seeding
from pipelines.records import GUIDE, Outcome, Problem, Segment, Trajectory
from pipelines.rl.account import UNIFORM, drop, episodes
from pipelines.rl.episodes import Round, Task
from pipelines.rl.inputs.probes import step_starts


class PartialStates:
    """ReST-GRPO (ReST-RL, arXiv 2508.19576): a group whose rewards have a deviation (ddof 0) below `least` does not train. Where the best reward of
    another is at least `best`, its answer is cut into lines, at `delimiters`, and the policy answers as often from after some of them: a `share` of
    the number of lines, rounded up, or `count`, drawn with replacement, the first i lines with weight `decay`^i. All lines are such a state too. What
    opens an answer does not train, and `given` of the figures is how many lines it has.

    most: states of one problem, whatever the share. Lines after which no room is left for an answer are not drawn.
    """

    def __init__(
        self,
        *,
        least: float = 0.05,
        best: float = 0.9,
        share: float = 0.5,
        count: int | None = None,
        decay: float = 0.95,
        most: int = 8,
        delimiters: Sequence[str] = ("\n",),
    ) -> None:
        self._least, self._best, self._share, self._count, self._decay, self._delimiters = least, best, share, count, decay, tuple(delimiters)
        self._most = most
        self.width = 1 + (min(count, most) if count is not None else most)

    async def __call__(self, task: Task, at: Round) -> list[Trajectory]:
        """See `Play`."""
        group = await at.judged(task)
        judged = [t for t in episodes(group) if t.outcome != Outcome.INFRASTRUCTURE]
        if not judged or np.std([t.reward for t in judged]) < self._least:
            return [drop(t, UNIFORM) for t in group]
        first = max(judged, key=lambda t: t.reward)
        if first.reward < self._best:
            return group
        tasks = [replace(at.state([Segment(GUIDE, ids)]), figures={"given": float(lines)}) for lines, ids in self._states(first, task, at)]
        answered = await at.together([at.answer(each) for each in tasks])
        return [*group, *(trajectory for each in answered for trajectory in each)]

    def problems(self, trajectories: Sequence[Trajectory], known: Mapping[str, Problem]) -> dict[str, Problem]:
        """See `Play`."""
        return {}

    def _states(self, first: Trajectory, task: Task, at: Round) -> list[tuple[int, list[int]]]:
        """The beginnings of an answer to go on from: how many lines, and their ids."""
        tokenizer = at.asking.tokenizer
        ids = [token for token in first.response_ids if token != tokenizer.eos_token_id]
        ends = [*step_starts(tokenizer, ids, self._delimiters, thought=False)[1:], len(ids)]
        count = min(math.ceil(len(ends) * self._share) if self._count is None else self._count, self._most)
        fitting = [end for end in ends if len(task.prompt.ids) + end <= at.asking.longest]
        if not fitting:
            return []
        weights = self._decay ** np.arange(1, len(fitting) + 1)
        chosen = seeding.generator(*task.key, "partial states").choice(len(fitting), size=count, p=weights / weights.sum())
        return [(place + 1, ids[: fitting[place]]) for place in chosen.tolist()]
