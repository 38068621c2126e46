"""What a step of the loop tells: one row of the journal, and the summary of a run."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Sequence

import torch

from pipelines.progress import Journal
from pipelines.records import Outcome, Rollout
from pipelines.rl import ranks
from pipelines.rl.batch import Batch
from pipelines.rl.data import Clock


def report(journal: Journal, step: int, total: int, made: Sequence[Rollout], batch: Batch, figures: dict[str, float], clock: Clock) -> None:
    """One row of the journal. Of several processes all must call."""
    n = len(made)
    lengths = [len(r.response_ids) for r in made]
    tokens = sum(lengths)
    outcomes = Counter(r.outcome for r in made)
    per_group: dict[int, set[float]] = {}
    parts: dict[str, float] = {}
    for r in made:
        per_group.setdefault(r.group_id, set()).add(r.reward)
        for part, value in r.reward_parts.items():
            parts[f"reward_{part}"] = parts.get(f"reward_{part}", 0.0) + value / n
    reward = sum(r.reward for r in made) / n
    seconds = sum(clock.seconds.values())
    taken = clock.seconds | clock.beside
    rates = {f"tokens_per_second_{phase}": tokens / taken[phase] for phase in ("generate", "update") if taken.get(phase)}
    journal.log(
        step, total, f"reward {reward:.3f}  length {tokens / n:.0f}  entropy {figures['entropy']:.2f}  {tokens / seconds:,.0f} tokens/s",
        reward=reward, pass_rate=outcomes[Outcome.CORRECT] / n, length=tokens / n, length_max=float(max(lengths)),
        truncated=sum(r.finish_reason == "length" for r in made) / n,
        working=sum(_has_working(r.response) for r in made) / n,
        informative_groups=sum(len(rewards) > 1 for rewards in per_group.values()) / len(per_group),
        **parts,
        **_advantages(batch),
        **figures,
        **{f"outcome_{outcome.value}": outcomes[outcome] / n for outcome in Outcome},
        clock={"tokens_per_second": tokens / seconds, **rates, **{f"seconds_{phase}": value for phase, value in taken.items()}, **_memory()},
    )  # fmt: skip


def _advantages(batch: Batch) -> dict[str, float]:
    """Over the tokens of all ranks."""
    if batch.advantage_BT is None:
        return {}
    advantage = batch.advantage_BT[batch.mask_BT.bool()]
    powers = {"sum": advantage, "square": advantage**2, "abs": advantage.abs()}
    sums = ranks.total({"n": len(advantage)} | {name: float(value.sum()) for name, value in powers.items()})
    tokens = max(sums["n"], 1.0)
    mean = sums["sum"] / tokens
    deviation = max(sums["square"] / tokens - mean**2, 0.0) ** 0.5
    furthest = ranks.largest({"advantage_max": float(advantage.max()) if len(advantage) else 0.0})
    return {"advantage_mean": mean, "advantage_std": deviation, "advantage_abs": sums["abs"] / tokens, **furthest}


def _memory() -> dict[str, float]:
    """Most that this process has held so far: resident, and on the device."""
    held = {"gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}  # kilobytes on Linux
    return held | ({"gigabytes_device": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_initialized() else {})


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
