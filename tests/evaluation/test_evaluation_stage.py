"""The stage on real checkpoints: what it stores, what it remembers, what it refuses."""

import csv
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dvc_render.vega import VegaRenderer
from safetensors.torch import load_file, save_file

from pipelines import paths, views
from pipelines.config import read_yaml
from pipelines.config.common import GenerationSettings
from pipelines.config.evaluation import EvaluationSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.evaluation import benchmarks
from pipelines.evaluation.benchmarks import collect
from pipelines.generation import Request, Sample, create
from pipelines.records import Problem
from pipelines.stages import Context
from pipelines.stages import evaluation as stage
from pipelines.store import read_problems, write_problems
from pipelines.verifiers import VerifierPool


@pytest.fixture
def project(evaluated: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(evaluated, tmp_path / "project"))


PASS_AT_K = """
    select model, benchmark, avg(1 - list_product(list_concat([1.0], [1 - {k} / i for i in range(n - c + 1, n + 1)]))) as value
    from (select model, benchmark, problem_id, count(*) n, count(*) filter (outcome = 'correct') c from samples group by all) group by all
"""
"""pass@k of every model and benchmark, from the stored samples alone (no product is 1: where nothing is correct, nothing passes)."""


def test_every_number_can_be_recomputed_by_sql(evaluated: Path) -> None:
    scores = json.loads((evaluated / paths.SCORES).read_text())
    connection = views.connect(evaluated)
    for k in (1, 2, 4):
        found = {(row["model"], row["benchmark"]): row["value"] for row in views.run(connection, PASS_AT_K.format(k=k)).to_pylist()}
        figures = {(m, b): f["pass_at_k"][str(k)]["mean"] for m, results in scores["models"].items() for b, f in results.items()}
        assert len(figures) == 8 and found == pytest.approx(figures)
    entropy = """
        select avg(h) as value from (
            select problem_id, -sum(n / 4 * ln(n / 4)) h from (
                select problem_id, vote, count(*) n from samples where model = 'sft' and benchmark = 'sums' group by all) group by all)
    """
    assert views.run(connection, entropy).to_pylist()[0]["value"] == pytest.approx(scores["models"]["sft"]["sums"]["answer_entropy"]["mean"])
    assert scores["models"]["merged"]["sums"]["pass_at_k"]["1"]["mean"] > scores["models"]["base"]["sums"]["pass_at_k"]["1"]["mean"]
    assert scores["gate"]["passed"] is True and scores["gate"]["decided_by"] == ["tolerate differences", "improve sums"]


def test_results_stand_in_the_layout_of_lm_eval_too(evaluated: Path) -> None:
    scores = json.loads((evaluated / paths.SCORES).read_text())
    folder = evaluated / paths.EVALUATION / stage.LM_EVAL / "sft"
    (results,) = (json.loads(file.read_text()) for file in folder.glob("results_*.json"))
    figure = scores["models"]["sft"]["sums"]["pass_at_k"]["2"]
    assert results["results"]["sums"]["pass@2,none"] == figure["mean"] and results["results"]["sums"]["pass@2_stderr,none"] == figure["se"]
    assert results["n-samples"]["sums"] == {"original": 18, "effective": 18} and results["configs"]["sums"]["repeats"] == 4
    (file,) = folder.glob("samples_sums_*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    rows = pq.read_table(evaluated / paths.SAMPLES / "sft/sums.parquet").to_pylist()
    assert [response for line in lines for response in line["resps"][0]] == [row["response"] for row in rows]
    assert lines[3]["doc_hash"] == hashlib.sha256(json.dumps(lines[3]["doc"], indent=2, ensure_ascii=False).encode()).hexdigest()
    hashes = "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
    assert results["task_hashes"]["sums"] == hashlib.sha256(hashes.encode()).hexdigest()
    assert sum(line["pass@2"] for line in lines) / 18 == pytest.approx(figure["mean"])


def test_templates_of_dvc_plots_draw_what_the_tables_hold(evaluated: Path) -> None:
    root = Path(__file__).parents[2]
    entries = {found["template"]: found for plot in read_yaml(root / "dvc.yaml")["plots"] for found in plot.values()}
    for file in sorted((evaluated / paths.EVALUATION).glob("*.csv")):
        with file.open(newline="") as handle:
            reader = csv.DictReader(handle)
            rows, columns = list(reader), {*(reader.fieldnames or ()), "rev", "x", "y"}
        entry = entries.pop(file.stem)
        assert entry["x"] in columns and entry["y"].items() <= {(f"data/evaluation/{file.name}", column) for column in columns}
        assert bool(rows) == (file.stem != "reliability"), "the models of this fixture state no confidence"
        drawn = VegaRenderer(
            [*rows, dict.fromkeys(columns, "0")], file.stem, template=file.stem, template_dir=str(root / ".dvc" / "plots"), title="t"
        )
        spec = drawn.get_filled_template()
        assert spec["title"]["text"] == "t" and len(spec["data"]["values"]) == len(rows) + 1
        assert {*re.findall(r'"field": "(\w+)"', json.dumps({**spec, "data": None}))} <= columns
    assert entries == {}


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
    assert len(files) == 4 * (2 + 3) + 10  # samples, lm-eval's files, scores, diagnostics and tables


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
    before, old = stamps(project), samples_of(project)
    smaller = settings.model_copy(update={"generation": settings.generation.model_copy(update={"batch_size": 7})})
    stage.run(context(project, smaller))
    assert stamps(project) == before
    shutil.rmtree(project / paths.WORK)
    stage.run(context(project, smaller.model_copy(update={"models": ("sft", "merged")})))
    for name, table in samples_of(project).items():
        assert table.drop_columns("logp") == old[name].drop_columns("logp"), name
        # the sum of log-probabilities rounds differently in another batch
        np.testing.assert_allclose(table["logp"].to_numpy(), old[name]["logp"].to_numpy(), atol=1e-4)


def samples_of(project: Path) -> dict[str, pa.Table]:
    return {f"{file.parent.name}/{file.name}": pq.read_table(file) for file in (project / paths.SAMPLES).glob("*/*.parquet")}


def test_samples_do_not_depend_on_the_order_of_problems(project: Path, settings: EvaluationSettings, context: Callable[..., Context]) -> None:
    before = {f.relative_to(project): f.read_bytes() for f in (project / paths.SAMPLES).rglob("*.parquet")}
    for file in (project / paths.BENCHMARKS).glob("*.parquet"):
        write_problems(file, read_problems(file)[::-1])
    shutil.rmtree(project / paths.WORK)
    stage.run(context(project, settings.model_copy(update={"models": ("sft", "merged")})))
    after = {f.relative_to(project): f.read_bytes() for f in (project / paths.SAMPLES).rglob("*.parquet")}
    assert len(after) == 4 and after.items() <= before.items()


def test_noise_on_the_output_layer_is_forgetting_and_the_gate_says_so(
    project: Path, context: Callable[..., Context], settings: EvaluationSettings
) -> None:
    gate = settings.gate.model_copy(update={"candidate": "merged", "against": "sums", "improve": (), "retain": {"differences": 0.1}})
    stage.run(context(project, settings.model_copy(update={"models": ("sums", "merged"), "gate": gate})))
    unchanged = json.loads((project / paths.SCORES).read_text())["gate"]
    assert unchanged["passed"] and unchanged["worst"] is None
    file = project / paths.model("merged") / "model.safetensors"
    weights = load_file(file)
    head = next(name for name in ("lm_head.weight", "model.embed_tokens.weight") if name in weights)
    weights[head] += 0.5 * torch.randn(weights[head].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, file, metadata={"format": "pt"})
    stage.run(context(project, settings.model_copy(update={"models": ("sums", "merged"), "gate": gate})))
    noisy = json.loads((project / paths.SCORES).read_text())["gate"]
    assert not noisy["passed"] and "retain differences" in noisy["decided_by"] and noisy["worst"]["mean"] < -0.1


class Answering:
    """A scripted policy with the same responses to every problem; it stops the process after some calls."""

    texts = ("\\boxed{4}", "\\boxed{0.5}", "\\boxed{\\frac{1}{2}} Confidence: 30%", "I do not know.")

    def __init__(self, tokenizer: Any, calls: int) -> None:
        self.tokenizer, self.settings, self.calls, self.asked = tokenizer, GenerationSettings(), calls, 0

    def generate(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None) -> list[list[Sample]]:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += len(requests)
        return [[Sample([5] * (i + 1), [-0.5] * (i + 1), "stop", self.texts[i]) for i in range(r.samples)] for r in requests]


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
        rest, loaded = Answering(tokenizer, 99), []
        resumed = collect(lambda: loaded.append(1) or rest, problems, 4, 0, pool, tmp_path / "cut", lambda *_: None)
        assert loaded == [1], "the model is loaded once, for all that is left"
        whole = run(Answering(tokenizer, 99), tmp_path / "whole")
    assert rest.asked == 18 - 3 * 2, "three parts of two problems were done"
    assert resumed == whole
    first = next(i for i, answer in enumerate(whole["answer"].to_pylist()) if answer == "4")  # 3 + 1
    four = whole.slice(first, 4)
    assert four["outcome"].to_pylist() == ["correct", "wrong", "wrong", "unparsable"]
    assert four["vote"].to_pylist() == [0, 1, 1, None], "one half is one half, however it is written; no answer has no vote"
    assert four["confidence"].to_pylist() == [None, None, 0.3, None]
    assert four["logp"].to_pylist() == [-0.5, -1.0, -1.5, -2.0]


def test_what_could_not_be_judged_is_tried_again(trained: Path, tmp_path: Path, settings: EvaluationSettings, sums: list[Problem]) -> None:
    three = sorted(sums[:3], key=lambda problem: problem.problem_id)
    problems = [dataclasses.replace(p, verifier="absent", answer="4") if i else dataclasses.replace(p, answer="4") for i, p in enumerate(three)]
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
