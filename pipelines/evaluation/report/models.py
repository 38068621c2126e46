"""The report's tables of models that tell more than their answers do: reward models and extrapolations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.evaluation.report.html import Html, el, join, number, table
from pipelines.evaluation.report.inputs import StageNode

Metrics = Mapping[str, Mapping[str, float]]

REWARD_MODELS = ("Stage", "Held-out accuracy", "Pairs", "Better one shorter", "Better one longer", "AUC", "ECE, before", "Brier score", "Temperature")
OF_REWARD_MODELS = (
    "Accuracy: share of held-out pairs of responses that the model orders rightly, 95 % interval over problems; .5 is what guessing has. By length: "
    "of pairs whose better response is the shorter, and the longer one; far apart they say that it goes by length. ECE and Brier score: of its "
    "probabilities, with the temperature that was fitted on problems of its own, and before."
)
EXTRAPOLATIONS = ("Stage", "Of", "Method", "Kept steps", "The last", "Read at", "Explained", "Fit", "Least fit", "Length")
OF_EXTRAPOLATIONS = (
    "Weights of a later step than the training has taken, from those that it kept. Explained: share of its update, as squared norm over all tensors, "
    "in the directions that go on; the rest is left out. Fit: share of the variance over the kept steps that lies on straight lines, of all tensors "
    "and of the worst one. Length: of the way from where the training started, in updates of the training."
)


def reward_models(metrics: Metrics) -> Html:
    """What each is worth on problems that it has not seen. metrics: stage -> what it has measured."""
    return join([el("p", OF_REWARD_MODELS, class_="note"), table(REWARD_MODELS, [_judged(name, told) for name, told in metrics.items()])])


def _judged(name: str, told: Mapping[str, float]) -> list[Html | str]:
    parts = [_share(told, f"accuracy_better_{which}", f"pairs_better_{which}") for which in ("shorter", "longer")]
    auc = _interval(told, "auc") if "auc" in told else "–"
    ece = f"{told['ece']:.3f}, {told['ece_before']:.3f}"
    return [name, _interval(told, "accuracy"), f"{told['pairs']:.0f}", *parts, auc, ece, f"{told['brier']:.3f}", f"{told['temperature']:.2f}"]


def _interval(told: Mapping[str, float], name: str) -> Html:
    return join([el("b", f"{told[name]:.3f}"), " ", el("small", f"{told[f'{name}_low']:.2f}–{told[f'{name}_high']:.2f}")])


def _share(told: Mapping[str, float], name: str, count: str) -> str:
    return f"{told[name]:.3f} of {told[count]:.0f}" if name in told else "–"


def extrapolations(nodes: Sequence[StageNode], metrics: Metrics) -> Html:
    """How far each goes, and how straight the training went. nodes: the stages of this kind."""
    rows = []
    for node in nodes:
        told = metrics[node.stage]
        steps = [number(told[name], 6) for name in ("kept", "last_step", "target")]
        figures = [number(told[name]) if name in told else "–" for name in ("explained", "fit", "least_fit", "length")]
        rows.append([node.stage, node.settings["init"], node.settings["method"], *steps, *figures])
    return join([el("p", OF_EXTRAPOLATIONS, class_="note"), table(EXTRAPOLATIONS, rows)])
