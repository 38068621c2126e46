"""When a reward without labels would stop meaning anything: the model collapse step (URLVR, arXiv 2603.08660).

The pseudo-reward of a response is 1 if its answer is the one that most of its group gave. Reward accuracy is the share of responses whose
pseudo-reward agrees with the verifier's; the model collapse step is the first training step at which it is below .01. On a run that
trained on verified rewards the same figure says how good a majority's word would have been at each step.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pyarrow as pa

from pipelines.records import Outcome

THRESHOLD = 0.01


def group_accuracy(labels: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Reward accuracy of one group. labels: each response's answer, None for none, which casts no vote and earns no pseudo-reward.

    Between answers with equally many votes the mean over them is taken, so that order does not matter.
    """
    votes: dict[Hashable, int] = {}
    for label in labels:
        if label is not None:
            votes[label] = votes.get(label, 0) + 1
    leaders = [label for label, count in votes.items() if count == max(votes.values())] or [None]
    agreeing = [sum((label is not None and label == leader) == right for label, right in zip(labels, correct, strict=True)) for leader in leaders]
    return sum(agreeing) / len(leaders) / len(labels)


def accuracy_by_step(rollouts: pa.Table) -> dict[int, float]:
    """Reward accuracy of a majority's word at each training step, from rollouts (step, group_id, outcome, extracted).

    Correct answers are one, by the verifier; wrong ones are told apart by their text. What was not judged is left out.
    """
    groups: dict[tuple[int, int], list[tuple[Hashable | None, bool]]] = {}
    for step, group, outcome, extracted in zip(*(rollouts[name].to_pylist() for name in ("step", "group_id", "outcome", "extracted")), strict=True):
        if outcome != Outcome.INFRASTRUCTURE:
            right = outcome == Outcome.CORRECT
            groups.setdefault((step, group), []).append((right or extracted, right))
    sums: dict[int, list[float]] = {}
    for (step, _), rows in groups.items():
        labels, correct = zip(*rows, strict=True)
        total = sums.setdefault(step, [0.0, 0.0])
        total[0] += group_accuracy(labels, correct) * len(rows)
        total[1] += len(rows)
    return {step: agreeing / rows for step, (agreeing, rows) in sorted(sums.items())}


def collapse_step(steps: Sequence[int], accuracy: Sequence[float], *, sustained: int = 1) -> int | None:
    """The first step whose reward accuracy, and that of the `sustained - 1` after it, is below THRESHOLD; None where the run ends before.

    60, 40, 5, .9, .5 per cent at steps 0, 50, 100, 150, 200 -> 150.
    """
    for i in range(len(steps) - sustained + 1):
        if all(value < THRESHOLD for value in accuracy[i : i + sustained]):
            return steps[i]
    return None
