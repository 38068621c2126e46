"""The parent flow: walk the graph in one process and run what is not current."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from prefect import flow

from flows.kinds import FLOWS
from tasks import locking, owed, planning, reporting, settings, side_by_side
from tasks.execution import tell
from tasks.preloading import PRELOADED
from tasks.tracking import Tracker


@flow(name="post-training")
def post_training(until: str | None = None, force: list[str] | None = None, at_once: int | None = None) -> list[str]:
    """From raw problems to the report: every stage that is not current, each once its inputs are made. Returns the stages that ran.

    until: the last stage wanted, with all it needs; default: all. force: stages to run though they are current. at_once: so many stages may run
    side by side; default: what TOUCHSTONE_AT_ONCE says, else one.
    """
    project = settings.root()
    most = side_by_side.at_once(at_once)
    ran: list[str] = []
    with locking.single_run(project), ExitStack() as stack:
        plan = planning.make(project, until, force or [])
        for stage in plan.stages:
            if owed.untold(project, stage):
                tell(stage)
        progress = reporting.start_progress()
        pipeline_run = ""

        def run(stage: str, waiting: Sequence[str], beside: Sequence[str]) -> None:
            nonlocal pipeline_run
            with locking.TURN:
                done = len(plan.stages) - len(waiting) - len(beside) - 1
                reporting.show_progress(progress, done, len(plan.stages), ", ".join([*beside, stage]))
                if not planning.stale(project, plan, stage):
                    return
                if not ran:  # a run that does nothing leaves no trace in MLflow
                    tracker = Tracker.open(project)
                    pipeline_run = stack.enter_context(tracker.pipeline())
                    reporting.show_link(tracker.link(pipeline_run))
                # the libraries come in while stages run that need none
                PRELOADED.start(project, libraries=any(plan.stages[name].loads_model for name in (stage, *waiting)))
                ran.append(stage)
            FLOWS[plan.stages[stage].kind](stage, pipeline_run, side_by_side.sharing(plan.everything, stage, most))

        side_by_side.walk(plan.stages, most, run)
        reporting.show_progress(progress, len(plan.stages), len(plan.stages), "complete")
        reporting.show_scores(project)
    return ran
