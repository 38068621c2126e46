"""Responses side by side, before and after RL, to the same problems and from the same random streams.

Half of the problems are drawn by hash of their id, so that the page cannot show only what looks good; the others are those
where RL gained most and lost most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluation.report.html import Html, el, join
from pipelines.evaluation.report.inputs import gate_of
from pipelines.evaluation.report.results import best_expert, ordered
from pipelines.prompting import END_THINK

SHOWN = 1600
"""Characters of a response that are shown; its end matters most."""

Rows = Sequence[Mapping[str, Any]]


def compared(scores: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Benchmark -> (before, after): what the gate compares with, and the model of RL that is best there."""
    pairs = {name: best_expert(scores, name) for name in ordered(scores)}
    return {name: (gate_of(scores)[0], after) for name, after in pairs.items() if after}


def section(samples: Mapping[tuple[str, str], Rows], pairs: Mapping[str, tuple[str, str]], count: int) -> Html:
    """`count` problems in all, spread over the benchmarks."""
    blocks = []
    shares = [count // len(pairs) + (i < count % len(pairs)) for i in range(len(pairs))]
    for (name, (before, after)), share in zip(pairs.items(), shares, strict=True):
        one, other = _by_problem(samples[before, name]), _by_problem(samples[after, name])
        for problem, why in choose(one, other, share):
            blocks.append(_card(name, why, (before, one[problem]), (after, other[problem])))
    note = (
        "“Drawn” problems were picked by hash of their id; the others are the largest gain and the largest loss. "
        "Each side shows one response; the count says how many of all were correct."
    )
    return join([el("p", note, class_="note"), blocks])


def choose(before: Mapping[str, Rows], after: Mapping[str, Rows], count: int) -> list[tuple[str, str]]:
    """`count` problems with the reason each is shown: alternately drawn, largest gain, drawn, largest loss, ..."""
    problems = sorted(before.keys() & after.keys())
    gain = {p: _rate(after[p]) - _rate(before[p]) for p in problems}
    drawn = sorted(problems, key=lambda p: hashlib.sha256(p.encode()).digest())
    queues = [
        ("drawn", drawn),
        ("large gain", sorted((p for p in problems if gain[p] > 0), key=lambda p: (-gain[p], p))),
        ("drawn", drawn),
        ("large loss", sorted((p for p in problems if gain[p] < 0), key=lambda p: (gain[p], p))),
    ]
    chosen: dict[str, str] = {}
    for turn in range(4 * count):
        why, queue = queues[turn % 4]
        left = [p for p in queue if p not in chosen]
        if left and len(chosen) < count:
            chosen[left[0]] = why
    return list(chosen.items())


def _by_problem(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["problem_id"], []).append(row)
    return found


def _rate(rows: Rows) -> float:
    return sum(row["outcome"] == "correct" for row in rows) / len(rows)


def _card(benchmark: str, why: str, *sides: tuple[str, Rows]) -> Html:
    first = sides[0][1][0]
    answer = _cut(first["answer"])
    gold = el("div", "Expected: ", el("pre" if "\n" in answer else "code", answer), class_="gold")
    head = el(
        "header",
        el("span", benchmark, class_="chip"),
        el("span", why, class_="chip"),
        *(el("span", topic, class_="chip quiet") for topic in first["topics"]),
    )
    return el(
        "article", head, el("p", first["prompt"], class_="prompt"), gold, el("div", [_side(*side) for side in sides], class_="sides"), class_="sample"
    )


def _side(model: str, rows: Rows) -> Html:
    """The first response of a model, with its verdict."""
    row = rows[0]
    correct = sum(r["outcome"] == "correct" for r in rows)
    tone = {"correct": "good", "wrong": "bad"}.get(row["outcome"], "open")
    badge = el("span", row["outcome"], class_=f"chip {tone}", title=row["detail"] or None)
    head = el("div", el("b", model), badge, el("small", f"{correct} of {len(rows)} correct · {row['response_tokens']} tokens"), class_="side-head")
    working, mark, answer = row["response"].partition(END_THINK)
    if not mark:
        working, answer = "", row["response"]
    return el("div", head, el("pre", el("span", _cut(working + mark), class_="working"), _cut(answer)), class_="side")


def _cut(response: str) -> str:
    """A long text without its middle."""
    if len(response) <= SHOWN:
        return response
    head, tail = SHOWN // 2, SHOWN // 2
    return f"{response[:head]}\n… {len(response) - SHOWN:,} characters …\n{response[-tail:]}"
