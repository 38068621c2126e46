"""A later checkpoint of the run guides from when the run needs it, and it is the one whose help is worth most."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.records import POLICY, Outcome, Trajectory
from pipelines.rl.account import SPARE, by_group, drop, free, of_policy, training
from pipelines.rl.demands import passes, takes
from pipelines.rl.episodes import Beginning
from pipelines.rl.later import Later
from pipelines.rl.recompose.demonstrations import judged, rate
from pipelines.rl.recompose.inject import guide_answers, inject
from pipelines.rl.recompose.recomposition import Recomposition

LOOKED, GUIDE_STEP, FIRST = "npo_looked", "npo_guide", "npo_first"
"""Numbers of the run: the step that looked ahead last, the step of the checkpoint that guides (0: none), and the unsureness of the first step."""


@takes(lambda n, *, tries, ahead, **_: (n, n + tries * (1 + len(ahead))))
@passes("the policy on what later checkpoints say")
def auto_npo(
    rollouts: list[Trajectory],
    at: Recomposition,
    later: Later,
    *,
    at_most: float = 0.125,
    tries: int = 4,
    ahead: Sequence[int] = (5, 10, 20),
    window: int = 20,
    slope: float = 1e-3,
    failing: float = 0.5,
    unsure: float = 0.5,
    gain: float = 1.1,
) -> list[Trajectory]:
    """AutoNPO (arXiv 2604.20733): when the run stalls (`stalls`), checkpoints up to these distances `ahead` answer the problems of groups with a pass
    rate of at most `at_most`, `tries` times each. The one of the highest S = Q / V guides from then on (`inject`), as long as it is a later one,
    if S is at least `gain` times the policy's own pass rate there; else none does. Nobody looks ahead again for `window` steps.

    Q: its pass rate; V: 1 + Var(exp(mean_t (log pi - log pi_later))), what weights to the policy would cost.
    """
    groups = by_group(training(rollouts))
    hard = [group for group in groups.values() if rate(group) <= at_most]
    now = unsureness(rollouts)
    first = at.held.setdefault(FIRST, now)
    rested = at.step - at.held.get(LOOKED, -window) >= window
    failed = sum(rate(group) == 0 for group in groups.values()) / max(len(groups), 1)
    rates = [sum(t.right for t in step.values()) / max(sum(t.judged for t in step.values()), 1) for step in at.history.tallies.values()]
    seen: list[Trajectory] = []
    if hard and rested and stalls(rates[-window:], failed, now / max(first, 1e-9), window=window, slope=slope, failing=failing, unsure=unsure):
        own = [t for group in hard for t in judged(group)]
        at.held[LOOKED] = float(at.step)
        at.held[GUIDE_STEP], seen = _best(hard, free(rollouts), at, later, later.near(at.step, ahead), tries, gain * _right(own))
    guide = int(at.held.get(GUIDE_STEP, 0))
    chosen = inject(rollouts, at, later.generator(guide), at_most=at_most, tries=tries) if hard and guide > at.step else rollouts
    return [*chosen, *seen]


def stalls(rates: Sequence[float], failed: float, entropy: float, *, window: int, slope: float, failing: float, unsure: float) -> bool:
    """Whether the pass rate of `window` steps rises by less than `slope` a step, more than `failing` of the groups have no right answer, or the
    policy is less than `unsure` times as unsure as at first. failed, entropy: these shares now."""
    flat = len(rates) >= max(window, 2) and float(np.polyfit(range(len(rates)), rates, 1)[0]) < slope
    return flat or failed > failing or entropy < unsure


def unsureness(rollouts: Sequence[Trajectory]) -> float:
    """Mean of -log pi over the tokens that the policy sampled, nats: its entropy there, in one draw."""
    values = [value for t in of_policy(rollouts) for s in t.turns if s.author == POLICY for value in s.logp]
    return -sum(values) / max(len(values), 1)


def worth(quality: Sequence[float], cost: Sequence[float]) -> list[float]:
    """S = Q / V."""
    return [q / v for q, v in zip(quality, cost, strict=True)]


def weight_cost(gaps: Sequence[float]) -> float:
    """V of answers with these means of log pi - log pi_later."""
    return 1.0 + float(np.var(np.exp(gaps))) if gaps else 1.0


def _right(answers: Sequence[Trajectory]) -> float:
    return sum(t.outcome == Outcome.CORRECT for t in answers) / max(len(answers), 1)


def _best(
    hard: Sequence[Sequence[Trajectory]],
    numbers: Mapping[int, int],
    at: Recomposition,
    later: Later,
    steps: Sequence[int],
    tries: int,
    least: float,
) -> tuple[float, list[Trajectory]]:
    """The step whose checkpoint is worth most, 0 where none is worth `least`, and what all of them said. numbers: by group the first that no answer
    has."""
    quality, cost, said = [], [], list[Trajectory]()
    for number, step in enumerate(steps, 1):
        begun = [Beginning(group[0], (), tries, numbers[group[0].group_id] + number * tries) for group in hard]  # after those of `inject`
        answers = [t for part in at.judged(begun, functools.partial(guide_answers, at, later.generator(step))) for t in part]
        logps = zip(answers, at.tokens("logp_old_BT", answers), strict=True)
        quality.append(_right(judged(answers)))
        cost.append(weight_cost([float(np.mean(np.subtract(logp, t.turns[-1].logp))) for t, logp in logps]))
        said += [drop(t, SPARE) for t in answers]
    values = worth(quality, cost)
    best = max(range(len(steps)), key=lambda place: values[place], default=None)
    return float(steps[best]) if best is not None and values[best] >= max(least, 1e-9) else 0.0, said
