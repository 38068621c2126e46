"""kill -9 while a run records, registers and promotes: the next run does what was left, trains nothing again and registers nothing twice.

The stages are stand-ins that write small files, so that a run takes seconds; everything around them is real: DVC, MLflow, Prefect, the CLI.
"""

import shutil
import signal
import subprocess
import sys

import mini_project
import pytest
from killing import AT_CALL
from mlflow import MlflowClient

from pipelines import paths
from pipelines.config import read_yaml

STAND_IN = """
from pipelines import graph, paths
from pipelines.store import write_json

FILES = {
    "sources": ["benchmarks/math.parquet", "problems.parquet"], "curation": ["base.parquet", "sft.parquet", "rl.parquet"], "report": ["index.html"],
}
INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6}
SCORES = {
    "benchmarks": {"math": {}}, "models": {"merged": {"math": {"pass_at_k": {"1": INTERVAL}}}},
    "gate": {"passed": True, "candidate": "merged", "decided_by": ["improve math"], "reasons": []},
}


def run(context):
    content = (context.root / "content").read_text()
    if not (context.resume / "trained").exists():
        with (context.root / "trained.log").open("a") as log:
            log.write(context.stage + "\\n")
        context.resume.mkdir()
        (context.resume / "trained").write_text(content)
    kind = getattr(context.settings, "kind", context.stage)
    for made in graph.stage(context.stage, kind, context.settings).makes:
        for name in FILES.get(context.stage, ["model.safetensors"]):
            file = context.root / made if made.suffix else context.root / made / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_text((context.resume / "trained").read_text())
    if context.stage == "evaluation":
        write_json(context.root / paths.SCORES, SCORES)
    return {"figure": 1.0}
"""
PARAMS = mini_project.PARAMS | {
    "stages": {
        "sft": {"kind": "sft", "init": "base", "data": "curation/sft"},
        "math": {"kind": "rl", "init": "sft", "data": "curation/rl"},
        "merged": {"kind": "merge", "init": "sft", "models": ["math"]},
    }
}
RUN = AT_CALL + """
import sys
import flows.cli, flows.post_training, flows.kinds
import pipelines.merging.search, pipelines.rl.recipe, pipelines.verifiers  # what every run would import to check params
from dvc.stage import PipelineStage
from flows import command
from mlflow import MlflowClient
from tasks import execution, owed, processes, promotion, tracking, versioning

TARGETS = {
    "run": (processes, "run_stage"), "ended": (owed, "finish"), "record": (versioning, "record"), "save": (PipelineStage, "save"),
    "commit": (PipelineStage, "commit"), "dump": (PipelineStage, "dump"), "recorded": (owed, "recorded"), "clear": (owed, "discard"),
    "tell": (execution, "_tell"), "register": (tracking.StageRun, "register"), "version": (MlflowClient, "create_model_version"),
    "alias": (MlflowClient, "set_registered_model_alias"), "told": (owed, "told"), "promote": (promotion, "promote"),
}
print("ready", flush=True)
for line in sys.stdin:
    place, *arguments = line.split()
    child = os.fork()
    if not child:
        os.setsid()
        if place in TARGETS:
            at_call(*TARGETS[place])
        if place == "dvc":
            os.environ["DVC_STAGE"] = "base"
            code = command.run(lambda: command.with_server(lambda: flows.kinds.FLOWS["base"]("base")))
        else:
            code = flows.cli.main(["run", *arguments])
        sys.stdout.flush()
        os._exit(code)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)  # what was imported takes seconds to be torn down
"""
"""One line of input is one `touchstone run`, in a process forked from one that has imported everything."""


class Runs:
    """`touchstone run` in the project, to its end or to a place in the code."""

    def __init__(self, project, ports):
        self.project = project
        self.said = ""
        url = f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api"
        environment = mini_project.environment(PREFECT_API_URL=url, PYTHONPATH=str(project), **ports)
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN], cwd=project, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"
        self.client = MlflowClient(f"sqlite:///{project}/.touchstone/mlflow.db", f"sqlite:///{project}/.touchstone/mlflow.db")

    def __call__(self, place, *arguments):
        """Exit code, or minus the signal."""
        self.process.stdin.write(" ".join([place, *arguments]) + "\n")
        self.process.stdin.flush()
        self.said = ""
        for line in self.process.stdout:
            if line.startswith("ended "):
                return int(line.split()[1])
            self.said += line
        raise AssertionError("the runner is gone")

    def trained(self, stage):
        return (self.project / "trained.log").read_text().split().count(stage)

    def write(self, content):
        """What stages that start from now on make."""
        (self.project / "content").write_text(content)

    def digest(self, model):
        """DVC's record of a model."""
        outs = read_yaml(self.project / "data/dvc.lock")["stages"][model]["outs"]
        return next(out["md5"] for out in outs if out["path"] == paths.model(model).as_posix())

    def alias(self, model, alias):
        return self.client.get_model_version_by_alias(f"touchstone-{model}", alias).tags["dvc_md5"]

    def versions(self, model, digest):
        return [v for v in self.client.search_model_versions(f"name = 'touchstone-{model}'") if v.tags["dvc_md5"] == digest]

    def owes_nothing(self):
        state = self.project / paths.STATE
        left = [file for folder in (paths.FORCED, paths.FINISHED) for file in (self.project / folder).glob("*")]
        return not left and not list(state.glob(f"work/*/{paths.RESUME}"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, served, ports):
    """A project of stand-ins after its first run."""
    project = mini_project.make(tmp_path_factory.mktemp("owed") / "project", PARAMS)
    for file in (project / "pipelines/stages").glob("*.py"):
        if file.stem not in ("__init__", "identity"):
            file.write_text(STAND_IN)
    preloaded = project / "pipelines/preloaded.py"
    preloaded.write_text(preloaded.read_text().replace('\nif __name__ == "__main__":', '\nLIBRARIES = ()  # stand-ins need none\nif __name__ == "__main__":'))
    runs = Runs(project, ports)
    runs.write("first")
    assert runs("-") == 0
    assert runs.owes_nothing() and runs.alias("merged", "champion") == runs.digest("merged")
    yield runs
    runs.process.stdin.close()
    runs.process.wait(60)
    runs.process.stdout.close()


LONG = pytest.mark.long


@pytest.mark.parametrize("place", ["alias", pytest.param("promote", marks=LONG), pytest.param("told", marks=LONG)])
def test_a_promotion_killed_at(runs, place):
    runs.write(f"promotion killed at {place}")
    assert runs("-", "--until", "merged", "--force", "merged") == 0
    assert runs.alias("merged", "champion") != runs.digest("merged")
    before = runs.trained("evaluation")
    assert runs(place, "--until", "evaluation") == -signal.SIGKILL
    assert runs("-", "--until", "evaluation") == 0
    assert "evaluation: telling MLflow what an earlier run had recorded when it was stopped" in runs.said
    assert runs.alias("merged", "champion") == runs.digest("merged")
    assert runs.trained("evaluation") == before + 1 and runs.owes_nothing()
    (run,) = runs.client.search_runs([runs.client.get_experiment_by_name("touchstone").experiment_id], "attributes.run_name = 'evaluation'", max_results=1)
    assert run.info.status == "FINISHED" and run.data.tags["gate.passed"] == "true"


def test_a_wish_outlives_a_run_that_ends_before_it(runs):
    runs.write("wished")
    assert runs("run", "--until", "merged", "--force", "merged") == -signal.SIGKILL
    assert runs("-", "--until", "base") == 0 and "everything is current" in runs.said
    before = runs.trained("merged")
    assert runs("-", "--until", "merged") == 0 and "merged: runs (forced)" in runs.said
    assert runs.trained("merged") == before + 1 and runs.owes_nothing()


PLACES = ["run", "ended", "record", "save", "commit", "dump", "recorded", "clear", "tell", "register", "version", "alias", "told"]
SHORT = {"run", "ended", "dump", "recorded", "version", "told"}
"""The stage's process, before DVC, while DVC writes, before its work is cleared, half registered, before the last note is crossed out."""


@pytest.mark.parametrize("place", [pytest.param(place, marks=() if place in SHORT else LONG) for place in PLACES])
def test_a_forced_stage_killed_at(runs, place):
    before = runs.trained("base")
    runs.write(f"killed at {place}")
    assert runs(place, "--until", "base", "--force", "base") == -signal.SIGKILL
    trained = runs.trained("base") - before
    assert trained == (0 if place == "run" else 1)
    assert runs("-", "--until", "base") == 0
    if place in PLACES[: PLACES.index("recorded")]:
        assert "base: runs (forced)" in runs.said, "the wish is not forgotten, and nobody takes the old outputs for it"
    assert runs.trained("base") == before + 1, "nothing is trained again"
    assert (runs.project / paths.BASE / "model.safetensors").read_text() == f"killed at {place}"
    digest = runs.digest("base")
    assert runs.alias("base", "candidate") == digest and len(runs.versions("base", digest)) == 1
    assert runs.owes_nothing()
    if place in PLACES[PLACES.index("record") : PLACES.index("clear")]:  # while DVC writes
        assert runs("-", "--until", "base") == 0 and "everything is current" in runs.said


def test_dvc_records_after_the_process_and_the_next_run_clears(runs, ports):
    def repro(*arguments):
        url = f"http://127.0.0.1:{ports['TOUCHSTONE_PREFECT_PORT']}/api"
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", *arguments, "data/dvc.yaml:base"]
        environment = mini_project.environment(PREFECT_API_URL=url, **ports)
        subprocess.run(command, cwd=runs.project, env=environment, capture_output=True, text=True, timeout=240, check=True)

    before, resume = runs.trained("base"), runs.project / paths.WORK / "base" / paths.RESUME
    runs.write("by dvc")
    shutil.rmtree(runs.project / paths.BASE)  # as DVC does before a stage runs
    assert runs("dvc") == 0, "the stage as DVC runs it, and DVC killed before it records"
    assert resume.exists() and runs.trained("base") == before + 1
    repro("--force")
    assert runs.trained("base") == before + 1, "nothing is trained again"
    assert (runs.project / paths.BASE / "model.safetensors").read_text() == "by dvc"
    assert resume.exists(), "only now DVC has recorded it"
    repro("--force")
    assert runs.trained("base") == before + 2, "what is recorded is begun anew"
    assert runs("-", "--until", "base") == 0 and runs.owes_nothing()
