"""Answers in rounds, each with as much help as should make half of them right."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from pipelines.records import Outcome, Trajectory
from pipelines.rl.account import episodes
from pipelines.rl.demands import Need, needs, takes
from pipelines.rl.episodes import Answers, Task
from pipelines.rl.guidance.solution_chunks import solution_steps

Curve = tuple[float, float, float]
"""b, k, mu of accuracy = b + (1 - b) / (1 + exp(-k (share + mu)))."""
START: Curve = (0.0, 10.0, -0.5)
_CURVES = np.array(
    [*itertools.product(np.linspace(0, 0.45, 10), np.geomspace(1, 100, 41), np.linspace(-1.5, 0.5, 81))]  # a half is reached with some share
)
_AWAY = ((_CURVES - START) / (0.45, 99.0, 2.0)) ** 2


@needs(Need.SOLUTIONS)
@takes(lambda _, *, rounds, per_round, **_more: (rounds * per_round, rounds * per_round))
async def fitted_help(task: Task, answers: Answers, *, rounds: int = 4, per_round: int = 8, target: float = 0.5) -> list[Trajectory]:
    """SEELE (arXiv 2509.06923): `rounds` rounds of `per_round` episodes, all of which are one group: the first with all steps of the solution but
    one, each further one with the share of help that leads to accuracy `target` by a curve through what the rounds before showed."""
    steps = max(len(solution_steps(task.problem.solution or "")), 1)
    share, group = (steps - 1) / steps, list[Trajectory]()
    shown: dict[float, list[float]] = {}
    for number in range(rounds):
        asked = [answers.answer(number * per_round + path, share) for path in range(per_round)]
        more = [trajectory for parts in await answers.together(asked) for trajectory in parts]
        group += more
        await answers.judge(more)
        if judged := [t for t in episodes(more) if t.outcome != Outcome.INFRASTRUCTURE]:
            shown.setdefault(share, []).append(sum(t.outcome == Outcome.CORRECT for t in judged) / len(judged))
            curve = fitted({share: sum(rates) / len(rates) for share, rates in shown.items()})
            share = round(share_for(curve, target) * steps) / steps
    return group


def fitted(accuracy: Mapping[float, float]) -> Curve:
    """The curve nearest to the accuracy by share of help, by least squares over a grid of curves; of those as near the one nearest to START."""
    shares, rates = np.array(list(accuracy)), np.array(list(accuracy.values()))
    b, k, mu = _CURVES.T[:, :, None]
    error = ((b + (1 - b) / (1 + np.exp(-k * (shares + mu))) - rates) ** 2).sum(-1)
    b, k, mu = _CURVES[np.argmin(error + 1e-3 * _AWAY.sum(-1))]
    return float(b), float(k), float(mu)


def share_for(curve: Curve, target: float) -> float:
    """The share of help at which the curve has accuracy `target`, inside [0, 1]."""
    b, k, mu = curve
    return min(max(-mu - float(np.log((1 - b) / (target - b) - 1)) / k, 0.0), 1.0)
