"""The stage on real checkpoints: what it stores, what it remembers, what it refuses."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import paths
from pipelines.config.evaluation import EvaluationSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.evaluation import benchmarks
from pipelines.evaluation.benchmarks import collect
from pipelines.generation import Request, Sample, create
from pipelines.records import Problem
from pipelines.stages import Context
from pipelines.stages import evaluation as stage
from pipelines.store import write_problems
from pipelines.verifiers import VerifierPool


@pytest.fixture
def project(evaluated: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(evaluated, tmp_path / "project"))


def test_every_number_can_be_recomputed_by_sql(evaluated: Path) -> None:
    scores = json.loads((evaluated / paths.SCORES).read_text())
    for model, results in scores["models"].items():
        for name, figures in results.items():
            file = evaluated / paths.SAMPLES / model / f"{name}.parquet"
            query = f"select avg(rate) from (select avg((outcome = 'correct')::int) rate from '{file}' group by problem_id)"
            assert duckdb.sql(query).fetchall()[0][0] == pytest.approx(figures["pass_at_k"]["1"]["mean"])
    assert scores["models"]["merged"]["sums"]["pass_at_k"]["1"]["mean"] > scores["models"]["base"]["sums"]["pass_at_k"]["1"]["mean"]
    assert scores["gate"]["passed"] is True


def test_stored_verdicts_follow_from_stored_responses(evaluated: Path, sums: list[Problem]) -> None:
    rows = pq.read_table(evaluated / paths.SAMPLES / "merged/sums.parquet").to_pylist()
    problems = {p.problem_id: p for p in sums}
    with VerifierPool(1) as pool:
        verdicts = pool.verify_batch([(problems[row["problem_id"]], row["response"]) for row in rows])
    assert [v.outcome.value for v in verdicts] == [row["outcome"] for row in rows]
    assert {row["outcome"] for row in rows} >= {"correct", "wrong"}


def test_all_models_draw_from_the_same_streams(evaluated: Path, settings: EvaluationSettings) -> None:
    keys = ["problem_id", "sample", "seed"]
    seen = [pq.read_table(evaluated / paths.SAMPLES / model / "sums.parquet", columns=keys) for model in settings.models or ()]
    assert all(table == seen[0] for table in seen[1:])
    assert len(set(seen[0]["seed"].to_pylist())) == len(seen[0]) == 18 * 4
    merged, sums = (pq.read_table(evaluated / paths.SAMPLES / model / "sums.parquet") for model in ("merged", "sums"))
    assert merged == sums, "equal weights give equal responses"


def stamps(project: Path) -> dict[str, int]:
    return {f"{f.parent.name}/{f.name}": f.stat().st_mtime_ns for f in (project / paths.WORK).rglob("*.parquet")}


def test_a_second_run_samples_nothing_and_writes_the_same(project: Path, context: Callable[..., Context]) -> None:
    before, files = stamps(project), {f.relative_to(project): f.read_bytes() for f in (project / paths.EVALUATION).rglob("*.*")}
    shutil.rmtree(project / paths.EVALUATION)
    stage.run(context(project))
    assert stamps(project) == before and len(before) == 6  # base, sft, and one for merged and sums, which are equal
    assert {f.relative_to(project): f.read_bytes() for f in (project / paths.EVALUATION).rglob("*.*")} == files
    assert len(files) == 4 * 2 + 2


def test_only_a_changed_checkpoint_is_sampled_again(project: Path, context: Callable[..., Context]) -> None:
    before = stamps(project)
    shutil.rmtree(project / paths.model("sft"))
    shutil.copytree(project / paths.model("base"), project / paths.model("sft"))
    (project / paths.model("sft") / "generation_config.json").write_text((project / paths.model("base") / "generation_config.json").read_text() + " ")
    stage.run(context(project))
    after = stamps(project)
    assert len(after) == 6, "what nobody needs any more is forgotten"
    assert len(after.keys() & before.keys()) == 4 and all(after[key] == before[key] for key in after.keys() & before.keys())


def test_other_settings_are_other_samples_but_batch_size_is_not(project: Path, settings: EvaluationSettings, context: Callable[..., Context]) -> None:
    before, scores = stamps(project), json.loads((project / paths.SCORES).read_text())
    smaller = settings.model_copy(update={"generation": settings.generation.model_copy(update={"batch_size": 7})})
    stage.run(context(project, smaller))
    assert stamps(project) == before
    shutil.rmtree(project / paths.WORK)
    stage.run(context(project, smaller))
    assert json.loads((project / paths.SCORES).read_text())["models"] == scores["models"]


class Answering:
    """A scripted policy: the answer to the n-th request is n; it stops the process after some calls."""

    def __init__(self, tokenizer: Any, calls: int) -> None:
        self.tokenizer, self.calls, self.asked = tokenizer, calls, 0

    def generate(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[list[Sample]]:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += len(requests)
        return [[Sample([5] * (i + 1), [0.0], "stop", f"\\boxed{{{i + 4}}}") for i in range(r.samples)] for r in requests]


def test_an_interrupted_evaluation_continues(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: EvaluationSettings, sums: list[Problem]
) -> None:
    monkeypatch.setattr(benchmarks, "PART", 8)
    problems, tokenizer = sums, create(settings.generation, trained / paths.BASE).tokenizer
    with VerifierPool(1) as pool:

        def run(policy: Answering, parts: Path) -> pa.Table:
            return collect(lambda: policy, problems, 4, 0, pool, parts, lambda *_: None)

        with pytest.raises(KeyboardInterrupt):
            run(Answering(tokenizer, 3), tmp_path / "cut")
        rest = Answering(tokenizer, 99)
        resumed = run(rest, tmp_path / "cut")
        whole = run(Answering(tokenizer, 99), tmp_path / "whole")
    assert rest.asked == 18 - 3 * 2, "three parts of two problems were done"
    assert resumed == whole
    assert whole["outcome"].to_pylist()[:4] == ["correct", "wrong", "wrong", "wrong"]  # 3 + 1


def test_what_could_not_be_judged_is_tried_again(trained: Path, tmp_path: Path, settings: EvaluationSettings, sums: list[Problem]) -> None:
    problems = [dataclasses.replace(p, verifier="absent") if i else p for i, p in enumerate(sums[:3])]
    tokenizer = create(settings.generation, trained / paths.BASE).tokenizer
    with VerifierPool(1) as pool:
        table = collect(lambda: Answering(tokenizer, 9), problems, 2, 0, pool, tmp_path, lambda *_: None)
        assert table["outcome"].to_pylist() == ["correct", "wrong", *["infrastructure"] * 4]
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(InfrastructureError, match="not one of 4 responses could be judged: .*unknown verifier 'absent'"):
            collect(lambda: Answering(tokenizer, 9), problems[1:], 2, 0, pool, tmp_path, lambda *_: None)


def test_progress_counts_all_responses(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: EvaluationSettings, sums: list[Problem]
) -> None:
    monkeypatch.setattr(benchmarks, "PART", 8)
    seen: list[tuple[int, int]] = []
    generator = create(settings.generation, trained / paths.BASE)
    with VerifierPool(1) as pool:
        collect(lambda: generator, sums[:5], 4, 0, pool, tmp_path, lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [20] * len(seen)
    assert seen[-1][0] == 20 and all(a < b for a, b in itertools.pairwise(done for done, _ in seen))


def test_one_sentence_for_what_cannot_be_evaluated(project: Path, settings: EvaluationSettings, context: Callable[..., Context]) -> None:
    with pytest.raises(UserError, match=r"evaluation.gate.candidate: 'merged' is not evaluated; evaluation.models has base, sft"):
        stage.run(context(project, settings.model_copy(update={"models": ("base", "sft")})))
    write_problems(project / paths.BENCHMARKS / "nothing.parquet", [])
    with pytest.raises(UserError, match=r"nothing.parquet: the benchmark is empty"):
        stage.run(context(project))
    shutil.rmtree(project / paths.BENCHMARKS)
    with pytest.raises(UserError, match="there is no benchmark"):
        stage.run(context(project))
    assert (project / paths.SCORES).is_file(), "the earlier result still stands"
