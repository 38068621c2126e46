"""Kind distil: how teachers are asked, in tokens of their own too, what is stored of them, and the stage from its files to its model."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from killing import Killed
from loops import GROUPS, PROBLEMS, TINY, TOKENIZER, beside, policy_of, prepared, shaken

from pipelines import paths, prompting
from pipelines.config.common import GenerationSettings, OptimiserSettings
from pipelines.config.distil import DistilStage
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.scoring import token_logp
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import Segment
from pipelines.rl import recipe
from pipelines.rl.collate import make_step
from pipelines.rl.history import History
from pipelines.rl.inputs import taught
from pipelines.rl.inputs.step import Actor
from pipelines.rl.roles import untaught
from pipelines.rl.teachers import Output, Outputs, Span, Teacher, Teachers, spans, token_ends
from pipelines.rl.train import train
from pipelines.sft.examples import document
from pipelines.stages import Context, distil
from pipelines.store import read_trajectories, write_problems

OTHER = train_tokenizer([document(p) for p in PROBLEMS[:20]], 300)
"""Of fewer merges: it reads the same text in more tokens."""


def test_spans_end_where_both_have_come_to_the_same_place():
    assert spans([1, 2, 3], [2, 3]) == [Span((0, 2), (0, 1)), Span((2, 3), (1, 2))]  # a b c against ab c
    assert spans([2, 3, 5], [1, 3, 4, 5]) == [Span((0, 2), (0, 2)), Span((2, 3), (2, 4))]
    assert spans([1, 1, 2], [1, 2]) == [Span((0, 2), (0, 1)), Span((2, 3), (1, 2))], "a token without text belongs to what stands before it"
    assert spans([4], [1, 2, 3, 4]) == [Span((0, 1), (0, 4))] and spans([], []) == []
    with pytest.raises(ValueError, match="not of one text"):
        spans([1, 3], [1, 2])


def test_tokens_end_at_whole_characters():
    text = "<think> 3 × 4 = ½ of 24 </think>\\boxed{12} 数"
    for tokenizer in (TOKENIZER, OTHER):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = token_ends(tokenizer, ids)
        assert ends == sorted(ends) and ends[-1] == len(tokenizer.decode(ids)) and len(ends) == len(ids)
        for place in range(1, len(ids) + 1):
            if not tokenizer.decode(ids[:place]).endswith("�"):
                assert ends[place - 1] == len(tokenizer.decode(ids[:place]))
    assert len(TOKENIZER(text)["input_ids"]) != len(OTHER(text)["input_ids"])


def settings(**changes) -> DistilStage:
    given = {"init": "sft", "data": "rows", "teachers": {"*": "t"}, "steps": 6, "prompts_per_step": 4, "group_size": 4, "checkpoint_every": 2, "micro_batch": 5}
    return DistilStage(**{**given, "generation": GenerationSettings(max_new_tokens=12), "optimiser": OptimiserSettings(lr=1e-3, schedule="constant"), **changes})


def step_of(start, teachers, domains=("math",) * 12, old: float = -0.7):
    trajectories = [replace(r, group_id=g, sample_id=s) for g, group in enumerate(GROUPS) for s, r in enumerate(group)]
    by_id = {p.problem_id: replace(p, domain=domain) for p, domain in zip(PROBLEMS[:6], domains, strict=False)}
    step = make_step(Actor(policy_of(start), TOKENIZER, teachers), recipe("on_policy_distillation"), settings(), trajectories, by_id, History(None), {}, (1,), 1)
    step.batch = step.batch.having(logp_old_BT=old * step.score_BT)
    return step


def plain(policy, prompt, response):
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        return token_logp(policy, ids, torch.arange(ids.shape[1])[None] >= len(prompt))[0, len(prompt) :]


def test_each_row_is_taught_by_the_teacher_of_its_domain(start):
    one, other = shaken(start, 0.02, 1), shaken(start, 0.02, 2)
    teachers = Teachers({"math": Teacher(one), "*": Teacher(other)})
    step = step_of(start, {"teachers": teachers}, ("math", "code", "math", "logic", "code", "math"))
    said = taught.logp(step)
    for row, (rollout, problem) in enumerate(zip(step.rollouts, step.problems, strict=True)):
        expected = plain(one if problem.domain == "math" else other, rollout.prompt_ids, rollout.response_ids)
        torch.testing.assert_close(said[row][step.score_BT[row]], expected, atol=1e-4, rtol=0)
    assert not said[~step.score_BT].any()
    with pytest.raises(KeyError):
        Teachers({"math": Teacher(one)}).of("code")


def test_a_teacher_of_other_tokens_says_as_much_of_the_text_as_of_its_own(start):
    """The gaps of a response add up to the teacher's log-probability of its text, end of turn included, less the student's."""
    policy = tiny_model(TINY, OTHER, 5).eval()
    step = step_of(start, {"teachers": Teachers({"*": Teacher(policy, OTHER)})})
    gaps = (taught.logp(step) - step.batch.logp_old_BT) * step.score_BT
    for row, (rollout, problem) in enumerate(zip(step.rollouts, step.problems, strict=True)):
        theirs = [*OTHER(TOKENIZER.decode(rollout.response_ids[:-1]), add_special_tokens=False)["input_ids"], OTHER.eos_token_id]
        said = plain(policy, prompting.prompt_ids(OTHER, problem), theirs)
        assert float(gaps[row].sum()) == pytest.approx(float(said.sum()) + 0.7 * len(rollout.response_ids), abs=1e-3)
        assert float(gaps[row][step.score_BT[row]][-1]) == pytest.approx(float(said[-1]) + 0.7, abs=1e-4), "the end of the turn by itself"
    same = step_of(start, {"teachers": Teachers({"*": Teacher(shaken(start, 0.02, 1), TOKENIZER)})})
    alike = step_of(start, {"teachers": Teachers({"*": Teacher(shaken(start, 0.02, 1))})})
    torch.testing.assert_close(taught.logp(same), taught.logp(alike), atol=1e-4, rtol=0)  # equal tokens: each span is one
    policy.config.max_position_embeddings = 10
    assert torch.equal(taught.logp(step), step.batch.logp_old_BT), "no room: no gap"
    with pytest.raises(UserError, match="knows none of its tokens: take on_policy_distillation"):
        step.batch = step.batch.having(topk_BTK=torch.zeros((*step.ids_BT.shape, 2), dtype=torch.long))
        taught.topk(step)
    step.rollouts = [replace(r, segments=[*r.segments, Segment("tool", [1])]) for r in step.rollouts]
    with pytest.raises(UserError, match="answers of one turn"):
        taught.logp(step)


def test_the_worked_numbers_of_a_span():
    """a b c against ab c: the student's sums -1.2 and -.4, the teacher's -.9 and -.6."""
    mine, said = torch.tensor([-0.5, -0.7, -0.4]), torch.tensor([-0.9, -0.6])
    found = spans([1, 2, 3], [2, 3])
    gaps = [float((said[slice(*s.teacher)].sum() - mine[slice(*s.student)].sum()) / (s.student[1] - s.student[0])) for s in found]
    assert gaps == pytest.approx([0.15, -0.2], abs=1e-6)


def test_what_is_stored_is_laid_where_the_response_stands(start):
    first = GROUPS[0][0]
    kept = Output([[token, 3] if place else [token] for place, token in enumerate(first.response_ids)], [[-0.1, -3.0] if place else [-0.2] for place in range(len(first.response_ids))])
    outputs = Outputs({(first.problem_id, tuple(first.response_ids)): kept})
    step = step_of(start, {"stored": outputs})
    ids, logp = taught.stored_ids(step), taught.stored_logp(step)
    where = step.score_BT[0]
    assert ids[0][where].tolist() == [[first.response_ids[0], 0], *([token, 3] for token in first.response_ids[1:])]
    torch.testing.assert_close(logp[0][where][:2], torch.tensor([[-0.2, -1e4], [-0.1, -3.0]]))
    assert torch.equal(ids[1][step.score_BT[1]][:, 0], step.ids_BT[1][step.score_BT[1]]) and not logp[1][step.score_BT[1]][:, 0].any()


@pytest.mark.parametrize(
    ("name", "taught_by", "said"),
    [
        ("on_policy_distillation", "", "trains on what teachers say: that is kind distil, with `teachers`"),
        ("stored_distillation", "teachers", "trains on what teachers say: that is kind distil, with `stored`"),
        ("grpo", "teachers", "'grpo' reads nothing of what `teachers` names; take on_policy_distillation"),
    ],
)
def test_a_recipe_and_its_teachers_go_together(name, taught_by, said):
    assert said in (untaught(recipe(name), taught_by) or "")
    assert untaught(recipe("grpo"), "") is untaught(recipe("topk_distillation"), "teachers") is untaught(recipe("stored_distillation"), "stored") is None


def test_what_a_stage_names_is_checked():
    for given, said in [
        ({"teachers": {}}, "teachers: missing; name a model for each domain"),
        ({"stored": "rows/t.jsonl"}, r"teachers have nothing to say where their outputs are stored \(rows/t.jsonl\)"),
        ({"teachers": {}, "stored": "rows/t.jsonl", "data": "rows/t.jsonl"}, "data: rows/t.jsonl holds the outputs of teachers"),
    ]:
        with pytest.raises(ValueError, match=said):
            settings(**given)
    assert settings(teachers={"math": "m", "*": "c"}, reference="r").models_read == ("sft", "r", "c", "m"), "in the order of the domains"
    stored = settings(teachers={}, stored="rows/t.jsonl")
    assert stored.rows_read == ("rows", "rows/t.jsonl") and not stored.leaves_rollouts and settings().leaves_rollouts


def loop(folder, start, row: str, stop_at=None, **changes):
    policy, chosen = policy_of(start), recipe(row)
    journal, checkpoints = prepared(folder, stop_at)
    stored = [group[:1] for group in GROUPS] if row == "stored_distillation" else None
    train(
        policy, TOKENIZER, PROBLEMS[:10], chosen, settings(recipe=row, **changes), stage="distil@t", seed=1, journal=journal, checkpoints=checkpoints,
        rollout_folder=folder / "rollouts", frozen=beside(row, start), stored=stored,
    )  # fmt: skip
    said = {path.name: path.read_bytes() for path in sorted((folder / "rollouts").iterdir())}
    return policy.state_dict(), [json.loads(line) for line in journal.path.read_text().splitlines()], said


@pytest.mark.parametrize("row", ["on_policy_distillation", "topk_distillation", "stored_distillation"])
def test_a_killed_run_resumes_to_the_same_weights_log_and_rollouts(tmp_path, start, row):
    weights, rows, said = loop(tmp_path / "whole", start, row)
    assert any(not torch.equal(weights[name], start[name]) for name in start) and len(rows) == len(said) == 6
    with pytest.raises(Killed):
        loop(tmp_path / "cut", start, row, stop_at=5)
    resumed, resumed_rows, resumed_said = loop(tmp_path / "cut", start, row)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert resumed_rows == rows and resumed_said == said


@pytest.mark.parametrize("row", ["on_policy_distillation", "topk_distillation"])
def test_the_student_comes_nearer_to_its_teacher(tmp_path, start, row):
    _, rows, _ = loop(tmp_path, start, row, steps=30)
    measure = "advantage_mean" if row == "on_policy_distillation" else "loss"  # minus the reverse KL at the student's tokens; the reverse KL
    first, last = (abs(sum(r[measure] for r in part)) for part in (rows[:6], rows[-6:]))
    assert last < 0.75 * first
    assert all(0 <= r["reward"] <= 1 for r in rows)  # verifiers are asked all the same


def context(root: Path, **given: object) -> Context:
    return Context("taught", root, 1, settings(**given), root / "work", Journal(root / "work" / "journal.jsonl", "taught"))


def kl(student: Path, teacher: Path) -> float:
    """Mean log-ratio of teacher to student over the right responses, nats a response."""
    policies = [load_policy(folder)[0] for folder in (student, teacher)]
    return sum(float((plain(policies[1], g[0].prompt_ids, g[0].response_ids) - plain(policies[0], g[0].prompt_ids, g[0].response_ids)).sum()) for g in GROUPS)


def test_the_stage_with_two_teachers_of_which_one_reads_other_tokens(tmp_path, start):
    save_policy(tmp_path / paths.model("sft"), policy_of(start), TOKENIZER)
    save_policy(tmp_path / paths.model("math"), shaken(start, 0.05, 1), TOKENIZER)
    save_policy(tmp_path / paths.model("code"), tiny_model(TINY, OTHER, 5), OTHER)
    write_problems(tmp_path / paths.rows("rows"), [replace(p, domain="code" if i % 2 else "math") for i, p in enumerate(PROBLEMS[:8])])
    with pytest.raises(UserError, match="taught: teachers name none for domain code; add it, or '\\*' for every other domain"):
        distil.run(context(tmp_path, teachers={"math": "math"}))
    made = distil.run(context(tmp_path, teachers={"math": "math", "*": "code"}, steps=3))
    assert made["teachers"] == 2 and made["steps"] == 3 and made["problems"] == 8
    rollouts = [t for path in sorted((tmp_path / paths.ROLLOUTS / "taught").glob("*.parquet")) for t in read_trajectories(path)]
    assert len(rollouts) == 3 * 16 and (tmp_path / paths.model("taught") / "model.safetensors").is_file()
    assert len(pq.read_table(tmp_path / paths.seen("taught"))) == 8


def test_the_stage_with_stored_outputs(tmp_path, start):
    save_policy(tmp_path / paths.model("sft"), policy_of(start), TOKENIZER)
    write_problems(tmp_path / paths.rows("rows"), PROBLEMS[:8])
    responses = [group[0] for group in GROUPS]
    ids = [r.response_ids for r in responses]
    kept = [{"problem_id": r.problem_id, "tokens": r.response_ids, "topk": [[t, (t + 1) % 300] for t in r.response_ids], "logp": [[-0.1, -3.0]] * len(r.response_ids)} for r in responses[:3]]
    texts = [{"problem_id": r.problem_id, "response": r.response} for r in responses[3:]]
    file = tmp_path / "outputs.jsonl"

    def write(*rows):
        file.write_text("\n".join(map(json.dumps, rows)))

    given = {"teachers": {}, "stored": "outputs.jsonl", "recipe": "stored_distillation", "steps": 12}
    write(*kept, *texts)
    made = distil.run(context(tmp_path, **given))
    assert made["outputs"] == 6 and made["loss_last"] < 1.5
    rows = [json.loads(line) for line in (tmp_path / "work" / "journal.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert not (tmp_path / paths.ROLLOUTS / "taught").exists(), "nothing was answered"
    for wrong, said in [
        ({"tokens": [10**6]}, r"outputs.jsonl:2: tokens: expected ids of the student's tokenizer, 0 to \d+"),
        ({"topk": None}, "outputs.jsonl:2: key 'topk' is null"),
        ({"topk": [[1]]}, "outputs.jsonl:2: topk: expected a list of different ids for each of the"),
        ({"logp": [[0.0, 0.0]] * len(ids[1])}, "outputs.jsonl:2: logp: of token 0: expected log-probabilities whose probabilities add up to at most 1"),
        ({"logp": [[-1.0]] * len(ids[1])}, "outputs.jsonl:2: logp: expected a log-probability for each id of topk"),
    ]:
        write(kept[0], kept[1] | wrong)
        with pytest.raises(UserError, match=said):
            distil.run(context(tmp_path, **given))
    with pytest.raises(UserError, match="taught: recipe 'on_policy_distillation' trains on what teachers say: that is kind distil, with `teachers`"):
        distil.run(context(tmp_path, **(given | {"recipe": "on_policy_distillation"})))
