"""What kind sample writes of a teacher and kind distil reads: right answers as they are, and Semantic Soft Bootstrapping from answers to student."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipelines import graph, paths, prompting
from pipelines.config import Params
from pipelines.config.distil import DistilStage
from pipelines.config.sampling import ExplainSettings, SampleStage
from pipelines.config.training import ArchitectureSettings
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import Outcome, Problem, Verdict, problem_id
from pipelines.stages import Context, distil, sample
from pipelines.stages.answers import Answer
from pipelines.stages.outputs import contrast, hinted
from pipelines.store import read_problems, write_problems

TINY = ArchitectureSettings(hidden_size=16, layers=1, heads=2, intermediate_size=32, vocab_size=300, context=512)
SHORT = ExplainSettings(instruction="{problem} Right: {right} Wrong: {wrong}")


def row(prompt: str, answer: str) -> Problem:
    return Problem(problem_id(prompt, answer), "math", prompt, answer, "integer", "math", source="s", source_id=prompt)


ADD, TAKE, EASY = row("What is 2 + 3?", "5"), row("What is 9 - 2?", "7"), row("What is 1 + 1?", "2")
SAID = {
    ADD.prompt: ["2 + 3 \\boxed{5}", "\\boxed{6}", "\\boxed{1}", "so \\boxed{6}"],
    TAKE.prompt: ["\\boxed{7}", "\\boxed{1}", "no idea", "\\boxed{7}"],
    EASY.prompt: ["\\boxed{2}"] * 4,
    f"{ADD.prompt} Right: 2 + 3 \\boxed{{5}} Wrong: \\boxed{{6}}": ["Count on from 2: \\boxed{5}"],
    f"{TAKE.prompt} Right: \\boxed{{7}} Wrong: \\boxed{{1}}": ["\\boxed{8}"],
}


def answer(number: int, said: str | None, right: bool = False) -> Answer:
    outcome = Outcome.CORRECT if right else Outcome.UNPARSABLE if said is None else Outcome.WRONG
    return Answer(number, [number], [], "stop", f"text {number}", Verdict(outcome, float(right), said, ""))


def test_the_first_right_answer_and_the_most_common_wrong_one():
    """The worked case: answers [7, 5, 5, 7] of which 7 is right; all right gives none."""
    worked = [answer(0, "7", True), answer(1, "5"), answer(2, "5"), answer(3, "7", True)]
    assert [each.number for each in contrast(worked, (1,)) or ()] == [0, 1]
    assert contrast([each for each in worked if each.verdict.correct], (1,)) is contrast(worked[1:3], (1,)) is None
    assert contrast([worked[0], answer(1, None)], (1,)) is None, "what cannot be read has no common mistake"
    common = [answer(0, "1"), answer(1, "5"), answer(2, "7", True), answer(3, "5")]
    assert [each.number for each in contrast(common, (1,)) or ()] == [2, 1]
    apart = [answer(0, "7", True), answer(1, "1"), answer(2, "2"), answer(3, "3")]
    drawn = Counter((contrast(apart, (key,)) or apart)[1].number for key in range(60))
    assert set(drawn) == {1, 2, 3} and contrast(apart, (4,)) == contrast(apart, (4,)), "all differ: one by hash"


def test_what_is_shown_is_never_read_for_a_name():
    told = hinted(ADD, replace(answer(0, "5", True), text="{wrong} {problem}"), replace(answer(1, "6"), text="W"), SHORT)
    assert told.prompt == f"{ADD.prompt} Right: {{wrong}} {{problem}} Wrong: W" and told.answer == ADD.answer
    with pytest.raises(ValueError, match=r"must hold \{wrong\}"):
        ExplainSettings(instruction="{problem} {right}")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer([*SAID, *(text for said in SAID.values() for text in said)], 300)
    for seed, name in enumerate(("sft", "other")):
        policy = tiny_model(TINY, tokenizer, seed)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(8 if weight.ndim == 2 else 1)  # so that what stands in the prompt matters
        save_policy(tmp_path / paths.model(name), policy, tokenizer)
    (tmp_path / "script.json").write_text(json.dumps(SAID))
    write_problems(tmp_path / paths.rows("curation/rl"), [ADD, TAKE, EASY])
    return tmp_path


def context(root: Path, name: str, settings: object) -> Context:
    return Context(name, root, 1, settings, root / paths.WORK / name, Journal(root / paths.WORK / name / "journal.jsonl", name))


def sampled(root: Path, **outputs: object) -> tuple[dict[str, float], list[dict]]:
    scripted = {"engine": "scripted", "script": str(root / "script.json"), "max_new_tokens": 96}
    settings = SampleStage.model_validate({"init": "sft", "data": "curation/rl", "samples": 4, "generation": scripted, "outputs": outputs})
    made = sample.run(context(root, "explained", settings))
    return made, pq.read_table(root / paths.rows("explained/outputs")).to_pylist()


def plain(root: Path, name: str, prompt: str, tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    policy, tokenizer = load_policy(root / paths.model(name))
    ids = prompting.prompt_ids(tokenizer, replace(ADD, prompt=prompt))
    with torch.no_grad():
        return torch.log_softmax(policy(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1] / temperature, -1)


def test_right_answers_with_what_another_model_holds_of_them(project: Path):
    made, rows = sampled(project, topk=5, by="other", temperature=2.0)
    assert made["outputs"] == len(rows) == 3, "different right answers: one each of the sum, of what is taken and of the easy one"
    assert {(each["problem_id"], each["response"]) for each in rows} == {(ADD.problem_id, "2 + 3 \\boxed{5}"), (TAKE.problem_id, "\\boxed{7}"), (EASY.problem_id, "\\boxed{2}")}
    for each, of in ((each, of) for each in rows for of in (ADD, TAKE, EASY) if each["problem_id"] == of.problem_id):
        expected = plain(project, "other", of.prompt, each["tokens"], 2.0).topk(5, -1)
        assert each["topk"] == expected.indices.tolist() and each["temperature"] == 2.0
        torch.testing.assert_close(torch.tensor(each["logp"]), expected.values, atol=1e-4, rtol=0)
    other = train_tokenizer(["other words"], 300)
    save_policy(project / paths.model("other"), tiny_model(TINY, other, 1), other)
    with pytest.raises(UserError, match="explained: outputs.by: the tokenizer of other is another than that of sft"):
        sampled(project, by="other")


def test_semantic_soft_bootstrapping_from_answers_to_the_student(project: Path):
    """The sum was answered with 5, 6, 1, 6 and explained rightly; the explanation of what is taken is wrong, and the easy one was never missed."""
    made, (kept,) = sampled(project, topk=400, explain=SHORT.model_dump())
    assert (made["outputs"], made["explanation_not_right"], made["without_contrast"], made["hint_too_long"]) == (1, 1, 1, 0)
    assert kept["problem_id"] == ADD.problem_id and kept["response"] == "Count on from 2: \\boxed{5}"
    taught = plain(project, "sft", f"{ADD.prompt} Right: 2 + 3 \\boxed{{5}} Wrong: \\boxed{{6}}", kept["tokens"])
    assert len(kept["topk"][0]) == taught.shape[1], "at most the vocabulary"
    stored = torch.zeros_like(taught).scatter(-1, torch.tensor(kept["topk"]), torch.tensor(kept["logp"]))
    torch.testing.assert_close(stored, taught, atol=1e-4, rtol=0)
    assert {each.problem_id for each in read_problems(project / paths.rows("explained"))} == {ADD.problem_id, TAKE.problem_id, EASY.problem_id}

    given = {"init": "sft", "data": "curation/rl", "stored": "explained/outputs", "recipe": "ssb", "steps": 30, "prompts_per_step": 1, "optimiser": {"lr": 1e-2}}
    distil.run(context(project, "student", DistilStage.model_validate(given)))
    losses = [json.loads(line)["loss"] for line in (project / paths.WORK / "student" / "journal.jsonl").read_text().splitlines()]
    before, after = (plain(project, name, ADD.prompt, kept["tokens"]) for name in ("sft", "student"))
    kl = [float((logp.exp() * (logp - taught)).sum(-1).mean()) for logp in (before, after)]
    assert losses[0] == pytest.approx(kl[0], abs=1e-4), "KL(student || teacher) on the bare question, the mean over the tokens of the explanation"
    assert kl[1] < 0.5 * kl[0]
    warm = given | {"generation": {"temperature": 2.0}}
    with pytest.raises(UserError, match="explained/outputs:1: temperature: the log-probabilities are of temperature 1.0, and generation.temperature is 2"):
        distil.run(context(project, "warm", DistilStage.model_validate(warm)))


def test_nothing_to_explain_is_said(project: Path):
    write_problems(project / paths.rows("curation/rl"), [EASY])
    with pytest.raises(UserError, match="explained: there are no outputs to write: 1 without_contrast"):
        sampled(project, explain={})
    assert not (project / paths.rows("explained/outputs")).exists() and not (project / paths.rows("explained")).exists()


def test_the_graph_follows_outputs():
    content = {
        "seed": 1,
        "sources": {"train": {"a": {"kind": "arithmetic", "count": 9}}, "benchmarks": {"b": {"kind": "arithmetic", "count": 2}}},
        "stages": {
            "explained": {"kind": "sample", "init": "base", "data": "curation/rl", "outputs": {"explain": {}}},
            "student": {"kind": "distil", "init": "base", "data": "curation/rl", "stored": "explained/outputs", "recipe": "ssb"},
        },
        "evaluation": {"gate": {"candidate": "student", "against": "base", "improve": ["b"]}},
    }
    stages = graph.graph(Params.model_validate(content))
    assert paths.rows("explained/outputs") in stages["student"].reads and stages["explained"].feeds(stages["student"])
    del content["stages"]["explained"]["outputs"]
    with pytest.raises(ValueError, match="stored: 'explained/outputs' names no outputs; give a stage of kind sample `outputs`"):
        Params.model_validate(content)
    content["stages"]["explained"]["outputs"] = {"by": "nobody"}
    with pytest.raises(ValueError, match="stages.explained.outputs.by: 'nobody' names no model"):
        Params.model_validate(content)
