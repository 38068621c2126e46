"""What a step of the loop tells: one row of the journal, and the summary of a run."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from pipelines.models import ranks
from pipelines.progress import Journal
from pipelines.records import REPLAY, SHARED, Outcome, Trajectory
from pipelines.rl import account
from pipelines.rl.batch import Batch
from pipelines.rl.clock import Clock


def report(
    journal: Journal, step: int, total: int, rollouts: Sequence[Trajectory], batch: Batch | None, figures: dict[str, float], clock: Clock
) -> None:
    """One row of the journal: of what the policy answered; `trained_*` of what trained; how many of which. batch: None where nothing trained, and the
    row has no figures of an update. Of several processes all must call."""
    answers, trained = account.episodes(account.of_policy(rollouts)), account.training(rollouts)
    if not answers:
        assert batch is not None  # what is stored always trains
        _report_stored(journal, step, total, trained, batch, figures, clock)
        return
    means, outcomes = _means(answers), Counter(r.outcome for r in answers)
    parts: dict[str, float] = {}
    for r in answers:
        for part, value in r.reward_parts.items():
            parts[f"reward_{part}"] = parts.get(f"reward_{part}", 0.0) + value / len(answers)
    taken = clock.seconds | clock.beside
    tokens = {"generate": _tokens(r for r in rollouts if r.origin not in (REPLAY, SHARED)), "update": _tokens(trained)}
    rates = {f"tokens_per_second_{phase}": count / taken[phase] for phase, count in tokens.items() if taken.get(phase)}
    speed = tokens["generate"] / sum(clock.seconds.values())
    trains = f"entropy {figures['entropy']:.2f}" if batch else "nothing to train on"
    journal.log(
        step, total, f"reward {means['reward']:.3f}  length {means['length']:.0f}  {trains}  {speed:,.0f} tokens/s",
        **means,
        length_max=float(max(r.written for r in answers)),
        truncated=sum(r.finish_reason == "length" for r in answers) / len(answers),
        working=sum(_has_working(r.response) for r in answers) / len(answers),
        **parts,
        **{f"trained_{name}": value for name, value in _means(trained).items()},
        **account.counts(rollouts),
        **_advantages(batch),
        **figures,
        **{f"outcome_{outcome.value}": outcomes[outcome] / len(answers) for outcome in Outcome},
        clock={"tokens_per_second": speed, **rates, **{f"seconds_{phase}": value for phase, value in taken.items()}, **_memory()},
    )  # fmt: skip


def _report_stored(
    journal: Journal, step: int, total: int, trained: Sequence[Trajectory], batch: Batch, figures: dict[str, float], clock: Clock
) -> None:
    """The row of a step whose responses were stored."""
    speed = _tokens(trained) / sum(clock.seconds.values())
    ranked = f"  pairs ranked right {figures['pair_accuracy']:.2f}" if "pair_accuracy" in figures else ""
    journal.log(
        step, total, f"loss {figures['loss']:.4f}{ranked}  entropy {figures['entropy']:.2f}  {speed:,.0f} tokens/s",
        **{f"trained_{name}": value for name, value in _means(trained).items()},
        trained=float(len(trained)),
        **_advantages(batch),
        **figures,
        clock={"tokens_per_second": speed, **{f"seconds_{phase}": value for phase, value in clock.seconds.items()}, **_memory()},
    )  # fmt: skip


def _means(rollouts: Sequence[Trajectory]) -> dict[str, float]:
    """Means over rollouts, and the share of groups whose rewards differ; 0 of none."""
    groups: dict[int, set[float]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group_id, set()).add(rollout.reward)
    n = max(len(rollouts), 1)
    return {
        "reward": sum(r.reward for r in rollouts) / n,
        "pass_rate": sum(r.outcome == Outcome.CORRECT for r in rollouts) / n,
        "length": _tokens(rollouts) / n,
        "informative_groups": sum(len(rewards) > 1 for rewards in groups.values()) / max(len(groups), 1),
    }


def _tokens(rollouts: Iterable[Trajectory]) -> int:
    return sum(r.written for r in rollouts)


def _advantages(batch: Batch | None) -> dict[str, float]:
    """Over the tokens of all ranks."""
    if batch is None or "advantage_BT" not in batch:
        return {}
    advantage = batch["advantage_BT"][batch.mask_BT.bool()]
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


WINDOW = 10
"""Steps over which the first and the last figures are means."""
FEW = 0.1
"""Share of groups with differing rewards below which a step has hardly anything to learn from."""


def notices(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """What somebody should look at in a run's journal: no signal in its groups, or no gain beyond the noise of its steps (two standard errors)."""
    if "reward" not in rows[0]:
        return []  # nothing was answered
    found = []
    mixed = sum(row["informative_groups"] for row in rows) / len(rows)
    if mixed < FEW:
        found.append(f"no signal: rewards differed in {mixed:.0%} of the groups, and the others train nothing; choose problems of other difficulty")
    if rows[-1].get("multiplier_capped"):
        found.append(
            f"the multiplier of the cost stands at its cap: the mean cost, {rows[-1]['cost']:.3g} at the end, may never come within its limit"
        )
    if len(rows) >= 2 * WINDOW:
        first, last = (torch.tensor([row["reward"] for row in part], dtype=torch.float64) for part in (rows[:WINDOW], rows[-WINDOW:]))
        gain, error = float(last.mean() - first.mean()), float((first.var() / WINDOW + last.var() / WINDOW).sqrt())
        if gain <= 2 * error:
            rewards = f"reward {float(first.mean()):.3f} in the first {WINDOW} steps, {float(last.mean()):.3f} in the last"
            found.append(f"no gain: {rewards} (noise {error:.3f})")
    return found


def summary(journal: Journal) -> dict[str, float]:
    """First and last reward, or loss where nothing was answered, each a mean over ten steps."""
    rows = journal.rows()
    means = {"steps": float(len(rows))}
    told = ("reward", "length", "entropy") if "reward" in rows[0] else ("loss", "pair_accuracy", "pair_margin", "entropy")
    for name in told:
        values = [row[name] for row in rows if name in row]  # a step without an update has none of it
        for when, part in (("first", values[:WINDOW]), ("last", values[-WINDOW:])) if values else ():
            means[f"{name}_{when}"] = sum(part) / len(part)
    return means
