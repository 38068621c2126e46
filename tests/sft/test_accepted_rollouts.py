"""SFT on right answers of rollouts: which of them, and that the loss is of what the policy wrote, id by id."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from test_supervised import PROBLEMS, TINY, TOKENIZER

from pipelines import paths, prompting
from pipelines.config.training import AcceptSettings, LanguageModellingSettings, SftStage
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, save_policy, write_vocabulary
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import GUIDE, POLICY, PROMPT, REPLAY, TOOL, Outcome, Segment, Trajectory, one_turn
from pipelines.sft import train as loop
from pipelines.sft.examples import Example, accepted_examples
from pipelines.stages import Context, sft
from pipelines.store import write_problems, write_trajectories

PROBLEM_IDS = prompting.prompt_ids(TOKENIZER, PROBLEMS[0]) + prompting.response_ids(TOKENIZER, PROBLEMS[0])


def answer(problem: str, ids: list[int], outcome: str = "correct", **changes: object) -> Trajectory:
    made = Trajectory(problem, 0, 0, 1, "math", one_turn([1, 2], ids, [0.0] * len(ids), [0] * len(ids)), "stop", outcome=outcome)
    return replace(made, **changes)


def accepted(*trajectories: Trajectory, most: int = 99, **settings: object) -> dict[str, list[list[int]]]:
    found, _ = accepted_examples(trajectories, AcceptSettings.model_validate(settings), most, (1, "again"))
    return {problem: [example.ids[example.spans[0][0] :] for example in examples] for problem, examples in found.items()}


def test_right_answers_of_the_policy_once_each():
    wrong = [answer("b", [7], outcome=outcome.value) for outcome in Outcome if outcome != Outcome.CORRECT]
    others = [answer("b", [8], origin=REPLAY), answer("b", [9], origin=GUIDE)]
    assert accepted(answer("a", [5, 6]), answer("a", [5, 6], step=2), *wrong, *others) == {"a": [[5, 6]]}


def test_at_most_so_many_of_a_problem_by_hash_or_the_shortest():
    many = [answer("a", [5] * length) for length in (4, 2, 3, 1, 6, 5)] + [answer("b", [6])]
    assert accepted(*many, per_problem=2, choose="shortest") == {"a": [[5], [5, 5]], "b": [[6]]}
    drawn = accepted(*many, per_problem=3)
    assert len(drawn["a"]) == 3 and accepted(*many[::-1], per_problem=3) == drawn, "whatever their order"
    assert sorted(accepted(*many, per_problem=9, most=4)["a"]) == [[5], [5, 5]]


def test_what_is_too_long_is_counted():
    found, too_long = accepted_examples([answer("a", [5, 6, 7]), answer("a", [5])], AcceptSettings(), 4, (1,))
    assert ([example.ids for example in found["a"]], too_long) == ([[1, 2, 5]], 1)


def test_the_loss_leaves_out_what_tools_and_guides_said_and_the_hint():
    segments = [
        Segment(PROMPT, [1, 2, 3]), Segment(POLICY, [4, 5], [0.0] * 2, [0] * 2, trains=True), Segment(TOOL, [6, 7, 8]),
        Segment(POLICY, [9], [0.0], [0], trains=True),
    ]  # fmt: skip
    found, _ = accepted_examples([answer("b", [], segments=segments, trained_prompt=[1])], AcceptSettings(), 99, (1,))
    (example,) = found["b"]
    assert example == Example([1, 4, 5, 6, 7, 8, 9], ((1, 3, 1.0), (6, 7, 1.0)), "b") and example.scored == 3


def test_the_gradient_is_that_of_the_scored_tokens_alone():
    settings = LanguageModellingSettings(micro_batch=1)
    ids = PROBLEM_IDS[:12]
    whole, parted = Example.after(ids, 4), Example(ids, ((4, 6, 1.0), (9, 12, 1.0)))
    uneven = Example(ids, ((4, 6, 1.0), (6, 12, 3.0)))

    def losses(*examples: Example) -> float:
        return loop.gradients(tiny_model(TINY, TOKENIZER, 1), examples, settings)

    model = tiny_model(TINY, TOKENIZER, 1)
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    each = {t: -float(logp[t - 1, ids[t]]) for t in range(4, 12)}
    assert losses(whole) == pytest.approx(sum(each.values()) / 8, abs=1e-5)
    assert losses(parted) == pytest.approx(sum(value for t, value in each.items() if not 6 <= t < 9) / 5, abs=1e-5)
    assert losses(uneven) == pytest.approx(sum(value * (3 if t >= 6 else 1) for t, value in each.items()) / 20, abs=1e-5)


def test_a_stage_trains_on_rows_and_rollouts_and_writes_down_both(tmp_path: Path):
    model = tiny_model(TINY, TOKENIZER, 1)
    save_policy(tmp_path / paths.model("base"), model, TOKENIZER)
    write_problems(tmp_path / paths.rows("curation/sft"), PROBLEMS[:3])
    right = [
        replace(answer(p.problem_id, []), segments=one_turn(prompting.prompt_ids(TOKENIZER, p), prompting.response_ids(TOKENIZER, p), [], []))
        for p in PROBLEMS[3:5]
    ]
    write_trajectories(tmp_path / paths.ROLLOUTS / "math" / "step-000001.parquet", [*right, replace(right[0], outcome="wrong", problem_id="other")])
    write_vocabulary(tmp_path / paths.ROLLOUTS / "math", TOKENIZER)
    given = {"init": "base", "train": {"epochs": 2, "batch_size": 2, "optimiser": {"lr": 1e-3}}}

    def run(name: str, *data: str) -> dict[str, float]:
        context = Context(name, tmp_path, 1, SftStage.model_validate({**given, "data": data}), tmp_path / name, Journal(tmp_path / name / "j", name))
        return sft.run(context)

    assert run("again", "curation/sft", "math/rollouts")["examples"] == 5
    seen = pq.read_table(tmp_path / paths.seen("again")).to_pylist()
    assert {(row["data"], row["problem_id"]) for row in seen} == {("curation/sft", p.problem_id) for p in PROBLEMS[:3]} | {
        ("math/rollouts", p.problem_id) for p in PROBLEMS[3:5]
    }
    before, after = (load_policy(tmp_path / paths.model(name))[0].state_dict() for name in ("base", "again"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert run("alone", "math/rollouts")["examples"] == 2
    write_vocabulary(tmp_path / paths.ROLLOUTS / "math", train_tokenizer(["other words"], 300))
    with pytest.raises(UserError, match="again: math/rollouts was sampled with another tokenizer than that of base"):
        run("again", "math/rollouts")


def test_conditions_on_rollouts_are_refused():
    with pytest.raises(ValueError, match="math/rollouts takes neither where nor share; `accept` says which"):
        SftStage.model_validate({"init": "base", "data": {"math/rollouts": {"where": {"domain": ["math"]}}}})
