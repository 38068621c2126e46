"""The parent flow: walk the graph in one process and run what is not current."""

from __future__ import annotations

from contextlib import ExitStack

from prefect import flow

from flows.base import base
from flows.curation import curation
from flows.difficulty import difficulty
from flows.evaluation import evaluation
from flows.merging import merging
from flows.report import report
from flows.rl import rl
from flows.sft import sft
from flows.sources import sources
from flows.synthesis import synthesis
from pipelines import graph
from tasks import locking, owed, planning, reporting, settings
from tasks.execution import tell
from tasks.preloading import PRELOADED
from tasks.tracking import Tracker

FLOWS = {
    "sources": sources,
    "curation": curation,
    "base": base,
    "sft": sft,
    "difficulty": difficulty,
    "synthesis": synthesis,
    "rl": rl,
    "merging": merging,
    "evaluation": evaluation,
    "report": report,
}


@flow(name="post-training")
def post_training(until: str | None = None, force: list[str] | None = None) -> list[str]:
    """From raw problems to the report: every stage that is not current, in order. Returns the stages that ran.

    until: the last stage wanted, with all it needs; default: all. force: stages to run though they are current.
    """
    project = settings.root()
    ran: list[str] = []
    with locking.single_run(project), ExitStack() as stack:
        plan = planning.make(project, until, force or [])
        for stage in plan.stages:
            if owed.untold(project, stage):
                tell(stage)
        progress = reporting.start_progress()
        for done, stage in enumerate(plan.stages):
            reporting.show_progress(progress, done, len(plan.stages), stage)
            if not planning.stale(project, plan, stage):
                continue
            if not ran:  # a run that does nothing leaves no trace in MLflow
                tracker = Tracker.open(project)
                pipeline_run = stack.enter_context(tracker.pipeline())
                reporting.show_link(tracker.link(pipeline_run))
            if any(graph.with_model(later) for later in plan.stages[done:]):  # the libraries come in while stages run that need none
                PRELOADED.start(project, libraries=True)
            name, _, item = stage.partition("@")
            FLOWS[name](*([item] if item else []), pipeline_run)
            ran.append(stage)
        reporting.show_progress(progress, len(plan.stages), len(plan.stages), "complete")
        reporting.show_scores(project)
    return ran
