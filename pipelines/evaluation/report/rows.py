"""The report's data sections: where rows came from, what each step dropped, what was graded, selected, sampled and synthesised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluation.report.charts import histogram
from pipelines.evaluation.report.html import Html, el, join, number, table
from pipelines.evaluation.report.inputs import Graded
from pipelines.evaluation.report.results import legend

TOPICS = 30
"""Topics that the card lists."""


def curation(ledgers: Mapping[str, Any], content: Mapping[str, Any] | None) -> Html:
    """Where rows came from, what became of them, and the data card."""
    return join([_waterfall(ledgers.get("sources"), ledgers.get("curation")), _card(content) if content else None])


def _waterfall(sources: Mapping[str, Any] | None, curation: Mapping[str, Any] | None) -> Html:
    """From raw rows to splits: one bar per step, dropped rows with their reasons."""
    parts: list[Html] = []
    if sources:
        parts += [_sources(sources)]
    if curation and curation["steps"]:
        first = max(curation["steps"][0]["input"], 1)
        bars = [_bar("raw rows", first, 0, first, {}), *(_bar(s["step"], s["kept"], s["dropped"], first, s["reasons"]) for s in curation["steps"])]
        parts += [legend([("kept", "w-kept"), ("dropped here", "w-dropped")]), el("div", bars, class_="waterfall")]
        parts += [_splits(curation.get("splits", {}))]
    return join(parts)


def _card(content: Mapping[str, Any]) -> Html:
    """Sources with licences, what is kept, and rows that went, by reason."""
    sources = [
        [s["source"], s["licence"] or "not stated", s["domain"], f"{s['rows']:,}", f"{s['kept']:,}", f"{s['worked']:,}"] for s in content["sources"]
    ]
    lengths = [
        [part, *("" if of[name] is None else f"{of[name]:,}" for name in ("rows", "least", "median", "most_of_them", "most"))]
        for part, of in content["lengths"].items()
    ]
    topics = [[t["topic"], f"{t['rows']:,}"] for t in content["topics"][:TOPICS]]
    reasons: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for example in content["examples"]:
        reasons.setdefault((example["step"], example["reason"]), []).append(example)
    return join(
        [
            el("h3", "Data card"),
            table(("Source", "Licence", "Domain", "Rows", "Kept", "With worked solution"), sources),
            table(("Characters of the", "Rows", "Least", "Median", "95 %", "Most"), lengths),
            el("details", el("summary", f"Topics of the kept rows ({len(content['topics']):,})"), table(("Topic", "Rows"), topics)),
            [
                el("details", el("summary", f"Dropped by {step}: {reason.replace('_', ' ')}"), [_example(example) for example in shown])
                for (step, reason), shown in reasons.items()
            ],
        ]
    )


def _example(example: Mapping[str, Any]) -> Html:
    where = el("p", el("b", f"{example['source']} {example['source_id']}"), f": {example['detail']}", class_="note")
    return join([where, el("pre", f"{example['prompt']}\n→ {example['answer']}")])


def _bar(name: str, kept: int, dropped: int, first: int, reasons: Mapping[str, int]) -> Html:
    """One step: what stays and what goes, as shares of the raw rows."""
    pieces = [el("span", style=f"width:{100 * kept / first:.3f}%", class_="w-kept", title=f"{kept:,} kept")]
    if dropped:
        pieces.append(el("span", style=f"width:max(2px, {100 * dropped / first:.3f}%)", class_="w-dropped", title=f"{dropped:,} dropped"))
    chips = [
        el("span", f"{reason.replace('_', ' ')} {count:,}", class_="chip") for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])
    ]
    change = el("span", f"−{dropped:,}" if dropped else "", class_="lost")
    figures = el("span", el("b", f"{kept:,}"), change, class_="figures")
    return el(
        "div",
        el("span", name.replace("_", " "), class_="bar-label"),
        el("span", pieces, class_="stack"),
        figures,
        el("div", chips, class_="chips"),
        class_="fall",
    )


def _sources(sources: Mapping[str, Any]) -> Html:
    rows = []
    for role, entries in (("train", sources.get("train", {})), ("benchmark", sources.get("benchmarks", {}))):
        for name, entry in entries.items():
            trouble = ", ".join(f"{reason}: {count}" for reason, count in entry.get("reasons", {}).items())
            rows.append(
                el(
                    "tr",
                    el("th", name, scope="row"),
                    el("td", role),
                    el("td", f"{entry['problems']:,}"),
                    el("td", f"{entry['malformed']:,}"),
                    el("td", trouble),
                )
            )
    head = el("thead", el("tr", [el("th", h, scope="col") for h in ("Source", "Role", "Problems", "Malformed", "Reasons")]))
    return el("div", el("table", head, el("tbody", rows)), class_="scroll")


def _splits(splits: Mapping[str, Any]) -> Html:
    rows = [
        el("li", el("b", f"{split['rows']:,}"), f" for {name}: ", ", ".join(f"{domain} {count:,}" for domain, count in split["domains"].items()))
        for name, split in sorted(splits.items(), key=lambda pair: -pair[1]["rows"])
    ]
    return el("ul", rows, class_="plain")


def difficulty(graded: Sequence[Graded], ledger: Mapping[str, Any] | None) -> Html:
    """Pass rates under the policy of a stage of kind grade, one histogram per domain."""
    charts = []
    for domain in sorted({row.domain for row in graded}):
        rows = [row for row in graded if row.domain == domain]
        levels = {row.pass_n for row in rows}
        bins = levels.pop() if len(levels) == 1 and max(levels) <= 16 else 10
        counts = {flag: Counter(round(row.pass_rate * bins) / bins for row in rows if row.selected is flag) for flag in (True, False)}
        groups = [("selected", "w-kept", dict(counts[True])), ("left aside", "w-aside", dict(counts[False]))]
        charts.append(histogram(f"{domain}: {len(rows):,} problems, {sum(counts[True].values()):,} selected", groups, "pass rate", 1 / bins))
    reasons = (ledger or {}).get("reasons", {})
    aside = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in reasons.items())
    note = "RL learns where groups of answers differ: problems that a policy always or never solves teach nothing." + (
        f" Left aside: {aside}." if aside else ""
    )
    entries = [("handed on", "w-kept"), ("left aside", "w-aside")]
    return join([el("p", note, class_="note"), legend(entries), el("div", charts, class_="grid-charts")])


def chosen(ledger: Mapping[str, Any]) -> Html:
    """Which rows a stage of kind select, critique or target hands on, and why others are left out."""
    (step,) = ledger["steps"]
    first = max(step["input"], 1)
    bars = [_bar("rows", first, 0, first, {}), _bar(step["step"], step["kept"], step["dropped"], first, step["reasons"])]
    return join([legend([("kept", "w-kept"), ("dropped here", "w-dropped")]), el("div", bars, class_="waterfall")])


def targeted(ledger: Mapping[str, Any]) -> Html:
    """Which skills are missing, and the rows that were taken for them."""
    entries = [
        [skill["name"], f"{skill['rows']:,}", f"{skill['difficult']:,}", f"{skill['low']:.2f} to {skill['high']:.2f}"]
        + [f"{skill[part]:,}" for part in ("missing", "wanted", "taken")]
        for skill in ledger["skills"]
    ]
    heads = ("Skill", "Rows that need it", "Difficult", "Share, 95 %", "Missing", "Rows wanted", "Taken")
    return join([chosen(ledger), table(heads, entries)])


def synthesis(ledger: Mapping[str, Any]) -> Html:
    """Weak topics and what was added for them."""
    entries = ledger.get("topics", [])
    rows = []
    for e in sorted(entries, key=lambda e: e["pass_rate"]):
        cells = [e["domain"], ", ".join(e["topics"]), f"{e['problems']:,}", f"{e['pass_rate']:.2f}"]
        cells += [el("span", "weak", class_="chip bad") if e["weak"] else "", f"{e['proposed']:,}", f"{e['kept']:,}"]
        rows.append(cells)
    proposed, kept = sum(e["proposed"] for e in entries), sum(e["kept"] for e in entries)
    weak = sum(e["weak"] for e in entries)
    dropped = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for s in ledger.get("steps", []) for reason, count in s["reasons"].items())
    said = f"Method: {ledger['method']}. {weak} of {len(entries)} topics are weak; "
    said += f"{number(proposed)} problems were proposed for them and {number(kept)} kept."
    said += f" Dropped: {dropped}." if dropped else ""
    return join([el("p", said, class_="note"), table(("Domain", "Topics", "Problems", "Pass rate", "", "Proposed", "Kept"), rows)])


def sampled(ledger: Mapping[str, Any]) -> Html:
    """Who answered which rows, how often rightly, and which rows are handed on."""
    maker, (step,) = ledger["maker"], ledger["steps"]
    by = (maker["endpoint"] or "an endpoint") if maker["engine"] == "server" else maker["model"]
    outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in ledger["answers"].items())
    said = f"{by} gave {sum(ledger['answers'].values()):,} answers: {outcomes}. Of {step['input']:,} rows {step['kept']:,} are handed on"
    left_out = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in step["reasons"].items())
    said += f"; left out: {left_out}." if left_out else "."
    rows = [
        [domain, f"{of['asked']:,}", f"{of['solved']:,}", f"{of['pass_rate']:.3f}", f"{of['low']:.3f} to {of['high']:.3f}"]
        for domain, of in ledger["domains"].items()
    ]
    return join([el("p", said, class_="note"), table(("Domain", "Rows asked", "With a right answer", "Pass rate", "95 % interval"), rows)])
