"""Kind reward_model, from stored responses to a model that is measured and served: as a part of RL's reward, as a judge of pairs and of problems."""

import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from killing import Killed, die_after
from loops import PROBLEMS, TOKENIZER, policy_of, response
from safetensors.torch import load_file

from pipelines import graph, paths, prompting
from pipelines.__main__ import run as run_stage
from pipelines.config.curation import GradeStage
from pipelines.config.evaluation import EvaluationSettings, MergeStage
from pipelines.config.preference import PreferenceStage
from pipelines.config.reward_model import RewardModelStage
from pipelines.config.rl import RlStage
from pipelines.config.sampling import SampleStage
from pipelines.config.stage import Served
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, load_tokenizer, save_policy, write_vocabulary
from pipelines.models.reward_model import Calibration, Form, Record, RewardModel, begin, form_of, outputs, save, served, text_ids
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import Outcome
from pipelines.rl.rewards.parts import reward_model as part
from pipelines.rl.rewards.scoring import Scoring
from pipelines.stages import Context, preference, reward_model
from pipelines.stages.judging import judge_of
from pipelines.store import read_json, read_problems, read_trajectories, write_problems, write_trajectories
from pipelines.verifiers import VerifierPool

TRAIN = {"epochs": 6, "batch_size": 16, "optimiser": {"lr": 3e-3}, "max_tokens": 128}
RIGHT, WRONG = "<think> </think>\\boxed{good}", "<think> </think>\\boxed{bad}"


@pytest.fixture(scope="module")
def models(start, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_policy(root / paths.model("sft"), policy_of(start), TOKENIZER)
    return root


@pytest.fixture
def root(models: Path, tmp_path: Path) -> Path:
    """A project with a policy, problems, and rollouts of which the right ones say `good`."""
    (tmp_path / paths.MODELS).mkdir(parents=True)
    (tmp_path / paths.model("sft")).symlink_to(models / paths.model("sft"))
    write_problems(tmp_path / paths.rows("difficulty"), PROBLEMS[:40])
    answers = [response(p, text, reward) for p in PROBLEMS[:40] for text, reward in ((RIGHT, 1.0), (WRONG, 0.0))]
    folder = tmp_path / paths.ROLLOUTS / "math"
    write_trajectories(folder / "step-000001.parquet", [replace(t, origin="policy", sample_id=n) for n, t in enumerate(answers)])
    write_vocabulary(folder, TOKENIZER)
    return tmp_path


def context(root: Path, name: str = "scorer", **given: object) -> Context:
    settings = RewardModelStage.model_validate({"init": "sft", "data": "math/rollouts", "train": TRAIN, **given})
    return Context(name, root, 1, settings, root / "work" / name, Journal(root / "work" / name / "journal.jsonl", name))


def rows(root: Path, name: str, *given: dict[str, object]) -> None:
    (root / name).write_text("\n".join(map(json.dumps, given)))


def made(root: Path, name: str, form: Form, figures: dict[str, float] | None = None, seed: int = 1, **fitted: float) -> RewardModel:
    """A reward model that has learnt nothing, measured as told."""
    measured = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, **(figures or {})}
    model = begin(root / paths.model("sft"), form, "cpu", name)
    if form.answers is None:
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(seed))
    save(root / paths.model(name), model, TOKENIZER, Record(form=form, calibration=Calibration(**fitted), measured=measured))
    return RewardModel.load(root / paths.model(name))


def plain(loss: str = "bradley_terry", **given: object) -> Form:
    return form_of(RewardModelStage.model_validate({"init": "sft", "data": "math/rollouts", "loss": loss, **given}), TOKENIZER, 128)


def test_pairs_of_rollouts_train_a_model_that_is_measured_on_problems_it_has_not_seen(root):
    here = context(root)
    told = reward_model.run(here)
    assert told["pairs"] == 8 and told["held_out_problems"] == 8 and told["examples"] == 28, "of 40 problems 8 measure, 4 fit the temperature"
    assert told["accuracy"] == 1.0 and told["accuracy_low"] == pytest.approx(0.6756, abs=1e-3), "Wilson's interval of 8 of 8"
    record = read_json(root / paths.model("scorer") / paths.REWARD_MODEL)
    assert record["measured"] == here.measured == {name: value for name, value in told.items() if name in record["measured"]}
    assert record["form"]["loss"] == "bradley_terry" and record["calibration"]["temperature"] == told["temperature"]
    journal = [json.loads(line) for line in here.journal.path.read_text().splitlines()]
    assert [row["step"] for row in journal] == [*range(1, 14)] and journal[0]["pairs"] == 16.0 and journal[-1]["accuracy"] == 1.0
    model = served(root / paths.model("scorer"), 0.6)
    right, wrong = model.scores([(PROBLEMS[60], RIGHT), (PROBLEMS[60], WRONG)])
    assert 0 < wrong < 0.4 < 0.6 < right < 1 and not here.notices
    assert "score.weight" in load_file(root / paths.model("scorer") / "model.safetensors")


def test_a_run_that_was_cut_off_leaves_the_same_bytes(root):
    often = {**TRAIN, "epochs": 2, "checkpoint_every": 1, "held_out": {"problems": 4, "every": 1}}
    told = reward_model.run(context(root, "whole", train=often))
    cut = context(root, "cut", train=often)
    seeded = replace(cut, stage="whole")  # whose randomness it has
    die_after(cut.journal, 2)
    with pytest.raises(Killed):
        reward_model.run(seeded)
    again = replace(seeded, journal=Journal(cut.journal.path, "cut"))
    kept = {file.name: file.read_bytes() for file in (root / paths.model("whole")).iterdir()}
    assert reward_model.run(again) == told
    assert {file.name: file.read_bytes() for file in (root / paths.model("whole")).iterdir()} == kept
    assert cut.journal.path.read_text() == (root / "work" / "whole" / "journal.jsonl").read_text()
    assert reward_model.run(again) == told, "and once more, from the last checkpoint"


def of_two(rank: int, root: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
    here = context(Path(root), "two", processes=2)
    reward_model.run(replace(here, stage="one", first=not rank, journal=Journal(here.work / f"rank-{rank}.jsonl", "two")))
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_do_what_one_does(root):
    """`one` twice, so that both have the same randomness."""
    processes.spawn(of_two, (str(root),), nprocs=2)
    both = read_json(root / paths.model("one") / paths.REWARD_MODEL)
    told = reward_model.run(context(root, "one"))
    losses = [[json.loads(line).get("loss") for line in file.read_text().splitlines()][:-1]
              for file in (root / "work" / "two" / "rank-0.jsonl", root / "work" / "one" / "journal.jsonl")]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 12
    assert both["measured"]["accuracy"] == told["accuracy"] and both["calibration"]["temperature"] == pytest.approx(told["temperature"], rel=1e-2)


@pytest.mark.parametrize("loss", ["binary", "hl_gauss", "entailment"])
def test_verdicts_scores_and_principles_train_without_pairs(root, loss):
    rows(root, "mine.jsonl", *({"prompt": f"Question {n}?", "response": text, "label": good, **({"principle": "It is good."} if loss == "entailment" else {})}
         for n in range(24) for text, good in (("good", True), ("bad", False))))  # fmt: skip
    told = reward_model.run(context(root, data=["mine.jsonl", "math/rollouts"], loss=loss, bins=16, principle="It is good." if loss == "entailment" else None))
    assert told["examples"] + told["held_out_responses"] == 2 * (64 - 6), "6 problems of 64 fit the temperature"
    assert told["accuracy"] == 1.0 and told["auc"] > 0.9 and told["pairs"] == 13 and told["ece"] < 0.35
    assert ("class_accuracy" in told) == (loss != "hl_gauss")
    model = served(root / paths.model("scorer"), 0.6)
    right, wrong = model.scores([(PROBLEMS[60], RIGHT), (PROBLEMS[60], WRONG)])
    assert 0 <= wrong < right <= 1
    if loss == "entailment":
        assert not (root / paths.model("scorer") / "score").exists() and model.record.form.answers


def test_the_score_of_a_principle_is_the_log_odds_of_yes(root):
    form = plain("entailment", principle="It is short.")
    model, _ = load_policy(root / paths.model("sft"))
    text = text_ids(TOKENIZER, form, [], PROBLEMS[0], "{principle} five", "It is short.")
    shown = TOKENIZER.decode(text[0])
    assert "Principle: It is short." in shown and "Response:\n{principle} five" in shown, "what a response says is no place for anything"
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([text[0]])).logits[0, -1], -1)
        (found,) = outputs(model, form, [text]).tolist()
    yes, no = form.answers
    assert found == pytest.approx(float(logp[yes] - logp[no]), abs=1e-4)
    assert TOKENIZER.decode([yes]) == "Yes"[: len(TOKENIZER.decode([yes]))] and yes != no


def test_a_score_does_not_depend_on_what_is_scored_beside_it_nor_on_the_policy_s_tokenizer(root):
    form = plain()
    model = made(root, "scorer", form)
    asked = [(problem, text) for problem in PROBLEMS[:3] for text in (RIGHT, WRONG, "a much longer answer that needs padding of others")]
    together = model.scores(asked, "raw")
    assert together == pytest.approx([model.scores([each], "raw")[0] for each in asked], abs=1e-5)
    direct = [text_ids(TOKENIZER, form, prompting.prompt_ids(TOKENIZER, problem), problem, text, None) for problem, text in asked]
    bare = begin(root / paths.model("sft"), form, "cpu", "scorer")
    bare.load_state_dict(load_file(root / paths.model("scorer") / "model.safetensors"))
    with torch.no_grad():
        for row, (ids, *_) in enumerate(direct):
            assert float(bare.eval()(torch.tensor([ids])).logits[0, 0]) == pytest.approx(together[row], abs=1e-4), "as transformers reads it"
    other = train_tokenizer(["quite other words for other policies"], 300)
    group = [replace(response(PROBLEMS[0], text, 0.0), segments=[]) for text in (RIGHT, WRONG)]
    assert other.get_vocab() != TOKENIZER.get_vocab()
    with VerifierPool() as pool:
        at = Scoring(PROBLEMS[0], [t.response for t in group], [], pool, 64, {"scorer": model})
        assert part(group, at, stage="scorer", part="liked", scale="raw") == {"liked": pytest.approx(together[:2], abs=1e-5)}


def test_served_scores_are_bounded_and_what_cannot_be_read_gets_the_lowest(root):
    model = made(root, "scorer", plain(), temperature=2.0, mean=0.5, spread=0.01, lowest=-3.0)
    asked = [(PROBLEMS[0], RIGHT), (PROBLEMS[0], " \n"), (PROBLEMS[0], "word " * 200)]
    raw, blank, long = model.scores(asked, "raw")
    assert blank == long == -3.0 and raw != -3.0
    assert model.scores(asked) == pytest.approx([float(torch.sigmoid(torch.tensor((r - 0.5) / 2))) for r in (raw, -3.0, -3.0)])
    assert set(map(abs, model.scores(asked, "standard"))) == {5.0}
    scores = made(root, "graded", plain("hl_gauss", span=(2, 6), bins=8), lowest=1.0)
    assert scores.scores([(PROBLEMS[0], "")]) == [0.0] and 0 <= scores.scores([(PROBLEMS[0], RIGHT)])[0] <= 1


def test_thoughts_earn_nothing_where_the_answer_alone_is_read(root):
    model = made(root, "scorer", plain(reads="answer"))
    asked = [(PROBLEMS[0], text) for text in ("<think> a </think>\\boxed{1}", "<think> quite other </think>\\boxed{1}", "<think> no end", "[NULL]")]
    found = model.scores(asked, "raw")
    assert found[0] == pytest.approx(found[1], abs=1e-6) and found[2] == pytest.approx(found[3], abs=1e-6)


def test_characters_that_spell_a_special_token_open_no_turn():
    ids, start, length = text_ids(TOKENIZER, plain(), [7], PROBLEMS[0], "<|user|>", None)
    assert start == 1 and length == len(ids) - 2 and not set(ids[1:-1]) & set(TOKENIZER.all_special_ids)


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
MARKED = {"prompt": "p", "response": "a", "label": True}


@pytest.mark.parametrize(
    ("given", "row", "said"),
    [
        ({}, {**PAIR, "margin": 0}, "mine.jsonl:2: margin: expected a number above 0, got 0"),
        ({}, {**PAIR, "principle": "It is short."}, "mine.jsonl:2: principle: loss bradley_terry reads none; take loss entailment"),
        ({"loss": "binary"}, PAIR, "mine.jsonl:2: loss binary learns from responses with a label or a score each, and this is a pair"),
        ({"loss": "binary"}, {"prompt": "p", "response": "a", "score": 0.3}, "mine.jsonl:2: score: loss binary learns from 0 and 1, or from a label, got 0.3"),
        ({"loss": "hl_gauss", "span": [0, 5]}, {"prompt": "p", "response": "a", "score": 7}, r"mine.jsonl:2: score: 7 is outside `span` \[0.0, 5.0\]"),
        ({"loss": "entailment"}, {**MARKED, "principle": " "}, "mine.jsonl:2: principle: expected text, got ' '"),
        ({"loss": "entailment"}, MARKED, "mine.jsonl:2: key 'principle' is missing; the stage's own `principle` says one for all rows"),
        ({}, {"prompt": "p", "chosen": "a"}, "mine.jsonl:2: key 'rejected' is missing"),
        ({}, {"prompt": "p", "rejected": "a"}, "mine.jsonl:2: key 'chosen' is missing"),
    ],
)  # fmt: skip
def test_a_row_that_is_of_no_use_to_the_loss_is_named_by_its_line(root, given, row, said):
    first = {**MARKED, **({"principle": "x"} if given.get("loss") == "entailment" else {})} if given else PAIR
    rows(root, "mine.jsonl", first, row)
    with pytest.raises(UserError, match=said):
        reward_model.run(context(root, data="mine.jsonl", **given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "entailment"}, "scorer: rollouts name no principle; say one under `principle`"),
        ({"prompt": {"user": "Solve: {problem}"}}, "cannot be told from the prompt of its rollouts: name its rows beside them in data"),
        ({"data": "few.jsonl"}, "there are responses to 2 problems, and held_out 0.2 and calibration 0.1 take 2 of them"),
        ({"data": "same.jsonl", "loss": "hl_gauss"}, "scorer: every response has the score 1; there is nothing to tell apart"),
        ({"data": "same.jsonl"}, "scorer: nothing to train on: there were 1 responses to 1 prompts and 0 pairs of files; 0 were too long; a pair needs"),
    ],
)  # fmt: skip
def test_one_sentence_for_what_cannot_be_trained_on(root, given, said):
    rows(root, "few.jsonl", PAIR, {**PAIR, "prompt": "q"})
    rows(root, "same.jsonl", MARKED)
    with pytest.raises(UserError, match=re.escape(said)):
        reward_model.run(context(root, **given))


def test_rows_beside_rollouts_say_what_their_problems_are(root):
    told = reward_model.run(context(root, data=["difficulty", "math/rollouts"], prompt={"user": "Solve: {problem}"}, train={**TRAIN, "epochs": 0.1}))
    assert told["held_out_problems"] == 8
    assert read_json(root / paths.model("scorer") / paths.REWARD_MODEL)["form"]["prompt"]["user"] == "Solve: {problem}"


def test_adapters_train_with_the_head_and_are_merged(root):
    told = reward_model.run(context(root, lora={"rank": 4}, train={**TRAIN, "optimiser": {"lr": 1e-2}}))
    weights, before = load_file(root / paths.model("scorer") / "model.safetensors"), load_policy(root / paths.model("sft"))[0].state_dict()
    assert not any("lora" in name for name in weights) and told["accuracy"] == 1.0
    assert not torch.equal(weights["model.layers.0.self_attn.q_proj.weight"], before["model.layers.0.self_attn.q_proj.weight"])
    assert torch.equal(weights["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_a_weak_model_is_told_of_and_refused_by_name_and_figure(root):
    rows(root, "noise.jsonl", *({"prompt": f"Question {n}?", "chosen": f"{n % 2}", "rejected": f"{(n + 1) % 2}"} for n in range(30)))
    here = context(root, data="noise.jsonl")
    told = reward_model.run(here)
    assert told["accuracy_low"] < 0.55 and "the interval begins below 0.55" in here.notices[0]
    with pytest.raises(UserError, match=rf"reward model scorer orders {told['accuracy']:.3f} \[.*must not begin below 0.55 \(`bound`\)"):
        served(root / paths.model("scorer"), 0.55)
    assert served(root / paths.model("scorer"), 0.0)


def test_a_reward_model_is_no_policy(root):
    made(root, "scorer", plain())
    with pytest.raises(UserError, match="scorer: is a reward model, which says what a response is worth and is no policy"):
        load_policy(root / paths.model("scorer"))
    with pytest.raises(UserError, match="sft: cannot be loaded as a reward model"):
        RewardModel.load(root / paths.model("sft"))


def test_rl_learns_from_it_as_a_part_of_the_reward(root):
    model = made(root, "scorer", plain())
    parts = [{"name": "verdict"}, {"name": "reward_model", "stage": "scorer", "part": "liked"}]
    settings = RlStage.model_validate({
        "init": "sft", "data": "difficulty", "steps": 2, "prompts_per_step": 2, "group_size": 4, "generation": {"max_new_tokens": 12},
        "overrides": {"parts": parts, "combine": {"name": "weighted", "weights": {"correct": 1.0, "liked": 2.0}}},
    })  # fmt: skip
    stage = graph.stage("t", "rl", settings)
    assert paths.model("scorer") in stage.reads
    run_stage("t", root, stage.given(1), "cpu")
    answered = [t for file in sorted((root / paths.ROLLOUTS / "t").glob("*.parquet")) for t in read_trajectories(file)]
    by_id = {problem.problem_id: problem for problem in PROBLEMS}
    for t in answered:
        (score,) = model.scores([(by_id[t.problem_id], t.response)])
        assert t.reward_parts["liked"] == pytest.approx(score, abs=1e-5) and t.reward == pytest.approx(t.reward_parts["correct"] + 2 * score, abs=1e-5)
    manifest = read_json(root / paths.manifest("t"))
    assert "data/models/scorer" in {entry.get("name") for entry in manifest["predicate"]["buildDefinition"]["resolvedDependencies"]}
    made(root, "scorer", plain(), {"accuracy_low": 0.5})
    with pytest.raises(UserError, match=r"t: reward model scorer orders 0.900 \[0.500, 0.950\] of held-out pairs rightly"):
        run_stage("t", root, stage.given(1), "cpu")


def test_it_orders_pairs_in_place_of_an_endpoint(root):
    reward_model.run(context(root))
    rows(root, "mixed.jsonl", *({"prompt": p.prompt, "response": text, "score": 0} for p in PROBLEMS[60:70] for text in (WRONG, RIGHT)))
    judge = {"stage": "scorer", "bound": 0.6}
    settings = PreferenceStage.model_validate({"init": "sft", "data": "mixed.jsonl", "pairs": {"judge": judge}, "recipe": "simpo", "steps": 1, "optimiser": {"lr": 1e-3}})
    assert settings.reward_models_read == ("scorer",)
    told = preference.run(Context("liked", root, 1, settings, root / "liked", Journal(root / "liked" / "journal.jsonl", "liked")))
    assert told["groups"] == 10, "every pair has an order"


def test_it_judges_problems_of_verifier_judge(root):
    model = made(root, "scorer", plain())
    problem = replace(PROBLEMS[0], verifier="judge", verifier_args='{"threshold": 0.9}')
    verify = judge_of(context(root), Served(stage="scorer"), "cpu")
    with VerifierPool(judge=verify) as pool:
        verdict, other = pool.verify_batch([(problem, RIGHT), (PROBLEMS[0], f"\\boxed{{{PROBLEMS[0].answer}}}")])
        easy = pool.verify(replace(problem, verifier_args='{"threshold": 0.0}'), RIGHT)
    (score,) = model.scores([(problem, RIGHT)])
    assert verdict.score == pytest.approx(score, abs=1e-6) and verdict.detail == f"scorer {score:.3f}"
    assert (verdict.outcome is Outcome.CORRECT) == (score >= 0.9) and easy.correct and other.correct
    assert judge_of(context(root), None, "cpu") is None
    with pytest.raises(UserError, match="scorer: reward model scorer orders"):
        judge_of(context(root), Served(stage="scorer", bound=0.85), "cpu")


def test_threads_that_ask_at_once_get_what_one_gets(root):
    model = made(root, "scorer", plain())
    asked = [(problem, text) for problem in PROBLEMS[:20] for text in (RIGHT, WRONG, "<|user|>")]
    alone = [model.scores([each]) for each in asked]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(lambda each: model.scores([each]), asked))
    finally:
        sys.setswitchinterval(interval)
    assert together == alone


TEXTS = ("<think> one </think>It is good.", "<think> two </think>It is bad, and here is why.", "<think> three </think>Nobody knows.")


@pytest.fixture
def asked(root):
    """The project with a reward model and problems that it judges, and what engines say: per problem and text the score, and for each problem a
    threshold that the best text alone reaches. Nothing may ask an endpoint."""
    model = made(root, "scorer", plain())
    scores = {problem.prompt: model.scores([(problem, text) for text in TEXTS]) for problem in PROBLEMS[:6]}
    first, second = zip(*(sorted(found)[-2:] for found in scores.values()), strict=True)
    thresholds = [json.dumps({"threshold": (low + high) / 2}) for low, high in zip(first, second, strict=True)]
    judged = [replace(p, verifier="judge", verifier_args=threshold) for p, threshold in zip(PROBLEMS, thresholds, strict=False)]
    write_problems(root / paths.rows("difficulty"), judged)
    (root / "script.json").write_text(json.dumps({problem.prompt: TEXTS for problem in judged}))
    scripted = {"engine": "scripted", "script": str(root / "script.json"), "max_new_tokens": 64}
    return {"data": "difficulty", "samples": 3, "generation": scripted, "judge": {"stage": "scorer"}}, scores


def test_rows_are_graded_by_it(root, asked):
    given, scores = asked
    stage = graph.stage("graded", "grade", GradeStage.model_validate({"init": "sft", "band": [0, 1], **given}))
    assert paths.model("scorer") in stage.reads
    run_stage("graded", root, stage.given(1), "cpu")
    assert [row.pass_rate for row in read_problems(root / paths.ROWS / "graded" / paths.GRADED)] == [pytest.approx(1 / 3)] * 6
    read = read_json(root / paths.manifest("graded"))["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert "data/models/scorer" in {entry.get("name") for entry in read}
    answers = [row for file in (root / paths.WORK / "graded").rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert sorted(row["score"] for row in answers) == pytest.approx(sorted(score for found in scores.values() for score in found), abs=1e-5)
    made(root, "scorer", plain(), seed=2)
    run_stage("graded", root, stage.given(1), "cpu")
    again = [row.pass_rate for row in read_problems(root / paths.ROWS / "graded" / paths.GRADED)]
    assert again != [pytest.approx(1 / 3)] * 6, "what another reward model has said is not kept"
    made(root, "scorer", plain(), {"accuracy_low": 0.5})
    with pytest.raises(UserError, match=r"graded: reward model scorer orders 0.900 \[0.500, 0.950\] of held-out pairs rightly"):
        run_stage("graded", root, stage.given(1), "cpu")


def test_answers_are_sampled_and_judged_by_it(root, asked):
    given, scores = asked
    run_stage("more", root, graph.stage("more", "sample", SampleStage.model_validate({"init": "sft", **given})).given(1), "cpu")
    rollouts = [t for file in sorted((root / paths.ROLLOUTS / "more").glob("*.parquet")) for t in read_trajectories(file)]
    prompts = {problem.problem_id: problem.prompt for problem in PROBLEMS}
    assert len(rollouts) == 18
    for t in rollouts:
        found = scores[prompts[t.problem_id]]
        assert t.reward == pytest.approx(found[TEXTS.index(t.response)], abs=1e-5), "its probability is the reward of the rollout"
        assert (t.outcome == Outcome.CORRECT) == (found.index(max(found)) == TEXTS.index(t.response))
    for row in read_problems(root / paths.rows("more")):
        assert row.solution == ("one", "two", "three")[scores[row.prompt].index(max(scores[row.prompt]))]


def test_checkpoints_are_evaluated_by_it(root, asked):
    given, scores = asked
    shutil.copytree(root / paths.model("sft"), root / paths.model("other"))
    write_problems(root / paths.BENCHMARKS / "open.parquet", read_problems(root / paths.rows("difficulty")))
    settings = EvaluationSettings.model_validate({
        **{key: given[key] for key in ("samples", "generation", "judge")}, "models": ["sft", "other"], "rollouts": [], "ks": [1, 3], "bootstrap": 50,
        "gate": {"candidate": "other", "against": "sft", "improve": ["open"]}, "diagnostics": {"entropy_problems": 0},
    })  # fmt: skip
    stage = graph.stage("evaluation", "evaluation", settings)
    assert paths.model("scorer") in stage.reads
    told = run_stage("evaluation", root, stage.given(1), "cpu")
    assert told["sft_open_pass_at_1"] == pytest.approx(1 / 3) and told["other_open_pass_at_3"] == 1.0
    rows = pq.read_table(root / paths.SAMPLES / "sft" / "open.parquet").to_pylist()
    assert [row["score"] for row in rows] == pytest.approx([scores[row["prompt"]][TEXTS.index(row["response"])] for row in rows], abs=1e-5)
    made(root, "scorer", plain(), seed=2)
    assert run_stage("evaluation", root, stage.given(1), "cpu")["sft_open_pass_at_1"] != pytest.approx(1 / 3), "samples are judged anew"


def test_merges_are_searched_by_it(root, asked):
    given, _ = asked
    for name in ("math", "code"):
        shutil.copytree(root / paths.model("sft"), root / paths.model(name))
    search = {**given, "problems": 4, "bootstrap": 50, "budget": 1, "greedy": False, "candidates": [{"method": "linear"}]}
    settings = MergeStage.model_validate({"init": "sft", "models": ["math", "code"], "method": "linear", "search": search})
    stage = graph.stage("merged", "merge", settings)
    assert paths.model("scorer") in stage.reads
    run_stage("merged", root, stage.given(1), "cpu")
    trials = read_json(root / paths.model("merged") / paths.SEARCH)["trials"]
    assert [trial["mean"] for trial in trials] == [pytest.approx(1 / 3)] * len(trials)


def test_the_folder_has_all_that_serving_needs(root):
    made(root, "scorer", plain("hl_gauss", span=(0, 1), bins=8), temperature=1.5)
    names = {file.name for file in (root / paths.model("scorer")).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", paths.REWARD_MODEL} <= names
    config = read_json(root / paths.model("scorer") / "config.json")
    assert config["architectures"] == ["LlamaForSequenceClassification"] and len(config["id2label"]) == 8
    assert load_tokenizer(root / paths.model("scorer")).get_vocab() == TOKENIZER.get_vocab()
    broken = read_json(root / paths.model("scorer") / paths.REWARD_MODEL) | {"more": 1}
    (root / paths.model("scorer") / paths.REWARD_MODEL).write_text(json.dumps(broken))
    with pytest.raises(UserError, match="scorer: cannot be loaded as a reward model"):
        RewardModel.load(root / paths.model("scorer"))
