"""MLflow: a run per pipeline run, a child run per stage, every trained model a version of a registered model.

Registered models are named touchstone-<model> (touchstone-sft, touchstone-merged, ...). The newest version bears the alias
`candidate`; `promotion.py` gives `champion`; what an experiment of DVC makes bears none.
A version bears DVC's digest of its weights, and its files are in MLflow's artifact store:
hard links to DVC's cache where the store is a folder on the same disk, which takes no space of their own and outlives `dvc gc`, a copy on
another disk, and an upload to a server. So a version's files never change, whatever the work tree holds. All goes through a client with
an explicit address, because MLflow's default depends on the working directory.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines import paths
from pipelines.lineage.manifests import git_state
from tasks import experiments, processes, settings

EXPERIMENT = "touchstone"
BATCH = 1000
"""MLflow takes at most this many metrics in one call."""
VALUE_LIMIT = 6000
CANDIDATE, CHAMPION = "candidate", "champion"


def registered(model: str) -> str:
    """Name in the registry of the model called `model`."""
    return f"touchstone-{model}"


@dataclass
class Tracker:
    """The project's experiment in MLflow."""

    project: Path
    client: Any
    experiment: str

    @classmethod
    def open(cls, project: Path) -> Tracker:
        from mlflow import MlflowClient

        uri = settings.mlflow_uri(project)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found:
            return cls(project, client, found.experiment_id)
        artifacts = (experiments.home(project) / paths.STATE / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        return cls(project, client, client.create_experiment(EXPERIMENT, artifact_location=artifacts))

    @contextmanager
    def pipeline(self, run: str | None = None) -> Iterator[str]:
        """The run that stages become children of: `run` of a caller who will end it, or one that ends with the block."""
        if run:
            yield run
        else:
            opened = self._open_pipeline()
            with self.closing(opened):
                yield opened

    def _open_pipeline(self) -> str:
        """Under `dvc repro` all stages that one DVC process starts share one run."""
        session = "-".join(map(str, processes.guardian() or (os.getpid(), time.time_ns())))
        self.bury()
        found = self.client.search_runs([self.experiment], f"tags.`touchstone.session` = '{session}'", max_results=1)
        if found:
            return found[0].info.run_id
        tags = {"touchstone.kind": "pipeline", "touchstone.session": session, **self._origin()}
        return self.client.create_run(self.experiment, run_name=tags.get("dvc.exp", "post-training"), tags=tags).info.run_id

    def bury(self) -> None:
        """End the runs that a kill -9 left open. The project's lock says that none is at work here, and where a folder is gone none is; a shared
        server has others' too."""
        if settings.mlflow_uri(self.project).startswith(f"sqlite:///{experiments.home(self.project)}"):
            for run in self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'"):
                folder = Path(run.data.tags.get("touchstone.folder", self.project))
                if folder == self.project or not folder.exists():
                    self.client.set_terminated(run.info.run_id, "KILLED")

    @contextmanager
    def closing(self, run: str) -> Iterator[None]:
        """End a run with the block: FINISHED, FAILED by an error, KILLED by anything else."""
        status = "KILLED"
        try:
            yield
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self.client.set_terminated(run, status)

    def link(self, run: str) -> str:
        """Address of a run in the UI that `touchstone up` starts."""
        return f"http://{settings.HOST}:{settings.mlflow_port()}/#/experiments/{self.experiment}/runs/{run}"

    def _origin(self) -> dict[str, str]:
        state = git_state(self.project)
        commit, dirty = state["git_commit"] or "none", str(bool(state["dirty"])).lower()
        experiment = {"dvc.exp": os.environ.get("DVC_EXP_NAME", self.project.name)} if experiments.is_copy(self.project) else {}
        about = {"git.commit": commit, "git.dirty": dirty, "mlflow.source.git.commit": commit, "mlflow.source.name": "touchstone"}
        return about | experiment | {"touchstone.folder": str(self.project)}

    def version(self, model: str, digest: str, run: str | None = None) -> Any | None:
        """The newest registered version of `model` with exactly these weights, of `run` if one is given."""
        found = self.client.search_model_versions(f"name = '{registered(model)}'")
        found = [v for v in found if v.tags.get("dvc_md5") == digest and run in (None, v.run_id)]
        return max(found, key=lambda v: int(v.version), default=None)

    @contextmanager
    def stage(
        self, stage: str, given: Mapping[str, Any], *, parent: str, flow_run: str, inputs: Mapping[str, str], models: Mapping[str, str]
    ) -> Iterator[StageRun]:
        """A child run for one stage. inputs: path -> DVC digest of what it reads; models: model -> the same, of those it reads."""
        tags = {
            "touchstone.kind": "stage",
            "mlflow.parentRunId": parent,
            "dvc.stage": stage,
            "prefect.flow_run_id": flow_run,
            **{f"dvc.in.{path}": digest for path, digest in inputs.items()},
            **self._origin(),
        }
        run = StageRun(self, self.client.create_run(self.experiment, run_name=stage, tags=tags).info.run_id, stage, given)
        run.log_params()
        with self.closing(run.id):
            run.log_inputs(inputs, models)
            yield run


    @contextmanager
    def reopened(self, run: str, stage: str, given: Mapping[str, Any]) -> Iterator[StageRun]:
        """A stage's run that was cut off before all was told; a new one where this store does not know it."""
        from mlflow.exceptions import MlflowException

        self.bury()
        try:
            self.client.get_run(run)
        except MlflowException:
            run = self.client.create_run(self.experiment, run_name=stage, tags={"touchstone.kind": "stage", "dvc.stage": stage}).info.run_id
        with self.closing(run):
            yield StageRun(self, run, stage, given)


@dataclass
class StageRun:
    """The MLflow run of one stage."""

    tracker: Tracker
    id: str
    stage: str
    given: Mapping[str, Any]

    def log_params(self) -> None:
        from mlflow.entities import Param

        flat = {"seed": self.given["seed"], **dict(_flatten(self.given["settings"]))}
        found = [Param(name, _text(value)[:VALUE_LIMIT]) for name, value in flat.items()]
        for start in range(0, len(found), 100):
            self.tracker.client.log_batch(self.id, params=found[start : start + 100])

    def log_inputs(self, inputs: Mapping[str, str], models: Mapping[str, str]) -> None:
        """Everything read as dataset inputs with DVC's digests; models that the registry knows as model inputs too."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        datasets = []
        for path, digest in inputs.items():
            source = json.dumps({"uri": (self.tracker.project / path).as_uri(), "dvc_md5": digest})
            # MLflow stores at most 36 characters of a digest: DVC's 32 without the suffix that marks folders
            entity = Dataset(path, digest.removesuffix(".dir"), "local", source)
            datasets.append(DatasetInput(entity, [InputTag("mlflow.data.context", self.stage)]))
        versions = [self.tracker.version(model, digest) for model, digest in models.items()]
        known = [LoggedModelInput(version.tags["model_id"]) for version in versions if version]
        if datasets:
            self.tracker.client.log_inputs(self.id, datasets=datasets)
        if known:
            self.tracker.client.log_inputs(self.id, models=known)

    def log_rows(self, rows: list[dict[str, Any]]) -> None:
        """Rows of the journal as metrics over steps."""
        self._log([(name, value, row["step"]) for row in rows for name, value in row.items() if name != "step"])

    def log_summary(self) -> None:
        """The stage's metrics file and the digests of what it wrote."""
        from pipelines.store import read_json

        for path in self.given["records"]:
            if path.endswith(".json"):
                self._log([(name, value, 0) for name, value in read_json(self.tracker.project / path).items()], prefix="final.")

    def log_search(self, record: Mapping[str, Any]) -> None:
        """A search's trials as nested runs with their settings and scores; the winner and what it won by at this run."""
        from mlflow.entities import Metric, Param

        for left in self.tracker.client.search_runs([self.tracker.experiment], f"tags.`mlflow.parentRunId` = '{self.id}'"):
            self.tracker.client.delete_run(left.info.run_id)  # of a try that was cut off
        for number, trial in enumerate(record["trials"]):
            tags = {"touchstone.kind": "trial", "mlflow.parentRunId": self.id, "winner": str(trial["name"] == record["winner"]).lower()}
            child = self.tracker.client.create_run(self.tracker.experiment, run_name=trial["name"], tags=tags).info.run_id
            with self.tracker.closing(child):
                given = {"method": trial["method"] or "none", "models": trial["models"], **dict(_flatten(trial["settings"]))}
                params = [Param(name, _text(value)[:VALUE_LIMIT]) for name, value in given.items() if name]
                now = time.time_ns() // 1_000_000
                metrics = [Metric(name, float(trial[name]), now, number) for name in ("mean", "low", "high") if name in trial]
                self.tracker.client.log_batch(child, metrics=metrics, params=params)
        self.tag({"search.winner": record["winner"], "search.expert": record["expert"]})

    def tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.tracker.client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_artifact(self, path: Path) -> None:
        self.tracker.client.log_artifact(self.id, str(path))

    def register(self, model: str, digest: str, files: Mapping[str, Path]) -> Any:
        """Make `model` a version of its registered model, once for each run, with the alias `candidate`; returns the version.

        digest: DVC's, of the model's folder. files: name -> file that holds its content and never changes.
        """
        version = self.tracker.version(model, digest, self.id) or self._add_version(model, digest, files)
        if not experiments.is_copy(self.tracker.project):
            self.tracker.client.set_registered_model_alias(registered(model), CANDIDATE, version.version)
        return version

    def _add_version(self, model: str, digest: str, files: Mapping[str, Path]) -> Any:
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        client, name = self.tracker.client, registered(model)
        folder = paths.model(model).as_posix()
        tags = {"path": folder, "dvc_md5": digest, "stage": self.stage}
        params = {key: _text(value)[:500] for key, value in _flatten(self.given["settings"])}
        logged = client.create_logged_model(self.tracker.experiment, name=name, source_run_id=self.id, tags=tags, params=params)
        self._keep(logged, files)
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(self.id, [LoggedModelOutput(logged.model_id, 0)])
        try:
            client.get_registered_model(name)
        except MlflowException:
            client.create_registered_model(name, description=f"what stage {self.stage} trains, at {folder} of the work tree")
        tags |= {"model_id": logged.model_id}
        return client.create_model_version(name, logged.artifact_location, run_id=self.id, tags=tags, model_id=logged.model_id)

    def _keep(self, logged: Any, files: Mapping[str, Path]) -> None:
        """Put the files of a model where MLflow keeps those of `logged`."""
        from mlflow.utils.file_utils import local_file_uri_to_path
        from mlflow.utils.uri import is_local_uri

        if is_local_uri(logged.artifact_location):
            place(files, Path(local_file_uri_to_path(logged.artifact_location)))
            return
        state = self.tracker.project / paths.STATE
        state.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=state) as folder:
            place(files, Path(folder))
            self.tracker.client.log_model_artifacts(logged.model_id, folder)

    def _log(self, values: list[tuple[str, Any, int]], prefix: str = "") -> None:
        """Finite numbers only: MLflow would turn an infinity into the largest float."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [
            Metric(prefix + name.replace("@", "_at_"), float(value), now, step)
            for name, value, step in values
            if isinstance(value, (int, float)) and math.isfinite(value)
        ]
        for start in range(0, len(metrics), BATCH):
            self.tracker.client.log_batch(self.id, metrics=metrics[start : start + BATCH])


def place(files: Mapping[str, Path], folder: Path) -> None:
    """Make `folder` hold `files`: as hard links where the disk is the same, else as copies."""
    for name, file in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, target)


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
