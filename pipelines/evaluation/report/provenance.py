"""The report's graph of stages with digests, and the settings, seeds and code that made each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pipelines.config import MODELS
from pipelines.evaluation.report.html import Html, el, join, number
from pipelines.evaluation.report.inputs import StageNode

SHORT = 10
"""Hex digits of a digest that are shown; the whole one is in the tooltip and the table."""
BOX, GAP, PAD = (100, 50), (24, 20), 6


def graph(nodes: Sequence[StageNode]) -> Html:
    """The stages as boxes, each with the digest of what it wrote: from left to right on a desk, from top to bottom on a phone."""
    note = "Each box carries the digest of what its stage wrote; an arrow that a longer way implies is left out."
    return join(
        [
            el("p", note, class_="note"),
            el("div", _drawing(nodes, wide=True), class_="graph wide"),
            el("div", _drawing(nodes, wide=False), class_="graph tall"),
        ]
    )


def _drawing(nodes: Sequence[StageNode], *, wide: bool) -> Html:
    columns = _columns(nodes)
    deepest = max(len(column) for column in columns)
    places: dict[str, tuple[float, float]] = {}
    for depth, column in enumerate(columns):
        for i, stage in enumerate(column):
            lane = i + (deepest - len(column)) / 2
            main, cross = (depth, lane) if wide else (lane, depth)
            places[stage] = (PAD + main * (BOX[0] + GAP[0]), PAD + cross * (BOX[1] + GAP[1]))
    depth, lanes = (len(columns), deepest) if wide else (deepest, len(columns))
    size = (2 * PAD + depth * (BOX[0] + GAP[0]) - GAP[0], 2 * PAD + lanes * (BOX[1] + GAP[1]) - GAP[1])
    edges = [_edge(places[parent], places[node.stage], wide) for node in nodes for parent in _direct(node, nodes)]
    boxes = [_box(node, *places[node.stage]) for node in nodes]
    return el("svg", edges, boxes, viewBox=f"0 0 {size[0]} {size[1]}", width=size[0], height=size[1], role="img", aria_label="graph of stages")


def _columns(nodes: Sequence[StageNode]) -> list[list[str]]:
    """Stages by the longest way that leads to them."""
    parents = {node.stage: [p for p in node.parents if any(p == other.stage for other in nodes)] for node in nodes}
    depth: dict[str, int] = {}

    def visit(stage: str) -> int:
        if stage not in depth:
            depth[stage] = max((visit(parent) + 1 for parent in parents[stage]), default=0)
        return depth[stage]

    for stage in parents:
        visit(stage)
    return [[stage for stage in parents if depth[stage] == d] for d in range(max(depth.values()) + 1)]


def _direct(node: StageNode, nodes: Sequence[StageNode]) -> list[str]:
    """Parents that are not also reached through another parent: the drawing shows the shortest set of arrows."""
    parents = {other.stage: other.parents for other in nodes}

    def ancestors(stage: str) -> set[str]:
        return {a for parent in parents.get(stage, ()) for a in (parent, *ancestors(parent))}

    known = [parent for parent in node.parents if parent in parents]
    return [parent for parent in known if not any(parent in ancestors(other) for other in known if other != parent)]


def _edge(start: tuple[float, float], end: tuple[float, float], wide: bool) -> Html:
    if wide:
        a, b = (start[0] + BOX[0], start[1] + BOX[1] / 2), (end[0], end[1] + BOX[1] / 2)
        bend = (b[0] - a[0]) / 2
        path = f"M{a[0]} {a[1]}C{a[0] + bend} {a[1]} {b[0] - bend} {b[1]} {b[0]} {b[1]}"
    else:
        a, b = (start[0] + BOX[0] / 2, start[1] + BOX[1]), (end[0] + BOX[0] / 2, end[1])
        bend = (b[1] - a[1]) / 2
        path = f"M{a[0]} {a[1]}C{a[0]} {a[1] + bend} {b[0]} {b[1] - bend} {b[0]} {b[1]}"
    return el("path", d=path, class_="edge")


def _box(node: StageNode, x: float, y: float) -> Html:
    digest = next(iter(node.made.values()), "")
    tip = el("title", f"{node.stage}\n" + "\n".join(f"wrote {name} {digest}" for name, digest in node.made.items()))
    return el(
        "g",
        tip,
        el(
            "rect", x=x, y=y, width=BOX[0], height=BOX[1], rx=8, class_="node learns" if node.kind in ("base", *MODELS) else "node"
        ),
        el("text", node.stage, x=x + BOX[0] / 2, y=y + 21, class_="node-name middle"),
        el("text", digest[:SHORT], x=x + BOX[0] / 2, y=y + 38, class_="node-digest middle"),
    )


def details(nodes: Sequence[StageNode], metrics: Mapping[str, Mapping[str, float]]) -> Html:
    """What each stage read and wrote, its figures, seed, code and settings, folded. metrics: stage -> what it has measured."""
    return join([_stage(node, metrics.get(node.stage, {})) for node in nodes])


def _stage(node: StageNode, metrics: Mapping[str, float]) -> Html:
    rows = [("wrote", name, digest) for name, digest in node.made.items()] + [("read", name, digest) for name, digest in node.read.items()]
    table = el(
        "table",
        el(
            "tbody",
            [
                el("tr", el("td", how), el("td", name, _more(node, name)), el("td", el("code", digest[:16] or "on a hub", title=digest or None)))
                for how, name, digest in rows
            ],
        ),
    )
    facts = el("p", f"seed {node.seed} · code ", el("code", node.code[:SHORT]), f" · commit {node.commit}", class_="note")
    seen = ", ".join(f"{count:,} of {reference}" for reference, count in node.seen.items())
    figures = " · ".join(f"{name} {number(value)}" for name, value in metrics.items())
    settings = el("pre", json.dumps(node.settings, indent=2, ensure_ascii=False))
    return el(
        "details",
        el("summary", el("b", node.stage), " ", el("small", f"wrote {len(node.made)}, read {len(node.read)}")),
        facts,
        el("p", f"saw rows: {seen}", class_="note") if seen else None,
        el("p", figures, class_="note") if figures else None,
        el("div", table, class_="scroll"),
        settings,
    )


def _more(node: StageNode, name: str) -> Html | None:
    return el("small", f" {node.origins[name]}") if name in node.origins else None


def versions(nodes: Sequence[StageNode]) -> Html | None:
    """Installed packages, from the last stage's statement."""
    found: Mapping[str, str] = nodes[-1].versions if nodes else {}
    return el("p", " · ".join(f"{name} {version}" for name, version in found.items()), class_="note") if found else None
