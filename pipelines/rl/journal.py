"""What a step of the loop tells: one row of the journal, and the summary of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipelines.progress import Journal
from pipelines.records import Outcome, Rollout
from pipelines.rl.batch import Batch
from pipelines.rl.data import Clock


def report(journal: Journal, step: int, total: int, made: Sequence[Rollout], batch: Batch, figures: dict[str, float], clock: Clock) -> None:
    """One row of the journal."""
    n = len(made)
    tokens = sum(len(r.response_ids) for r in made)
    outcomes = Counter(r.outcome for r in made)
    per_group: dict[int, set[float]] = {}
    for r in made:
        per_group.setdefault(r.group_id, set()).add(r.reward)
    reward = sum(r.reward for r in made) / n
    seconds = sum(clock.seconds.values())
    journal.log(
        step, total, f"reward {reward:.3f}  length {tokens / n:.0f}  entropy {figures['entropy']:.2f}  {tokens / seconds:,.0f} tokens/s",
        reward=reward, pass_rate=outcomes[Outcome.CORRECT] / n, length=tokens / n,
        truncated=sum(r.finish_reason == "length" for r in made) / n,
        working=sum(_has_working(r.response) for r in made) / n,
        informative_groups=sum(len(rewards) > 1 for rewards in per_group.values()) / len(per_group),
        advantage_abs=float(batch.advantage_BT.abs().sum() / batch.mask_BT.sum().clamp(min=1)) if batch.advantage_BT is not None else 0.0,
        **figures,
        **{f"outcome_{outcome.value}": outcomes[outcome] / n for outcome in Outcome},
        clock={"tokens_per_second": tokens / seconds} | {f"seconds_{phase}": value for phase, value in clock.seconds.items()},
    )  # fmt: skip


def _has_working(response: str) -> bool:
    """Whether anything stands between the think tags."""
    return bool(response.partition("</think>")[0].removeprefix("<think>").strip())


def summary(journal: Journal) -> dict[str, float]:
    """First and last reward, each a mean over ten steps."""
    rows = journal.rows()
    means = {"steps": float(len(rows))}
    for name in ("reward", "length", "entropy"):
        for when, part in (("first", rows[:10]), ("last", rows[-10:])):
            means[f"{name}_{when}"] = sum(row[name] for row in part) / len(part)
    return means
