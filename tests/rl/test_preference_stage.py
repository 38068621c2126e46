"""Kind preference, from the files that it reads to the model that it makes."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_endpoint import Answer, serve
from loops import PROBLEMS, TOKENIZER, policy_of

from pipelines import paths, prompting
from pipelines.config.preference import PreferenceStage
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, save_policy, write_vocabulary
from pipelines.models.scoring import token_logp
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import GUIDE, POLICY, TOOL, Outcome, Problem, Segment, Trajectory, one_turn
from pipelines.rl.tensors import Asks
from pipelines.stages import Context, preference, responses
from pipelines.store import write_problems, write_trajectories

FAST = {"prompts_per_step": 4, "optimiser": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def models(start, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in ("sft", "math"):
        save_policy(root / paths.model(name), policy_of(start), TOKENIZER)
    return root


@pytest.fixture
def root(models: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / paths.MODELS).symlink_to(models / paths.MODELS)
    return tmp_path


def context(root: Path, **given: object) -> Context:
    settings = PreferenceStage.model_validate({"init": "sft", **FAST, **given})
    return Context("liked", root, 1, settings, root / "work", Journal(root / "work" / "journal.jsonl", "liked"))


def answer(problem: Problem, text: str, right: bool, **changes: object) -> Trajectory:
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    segments = one_turn(prompting.prompt_ids(TOKENIZER, problem), ids, [-0.5] * len(ids), [7] * len(ids))
    outcome = (Outcome.CORRECT if right else Outcome.WRONG).value
    return replace(Trajectory(problem.problem_id, 0, 0, 3, "rl@math", segments, "stop", response=text, outcome=outcome, reward=float(right)), **changes)


def sampled(root: Path, *trajectories: Trajectory) -> None:
    placed = [replace(t, sample_id=number) for number, t in enumerate(trajectories)]
    write_trajectories(root / paths.ROLLOUTS / "math" / "step-000001.parquet", placed)
    write_vocabulary(root / paths.ROLLOUTS / "math", TOKENIZER)


def write(root: Path, name: str, *rows: object) -> None:
    (root / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def read(root: Path, longest: int = 128, **given: object) -> responses.Responses:
    return responses.read(context(root, **given), TOKENIZER, longest)


def test_rollouts_are_read_once_each_as_they_were_trained(root):
    first, second = PROBLEMS[:2]
    segments = [*answer(first, "a", True).segments, Segment(TOOL, [5, 6]), Segment(POLICY, [7], [-0.1], [3], trains=True)]
    sampled(
        root, answer(first, "yes", True), answer(first, "yes", True), answer(first, "no", False), answer(second, "lost", False, outcome="infrastructure"),
        answer(second, "guided", True, origin=GUIDE), answer(first, "tool", True, segments=segments), answer(second, "long " * 99, False),
        answer(first, "hinted", False, trained_prompt=[1, 2]),
    )  # fmt: skip
    found = read(root, data="math/rollouts")
    prompt = tuple(prompting.prompt_ids(TOKENIZER, first))
    assert {key: [r.response for r in kept.values()] for key, kept in found.by_prompt.items() if len(kept) > 1}.keys() == {(first.problem_id, prompt)}
    kept = {r.response: r for r in found.by_prompt[first.problem_id, prompt].values()}
    assert kept.keys() == {"yes", "no", "tool"} and found.too_long == 1 and found.by_prompt[first.problem_id, (1, 2)]
    assert [(s.author, s.trains, len(s.logp)) for s in kept["tool"].turns] == [(GUIDE, True, 2), (TOOL, False, 0), (GUIDE, True, 1)]
    assert found.lacking == {Asks.PROBLEM} and found.of == {"math/rollouts": {first.problem_id}}
    write_problems(root / paths.rows("difficulty"), [first, second])
    beside = read(root, data=["difficulty", "math/rollouts"], where={"sql": f"problem_id = '{second.problem_id}'"})
    assert not any(beside.by_prompt.values()) and beside.lacking == set()
    many = [answer(first, f"{number}", False) for number in range(9)]
    sampled(root, *many)
    few = read(root, data="math/rollouts", answers=2)
    sampled(root, *many[::-1])
    assert read(root, data="math/rollouts", answers=2).by_prompt.keys() == few.by_prompt.keys()
    assert [list(kept) for kept in few.by_prompt.values()] == [list(kept) for kept in read(root, data="math/rollouts", answers=2).by_prompt.values()]
    assert all(len(kept) == 2 for kept in few.by_prompt.values())


PAIR = {"prompt": "What is 1 + 1?", "chosen": "2", "rejected": "3"}


def test_files_hold_pairs_or_scored_responses_with_text_messages_or_ids_of_rows(root):
    turns = [{"role": "user", "content": "What is 1 + 1?"}]
    say = {text: [{"role": "assistant", "content": text}] for text in ("2", "3")}
    write(
        root, "pairs.jsonl", PAIR, {"messages": turns, "chosen": say["2"], "rejected": say["3"]}, {"chosen": turns + say["2"], "rejected": turns + say["3"]},
        {"problem_id": PROBLEMS[0].problem_id, "chosen": "2", "rejected": "3"},
    )  # fmt: skip
    write_problems(root / paths.rows("difficulty"), PROBLEMS[:1])
    found = read(root, data=["difficulty", "pairs.jsonl"])
    plain = prompting.prompt_ids(TOKENIZER, replace(PROBLEMS[0], prompt="What is 1 + 1?"))
    assert [better.prompt_ids for better, _ in found.pairs] == [plain] * 3 + [prompting.prompt_ids(TOKENIZER, PROBLEMS[0])]
    assert all((better.reward, worse.reward) == (1.0, 0.0) for better, worse in found.pairs)
    two = [*TOKENIZER("2", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    assert all(better.response_ids == two for better, _ in found.pairs)
    assert found.lacking == {Asks.PROBLEM, Asks.VERDICT, Asks.BEHAVIOUR}
    columns = {"prompt": ["p", "p", "q"], "response": ["a", "b", "c"], "score": [0.5, -2.0, None], "label": [None, None, True], "baseline": [0.25, 0.25, None]}
    pq.write_table(pa.table(columns), root / "scored.parquet")
    scored = read(root, data="scored.parquet")
    assert sorted((r.response, r.reward, r.outcome) for kept in scored.by_prompt.values() for r in kept.values()) == [("a", 0.5, ""), ("b", -2.0, ""), ("c", 1.0, "correct")]
    assert sorted(p.pass_rate or 0 for p in scored.problems.values()) == [0, 0.25]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([PAIR, "{"], "mine.jsonl:2: not JSON"),
        ([PAIR, {"prompt": "p", "chosen": "a"}], "mine.jsonl:2: key 'rejected' is missing; a file that a stage reads must be read whole"),
        ([PAIR, {"prompt": "p", "rejected": "a"}], "mine.jsonl:2: key 'chosen' is missing"),
        ([{"prompt": "p", "chosen": "a"}], "mine.jsonl:1: key 'rejected' is missing"),
        ([PAIR, {"rejected": [{"role": "user", "content": "a"}]}], "mine.jsonl:2: key 'chosen' is missing"),
        ([PAIR, {"prompt": "p", "chosen": None, "rejected": "a"}], "mine.jsonl:2: key 'chosen' is null"),
        ([PAIR, {"prompt": "p", "chosen": "a", "rejected": 3}], "mine.jsonl:2: rejected: expected text, or messages of role and content, got 3"),
        ([PAIR, {"prompt": "p", "chosen": "a", "rejected": "a"}], "mine.jsonl:2: chosen and rejected are the same"),
        ([PAIR, {"chosen": "a", "rejected": "b"}], "mine.jsonl:2: chosen: expected text, or messages"),
        ([{"prompt": "p", "response": "a"}], "mine.jsonl:1: expected one of label, score, reward beside response"),
        ([{"prompt": "p", "response": "a", "score": float("nan")}], "mine.jsonl:1: score: expected a finite number, got nan"),
        ([{"prompt": "p", "response": "a", "label": 1}], "mine.jsonl:1: label: expected true or false, got 1"),
        ([PAIR, {"problem_id": "x", "chosen": "a", "rejected": "b"}], "mine.jsonl:2: problem_id: no row of data is called 'x'"),
        ([PAIR, {"chosen": [{"role": "user", "content": "a"}], "rejected": "b", "prompt": "p"}], "mine.jsonl:2: chosen: the last message must be the assistant's"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_named_by_its_line(root, rows, said):
    write(root, "mine.jsonl", *rows)
    with pytest.raises(UserError, match=said):
        read(root, data="mine.jsonl")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": "difficulty"}, "liked: data name no responses, but rows: difficulty; add rollouts"),
        ({"data": "math/rollouts", "where": {"domain": ["math"]}}, "liked: where needs rows whose conditions are meant"),
        ({"data": {"pairs.jsonl": {"where": {"domain": ["math"]}}}}, "liked: data: pairs.jsonl holds responses and takes neither where nor share"),
        ({"data": "pairs.jsonl", "recipe": "topr"}, "recipe 'topr' reads logp_roll_BT"),
        ({"data": "math/rollouts"}, "liked: no group to train on: there were 1 responses to 1 prompts and 0 pairs of files; 0 were too long; a pair needs two rewards"),
        ({"data": "math/rollouts", "pairs": {"judge": {}}}, "liked: pairs.judge needs the address of an OpenAI-compatible endpoint"),
    ],
)  # fmt: skip
def test_one_sentence_for_what_cannot_be_trained_on(root, monkeypatch, given, said):
    monkeypatch.delenv("TOUCHSTONE_JUDGE_URL", raising=False)
    write_problems(root / paths.rows("difficulty"), PROBLEMS[:1])
    write(root, "pairs.jsonl", PAIR)
    sampled(root, answer(PROBLEMS[0], "yes", True))
    with pytest.raises(UserError, match=said):
        preference.run(context(root, **given))


def test_rollouts_of_another_tokenizer_are_refused(root):
    sampled(root, answer(PROBLEMS[0], "yes", True))
    write_vocabulary(root / paths.ROLLOUTS / "math", train_tokenizer(["other words"], 300))
    with pytest.raises(UserError, match="liked: math/rollouts was sampled with another tokenizer than that of sft"):
        read(root, data="math/rollouts")


def margin(folder: Path, groups) -> float:
    """How much likelier the first of each pair is than the second, nats."""
    policy, _ = load_policy(folder)
    total = 0.0
    for pair in groups:
        for sign, r in zip((1, -1), pair, strict=True):
            ids = torch.tensor([r.prompt_ids + r.response_ids])
            with torch.no_grad():
                total += sign * float(token_logp(policy, ids, torch.arange(ids.shape[1])[None] >= len(r.prompt_ids)).sum())
    return total


def test_the_stage_learns_from_rollouts_and_files_and_writes_down_what_it_saw(root):
    pairs = [(answer(p, f"<think> </think>\\boxed{{{p.answer}}}", True), answer(p, f"<think> </think>\\boxed{{{p.answer}0}}", False)) for p in PROBLEMS[:5]]
    sampled(root, *(r for pair in pairs for r in pair))
    write(root, "pairs.jsonl", PAIR)
    write_problems(root / paths.rows("difficulty"), PROBLEMS[:4])
    (root / paths.model("liked")).unlink(missing_ok=True)
    made = preference.run(context(root, data=["difficulty", "math/rollouts", "pairs.jsonl"], steps=12))
    assert made["groups"] == 5 and made["responses"] == 10 and made["steps"] == 12 and made["loss_last"] < 0.69
    seen = pq.read_table(root / paths.seen("liked")).to_pylist()
    of = {name: {row["problem_id"] for row in seen if row["data"] == name} for name in ("difficulty", "math/rollouts", "pairs.jsonl")}
    assert of["difficulty"] == of["math/rollouts"] == {p.problem_id for p in PROBLEMS[:4]} and len(of["pairs.jsonl"]) == 1
    assert margin(root / paths.model("liked"), pairs[:4]) > margin(root / paths.model("sft"), pairs[:4]) + 1
    assert not (root / paths.ROLLOUTS / "liked").exists()


def test_a_file_of_scored_responses_trains_a_recipe_that_compares_with_the_policy_that_answered(root):
    write(root, "scored.jsonl", *({"prompt": p.prompt, "response": f"\\boxed{{{p.answer if right else 0}}}", "label": right} for p in PROBLEMS[:4] for right in (True, False)))
    made = preference.run(context(root, data="scored.jsonl", recipe="topr", pairs=None, behaviour="reference"))
    assert made["groups"] == 4 and made["steps"] == 1, "one pass"
    (row,) = [json.loads(line) for line in (root / "work" / "journal.jsonl").read_text().splitlines()]
    assert abs(row["mismatch_k1"]) < 1e-5 and row["trained"] == 8  # the policy is still the reference


def test_a_judge_makes_the_pairs(root, monkeypatch):
    sampled(root, *(answer(p, text, True) for p in PROBLEMS[:3] for text in ("short", "a longer one")))

    def answers(prompt: str, number: int) -> Answer:
        return Answer('{"better": "%s"}' % ("A" if "short" in prompt.partition("Response B")[0] else "B"))

    with serve(answers) as endpoint:
        monkeypatch.setenv("TOUCHSTONE_JUDGE_URL", endpoint.url)
        made = preference.run(context(root, data="math/rollouts", pairs={"judge": {"model": "m"}}, recipe="simpo"))
    assert made["groups"] == 3 and len(endpoint.requests) == 6
    assert all("Problem:\n" in request["messages"][-1]["content"] for request in endpoint.requests)
