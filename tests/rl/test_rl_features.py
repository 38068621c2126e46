"""What a stage can be told beside its recipe: asynchrony, staleness, validation, adapters, precision, recomputation, rows without gradient."""

import copy
import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from killing import Killed
from loops import ONE_AHEAD, PROBLEMS, TINY, TOKENIZER, policy_of, prepared, run, settings, trained

from pipelines import paths, prompting
from pipelines.__main__ import run as stage
from pipelines.config.common import GenerationSettings, OptimiserSettings, PromptSettings
from pipelines.config.learning import KlControl
from pipelines.config.rl import RlStage, ValidationSettings
from pipelines.config.training import LoraSettings
from pipelines.errors import InfrastructureError, UserError
from pipelines.models import precision
from pipelines.models.adapters import add_adapters, plain_weights
from pipelines.models.loading import save_policy
from pipelines.models.scoring import pad, token_logp
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.records import GUIDE, POLICY, Trajectory, one_turn
from pipelines.rl.collate import fresh, tensors
from pipelines.rl.journal import notices
from pipelines.rl.recipe import Recipe
from pipelines.rl.run import kl_factor
from pipelines.sft.examples import chat_examples


def equal(ours, theirs) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("row", ["grpo", pytest.param("tis", marks=pytest.mark.long), "scale_rl"])
def test_rollouts_made_ahead_are_one_update_old_and_resume_exactly(tmp_path, start, row):
    weights, rows, files = run(tmp_path / "whole", start, row=row, schedule=ONE_AHEAD)
    assert [entry["staleness_max"] for entry in rows] == [0, 1, 1, 1, 1, 1]
    versions = [{v for r in pq.read_table(tmp_path / "whole" / "rollouts" / name).to_pylist() for v in r["policy_version"]} for name in files]
    assert versions == [{0}, {0}, {1}, {2}, {3}, {4}]
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=5, row=row, schedule=ONE_AHEAD)
    resumed, resumed_rows, resumed_files = run(tmp_path / "cut", start, row=row, schedule=ONE_AHEAD)
    assert equal(weights, resumed) and resumed_rows == rows and resumed_files == files
    _, waiting, theirs = run(tmp_path / "sync", start, row=row)
    assert files["step-000001.parquet"] == theirs["step-000001.parquet"] and files["step-000004.parquet"] != theirs["step-000004.parquet"]
    assert waiting[1]["staleness_max"] == 0 and abs(waiting[1]["mismatch_k3"]) < 1e-6 < rows[1]["mismatch_k3"]


def test_without_a_correction_stale_ratios_are_to_the_policy_that_sampled(tmp_path, start):
    faster = OptimiserSettings(lr=1e-2, schedule="constant")
    _, plain, _ = run(tmp_path / "grpo", start, schedule=ONE_AHEAD, optimiser=faster)
    _, corrected, _ = run(tmp_path / "tis", start, row="tis", schedule=ONE_AHEAD, optimiser=faster)
    assert plain[0]["ratio"] == pytest.approx(1) and abs(plain[1]["ratio"] - 1) > 1e-3
    assert corrected[1]["ratio"] == pytest.approx(1, abs=1e-6)  # to the policy before the update; the correction weighs the rest


def of(versions: list[int], policy: str = "rl@t") -> Trajectory:
    return Trajectory("p", 0, 0, 9, policy, one_turn([1, 2], [3] * len(versions), [-0.5] * len(versions), versions, GUIDE if policy == GUIDE else POLICY), "stop", outcome="wrong")


def test_what_is_older_than_the_bound_never_trains():
    rows = [of([8, 8, 8]), of([6, 8]), of([5]), of([0], policy="guide")]
    left, figures = fresh(rows, 9, 1, "drop")
    assert [r.dropped for r in left] == ["", "stale", "stale", ""]
    assert figures == {"stale": 0.5, "staleness": 0.0, "staleness_max": 0.0}
    left, figures = fresh(rows, 9, 1, "mask")
    assert left == rows and figures == {"stale": 0.5, "staleness": 0.0, "staleness_max": 0.0}
    _, score, batch = tensors(left, torch.device("cpu"), 9, 8, bound=1)
    assert score.sum(1).tolist() == [3, 2, 1, 1]
    assert batch.mask_BT[:, 2:].tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert fresh(rows, 9, None, "drop")[1] == {"stale": 0.0, "staleness": pytest.approx(5 / 7), "staleness_max": 3.0}
    with pytest.raises(InfrastructureError, match="step 9: every response is older than max_staleness 1"):
        fresh([of([5])], 9, 1, "mask")
    with pytest.raises(ValueError, match="max_staleness 0 leaves nothing"):
        settings(schedule=ONE_AHEAD, max_staleness=0)


@pytest.mark.parametrize("action", ["drop", "mask"])
def test_replayed_responses_meet_the_bound_too(tmp_path, start, action):
    _, free, _ = run(tmp_path / "free", start, row="remix")
    _, bound, _ = run(tmp_path / "bound", start, row="remix", max_staleness=0, stale=action)
    assert max(entry["staleness_max"] for entry in free) == 2 and all(entry["stale"] == 0 for entry in free)
    assert all(entry["staleness_max"] == 0 for entry in bound) and max(entry["stale"] for entry in bound) > 0


VALIDATED = {"validation": ValidationSettings(every=1, problems=3, samples=4, patience=2), "steps": 12}


def test_validation_stops_early_and_knows_the_best_weights(tmp_path, start):
    policy = policy_of(start)
    made, rows = trained(tmp_path / "whole", policy, **VALIDATED)
    rates = [entry["validation"] for entry in rows]
    best = rates.index(max(rates)) + 1
    assert made.summary["best_step"] == best and made.summary["best_validation"] == max(rates)
    assert len(rows) == best + 2 < 12  # two measurements without a new best
    again = policy_of(start)
    resumed, same = trained(tmp_path / "whole", again, **VALIDATED)
    assert same == rows and resumed.summary == made.summary, "where it stopped is a checkpoint: a run killed after it trains no more"
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in again.state_dict().items())
    sampled = {r["problem_id"] for path in (tmp_path / "whole" / "rollouts").iterdir() for r in pq.read_table(path).to_pylist()}
    held_out = {p.problem_id for p in PROBLEMS[:10]} - sampled
    assert len(held_out) >= 3
    to_best = policy_of(start)
    shorter, _ = trained(tmp_path / "best", to_best, **(VALIDATED | {"steps": best}))
    assert equal(made.best, to_best.state_dict()) and not equal(made.best, policy.state_dict())
    assert equal(shorter.best, made.best)

    again = policy_of(start)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", policy_of(start), stop_at=len(rows) - 1, **VALIDATED)
    resumed, resumed_rows = trained(tmp_path / "cut", again, **VALIDATED)
    assert resumed_rows == rows and equal(resumed.best, made.best) and equal(again.state_dict(), policy.state_dict())


def test_best_weights_that_are_damaged_are_not_taken(tmp_path, start):
    made, _ = trained(tmp_path, policy_of(start), **(VALIDATED | {"steps": 1}))
    _, checkpoints = prepared(tmp_path)
    assert equal(checkpoints.best(1), made.best)
    path = tmp_path / "checkpoints" / "best-00000001.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="best-00000001.pt: the best weights, of step 1, are damaged or gone"):
        checkpoints.best(1)


def test_as_many_problems_held_out_as_there_are_is_refused(tmp_path, start):
    with pytest.raises(UserError, match=r"rl@t: validation.problems 10 must be less than the 10 problems of the stage"):
        trained(tmp_path, policy_of(start), validation=ValidationSettings(problems=10))


def test_rows_without_an_advantage_need_no_backward_pass(tmp_path, start, monkeypatch):
    weights, rows, _ = run(tmp_path / "skipped", start, steps=4)
    assert any(0 < entry["informative_groups"] < 1 for entry in rows)
    monkeypatch.setattr(Recipe, "follows_advantage", False)
    all_weights, all_rows, _ = run(tmp_path / "all", start, steps=4)
    for ours, theirs in zip(rows, all_rows, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(value, all_weights[name], rtol=0, atol=1e-4)  # AdamW's first steps magnify rounding


def test_adapters_train_alone_and_merge_into_a_plain_model(tmp_path, start):
    policy = policy_of(start)
    add_adapters(policy, LoraSettings(rank=4, alpha=8), 1)
    again = policy_of(start)
    add_adapters(again, LoraSettings(rank=4, alpha=8), 1)
    assert equal(policy.state_dict(), again.state_dict())
    before = copy.deepcopy(policy.state_dict())
    ids = pad([[5, 6, 7, 8, 9], [10, 11, 12]])
    score = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    torch.testing.assert_close(token_logp(policy, ids, score), token_logp(policy_of(start), ids, score))  # no change at the start
    _, rows = trained(tmp_path, policy)
    assert all(abs(entry["mismatch_k3"]) < 1e-6 for entry in rows)  # what was sampled from has the adapters too
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)
    plain = policy_of(plain_weights(policy))
    torch.testing.assert_close(token_logp(plain, ids, score), token_logp(policy, ids, score), rtol=0, atol=1e-5)
    assert not torch.allclose(token_logp(plain, ids, score), token_logp(policy_of(start), ids, score), atol=1e-3)
    reference, learner = policy_of(start), policy_of(start)
    add_adapters(learner, LoraSettings(rank=4, alpha=8), 1)
    trained(tmp_path / "reset", learner, row="grpo_kl", frozen={"ref": reference}, steps=2, reset_reference=(2,))
    assert equal(reference.state_dict(), plain_weights(learner)) and not equal(reference.state_dict(), start)
    with pytest.raises(UserError, match=r"lora.targets \['nonsense'\]"):
        add_adapters(policy_of(start), LoraSettings(targets=("nonsense",)), 1)


def test_recomputed_activations_change_nothing(tmp_path, start):
    weights, rows, _ = run(tmp_path / "kept", start, steps=3)
    again, again_rows, _ = run(tmp_path / "again", start, steps=3, gradient_checkpointing=True)
    assert equal(weights, again) and rows == again_rows


def test_bfloat16_where_the_hardware_has_it_and_nowhere_else(tmp_path, start, monkeypatch):
    monkeypatch.setattr(precision, "_has_units", lambda kind: False)
    with pytest.raises(UserError, match="precision bfloat16: this cpu has no units for it; use float32, or auto"):
        precision.chosen("cpu", "bfloat16")
    monkeypatch.setattr(precision, "_has_units", lambda kind: True)  # it is emulated here if need be
    weights, (row,), _ = run(tmp_path / "half", start, steps=1, precision="bfloat16")
    _, (whole,), _ = run(tmp_path / "whole", start, steps=1)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert row["grad_norm"] == pytest.approx(whole["grad_norm"], rel=0.1) and row["grad_norm"] != whole["grad_norm"]
    assert 1e-7 < row["mismatch_k3"] < 1e-2  # sampled in float32, scored in bfloat16: measured


def test_a_guide_that_reads_other_ids_is_refused(tmp_path, rl_project):
    root = tmp_path / "project"
    shutil.copytree(rl_project, root)
    given = json.loads((root / "given.json").read_text())
    given["settings"] |= {"recipe": "npo", "reference": "other"}
    tokenizer = train_tokenizer([problem.prompt for problem in PROBLEMS[:50]], 380)
    save_policy(root / paths.model("other"), tiny_model(TINY, tokenizer, 1), tokenizer)
    with pytest.raises(UserError, match="policy 'guide' of recipe 'npo' is other, whose tokenizer is another than that of the policy"):
        stage("t", root, given, "cpu")


def test_settings_that_contradict_each_other_are_refused():
    base = json.loads(settings().model_dump_json())
    for changes, said in (
        ({"generation": {"engine": "server"}}, "generation.engine 'server' gives no log-probabilities"),
        ({"generation": {"temperature": 0}}, "generation.temperature 0 always takes the likeliest token, which has no log-probability to train on"),
        ({"generation": {"top_p": 0.9}}, "top_p 0.9 and top_k 0 sample from a cut distribution"),
        ({"generation": {"top_k": 5}}, "top_p 1 and top_k 5 sample from a cut distribution"),
        ({"processes": 2, "optimiser": {"name": "muon"}}, "optimiser.name muon needs whole matrices"),
        ({"processes": 2, "generation": {"engine": "scripted"}}, "generation.engine scripted answers one process"),
        ({"processes": 5}, "prompts_per_step 4 must be at least processes"),
    ):
        with pytest.raises(ValueError, match=said):
            RlStage.model_validate(base | changes)


def test_kl_control_raises_the_coefficient_above_its_target_and_lowers_it_below(tmp_path, start):
    assert kl_factor(KlControl(target=0.1), 0.5) == pytest.approx(1.02) and kl_factor(KlControl(target=0.1), 0.0) == pytest.approx(0.98)
    assert kl_factor(KlControl(target=0.1), 0.11) == pytest.approx(1.01)
    control = {"row": "grpo_kl", "kl_control": KlControl(target=1e-6, rate=1.0)}
    weights, rows, _ = run(tmp_path / "whole", start, **control)
    expected = 1.0
    for entry in rows:
        assert entry["kl_scale"] == pytest.approx(expected)
        expected *= kl_factor(control["kl_control"], entry["kl_reference"])
    assert rows[-1]["kl_scale"] > 1.5  # 1.2 a step, but for the first
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=5, **control)
    resumed, resumed_rows, _ = run(tmp_path / "cut", start, **control)
    assert resumed_rows == rows and equal(weights, resumed)
    _, free, _ = run(tmp_path / "free", start, row="grpo_kl")
    assert free[0]["loss"] == rows[0]["loss"] and free[5]["loss"] != rows[5]["loss"]
    with pytest.raises(UserError, match="kl_control steers KL terms to the reference, and recipe 'grpo' has none"):
        run(tmp_path / "none", start, kl_control=KlControl(target=0.1))


def test_a_prompt_template_reaches_the_policy_and_the_cold_start(tmp_path, start):
    template = PromptSettings(system="Be brief {x}.", user="Q: {problem} {A}")
    run(tmp_path, start, steps=1, generation=GenerationSettings(max_new_tokens=12, prompt=template))
    table = pq.read_table(tmp_path / "rollouts" / "step-000001.parquet").to_pylist()
    by_id = {p.problem_id: p for p in PROBLEMS}
    for row in table:
        said = TOKENIZER.decode(row["prompt_ids"])
        assert said == f"<|system|>Be brief {{x}}.<|end|><|user|>Q: {by_id[row['problem_id']].prompt} {{A}}<|end|><|assistant|>"
    examples, _ = chat_examples(TOKENIZER, PROBLEMS[:1], 128, template)
    assert TOKENIZER.decode(examples[0].ids[: examples[0].spans[0][0]]).startswith("<|system|>Be brief {x}.<|end|><|user|>Q: ")
    for wrong in ({"user": "no place for it"}, {"response": "{solution} without it"}):
        with pytest.raises(ValueError, match="String should match pattern"):
            PromptSettings(**wrong)


def test_solved_examples_and_another_form_of_the_answer():
    shots = ({"user": "1 + 1?", "assistant": "#### 2"}, {"user": "2 + 2?", "assistant": "#### 4"})
    template = PromptSettings(system="S", user="Q: {problem}", shots=shots, response="So: {solution}\n#### {answer}")
    problem = replace(PROBLEMS[0], prompt="3 + 4?", answer="7", solution="3 + 4 = 7 {answer}")
    (example,), _ = chat_examples(TOKENIZER, [problem], 256, template)
    said = TOKENIZER.decode(example.ids[: example.spans[0][0]])
    assert said == (
        "<|system|>S<|end|><|user|>Q: 1 + 1?<|end|><|assistant|>#### 2<|end|><|user|>Q: 2 + 2?<|end|><|assistant|>#### 4<|end|>"
        "<|user|>Q: 3 + 4?<|end|><|assistant|>"
    )
    assert TOKENIZER.decode(example.ids[example.spans[0][0] :]) == "So: 3 + 4 = 7 {answer}\n#### 7<|end|>"
    assert prompting.opening(problem, template) == "\n#### " and prompting.opening(problem) == "</think>\\boxed{"
    program = replace(problem, answer_type="program", answer="print(7)")
    assert prompting.response(program, template) == "<think> 3 + 4 = 7 {answer} </think>```python\nprint(7)\n```"
    assert prompting.opening(program, template) == "</think>```python\n"


def test_the_loop_trains_on_what_another_engine_says(tmp_path, start):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({p.prompt: [f"<think> </think>\\boxed{{{p.answer}}}", "<think> </think>\\boxed{99999}"] for p in PROBLEMS}))
    scripted = GenerationSettings(max_new_tokens=24, engine="scripted", script=str(script))
    _, rows, _ = run(tmp_path / "run", start, generation=scripted, steps=3)
    assert [row["pass_rate"] for row in rows] == [0.5] * 3
    assert all(abs(row["mismatch_k3"]) < 1e-6 and row["informative_groups"] == 1 for row in rows)
    assert rows[-1]["staleness_max"] == 0 and rows[0]["loss"] != rows[-1]["loss"]


def test_a_run_without_signal_or_gain_says_so():
    flat = [{"informative_groups": 0.5, "reward": 0.3 + 0.01 * (step % 2)} for step in range(20)]
    assert notices(flat) == ["no gain: reward 0.305 in the first 10 steps, 0.305 in the last (noise 0.002)"]
    rising = [{"informative_groups": 0.5, "reward": 0.3 + 0.01 * step} for step in range(20)]
    assert notices(rising) == []
    alike = [row | {"informative_groups": 0.05} for row in rising]
    assert notices(alike) == ["no signal: rewards differed in 5% of the groups, and the others train nothing; choose problems of other difficulty"]
    assert notices(flat[:6]) == []  # too few steps to tell
