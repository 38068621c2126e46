"""What became of every rollout of a step: it trains, or says why not. Nothing that was answered disappears.

A step's rollouts are one list that only grows: what changes a batch marks what it takes out and adds what it puts in. So for each step

    answered + replayed + guided + shared = trained + dropped

where `answered` is what the policy said in this step, which the figures of the journal, the history and the reports are taken of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipelines.records import GUIDE, POLICY, REPLAY, SHARED, Outcome, Trajectory

INFRASTRUCTURE = "infrastructure"
"""Its verdict says nothing about the response."""
UNIFORM = "uniform"
"""All or none of its group are right (dynamic sampling)."""
FULL = "full"
"""The batch had enough groups without it."""
REPLACED = "replaced"
"""It gave way to a replayed group, to a guide's response, or to answers with more help."""
SPARE = "spare"
"""No place was found for it: a guide said it, the group had enough without it, or the others are compared with it."""
PROBE = "probe"
"""It was answered to see whether the policy can."""
BUFFERED = "buffered"
"""It may train in a later step (RoRecomp)."""
STALE = "stale"
"""Sampled too many updates ago."""
ROUTED = "routing"
"""The recipe's slot `routing` leaves it out; on disk with the function's name, as in `routing only_correct`."""
REASONS = (INFRASTRUCTURE, UNIFORM, FULL, REPLACED, SPARE, PROBE, BUFFERED, STALE, ROUTED)


def training(rollouts: Iterable[Trajectory]) -> list[Trajectory]:
    """Those that train."""
    return [rollout for rollout in rollouts if not rollout.dropped]


def of_policy(rollouts: Iterable[Trajectory]) -> list[Trajectory]:
    """Those that the policy answered in this step."""
    return [rollout for rollout in rollouts if rollout.origin == POLICY]


def drop(rollout: Trajectory, reason: str) -> Trajectory:
    """The rollout as one that does not train; a reason that it has already stays."""
    return rollout if rollout.dropped else replace(rollout, dropped=reason)


def by_group(rollouts: Iterable[Trajectory]) -> dict[int, list[Trajectory]]:
    """By group id, in order."""
    groups: dict[int, list[Trajectory]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group_id].append(rollout)
    return groups


def mixed(groups: Mapping[int, Sequence[Trajectory]]) -> list[int]:
    """Ids of the groups with some but not all responses right."""
    return [g for g, group in groups.items() if 0 < sum(r.outcome == Outcome.CORRECT for r in group) < len(group)]


def episodes(rollouts: Iterable[Trajectory]) -> list[Trajectory]:
    """One trajectory of each episode: they share outcome and reward."""
    return [rollout for rollout in rollouts if rollout.part == 0]


def free(rollouts: Iterable[Trajectory]) -> dict[int, int]:
    """By group the first number from which on no answer has one."""
    numbers: dict[int, int] = defaultdict(int)
    for rollout in rollouts:
        numbers[rollout.group_id] = max(numbers[rollout.group_id], rollout.sample_id + 1)
    return numbers


def place(rollout: Trajectory) -> tuple[int, int, int]:
    """What tells a rollout from the others that train with it."""
    return rollout.group_id, rollout.sample_id, rollout.part


def below(rollouts: Iterable[Trajectory], groups: Sequence[Sequence[Trajectory]], origin: str) -> list[Trajectory]:
    """Groups from elsewhere, as they train with a step's rollouts: before those, with ids below theirs and below 0."""
    first = min([0, *(r.group_id for r in rollouts)]) - len(groups)
    return [replace(r, group_id=first + number, origin=origin, dropped="") for number, group in enumerate(groups) for r in group]


def trains(rollout: Trajectory) -> list[bool]:
    """For each id of the response, whether it trains."""
    return [segment.trains for segment in rollout.turns for _ in segment.ids]


def leave_out(rollouts: Sequence[Trajectory], reasons: Mapping[tuple[int, int, int], str]) -> list[Trajectory]:
    """The rollouts, of which those that train and stand at these places are dropped for these reasons."""
    return [drop(r, reasons[place(r)]) if not r.dropped and place(r) in reasons else r for r in rollouts]


def counts(rollouts: Sequence[Trajectory]) -> dict[str, float]:
    """How many were answered, replayed, guided and shared, and how many of them trained and were dropped, by reason."""
    origins = Counter(rollout.origin for rollout in rollouts)
    reasons = Counter(rollout.dropped.partition(" ")[0] for rollout in rollouts if rollout.dropped)
    return {
        "answered": float(origins[POLICY]),
        "replayed": float(origins[REPLAY]),
        "guided": float(origins[GUIDE]),
        "shared": float(origins[SHARED]),
        "trained": float(len(rollouts) - reasons.total()),
        "dropped": float(reasons.total()),
        **{f"dropped_{reason}": float(reasons[reason]) for reason in REASONS},
    }
