"""As many more problems as groups were lately of no use, and of all the groups those near one half."""

from __future__ import annotations

import math

from pipelines.records import Outcome, Trajectory
from pipelines.rl.account import FULL, UNIFORM, by_group, drop, mixed, training
from pipelines.rl.demands import takes
from pipelines.rl.history import History
from pipelines.rl.recompose.recomposition import Recomposition, further


@takes(lambda n, *, most, **_: (n, math.ceil(n * most)))
def oversampling(rollouts: list[Trajectory], at: Recomposition, *, smoothing: float = 0.9, most: float = 4.0) -> list[Trajectory]:
    """GLM-4.1V-Thinking (arXiv 2507.01006): a step answers 1 / (1 - e) times its problems, at most `most` times, e the moving average over the steps
    before of the share of problems whose answers are all right or all wrong. Of the groups with both outcomes those train whose share of right
    answers is nearest one half, as many as the step has problems.

    A batch that stays short stays so; one without any such group is left as it is.
    """
    first = by_group(training(rollouts))
    lacking = expanded(len(first), useless(at.history, smoothing), most) - len(first)
    out = [*rollouts, *further(at, lacking, len(first))]
    groups = by_group(training(out))
    informative = sorted(mixed(groups), key=lambda g: abs(sum(r.outcome == Outcome.CORRECT for r in groups[g]) / len(groups[g]) - 0.5))
    trained = set(informative[: len(first)] or first)
    return [r if r.group_id in trained else drop(r, FULL if r.group_id in informative else UNIFORM) for r in out]


def useless(history: History, smoothing: float) -> float:
    """Moving average over the steps of the share of problems whose answers were all right or all wrong; it begins with the first step's."""
    average: float | None = None
    for step in sorted(history.tallies):
        tallies = history.tallies[step].values()
        if tallies:
            share = sum(tally.right in (0, tally.judged) for tally in tallies) / len(tallies)
            average = share if average is None else smoothing * average + (1 - smoothing) * share
    return average or 0.0


def expanded(count: int, idle: float, most: float) -> int:
    """How many problems to answer so that `count` groups are of use. idle: the share that is not."""
    return math.ceil(count * most if idle >= 1 - 1 / most else count / (1 - idle))
