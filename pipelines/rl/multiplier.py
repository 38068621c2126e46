"""A Lagrange multiplier: what a cost weighs against the reward, moved after every update so that the mean cost stays within a limit d (Gu et al.: A
Review of Safe Reinforcement Learning, arXiv 2205.10330).

    plain   lambda <- max(0, lambda + rate (C - d))
    log     log lambda <- log lambda + rate (C - d) lambda, at most log cap (Safe RLHF, arXiv 2310.12773)
    pid     e = C - d;  I <- max(0, I + e);  lambda <- max(0, kp e + ki I + kd max(0, C - the C before))  (arXiv 2007.03964)

C is the mean cost of the last `window` episodes. What the multiplier is stands among the numbers of a run (`held`), beside `kl_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.records import Trajectory

Form = Literal["plain", "log", "pid"]


class Multiplier:
    """What moves it. gains: kp, ki and kd of `pid`. cap: of every form. state: costs of the window, I, and the C before.

    Raises:
        UserError: `log` starts at 0, where it would stay, or a number is out of range.
    """

    def __init__(self, *, form: Form, start: float, rate: float, limit: float, cap: float, window: int, gains: tuple[float, float, float]) -> None:
        if start < 0 or (form == "log" and start == 0):
            raise UserError(f"inputs.multiplier: form {form} cannot start at {start:g}; {'above 0 it can' if form == 'log' else 'give 0 or more'}")
        if cap < start or window < 1:
            raise UserError(f"inputs.multiplier: cap {cap:g} must be at least start ({start:g}), and window {window} at least 1")
        self.form, self.rate, self.limit, self.cap, self.window, self.gains = form, rate, limit, cap, window, gains
        self._costs: list[float] = []
        self._integral = self._before = 0.0

    @property
    def cost(self) -> float:
        """Mean of the window."""
        return sum(self._costs) / len(self._costs)

    def after(self, value: float, costs: Sequence[float]) -> float:
        """What `value` becomes once these episodes, one at least, are known."""
        self._costs = [*self._costs, *costs][-self.window :]
        over = self.cost - self.limit
        if self.form == "log":
            logarithm = math.log(value) + self.rate * over * value
            return math.exp(logarithm) if logarithm < math.log(self.cap) else self.cap
        if self.form == "plain":
            return min(max(0.0, value + self.rate * over), self.cap)
        proportional, integral, derivative = self.gains
        self._integral = max(0.0, self._integral + over)
        rise, self._before = max(0.0, self.cost - self._before), self.cost
        return min(max(0.0, proportional * over + integral * self._integral + derivative * rise), self.cap)

    def state_dict(self) -> dict[str, Any]:
        return {"costs": list(self._costs), "integral": self._integral, "before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._costs, self._integral, self._before = list(state["costs"]), state["integral"], state["before"]


def costs_of(rollouts: Iterable[Trajectory], part: str, lack: bool) -> list[float]:
    """The cost of each: this part of its reward, or with `lack` what it lacks of 1.

    Raises:
        UserError: there is no such part.
    """
    costs = []
    for rollout in rollouts:
        if part not in rollout.reward_parts:
            known = ", ".join(sorted(rollout.reward_parts))
            raise UserError(f"inputs.cost_B names part '{part}' of the reward, and an answer has {known}; add it to slot 'parts'")
        costs.append(1 - rollout.reward_parts[part] if lack else rollout.reward_parts[part])
    return costs
