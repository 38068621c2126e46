"""The data card: where rows came from and under which licence, what each step took, what is left, and examples of every reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.curation.tables import connect, listed

TOPICS = 20
"""Topics that are listed; the rest are counted together."""
EXAMPLES = 3
"""Dropped rows shown of each reason, drawn by a hash of the problem id."""
CHARS = 400


def card(kept: Path, dropped: Path, steps: Sequence[Mapping[str, Any]], scratch: Path) -> dict[str, Any]:
    """What the files of `curate_file` hold, as plain values: {sources, steps, answer_types, verifiers, topics, lengths, examples}."""
    with connect(scratch) as connection:
        rows, gone = listed([kept]), listed([dropped])

        def table(query: str) -> list[dict[str, Any]]:
            found = connection.execute(query)
            names = [column[0] for column in found.description]
            return [dict(zip(names, values, strict=True)) for values in found.fetchall()]

        sources = table(
            "select source, licence, domain, count(*) as rows, count(*) filter (stays) as kept, count(solution) filter (stays) as worked "
            f"from (select source, licence, domain, solution, true as stays from {rows} "
            f"union all by name select source, licence, domain, solution, false as stays from {gone}) group by all order by source, licence, domain"
        )
        topics = table(f"select topic, count(*) as rows from (select unnest(topics) as topic from {rows}) group by all order by rows desc, topic")
        lengths = {
            part: table(
                f"select count({part}) as rows, min(length({part})) as least, quantile_disc(length({part}), 0.5) as median, "
                f"quantile_disc(length({part}), 0.95) as most_of_them, max(length({part})) as most from {rows}"
            )[0]
            for part in ("prompt", "answer", "solution")
        }
        examples = table(
            f"select step, reason, source, source_id, prompt[:{CHARS}] as prompt, answer[:{CHARS}] as answer, detail[:{CHARS}] as detail from {gone} "
            f"qualify row_number() over (partition by step, reason order by md5(problem_id), source, source_id, prompt) <= {EXAMPLES} "
            f"order by list_position({[entry['step'] for entry in steps]}, step), reason, md5(problem_id), source, source_id, prompt"
        )
        counts = {
            name: {row[name]: row["rows"] for row in table(f"select {name}, count(*) as rows from {rows} group by all order by all")}
            for name in ("answer_type", "verifier")
        }
    return {"sources": sources, "steps": list(steps), "topics": topics, "lengths": lengths, "examples": examples, **counts}


def markdown(content: Mapping[str, Any]) -> str:
    """The card for a reader."""
    steps = content["steps"]
    kept = sum(source["kept"] for source in content["sources"])
    rows = sum(source["rows"] for source in content["sources"])
    lines = ["# Data card", "", f"{kept:,} of {rows:,} rows are kept.", "", "## Sources", ""]
    lines += _table(
        ("source", "licence", "domain", "rows", "kept", "with worked solution"),
        [[_cell(s["source"]), _cell(s["licence"]) or "not stated", s["domain"], s["rows"], s["kept"], s["worked"]] for s in content["sources"]],
    )
    lines += ["", "## Steps", ""]
    lines += _table(
        ("step", "input", "kept", "dropped", "reasons"),
        [[s["step"], s["input"], s["kept"], s["dropped"], s.get("skipped") or _counts(s["reasons"])] for s in steps],
    )
    lines += ["", "## What is kept", "", f"Answer types: {_counts(content['answer_type'])}. Verifiers: {_counts(content['verifier'])}.", ""]
    lines += _table(
        ("characters of the", "rows", "least", "median", "95 %", "most"),
        [
            [part, of["rows"], *(of[name] if of[name] is not None else "" for name in ("least", "median", "most_of_them", "most"))]
            for part, of in content["lengths"].items()
        ],
    )
    lines += ["", "### Topics", "", *_table(("topic", "rows"), [[_cell(t["topic"]), t["rows"]] for t in content["topics"][:TOPICS]])]
    rest = content["topics"][TOPICS:]
    lines += ["", f"and {len(rest):,} more with {sum(t['rows'] for t in rest):,} rows."] if rest else []
    lines += ["", "## Examples of what went", ""]
    seen: set[tuple[str, str]] = set()
    for example in content["examples"]:
        key = (example["step"], example["reason"])
        if key not in seen:
            lines += [f"### {example['step']}: {example['reason']}", ""]
            seen.add(key)
        lines += [f"{_cell(example['source'])} {_cell(example['source_id'])}: {_cell(example['detail'])}", ""]
        lines += [*(f"    {line}" for line in f"{example['prompt']}\n-> {example['answer']}".splitlines()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    shown = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(row) + " |" for row in shown)]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {rows:,}" for name, rows in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _cell(text: str | None) -> str:
    """Text that cannot break out of its line or cell."""
    return " ".join((text or "").replace("|", "\\|").replace("<", "&lt;").split())
