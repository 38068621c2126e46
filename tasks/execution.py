"""The one way in which a stage is run, whether `touchstone run`, a deployment or `dvc repro` asks for it."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from pipelines import graph, paths
from pipelines.lineage import manifests
from pipelines.store import read_json
from tasks import locking, owed, processes, promotion, reporting, settings, versioning
from tasks.owed import Finished
from tasks.tracking import StageRun, Tracker


@task(cache_policy=NO_CACHE, task_run_name="{stage}")
def execute(stage: str, pipeline_run: str | None = None, parts: int = 1) -> None:
    """Run one stage in a process of its own, follow it into MLflow, and record it with DVC.

    pipeline_run: MLflow's id of the parent run; None finds or opens one, as under `dvc repro`, where DVC records the stage itself.
    parts: between so many stages the machine is divided while it runs.
    """
    project = settings.root()
    with locking.single_run(project):
        with locking.TURN:
            settings.check_disk(project)
            loaded = settings.params(project)
            stages = graph.graph(loaded)
            given = stages[stage].given(loaded.seed)
            versioning.align(project, loaded, stages)
            versioning.prune(project, stages)
            owed.settle(project, stages)
            owed.forget(project, stage)
            versioning.prepare_code(project, stages[stage])
            before, depended = versioning.fingerprint(project, stages[stage]), versioning.dependencies(project, stage)
            tracker = Tracker.open(project)
            inputs = versioning.digests(project, stages[stage])
            models = versioning.models_read(project, stages, stage)
        with (
            tracker.pipeline(pipeline_run) as parent,
            tracker.stage(stage, given, parent=parent, flow_run=str(flow_run.root_flow_run_id), inputs=inputs, models=models) as run,
        ):
            processes.run_stage(project, stage, given, run.log_rows, parts)
            with locking.TURN:
                versioning.check_unchanged(project, stages[stage], before)
                finished = Finished(stage, run.id, given, models, depended, versioning.output_digests(project, stage))
                owed.finish(project, finished)
                if not versioning.under_dvc():
                    versioning.record(project, stage)
                    owed.recorded(project, finished)
                _tell(run, finished)
                owed.told(project, stage)


@task(cache_policy=NO_CACHE, task_run_name="{stage}: what is left to tell")
def tell(stage: str) -> None:
    """Tell MLflow and Prefect of a stage that a run recorded before it was stopped; what has been changed since is not told."""
    project = settings.root()
    if (finished := owed.untold(project, stage)) and versioning.intact(project, stage):
        print(f"{stage}: telling MLflow what an earlier run had recorded when it was stopped", flush=True)
        with Tracker.open(project).reopened(finished.run, stage, finished.given) as run:
            _tell(run, finished)
    owed.forget(project, stage)


def _tell(run: StageRun, finished: Finished) -> None:
    """What a finished stage leaves in MLflow and Prefect. Done again after a kill, it registers nothing twice."""
    project, stage = run.tracker.project, run.stage
    run.log_summary()
    run.tag({f"dvc.out.{path}": digest for path, digest in finished.outputs.items()})
    if notices := manifests.notices(read_json(project / paths.manifest(stage))):
        run.tag({"touchstone.notices": "; ".join(notices)})
    if (model := paths.model(stage).as_posix()) in finished.outputs:
        run.register(stage, finished.outputs[model], versioning.weights(project, stage))
        if (search := project / model / paths.SEARCH).exists():
            run.log_search(read_json(search))
    if stage == "evaluation":
        decision = promotion.promote(run, finished.models, lambda model: versioning.weights(project, model))
        run.tag(
            {
                "gate.candidate": decision.model,
                "gate.passed": str(decision.promoted).lower(),
                "gate.decided_by": "; ".join(decision.decided_by),
                "gate.reasons": "; ".join(decision.reasons),
            }
        )
        run.log_artifact(project / paths.SCORES)
        reporting.show_scores(project)
    if stage == "report":
        run.log_artifact(project / paths.PAGE)
