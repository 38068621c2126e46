"""The report's results: did RL help, curves, scores, differences, outcomes, topics. 'Better' only where interval and Holm's p-value say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluation.report.charts import Series, Whisker, line_chart, reliability, whiskers
from pipelines.evaluation.report.html import Html, el, join, number, signed
from pipelines.evaluation.report.inputs import gate_of, last_k, models_of, shades
from pipelines.records import Outcome

Scores = Mapping[str, Any]


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Names with their colours; (name, CSS class)."""
    return el("ul", [el("li", el("span", class_=f"swatch {colour}"), name) for name, colour in entries], class_="legend")


UNSURE = "No difference shown"
WORDS = {"better": ("Better", "good"), "worse": ("Worse", "bad"), "no difference shown": (UNSURE, "open")}


def verdict(difference: Mapping[str, Any]) -> tuple[str, str]:
    """(word, CSS class) of what the evaluation says of a difference."""
    return WORDS[difference["verdict"]]


def find(scores: Scores, model: str, against: str, benchmark: str, k: int = 1) -> Mapping[str, Any] | None:
    """The stored difference between two models."""
    wanted = (model, against, benchmark, k)
    return next((d for d in scores["differences"] if (d["model"], d["against"], d["benchmark"], d["k"]) == wanted), None)


def best_expert(scores: Scores, benchmark: str) -> str | None:
    """The model of RL with the highest pass@1 on a benchmark."""
    return max(scores["settings"]["rollouts"], key=lambda m: scores["models"][m][benchmark]["pass_at_k"]["1"]["mean"], default=None)


def headline(scores: Scores) -> Html:
    """One card per benchmark: pass@1 of every model, and a sentence on what RL and merging did."""
    shade = shades(scores)
    cards = []
    for name in ordered(scores):
        rows = []
        for model in models_of(scores):
            figure = scores["models"][model][name]["pass_at_k"]["1"]
            rows.append(Whisker(model, shade[model], figure["mean"], figure["low"], figure["high"]))
        expert = best_expert(scores, name)
        said = [_sentence(scores, model, name) for model in dict.fromkeys([expert, gate_of(scores)[1]]) if model]
        chart = whiskers("pass@1 with 95 % interval", rows, x_range=(0, 1), mark=None)
        cards.append(el("article", el("h3", name), said, chart, class_="card"))
    return join([el("p", _answer(scores), class_="lead"), el("div", cards, class_="cards"), _gate(scores["gate"])])


def _answer(scores: Scores) -> str:
    """The question of the section in one sentence, judged by the best RL model on each benchmark."""
    said: dict[str, list[str]] = {"Better": [], "Worse": [], UNSURE: []}
    for name in ordered(scores):
        expert = best_expert(scores, name)
        if expert and (difference := find(scores, expert, gate_of(scores)[0], name)):
            said[verdict(difference)[0]].append(name)
    parts = [f"it made the model better on {_listed(said['Better'])}" if said["Better"] else ""]
    parts += [f"worse on {_listed(said['Worse'])}" if said["Worse"] else ""]
    parts += [f"on {_listed(said[UNSURE])} no difference is shown" if said[UNSURE] else ""]
    parts = [part for part in parts if part]
    if not parts:
        return "There is no model of RL to compare."
    opening = "Yes: " if said["Better"] and not said["Worse"] else "In part: " if said["Better"] else "No: "
    return opening + "; ".join(parts) + "."


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def ordered(scores: Scores) -> list[str]:
    """Benchmarks, those that the gate wants improved first."""
    wanted = scores["settings"]["gate"]["improve"]
    return sorted(scores["benchmarks"], key=lambda name: (name not in wanted, name))


def _sentence(scores: Scores, model: str, benchmark: str) -> Html | None:
    """`Better  RL (math) 0.31 → 0.52`, and the difference with its interval."""
    against, candidate = gate_of(scores)
    difference = find(scores, model, against, benchmark)
    if difference is None:
        return None
    word, tone = verdict(difference)
    after = scores["models"][model][benchmark]["pass_at_k"]["1"]["mean"]
    before = scores["models"][against][benchmark]["pass_at_k"]["1"]["mean"]
    who = f"Candidate ({model})" if model == candidate else f"RL ({model})"
    interval = f"{signed(difference['mean'])} [{signed(difference['low'])}, {signed(difference['high'])}] against {against}"
    if word == UNSURE and not difference["low"] <= 0 <= difference["high"]:
        interval += f"; p {_p(difference['p'])}, but {_p(difference['p_holm'])} by Holm for all {len(scores['differences'])} comparisons"
    change = el("span", el("b", who), f" {number(before)} → {number(after)}", class_="nowrap")
    return el("div", el("div", change, el("small", interval)), el("span", word, class_=f"chip {tone}"), class_="change")


def _gate(gate: Mapping[str, Any]) -> Html:
    passed = gate["passed"]
    title = f"Gate passed: {gate['candidate']} may become champion" if passed else f"Gate not passed: {gate['candidate']} stays a candidate"
    mark = el("span", "✓" if passed else "✕", class_="gate-mark", aria_hidden="true")
    decided = el("p", f"Decided by: {', '.join(gate['decided_by'])}.", class_="note")
    return el(
        "div",
        mark,
        el("div", el("strong", title), el("ul", [el("li", reason) for reason in gate["reasons"]]), decided),
        class_=f"gate {'good' if passed else 'bad'}",
    )


def curves(scores: Scores) -> Html:
    """pass@k against k, one chart per benchmark, all models."""
    models = models_of(scores)
    shade = shades(scores)
    charts = []
    for name in ordered(scores):
        series = []
        for model in models:
            figures = {int(k): interval for k, interval in scores["models"][model][name]["pass_at_k"].items()}
            points = [(float(k), figures[k]["mean"]) for k in sorted(figures)]
            band = [(figures[k]["low"], figures[k]["high"]) for k in sorted(figures)]
            series.append(Series(model, shade[model], points, band, dots=True))
        charts.append(line_chart(name, series, "k", y_range=(0, 1), binary=True))
    note = (
        "Share of problems with at least one correct answer among k samples (unbiased). Bands: 95 %, bootstrap over problems, Wilson where "
        "they are few. "
        "A curve of RL that falls below that of its start at large k has lost answers that the start could reach."
    )
    return join([el("p", note, class_="note"), legend([(model, shade[model]) for model in models]), el("div", charts, class_="grid-charts")])


def table(scores: Scores) -> Html:
    """Every figure, one table per benchmark."""
    return join([_benchmark_table(scores, name) for name in ordered(scores)])


def _benchmark_table(scores: Scores, name: str) -> Html:
    about = scores["benchmarks"][name]
    sample = next(iter(scores["models"].values()))[name]
    top, votes, taus = last_k(sample), list(sample["maj_at_k"]), list(sample["g_pass_at_k"])
    heads = ["Model", "pass@1 = avg@k", f"pass@{top}", f"pass^{top}", *(f"maj@{k}" for k in votes), *(f"G-pass@{top}, τ {tau}" for tau in taus)]
    heads += ["Well-formed", "Cut off", "Tokens"]
    rows = []
    for model in models_of(scores):
        f = scores["models"][model][name]
        cells = [_interval(f["pass_at_k"]["1"]), _interval(f["pass_at_k"][top]), _interval(f["pass_hat_k"][top])]
        cells += [*(_interval(f["maj_at_k"][k]) for k in votes), *(_interval(f["g_pass_at_k"][tau]) for tau in taus)]
        cells += [_interval(f["format_validity"]), _interval(f["truncated"]), _interval(f["tokens"], 1)]
        rows.append(el("tr", el("th", model, scope="row"), [el("td", cell) for cell in cells]))
    constant = about["constant_answer"]
    left = f" {about['left_out']} problems are left out: not judged often enough." if about["left_out"] else ""
    answer = constant["answer"] if len(constant["answer"]) <= 40 else constant["answer"][:40] + "…"
    grouped = f" in {about['clusters']} clusters" if about["clusters"] < about["problems"] else ""
    note = f"{about['problems']} problems{grouped}, {sample['samples'] // about['problems']} samples each.{left} "
    note += f"Always answering “{answer}” would score {number(constant['share'])}."
    for gap in about["recovered"]:
        between = f"the gap in pass@{gap['k']} between {gap['weak']} and {gap['ceiling']}"
        share = "an unknown share" if gap["mean"] is None else f"{number(gap['mean'])} ({number(gap['low'])} to {number(gap['high'])})"
        note += f" {gap['model']} recovers {share} of {between}."
    head = el("thead", el("tr", [el("th", h, scope="col") for h in heads]))
    return join([el("h3", name), el("p", note, class_="note"), el("div", el("table", head, el("tbody", rows), class_="scores"), class_="scroll")])


def _interval(interval: Mapping[str, float], digits: int = 3) -> Html:
    low, high = (f"{interval[end]:.{max(digits - 1, 0)}f}" for end in ("low", "high"))
    return join([el("b", f"{interval['mean']:.{digits}f}"), " ", el("small", f"{low}–{high}")])


def differences(scores: Scores) -> Html:
    """All paired differences: pass@1 first, pass@k folded below, each with a small interval chart on a common axis."""
    order = ordered(scores)
    found = sorted(scores["differences"], key=lambda d: order.index(d["benchmark"]))
    first = [d for d in found if d["k"] == 1]
    rest = [d for d in found if d["k"] != 1]
    note = (
        f"Same problems, same random streams, problems resampled together. Intervals hold for each comparison by itself; p by {_tests(found)}. "
        f"“Better” and “worse” are said only where the interval lies on one side of zero and p, adjusted by Holm for all {len(found)} comparisons, "
        "is at most .05."
    )
    folded = el("details", el("summary", f"{len(rest)} differences in pass@{rest[0]['k']}"), _difference_table(rest)) if rest else None
    return join([el("p", note, class_="note"), _difference_table(first), folded])


def _difference_table(found: Sequence[Mapping[str, Any]]) -> Html:
    reach = max([abs(d[key]) for d in found for key in ("low", "high")], default=0) or 1.0
    rows = []
    for before, d in zip([None, *found], found, strict=False):
        word, tone = verdict(d)
        new = before is None or before["benchmark"] != d["benchmark"]
        cells = [d["benchmark"] if new else "", f"{d['model']} − {d['against']}", el("b", signed(d["mean"])), el("span", word, class_=f"chip {tone}")]
        cells += [_needle(d, reach, tone), f"{signed(d['low'])} to {signed(d['high'])}", _p(d["p"]), _p(d["p_holm"])]
        rows.append(el("tr", [el("td", cell) for cell in cells], class_="first" if new else None))
    heads = ["Benchmark", "Comparison", "Difference", "", f"−{number(reach, 2)} … 0 … +{number(reach, 2)}", "95 % interval", "p", "p, Holm"]
    head = el("thead", el("tr", [el("th", h, scope="col") for h in heads]))
    return el("div", el("table", head, el("tbody", rows), class_="differences"), class_="scroll")


def _tests(found: Sequence[Mapping[str, Any]]) -> str:
    """What gave the p-values."""
    names = {"mcnemar": "McNemar’s exact test", "sign flip": "swapping the models’ results at random"}
    return " and ".join(names[test] for test in sorted({d["test"] for d in found}))


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _needle(d: Mapping[str, Any], reach: float, tone: str) -> Html:
    """Interval and mean on an axis that is symmetric about zero."""
    x = {key: f"{110 + 104 * d[key] / reach:.1f}" for key in ("low", "mean", "high")}
    tip = el("title", f"{signed(d['mean'])}, 95 % interval {signed(d['low'])} to {signed(d['high'])}")
    marks = [
        el("line", x1=110, x2=110, y1=1, y2=19, class_="mark"),
        el("line", x1=x["low"], x2=x["high"], y1=10, y2=10, class_=f"whisker t-{tone}"),
        el("circle", cx=x["mean"], cy=10, r=4, class_=f"dot t-{tone}"),
    ]
    return el("svg", tip, marks, viewBox="0 0 220 20", class_="needle", role="img")


def outcomes(scores: Scores) -> Html:
    """What became of all responses: stacked bars."""
    bars = []
    for name in ordered(scores):
        rows = []
        for model in models_of(scores):
            counts, total = scores["models"][model][name]["outcomes"], scores["models"][model][name]["samples"]
            parts = [
                el("span", style=f"width:{100 * counts[o] / total:.2f}%", class_=f"o-{o.value}", title=f"{o.value}: {counts[o]} of {total}")
                for o in Outcome
                if counts.get(o)
            ]
            rows.append(el("div", el("span", model, class_="bar-label"), el("span", parts, class_="stack"), class_="bar-row"))
        bars.append(el("div", el("h4", name), rows))
    return join([legend([(o.value, f"o-{o.value}") for o in Outcome]), el("div", bars, class_="grid-charts")])


def entropy(scores: Scores) -> Html:
    """Entropy of answers and of tokens, one card per benchmark."""
    shade = shades(scores)
    titles = {"answer_entropy": "of answers (nats per problem)", "token_entropy": "of tokens (nats per token)"}
    cards = []
    for name in ordered(scores):
        charts = []
        for metric, title in titles.items():
            found = {model: scores["models"][model][name].get(metric) for model in models_of(scores)}
            rows = [Whisker(model, shade[model], f["mean"], f["low"], f["high"]) for model, f in found.items() if f]
            charts += [whiskers(title, rows, mark=0.0)] if rows else []
        cards.append(el("article", el("h3", name), charts, class_="card"))
    note = (
        "How much the responses to one problem differ: entropy of its final answers (none is one answer), and minus the mean log-probability of a "
        "sampled token. The two may move in opposite directions (arXiv 2507.14843)."
    )
    return join([el("p", note, class_="note"), el("div", cards, class_="cards")])


def calibration(scores: Scores) -> Html:
    """A reliability diagram per benchmark and model that states its confidence, and the figures."""
    shade = shades(scores)
    charts, rows = [], []
    for name in ordered(scores):
        for model in models_of(scores):
            figures = scores["models"][model][name]
            if found := figures["calibration"]:
                charts.append(reliability(f"{model} on {name}", shade[model], found["bins"]))
                cells = [model, name, f"{found['responses']} of {figures['samples']}", _interval(found["ece"]), _interval(found["brier"])]
                rows.append(el("tr", [el("td", cell) for cell in cells]))
    if not charts:
        return el("p", "No response states its confidence, so there is no calibration to show.", class_="note")
    note = (
        "Stated confidence against the share of correct answers, ten bins of equal width. On the diagonal a policy knows how often it is right; "
        "below it is too sure. Bars: 95 %, Wilson over problems. The larger a dot, the more responses."
    )
    head = el("thead", el("tr", [el("th", h, scope="col") for h in ("Model", "Benchmark", "Stated", "ECE", "Brier score")]))
    table = el("div", el("table", head, el("tbody", rows)), class_="scroll")
    return join([el("p", note, class_="note"), el("div", charts, class_="grid-charts"), table])


def topics(scores: Scores) -> Html:
    """pass@1 by topic and model, shaded."""
    blocks = []
    for name in ordered(scores):
        models = models_of(scores)
        found = scores["models"][models[0]][name]["topics"]
        rows = [
            el(
                "tr",
                el("th", topic, scope="row"),
                el("td", found[topic]["count"], class_="count"),
                [_shaded(scores["models"][m][name]["topics"][topic]) for m in models],
            )
            for topic in found
        ]
        if rows:
            head = el("thead", el("tr", [el("th", h, scope="col") for h in ("Topic", "n", *models)]))
            blocks.append(el("div", el("h4", name), el("div", el("table", head, el("tbody", rows), class_="heat"), class_="scroll")))
    return el("div", blocks, class_="grid-charts roomy") if blocks else el("p", "The benchmarks carry no topics.", class_="note")


def _shaded(f: Mapping[str, float]) -> Html:
    interval = f"95 % interval {number(f['low'])} to {number(f['high'])}"
    return el("td", f"{f['mean']:.2f}", style=f"--v:{100 * f['mean']:.0f}%", title=interval)
