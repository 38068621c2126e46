"""The report's diagnostics: the boundary of what can be solved, entropy, where the reward is heading, and what moved in the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluation.boundary import SET_NAMES
from pipelines.evaluation.report.charts import Series, line_chart
from pipelines.evaluation.report.html import Html, el, join, number, signed
from pipelines.evaluation.report.results import legend

Record = Mapping[str, Any]
SETS = dict(zip(SET_NAMES, (("kept", "w-kept"), ("lost", "w-dropped"), ("found", "o-correct"), ("solved by neither", "w-aside")), strict=True))
NONE = "No diagnostics: stage `evaluation` has not run."


def sections(found: Record | None, shade: Mapping[str, str]) -> list[tuple[str, str, Html | None, str]]:
    """(anchor, title, content, what to say without it) from diagnostics.json. shade: model -> its colour."""
    pairs = any((found or {}).get("boundary", {}).values())
    return [
        ("boundary", "What RL can and cannot solve", _boundary(found, shade) if found and pairs else None, NONE),
        ("scaling", "Where the reward is heading", _scaling(found, shade) if found and found["scaling"] else None, "No rollouts of RL to look at."),
        ("weights", "What moved in the weights", _weights(found["weights"]) if found and found["weights"] else None, NONE),
    ]


def _boundary(found: Record, shade: Mapping[str, str]) -> Html:
    compared = [(name, one) for name, pairs in found["boundary"].items() for one in pairs]
    first = compared[0][1]["start"]
    charts = [(one["start"], _curves(name, one, shade)) for name, one in compared]
    near, far = ([chart for start, chart in charts if (start == first) == wanted] for wanted in (True, False))
    folded = el("details", el("summary", f"{len(far)} more, from another start"), el("div", far, class_="grid-charts")) if far else None
    curves = "pass@k of a model and of the one it came from, bands 95 %. k* is where the lead at k = 1 has ended for good; a crossing is shown only "
    curves += "where the bootstrap interval of k* lies between 1 and the number of samples."
    kept = "A problem counts as solvable if one of the samples is correct. A finite number of samples misses rare solutions, so some problems seem "
    kept += "lost or found by chance: the second bar is the start against itself, its samples in halves, and both bars have half of the samples each."
    parts = [el("p", curves, class_="note"), el("div", near, class_="grid-charts"), folded, el("h3", "Support"), el("p", kept, class_="note")]
    parts += [legend(list(SETS.values())), el("div", [_bars(name, one) for name, one in compared if one["start"] == first], class_="grid-charts")]
    parts += [_support(compared), el("h3", "Change of entropy"), _entropy(found["entropy"])]
    return join(parts)


def _curves(name: str, one: Record, shade: Mapping[str, str]) -> Html:
    drawn = [i for i, k in enumerate(one["ks"]) if k & (k - 1) == 0 or k == one["ks"][-1]]
    series = []
    for who, side in ((one["start"], "start"), (one["model"], "rl")):
        points = [(float(one["ks"][i]), one["curves"][side][i]) for i in drawn]
        band = [(point["low"], point["high"]) for _, point in points]
        series.append(Series(who, shade[who], [(k, point["mean"]) for k, point in points], band, dots=True))
    title = f"{name}: {one['model']} from {one['start']}"
    chart = line_chart(title, series, "k", y_range=(0, 1), binary=True, mark=one["crossing"]["k"])
    return el("div", legend([(s.name, s.colour) for s in series]), chart, el("p", _crossing(one), class_="note"))


def _crossing(one: Record) -> str:
    """What the crossing's interval allows to say."""
    at, n = one["crossing"], one["samples"]
    ends = f"{number(at['low'])} to {number(at['high']) if at['high'] else f'beyond {n}'}"
    if at["shown"]:
        return f"The curves cross at k* = {number(at['k'])}, 95 % interval {ends}: with more samples {one['start']} solves more."
    if at["k"]:
        return f"No crossing shown: k* = {number(at['k'])}, but its 95 % interval is {ends}."
    if one["difference"][0]["low"] <= 0:
        return f"No crossing shown: {one['model']} has no sure lead at k = 1."
    return f"No crossing shown: {one['model']} is not behind at k = {n}."


def _bars(name: str, one: Record) -> Html:
    rows = []
    for label, part in ((one["model"], "half"), (f"{one['start']} again", "control")):
        counts = one["support"][part]
        parts = [
            el("span", style=f"width:{100 * counts[key] / one['problems']:.2f}%", class_=colour, title=f"{word}: {counts[key]:.1f}")
            for key, (word, colour) in SETS.items()
        ]
        rows.append(el("div", el("span", label, class_="bar-label"), el("span", parts, class_="stack"), class_="bar-row"))
    return el("div", el("h4", f"{name}: {one['model']} from {one['start']}, {one['support']['half']['budget']} samples each"), rows)


def _support(compared: Sequence[tuple[str, Record]]) -> Html:
    rows = []
    for name, one in compared:
        sets, excess = one["support"]["full"], one["support"]["excess"]["srr"]
        once = sum(count == 1 for count in one["support"]["lost"].values())
        counts = f"{sets['both']:,.0f} · {sets['start_only']:,.0f} ({once:,}) · {sets['rl_only']:,.0f}"
        cells = [f"{one['model']} from {one['start']}", counts, *(_interval(sets[key]) for key in ("srr", "ndr", "sds")), _change(sets["nscr"])]
        rows.append((name, [*cells, _change(excess, judged=True)]))
    budget, limit = compared[0][1]["samples"], number(compared[0][1]["support"]["full"]["detection_limit"])
    heads = ("Comparison", "Kept · lost (once) · found", "SRR", "NDR", "SDS", "NSCR", "SRR beyond control")
    note = "SRR: share of the start's solvable problems that are kept; NDR: share of RL's that are new; SDS: their harmonic mean; NSCR: net "
    note += "change. Once: lost problems that the start solved once only, maybe by a guess; read those responses before drawing a conclusion. "
    note += f"With {budget} samples a correct response of probability {limit} is seen with confidence 95 %."
    return join([_table(heads, rows), el("p", note, class_="note")])


def _entropy(found: Record) -> Html:
    rows = []
    for name, one in found.items():
        for change in one["changes"]:
            levels = [change.get(level) for level in ("answer", "token")]
            cells = [_change(level) if level else "–" for level in levels]
            rows.append((name, [f"{change['model']} from {change['start']}", *cells, _directions(*levels)]))
    note = "In nats, over the same problems, 95 % interval. Answers: of the distribution of final answers (programs have none that could be "
    note += "compared). Tokens: of the next-token distribution, mean over the model's own responses. The two may part: each token surer, answers not."
    return join([el("p", note, class_="note"), _table(("Comparison", "Answers", "Tokens", ""), rows)])


def _directions(answer: Record | None, token: Record | None) -> Html | None:
    sides = [1 if one["low"] > 0 else -1 if one["high"] < 0 else 0 for one in (answer, token) if one]
    return el("span", "Opposite", class_="chip open") if len(sides) == 2 and sides[0] * sides[1] < 0 else None


def _scaling(found: Record, shade: Mapping[str, str]) -> Html:
    note = "Pass rate on training problems by step, with ScaleRL's sigmoid and the spread of all curves that fit as well; right of the dashed "
    note += "line it is extrapolated. An asymptote is told only where every such curve has one below 1 and half of its gain behind it. A sampler "
    note += "that changes what is trained on bends the curve."
    charts = [_run(stage, run, shade[stage]) for stage, run in found["scaling"].items()]
    series = [
        Series(stage, shade[stage], [(float(step), value) for step, value in zip(one["steps"], one["accuracy"], strict=True)])
        for stage, one in found["pseudo_reward"].items()
        if one["steps"]
    ]
    parts = [el("p", note, class_="note"), el("div", charts, class_="grid-charts")]
    if series:
        said = "Share of responses on which a majority's word and the verifier agree: what a reward without labels would have been worth. "
        said += " ".join(_collapse(stage, one) for stage, one in found["pseudo_reward"].items())
        chart = line_chart("Agreement of a majority with the verifier", series, "step", y_range=(0, 1))
        parts += [el("h3", "Without labels"), legend([(s.name, s.colour) for s in series]), el("div", chart, class_="grid-charts")]
        parts.append(el("p", said, class_="note"))
    return join(parts)


def _collapse(stage: str, one: Record) -> str:
    """The model collapse step, or that the run ended before."""
    if one["collapse_step"] is None:
        return f"{stage}: never below {100 * one['threshold']:g} % in {len(one['steps'])} steps."
    return f"{stage}: below {100 * one['threshold']:g} % from step {one['collapse_step']} on (model collapse step)."


def _run(stage: str, run: Record, colour: str) -> Html:
    measured = [(float(step), reward) for step, reward in zip(run["steps"], run["reward"], strict=True)]
    if "curve" not in run:
        return el("div", line_chart(stage, [Series(stage, colour, measured)], "step"), el("p", "; ".join(run["refused"]), class_="note"))
    fitted = [(point["step"], point["mean"]) for point in run["curve"]]
    band = [(point["low"], point["high"]) for point in run["curve"]]
    chart = line_chart(stage, [Series(stage, colour, fitted, band, faint=measured)], "step", mark=float(run["steps"][-1]))
    ahead, check = run["ahead"], run["check"]
    heading = f"asymptote {_ends(run['asymptote'])}" if run["asymptote"] else f"no asymptote is told: {'; '.join(run['refused'])}"
    chip = el("span", "As predicted" if check["inside"] else "Not as predicted", class_=f"chip {'good' if check['inside'] else 'bad'}")
    was = f"It was {number(check['measured'])}. "
    lines = [
        el("li", el("b", "Ceiling: "), f"{heading}."),
        el("li", el("b", f"Steps {ahead['from']} to {ahead['to']}: "), f"mean {_ends(ahead)} if the run went on."),
        el("li", el("b", "Check: "), f"the steps before {check['from']} predict {_ends(check)} for the rest. ", was, chip),
    ]
    return el("div", chart, el("ul", lines, class_="plain"))


def _weights(found: Sequence[Record]) -> Html:
    seen = "bfloat16" if found[0]["dtype"] == "bfloat16" else "the stored precision"
    note = f"Seen in {seen}. Unchanged: entries that moved by less than .001 of their size. Size: of the update against the weights. Drift: of all "
    note += "singular values. Rotation: of the leading singular directions, left and right, mean and largest. Overlaps: share of the changed "
    note += f"entries among the {100 * found[0]['alpha']:g} % principal and smallest ones; chance gives that share. "
    note += "Unchanged, size and overlap with small ones are of all tensors; the rest of those matrices that were decomposed: "
    note += "; ".join(f"{one['decomposed']} of {one['matrices']} of {one['model']} against {one['start']}" for one in found) + ". "
    if any(one["decomposed"] < one["matrices"] for one in found):
        note += "Their means are estimates with the standard error of a sample by kind and depth, stable rank a median, largest the largest seen. "
        note += _left_out(found)
    heads = ("Update", "Unchanged", "Size", "Drift", "Rotation left", "right", "largest", "Stable rank", "On principal", "On small")
    parts: list[Html | None] = [el("p", note, class_="note"), _table(heads, [("", _moved(one)) for one in found], group=False)]
    for one in found:
        rows = [("", [change["name"], "×".join(map(str, change["shape"])), *_moved(change)[1:]]) for change in one["tensors"]]
        summary = el("summary", f"{len(rows)} tensors of {one['model']} against {one['start']}")
        parts.append(el("details", summary, _table(("Tensor", "Shape", *heads[1:]), rows, group=False)))
    return join(parts)


def _left_out(found: Sequence[Record]) -> str:
    """The kinds of matrices that the means say nothing of."""
    kinds = sorted({kind for one in found for kind in one["left_out"]})
    return f"Of these kinds none fitted in evaluation.diagnostics.weights_budget: {', '.join(kinds)}." if kinds else ""


def _moved(one: Record) -> list[str]:
    relative = one["relative_update"] if "relative_update" in one else one["update_norm"] / one["norm"] if one["norm"] else None
    sampled = one.get("decomposed", 0) < one.get("matrices", 0)
    errors = {name: error for name, error in one.get("errors", {}).items() if sampled and error is not None}
    degrees = [_figure(one[name], " °", 1, errors.get(name)) for name in ("left", "right", "largest")]
    shares = [_figure(one[name], " %", 100, errors.get(name)) for name in ("principal", "low")]
    first = f"{one['model']} against {one['start']}" if "model" in one else ""
    drift = _figure(one["drift"], error=errors.get("drift"))
    return [first, _figure(one["sparsity"], " %", 100), _figure(relative), drift, *degrees, _figure(one["stable_rank"]), *shares]


def _figure(value: float | None, unit: str = "", factor: float = 1, error: float | None = None) -> str:
    ends = "" if error is None else f" ± {error * factor:.2g}"
    return "–" if value is None else f"{value * factor:.3g}{ends}{unit}".replace("e-0", "e-").replace("-", "−")


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], *, group: bool = True) -> Html:
    """Rows of (group, cells); a group's name stands once, in a first column."""
    body = []
    for before, (name, cells) in zip([None, *rows], rows, strict=False):
        first = el("th", name if before is None or before[0] != name else "", scope="row") if group else None
        body.append(el("tr", first, [el("td", cell) for cell in cells]))
    head = el("thead", el("tr", [el("th", h, scope="col") for h in (("Benchmark", *heads) if group else heads)]))
    return el("div", el("table", head, el("tbody", body)), class_="scroll")


def _interval(one: Record) -> Html:
    if one["mean"] is None:
        return join("–")
    return join([el("b", f"{one['mean']:.3f}"), " ", el("small", f"{one['low']:.2f}–{one['high']:.2f}" if one["low"] is not None else "")])


def _change(one: Record, *, judged: bool = False) -> Html:
    """A difference with its interval; `judged` colours it where the interval holds no zero."""
    if one["mean"] is None:
        return join("–")
    ends = f"{one['low']:+.2f} to {one['high']:+.2f}".replace("-", "−") if one["low"] is not None else ""
    tone = "open" if one["low"] is None or one["low"] <= 0 <= one["high"] else "good" if one["low"] > 0 else "bad"
    mean = el("span", signed(one["mean"]), class_=f"chip {tone}") if judged else el("b", signed(one["mean"]))
    return join([mean, " ", el("small", ends)])


def _ends(one: Record) -> str:
    return f"{number(one['mean'])} [{number(one['low'])}, {number(one['high'])}]"
