"""The parent flow: walk the graph in one process and run what is not current."""

from __future__ import annotations

from contextlib import ExitStack

from prefect import flow

from flows.kinds import FLOWS
from tasks import locking, owed, planning, reporting, settings
from tasks.execution import tell
from tasks.preloading import PRELOADED
from tasks.tracking import Tracker


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
        for done, (stage, node) in enumerate(plan.stages.items()):
            reporting.show_progress(progress, done, len(plan.stages), stage)
            if not planning.stale(project, plan, stage):
                continue
            if not ran:  # a run that does nothing leaves no trace in MLflow
                tracker = Tracker.open(project)
                pipeline_run = stack.enter_context(tracker.pipeline())
                reporting.show_link(tracker.link(pipeline_run))
            if any(later.loads_model for later in list(plan.stages.values())[done:]):  # the libraries come in while stages run that need none
                PRELOADED.start(project, libraries=True)
            FLOWS[node.kind](stage, pipeline_run)
            ran.append(stage)
        reporting.show_progress(progress, len(plan.stages), len(plan.stages), "complete")
        reporting.show_scores(project)
    return ran
