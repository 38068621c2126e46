"""Bounds on lengths. One function of a row gives its first reason to go, or none."""

from __future__ import annotations

from pipelines.config.curation import FilterSettings
from pipelines.curation.steps import Inputs
from pipelines.records import Dropped, Problem


def filters(problems: list[Problem], inputs: Inputs) -> tuple[list[Problem], list[Dropped]]:
    """Drop rows outside the bounds of `inputs.settings.filters`."""
    kept, dropped = [], []
    for problem in problems:
        reason = objection(problem, inputs.settings.filters)
        if reason:
            dropped.append(Dropped(problem, "filters", *reason))
        else:
            kept.append(problem)
    return kept, dropped


def objection(problem: Problem, settings: FilterSettings) -> tuple[str, str] | None:
    """(reason, detail) of the first bound that the row breaks."""
    for part, (least, most) in (("prompt", settings.prompt_chars), ("answer", settings.answer_chars), ("solution", settings.solution_chars)):
        text = getattr(problem, part)
        if text is not None and len(text) < least:
            return f"{part}_too_short", f"{len(text)} characters, at least {least}"
        if text is not None and len(text) > most:
            return f"{part}_too_long", f"{len(text)} characters, at most {most}"
    return None
