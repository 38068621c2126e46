"""What a run of RL that is under way will come to, and whether that can still be the best of a sweep.

The pass rate by step is continued with the sigmoid of `scaling` to the run's last steps. The interval there is what the plausible curves span, with
the noise of that many steps: a curve that may yet rise is plausible as long as the steps seen do not speak against it, so a slow start alone
condemns no run. Hopeless is a run whose upper bound stays below the best run's last steps by more than a margin. Freeze-thaw (Swersky et al., arXiv
1406.3896) and Domhan et al. (IJCAI 2015) stop by the chance of being better under a prior over curves; here is no prior but the form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation import scaling
from pipelines.evaluation.statistics import Floats

SHARE = 0.1
"""Of a run's steps: its end, over which the pass rate is averaged."""
FEWEST = 5
"""Steps that an end has at least."""
SEEN = 0.4
"""Share of its steps that a run has made before anything is said of it."""
MARGIN = 0.02
"""So much pass rate below the best still is not hopeless."""
LEVEL = 0.99
"""Of the interval: it is looked at after every step."""


@dataclass(frozen=True)
class Outlook:
    """The mean pass rate of a run's end as predicted after `step` of `steps`, its interval, and the best run's, if there is one."""

    step: int
    steps: int
    mean: float
    low: float
    high: float
    best: float | None

    @property
    def hopeless(self) -> bool:
        return self.best is not None and self.high + MARGIN < self.best

    def told(self, stage: str) -> str:
        """Why the run was stopped."""
        predicted = f"its end was predicted at a pass rate of {self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"stopped after step {self.step} of {self.steps} of {stage}, where {predicted}, and the best before it reached {self.best:.3f}"


def end(rates: Floats) -> float:
    """Mean pass rate of the last steps of a run that is over; rates (T,)."""
    return float(rates[-_end(len(rates)) :].mean())


def outlook(rates: Floats, steps: int, best: float | None) -> Outlook | None:
    """What the first T of `steps` steps say of the end; rates (T,). None while they are too few."""
    if len(rates) < max(scaling.LEAST, math.ceil(SEEN * steps)) or len(rates) >= steps:
        return None
    fitted = scaling.fit(np.arange(float(len(rates))), rates, level=LEVEL)
    found = scaling.predict(fitted, np.arange(float(steps - _end(steps)), steps))
    return Outlook(len(rates), steps, found.mean, found.mean_low, found.mean_high, best)


def _end(steps: int) -> int:
    """How many steps the end of a run has."""
    return min(steps, max(FEWEST, round(SHARE * steps)))
