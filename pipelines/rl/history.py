"""What was answered in earlier steps, read back from the files that hold it: the memory of task samplers and of what recomposes a batch.

Whoever keeps a state of his own builds it from here, so a run that was killed has it again, on every process, and no checkpoint holds it.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.records import SHARED, Outcome, Trajectory
from pipelines.rl.account import INFRASTRUCTURE, PROBE, SPARE, by_group, episodes, of_policy, place
from pipelines.store import read_trajectories


@dataclass
class Tally:
    """Of the answers to one problem in one step: how many could be judged, and how many of those are right."""

    judged: int = 0
    right: int = 0


def tallied(trajectories: Sequence[Trajectory]) -> dict[str, Tally]:
    """By problem what came of the policy's answers in a step."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for trajectory in episodes(of_policy(trajectories)):
        if trajectory.outcome != Outcome.INFRASTRUCTURE:
            tallies[trajectory.problem_id].judged += 1
            tallies[trajectory.problem_id].right += trajectory.outcome == Outcome.CORRECT
    return dict(tallies)


@dataclass
class History:
    """What earlier steps showed: by step the tally of each problem that was answered, mean reward by part and step, rewards by role, and the files
    themselves. An answer's role is its reward's part `role`, which a play or an environment gives where there are several; else 0."""

    folder: Path
    tallies: dict[int, dict[str, Tally]] = field(default_factory=dict)
    totals: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    """By problem, over all steps."""
    visits: dict[str, list[Tally]] = field(default_factory=lambda: defaultdict(list))
    """By problem the tallies of the steps that answered it, in order."""
    rewards_by_part: list[dict[str, float]] = field(default_factory=list)
    rewards_by_role: dict[float, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    """In order, of the steps before the one that was added last."""
    last: list[tuple[tuple[int, int, int], float, float]] = field(default_factory=list)
    """Place, role and reward of what was answered in that one, in order."""
    shared: set[str] = field(default_factory=set)
    """Whose answers of other runs have trained, as their `policy` says."""

    def read(self, told: Callable[[list[Trajectory]], None]) -> None:
        """Read back the files of a run that was interrupted, and tell each step's trajectories."""
        for path in sorted(self.folder.glob("step-*.parquet")):
            trajectories = read_trajectories(path)
            self.add(int(path.stem.removeprefix("step-")), trajectories)
            told(trajectories)

    def add(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """What became of a step, of which what the policy answered in it counts, whether it trains or not."""
        answers = episodes(of_policy(trajectories))
        self.shared |= {t.policy for t in trajectories if t.origin == SHARED}
        for _, role, reward in self.last:
            self.rewards_by_role[role].append(reward)
        self.last = sorted((place(t), t.reward_parts.get("role", 0.0), t.reward) for t in answers if t.outcome != Outcome.INFRASTRUCTURE)
        sums: dict[str, float] = defaultdict(float)
        for trajectory in answers:
            for part, value in trajectory.reward_parts.items():
                sums[part] += value / len(answers)
        self.tallies[step] = tallied(trajectories)
        for problem_id, tally in self.tallies[step].items():
            self.visits[problem_id].append(tally)
            self.totals[problem_id].judged += tally.judged
            self.totals[problem_id].right += tally.right
        self.rewards_by_part.append(dict(sums))

    def step(self, number: int) -> list[Trajectory]:
        """What the policy answered in step `number`."""
        return of_policy(read_trajectories(self.folder / f"step-{number:06d}.parquet"))

    def groups(self, number: int) -> list[list[Trajectory]]:
        """Those of the answers of step `number` that can train in a later one, by group: all but what was answered for comparison or could not be
        judged."""
        return list(by_group(r for r in self.step(number) if r.dropped not in (INFRASTRUCTURE, PROBE, SPARE)).values())
