"""The report's learning curves: losses of supervised training, and what RL and its relatives did step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from pipelines.evaluation.report.charts import Point, Series, line_chart
from pipelines.evaluation.report.html import Html, el, join
from pipelines.evaluation.report.results import legend

Rows = Sequence[Mapping[str, float]]

PANELS = {
    "reward": "Mean reward",
    "pass_rate": "Pass rate of what was answered",
    "length": "Response length (tokens)",
    "entropy": "Entropy (nats per token)",
    "working": "Share with working",
    "informative_groups": "Share of groups with mixed rewards",
    "truncated": "Share cut off at the limit",
    "tokens_per_second": "Tokens per second",
}
"""Columns of the journals of RL, and of programs that report a reward, that have a chart of their own, in this order; others stand below, folded."""
SUPERVISED = {"loss": "loss (nats per token)", "held_out_loss": "loss on what is held out"}
"""Likewise, of supervised training, a chart for each stage."""
TAUGHT = {"loss": "Loss", "advantage_mean": "Mean advantage (nats per token)"} | PANELS
"""Likewise, of stages whose answers teachers judge: where nothing else is added, the advantage is minus the reverse KL to the teacher in one draw."""
STORED = {"loss": "Loss", "pair_accuracy": "Share of pairs ranked right", "pair_margin": "Margin of pairs (nats)", "entropy": PANELS["entropy"]}
"""Likewise, of stages that train on stored responses."""
SCORERS = {"loss": "Loss (nats per pair or response)", "held_out_loss": "Loss on what is held out"}
"""Likewise, of reward models."""
POINTS = 160
"""Most points of a drawn line; more are averaged."""


def curves(stages: Mapping[str, Rows], kinds: Mapping[str, str], shade: Mapping[str, str]) -> Html:
    """All learning curves. stages: name -> rows with `step`. kinds: of the stages. shade: their colours."""
    rl = {name: rows for name, rows in stages.items() if rows and (kinds[name] == "rl" or (kinds[name] == "command" and _has(rows, "reward")))}
    taught = {name: rows for name, rows in stages.items() if kinds[name] == "distil" and _has(rows, "reward")}
    others = {name: rows for name, rows in stages.items() if name not in rl | taught and rows}
    stored = {name: rows for name, rows in others.items() if kinds[name] in ("preference", "distil")}
    scorers = {name: rows for name, rows in others.items() if kinds[name] == "reward_model"}
    parts: list[Html] = []
    supervised = {name: rows for name, rows in others.items() if name not in {*stored, *scorers} and _has(rows, "loss")}
    if supervised:
        charts = [
            line_chart(f"{stage}: {title}", [_series(stage, shade[stage], rows, name)], "step")
            for stage, rows in supervised.items()
            for name, title in SUPERVISED.items()
            if _has(rows, name)
        ]
        parts += [el("h3", "Supervised training"), el("div", charts, class_="grid-charts")]
    charted = (
        ("Reinforcement learning", rl, PANELS),
        ("Distillation", taught, TAUGHT),
        ("Stored responses", stored, STORED),
        ("Reward models", scorers, SCORERS),
    )
    for heading, stepping, panels in charted:
        if stepping:
            names = _names(stepping)
            parts += [el("h3", heading), legend([(name, shade[name]) for name in stepping])]
            parts.append(el("div", [_panel(stepping, shade, name, panels[name]) for name in panels if name in names], class_="grid-charts"))
            parts += _folded(stepping, shade, [name for name in names if name not in panels])
    if programs := {name: rows for name, rows in others.items() if kinds[name] == "command"}:
        parts += [el("h3", "What programs measured"), *_folded(programs, shade, [name for name in _names(programs) if name != "loss"])]
    return join(parts)


def _has(rows: Rows, name: str) -> bool:
    return any(name in row for row in rows)


def _names(stages: Mapping[str, Rows]) -> list[str]:
    """Columns in the order of their first appearance."""
    return list(dict.fromkeys(name for rows in stages.values() for row in rows for name in row if name != "step"))


def _folded(stages: Mapping[str, Rows], shade: Mapping[str, str], names: Sequence[str]) -> list[Html]:
    """A chart of each column that moves, behind a line that says how many there are."""
    charts = [_panel(stages, shade, name, name) for name in names if _moves(stages.values(), name)]
    return [el("details", el("summary", f"{len(charts)} more measures"), el("div", charts, class_="grid-charts"))] if charts else []


def _panel(stages: Mapping[str, Rows], shade: Mapping[str, str], name: str, title: str) -> Html:
    having = {stage: rows for stage, rows in stages.items() if _has(rows, name)}
    return line_chart(title, [_series(stage, shade[stage], rows, name) for stage, rows in having.items()], "step")


def _moves(stages: Iterable[Rows], name: str) -> bool:
    """A column that is the same everywhere needs no chart."""
    return len({row[name] for rows in stages for row in rows if name in row}) > 1


def _series(name: str, colour: str, rows: Rows, column: str) -> Series:
    """A smoothed line over the raw one; short runs are drawn raw."""
    raw = thin([(row["step"], row[column]) for row in rows if column in row])
    return Series(name, colour, smooth(raw), faint=raw) if len(raw) > 20 else Series(name, colour, raw)


def thin(points: Sequence[Point]) -> list[Point]:
    """At most POINTS points, each the mean of its neighbours."""
    size = -(-len(points) // POINTS)
    bounds = [*range(0, len(points), size), len(points)]
    pieces = [points[a:b] for a, b in pairwise(bounds)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Moving average over about a tenth of the run, one-sided at its ends."""
    reach = max(2, len(points) // 20)
    line = []
    for i, (x, _) in enumerate(points):
        window = points[max(0, i - reach) : i + reach + 1]
        line.append((x, sum(y for _, y in window) / len(window)))
    return line
