"""Bounds on lengths and tests, and traits that go. One function of a row gives its first reason to go, or none."""

from __future__ import annotations

import functools

from pipelines.config.curation import FilterSettings
from pipelines.curation.signals import SIGNALS, test_count
from pipelines.curation.steps import Apply, Batch, Inputs, Passed, Reason, Rows
from pipelines.records import Problem


def filters(rows: Rows, inputs: Inputs) -> Apply:
    """Drop rows outside the bounds of `inputs.settings.filters`."""
    return functools.partial(_outside, inputs.settings.filters)


def _outside(settings: FilterSettings, batch: Batch) -> Passed:
    reasons = ((place, objection(problem, settings)) for place, problem in enumerate(batch.problems))
    return Passed({place: reason for place, reason in reasons if reason})


def objection(problem: Problem, settings: FilterSettings) -> Reason | None:
    """(reason, detail) of the first bound that the row breaks, or of the first trait to go that it has."""
    for part, (least, most) in (("prompt", settings.prompt_chars), ("answer", settings.answer_chars), ("solution", settings.solution_chars)):
        text = getattr(problem, part)
        if text is not None and len(text) < least:
            return f"{part}_too_short", f"{len(text)} characters, at least {least}"
        if text is not None and len(text) > most:
            return f"{part}_too_long", f"{len(text)} characters, at most {most}"
    tests, (least, most) = test_count(problem), settings.tests
    if tests is not None and not least <= tests <= most:
        return "too_few_tests" if tests < least else "too_many_tests", f"{tests} tests, between {least} and {most}"
    return next(((name, (SIGNALS[name].__doc__ or name).splitlines()[0]) for name in settings.drop if SIGNALS[name](problem)), None)
