"""The report's view of what a stage of RL trained on: problems over steps by pass rate, help that was given, answers that were spent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

from pipelines.evaluation.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, Series, frame, line_chart, stacked, ticks, x_axis
from pipelines.evaluation.report.html import Html, el, join, number, table
from pipelines.evaluation.report.inputs import Group
from pipelines.evaluation.report.results import legend
from pipelines.evaluation.report.training import thin

RATES = ("none right", "up to a third", "up to two thirds", "more", "all right")
"""Classes of groups by the share of right answers; the CSS class of class i is `r-i`."""
DRAWN = 240
"""Most problems that are drawn one by one."""
BARS = 30
"""Most bars over the steps."""
OFTEN = 10
"""Problems listed that had the most answers."""
NOTE = (
    "A dot is one problem in one step, coloured by the share of its answers that were right. The problems with the fewest right answers over the "
    "whole stage are at the top, so a curriculum is a slope, and a problem that comes back is a row of dots. Help: a guide's words in an answer, or "
    "a hint that training did not see."
)


def section(groups: Mapping[str, Sequence[Group]], given: Mapping[str, Mapping[str, str]]) -> Html | None:
    """Every stage that left rollouts. given: stage -> problem -> the reference that it was read by."""
    stages = {name: sorted(of_stage, key=lambda g: g.step) for name, of_stage in groups.items() if of_stage}
    if not stages:
        return None
    parts = [el("p", NOTE, class_="note"), legend([(name, f"r-{i}") for i, name in enumerate(RATES)])]
    for name, of_stage in stages.items():
        charts = [_raster(of_stage), _shares(of_stage), _spent(of_stage)]
        parts += [el("h3", name), _facts(of_stage, given.get(name, {})), el("div", charts, class_="grid-charts"), _most_answered(of_stage)]
    return join(parts)


def rate_class(right: int, answers: int) -> int:
    """Index in RATES."""
    if right in (0, answers):
        return 4 if right else 0
    return 1 + (3 * right > answers) + (3 * right > 2 * answers)


def _facts(groups: Sequence[Group], given: Mapping[str, str]) -> Html:
    """How many problems had answers, how many each, and by which reference they were read."""
    answers = Counter[str]()
    for g in groups:
        answers[g.problem_id] += g.answers
    counts = sorted(answers.values())
    spread = f"{counts[0]:,}, {counts[len(counts) // 2]:,} and {counts[-1]:,} answers (least, median, most)"
    never = len(given.keys() - answers.keys())
    unanswered = f"; {never:,} that it was given were never answered" if never else ""
    by_reference = Counter[str]()
    for problem, count in answers.items():
        by_reference[given.get(problem, "problems made in the stage")] += count
    total = sum(counts)
    shares = ", ".join(f"{reference} {number(100 * count / total)} %" for reference, count in by_reference.most_common())
    return el("p", f"{len(answers):,} problems, {spread}{unanswered}.", f" Answers by what was read: {shares}." if given else None)


def _raster(groups: Sequence[Group]) -> Html:
    """Problems over steps."""
    right, answers = Counter[str](), Counter[str]()
    for g in groups:
        right[g.problem_id] += g.right
        answers[g.problem_id] += g.answers
    order = sorted(answers, key=lambda problem: (right[problem] / answers[problem], problem))
    every = -(-len(order) // DRAWN)
    drawn = {problem: place for place, problem in enumerate(order) if place % every == 0}
    steps = [g.step for g in groups]
    x = Scale(min(steps), max(steps), LEFT + 4, WIDTH - RIGHT - 4)
    y = Scale(0, max(len(order) - 1, 1), TOP, HEIGHT - BOTTOM)
    dots = [
        el(
            "circle", el("title", f"{g.problem_id}, step {g.step}: {g.right} of {g.answers} right" + (f", {g.helped} with help" if g.helped else "")),
            cx=f"{x(g.step):.1f}", cy=f"{y(drawn[g.problem_id]):.1f}", r=2, class_=f"seen r-{rate_class(g.right, g.answers)}",
        )
        for g in groups
        if g.problem_id in drawn
    ]  # fmt: skip
    some = f" (one in {every} is drawn)" if every > 1 else ""
    marks = [t for t in ticks(min(steps), max(steps)) if min(steps) <= t <= max(steps)]
    return frame(f"Problems by share of right answers{some}", HEIGHT, x_axis(x, marks, "step"), *dots)


def _shares(groups: Sequence[Group]) -> Html:
    """Share of the groups of each class, over the steps."""
    last = groups[-1].step
    width = -(-last // BARS)
    bars = []
    for number_of, of_bar in groupby(groups, key=lambda g: (g.step - 1) // width):
        counts = Counter(rate_class(g.right, g.answers) for g in of_bar)
        first, end = number_of * width + 1, min((number_of + 1) * width, last)
        name = f"step {first}" if first == end else f"steps {first} to {end}"
        bars.append((name, float(first), float(end + 1), [(RATES[i], f"r-{i}", counts[i]) for i in range(len(RATES))]))
    return stacked("Groups by share of right answers", bars, "step")


def _spent(groups: Sequence[Group]) -> Html:
    """Answers of each step, of them trained, of an earlier step, with help."""
    of_step: dict[int, Counter[str]] = defaultdict(Counter)
    for g in groups:
        of_step[g.step].update({"answers": g.answers, "trained": g.trained, "of an earlier step": g.replayed, "with help": g.helped})
    names = ("answers", "trained", "of an earlier step", "with help")
    lines = {name: [(float(step), float(counts[name])) for step, counts in of_step.items()] for name in names}
    moves = {name for name, points in lines.items() if any(value for _, value in points) and points != lines["answers"]}
    shown = {name: points for name, points in lines.items() if name == "answers" or name in moves}
    series = [Series(name, f"c-{i}", thin(points)) for i, (name, points) in enumerate(shown.items(), 1)]
    chart = line_chart("Answers a step", series, "step", y_range=(0, max(value for points in shown.values() for _, value in points)))
    return el("div", chart, legend([(s.name, s.colour) for s in series]))


def _most_answered(groups: Sequence[Group]) -> Html | None:
    """The problems that came most often, and whether they were learnt; None where each came once."""
    came: dict[str, list[Group]] = defaultdict(list)
    for g in groups:
        came[g.problem_id].append(g)
    often = sorted((problem for problem, them in came.items() if len(them) > 1), key=lambda problem: (-len(came[problem]), problem))[:OFTEN]
    if not often:
        return None
    rows = []
    for problem in often:
        them = came[problem]
        first, last = (f"{g.right} of {g.answers} (step {g.step})" for g in (them[0], them[-1]))
        rows.append([el("code", problem), f"{len(them):,}", f"{sum(g.answers for g in them):,}", first, last])
    heads = ("Problem", "Steps", "Answers", "Right at first", "Right at last")
    return el("details", el("summary", "Problems that came most often"), table(heads, rows))
