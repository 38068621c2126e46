"""kill -9 while a stage finishes: the model, the metrics, the plot and the manifest are written again, and nothing is trained or sampled twice."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from killing import Harness

from pipelines import graph, paths
from pipelines.config.common import GenerationSettings, KeepSettings, OptimiserSettings
from pipelines.config.curation import GradeStage
from pipelines.config.sampling import SampleStage
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings, BaseSettings, LanguageModellingSettings, SftStage
from pipelines.sources.arithmetic import problems
from pipelines.stages import answers
from pipelines.store import write_problems

STEPS, EVERY = 8, 3
TRAIN = LanguageModellingSettings(epochs=2, batch_size=16, checkpoint_every=EVERY, optimiser=OptimiserSettings(name="muon", lr=3e-3))
SETTINGS = {
    "base": BaseSettings(
        architecture=ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocab_size=400, context=256), train=TRAIN
    ),
    "sft": SftStage(init="base", data="curation/sft", train=TRAIN, keep=KeepSettings(every=2, most=3)),
    "difficulty": GradeStage(init="sft", data="curation/rl", samples=2, band=(0, 1), generation=GenerationSettings(max_new_tokens=8, batch_size=16)),
    "sampled": SampleStage(init="sft", data="curation/rl", samples=2, rows="all", generation=GenerationSettings(max_new_tokens=8, batch_size=16)),
}


def start(root: Path, stage: str, settings: Any = None) -> Harness:
    """The stage in the harness, with what it is given."""
    settings = settings or SETTINGS[stage]
    (root / "given.json").write_text(json.dumps(graph.stage(stage, getattr(settings, "kind", stage), settings).given(1)))
    return Harness(root, stage)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `base`, which is also what `difficulty` asks."""
    root = tmp_path_factory.mktemp("project")
    rows = list(problems(ArithmeticSource(kind="arithmetic", count=64), 1, "a", Path()))
    for path in paths.SPLITS.values():
        write_problems(root / path, rows)
    assert start(root, "base")("end")[0] == 0
    shutil.copytree(root / paths.BASE, root / paths.model("sft"))
    return root


@pytest.fixture(scope="module", params=["base", "sft"])
def training(request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory):
    """(stage, what a run that is left alone leaves, harness, the project killed after the last step, to be copied)."""
    stage = request.param
    harness = start(project, stage)
    forget(project, stage)
    assert harness("end")[0] == 0
    assert harness.steps() == STEPS
    alone = left(project, stage)
    forget(project, stage)
    assert harness("target", "model")[0] == signal.SIGKILL
    assert harness.steps() == STEPS
    return stage, alone, harness, shutil.copytree(project, tmp_path_factory.mktemp("done") / "p")


def left(root: Path, stage: str) -> dict[str, bytes]:
    """All that a training stage writes, but for its plot and manifest, which have what the clock says or its digest."""
    files = [*sorted((root / paths.model(stage)).iterdir()), root / paths.METRICS / f"{stage}.json", root / paths.WORK / stage / "journal.jsonl"]
    files += sorted((root / paths.KEPT / stage).glob("*/model.safetensors"))
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files} | {"manifest": (root / paths.manifest(stage)).read_bytes()}


def forget(root: Path, stage: str) -> None:
    for folder in (paths.model(stage), paths.KEPT / stage, paths.WORK / stage, paths.METRICS, paths.PLOTS):
        shutil.rmtree(root / folder, ignore_errors=True)
    (root / paths.manifest(stage)).unlink(missing_ok=True)


@pytest.mark.parametrize("place", ["saved 2", "saved 3"])
def test_killed_while_training_it_trains_the_steps_since_the_last_checkpoint(project: Path, training, place: str) -> None:
    stage, alone, harness, _ = training
    forget(project, stage)
    assert harness("target", place)[0] == signal.SIGKILL
    trained = harness.steps()
    assert harness("end")[0] == 0
    assert 0 < trained + harness.steps() - STEPS <= EVERY
    assert left(project, stage) == alone


@pytest.mark.parametrize("place", ["model", "metrics", "plot", "manifest", "clear"])
def test_killed_while_finishing_it_trains_no_step_again(project: Path, training, place: str) -> None:
    stage, alone, harness, all_steps_done = training
    forget(project, stage)
    shutil.copytree(all_steps_done, project, dirs_exist_ok=True)
    for kind, value, ended in (("target", place, signal.SIGKILL), ("end", "-", 0)):
        assert harness(kind, value)[0] == ended
        assert harness.steps() == 0
    assert left(project, stage) == alone
    assert not (project / paths.WORK / stage / paths.RESUME).exists()


def answers_of(project: Path, stage: str) -> dict[Path, int]:
    """Stored answers, with the time when they were written."""
    return {file: file.stat().st_mtime_ns for file in (project / paths.WORK / stage / answers.FOLDER).glob("*/*.parquet")}


@pytest.mark.parametrize("stage", ["difficulty", "sampled"])
def test_killed_while_it_asks_it_goes_on_after_its_last_batch(project: Path, stage: str) -> None:
    def made() -> dict[str, bytes]:
        files = [file for folder in (paths.ROWS, paths.ROLLOUTS) for file in sorted((project / folder / stage).glob("*"))]
        return {file.name: file.read_bytes() for file in files}

    def forget_made() -> None:
        for folder in (paths.ROWS, paths.ROLLOUTS):
            shutil.rmtree(project / folder / stage, ignore_errors=True)

    harness = start(project, stage)
    assert harness("end")[0] == 0
    alone, batches = made(), 64 * 2 // 16
    forget(project, stage)
    forget_made()
    assert harness("target", "answers")[0] == signal.SIGKILL
    stored = answers_of(project, stage)
    assert len(stored) == 2
    assert harness("target", "metrics")[0] == signal.SIGKILL, "after the last batch, before the stage is done"
    assert len(answers_of(project, stage)) == batches
    assert stored.items() <= answers_of(project, stage).items(), "what was asked is not asked again"
    forget_made()
    assert harness("end")[0] == 0
    assert made() == alone
