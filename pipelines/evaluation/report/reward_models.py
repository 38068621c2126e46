"""The report's table of reward models: what each is worth on problems that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.evaluation.report.html import Html, el, join

COLUMNS = ("Stage", "Held-out accuracy", "Pairs", "Better one shorter", "Better one longer", "AUC", "ECE, before", "Brier score", "Temperature")
NOTE = (
    "Accuracy: share of held-out pairs of responses that the model orders rightly, 95 % interval over problems; .5 is what guessing has. By length: "
    "of pairs whose better response is the shorter, and the longer one; far apart they say that it goes by length. ECE and Brier score: of its "
    "probabilities, with the temperature that was fitted on problems of its own, and before."
)


def table(metrics: Mapping[str, Mapping[str, float]]) -> Html:
    """metrics: stage -> what it has measured."""
    rows = [el("tr", [el("td", cell) for cell in _cells(name, told)]) for name, told in metrics.items()]
    head = el("thead", el("tr", [el("th", column, scope="col") for column in COLUMNS]))
    return join([el("p", NOTE, class_="note"), el("div", el("table", head, el("tbody", rows)), class_="scroll")])


def _cells(name: str, told: Mapping[str, float]) -> list[Html | str]:
    parts = [_share(told, f"accuracy_better_{which}", f"pairs_better_{which}") for which in ("shorter", "longer")]
    auc = _interval(told, "auc") if "auc" in told else "–"
    ece = f"{told['ece']:.3f}, {told['ece_before']:.3f}"
    return [name, _interval(told, "accuracy"), f"{told['pairs']:.0f}", *parts, auc, ece, f"{told['brier']:.3f}", f"{told['temperature']:.2f}"]


def _interval(told: Mapping[str, float], name: str) -> Html:
    return join([el("b", f"{told[name]:.3f}"), " ", el("small", f"{told[f'{name}_low']:.2f}–{told[f'{name}_high']:.2f}")])


def _share(told: Mapping[str, float], name: str, count: str) -> str:
    return f"{told[name]:.3f} of {told[count]:.0f}" if name in told else "–"
