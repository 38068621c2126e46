"""The report: one HTML page that stands alone. No script, no request: its content security policy forbids both.

results.py   did RL help, curves, scores       training.py    learning curves      rows.py     waterfall, difficulty, samples, synthesis
trained_on.py  problems, help and answers of RL, over its steps
diagnostics.py  boundary, scaling, weights     models.py      reward models, extrapolations
samples.py   before and after RL               provenance.py  graph, settings      charts.py   SVG; html.py escaping
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.evaluation.report import diagnostics, models, provenance, results, rows, samples, trained_on, training
from pipelines.evaluation.report.html import Html, el, join, number
from pipelines.evaluation.report.inputs import Graded, Group, Inputs, StageNode, colours, gate_of, models_of

__all__ = ["Graded", "Group", "Inputs", "StageNode", "render"]

STYLE = (Path(__file__).parent / "style.css").read_text()
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render(inputs: Inputs, shown: int) -> str:
    """The page. shown: problems whose responses stand side by side."""
    parts = _sections(inputs, shown)
    nav = el("nav", [el("a", anchor.capitalize(), href=f"#{anchor}") for anchor, _, _ in parts], aria_label="sections")
    body = [el("section", el("h2", title), content, id=anchor) for anchor, title, content in parts]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", "Touchstone report"),
        el("style", Html(STYLE)),
    )
    page = el("body", _masthead(inputs), _notices(inputs), nav, el("main", body), el("footer", provenance.versions(inputs.graph)))
    return "<!doctype html>\n" + el("html", head, page, lang="en") + "\n"


def _sections(inputs: Inputs, shown: int) -> list[tuple[str, str, Html]]:
    """(anchor, title, content); a section without input says what is missing."""
    scores, ledgers, graph = inputs.scores, inputs.ledgers, inputs.graph
    pairs = {name: pair for name, pair in samples.compared(scores).items() if all((m, name) in inputs.samples for m in pair)} if scores else {}
    against, candidate = gate_of(scores) if scores else ("", "")
    shade = colours(list(dict.fromkeys([*(models_of(scores) if scores else []), *inputs.curves])), against, candidate)
    judges = {name: inputs.metrics[name] for name, kind in inputs.kinds.items() if kind == "reward_model" and name in inputs.metrics}
    later = [node for node in graph if node.kind == "extrapolate" and node.stage in inputs.metrics]
    by_topic = [el("h3", "By topic"), results.topics(scores)] if scores else []
    none = "No scores: stage `evaluation` has not run."
    found: list[tuple[str, str, Html | None, str]] = [
        ("result", "Did RL help?", results.headline(scores) if scores else None, none),
        ("coverage", "pass@k", results.curves(scores) if scores else None, none),
        (
            "training",
            "Learning curves",
            training.curves(inputs.curves, inputs.kinds, shade),
            "No learning curves: no stage has trained here.",
        ),
        ("problems", "What RL trained on", trained_on.section(inputs.trained_on, inputs.given), "No rollouts of a stage of RL."),
        ("scores", "Scores", join([results.table(scores), by_topic]) if scores else None, none),
        ("differences", "Paired differences", results.differences(scores) if scores and scores["differences"] else None, "No two models to compare."),
        ("calibration", "Calibration", results.calibration(scores) if scores else None, none),
        ("rewards", "Reward models", models.reward_models(judges) if judges else None, "No stage of kind reward_model."),
        ("extrapolation", "Extrapolations", models.extrapolations(later, inputs.metrics) if later else None, "No stage of kind extrapolate."),
        ("entropy", "Entropy", results.entropy(scores) if scores else None, none),
        *diagnostics.sections(inputs.diagnostics, shade),
        ("outcomes", "What became of the responses", results.outcomes(scores) if scores else None, none),
        ("samples", "Before and after RL", samples.section(inputs.samples, pairs, shown) if pairs else None, "No model of RL to compare."),
        ("curation", "Curation", rows.curation(ledgers, inputs.card), "No ledger of sources or curation."),
        ("difficulty", "Difficulty", _of_kind(inputs, "grade", lambda name: rows.difficulty(inputs.graded[name], ledgers[name])), "None is graded."),
        ("selected", "Rows selected by a run", _of_kind(inputs, "select", lambda name: rows.chosen(ledgers[name])), "No ledger of kind select."),
        ("critiques", "Answers as rows", _of_kind(inputs, "critique", lambda name: rows.chosen(ledgers[name])), "No ledger of kind critique."),
        ("targeted", "Missing skills", _of_kind(inputs, "target", lambda name: rows.targeted(ledgers[name])), "No ledger of kind target."),
        ("sampled", "Answers that were sampled", _of_kind(inputs, "sample", lambda name: rows.sampled(ledgers[name])), "No ledger of kind sample."),
        ("synthesis", "Synthesis", _of_kind(inputs, "synthesise", lambda name: rows.synthesis(ledgers[name])), "No ledger of synthesis."),
        (
            "lineage",
            "Where it all came from",
            join([provenance.graph(graph), provenance.details(graph, inputs.metrics)]) if graph else None,
            "No manifests.",
        ),
    ]
    return [(anchor, title, content or el("p", sentence, class_="absent")) for anchor, title, content, sentence in found]


def _of_kind(inputs: Inputs, kind: str, section: Callable[[str], Html]) -> Html | None:
    """A section for each stage of a kind that left a ledger; named where there are several."""
    names = [name for name in inputs.ledgers if inputs.kinds[name] == kind]
    return join([part for name in names for part in ([el("h3", name)] if len(names) > 1 else []) + [section(name)]]) if names else None


def _notices(inputs: Inputs) -> Html:
    """What stages say should be looked at, above all else."""
    said = [el("li", el("b", node.stage), ": ", text) for node in inputs.graph for text in node.notices]
    return el("aside", el("h2", "Look at this"), el("ul", said), class_="notices", aria_label="notices") if said else join([])


def _masthead(inputs: Inputs) -> Html:
    """Title, what was run, and the few figures that size it."""
    metrics, graph = inputs.metrics, inputs.graph
    facts = [
        ("problems curated", metrics.get("curation", {}).get("kept")),
        ("rows dropped", metrics.get("curation", {}).get("dropped")),
        ("synthesised", sum(metrics[name]["kept"] for name in inputs.ledgers if inputs.kinds[name] == "synthesise" and name in metrics) or None),
        ("parameters", metrics.get("base", {}).get("parameters")),
        ("RL steps", sum(len(rows) for stage, rows in inputs.curves.items() if inputs.kinds[stage] == "rl") or None),
        ("responses judged", sum(f["samples"] for results in inputs.scores["models"].values() for f in results.values()) if inputs.scores else None),
    ]
    tiles = [el("div", el("b", number(value, 6)), el("span", name)) for name, value in facts if value is not None]
    about = f"seed {graph[0].seed} · {len(graph)} stages · commit {graph[-1].commit}" if graph else "no manifests"
    return el(
        "header",
        el(
            "div",
            el("h1", "Touchstone"),
            el("p", "From raw rows to a better reasoner: what was done, what came of it, and how sure that is."),
            el("p", about, class_="note"),
        ),
        el("div", tiles, class_="tiles"),
        class_="masthead",
    )
