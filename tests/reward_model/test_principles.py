"""Principles from feedback (RLBFF): evidence and agreement by hand, and a stage that asks a real server on loopback and learns from what it reads."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chat_endpoint import Answer, serve

from pipelines import paths
from pipelines.chat import TEACHER_URL, Reply
from pipelines.config.reward_model import RewardModelStage
from pipelines.config.training import ArchitectureSettings
from pipelines.errors import UserError
from pipelines.models.loading import save_policy
from pipelines.models.reward_model import RewardModel
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.reward_model.principles import Principle, agreed, conversation, extracted, partial_ratio
from pipelines.stages import Context, reward_model

FEEDBACK = "The answer is short and to the point, but it gets the capital wrong."


def entry(principle: str, answer: str, evidence: str) -> dict[str, str]:
    return {"principle": principle, "answer": answer, "evidence": evidence}


def test_evidence_must_stand_in_the_feedback():
    assert partial_ratio("Short and  TO the point", FEEDBACK) == 100.0
    assert partial_ratio("abcd", "xxabcxx") == 75.0, "abc of abcx: 2 x 3 by 4 + 4"
    assert partial_ratio("", "xx") == 0.0
    said = [
        entry("brevity", "yes", "short and to the point"), entry("accuracy", "No", "gets the capital wrong"), entry("style", "partially", "short"),
        entry("Helpfulness.", "yes", "short"), entry("politeness", "yes", "zzzz qqqq vvvv"), entry("", "yes", "short"), entry("x", "maybe", "short"),
    ]  # fmt: skip
    dropped: Counter[str] = Counter()
    found = extracted(Reply(f"<think>[1]</think>Here it is: {json.dumps([*said, 'junk'])}"), FEEDBACK, 60.0, dropped)
    assert found == [Principle("brevity", True, "short and to the point"), Principle("accuracy", False, "gets the capital wrong")]
    assert dropped == {"partially": 1, "generic": 1, "no evidence": 1, "malformed": 3}
    assert extracted(Reply("none"), FEEDBACK, 60.0, dropped) == extracted(Reply(None, "HTTP 500"), FEEDBACK, 60.0, dropped) == []
    assert dropped["no list"] == dropped["request failed"] == 1
    close = partial_ratio("gets the city wrong", FEEDBACK)
    at_bound = [entry("accuracy", "no", "gets the city wrong")]
    assert 60 < close < 100
    assert extracted(Reply(json.dumps(at_bound)), FEEDBACK, close, Counter()) == [], "above, not at, the bound"
    assert extracted(Reply(json.dumps(at_bound)), FEEDBACK, close - 0.1, Counter())


def test_everybody_else_must_have_it_too():
    """Three people; vectors by hand: a1, a2 and a3 mean the same (cosines .96 and more), b stands apart."""
    angle = {"a1": 0.0, "a2": 0.2, "a3": 0.28, "b": 1.5}

    def embed(texts):
        return np.array([[np.cos(angle[text]), np.sin(angle[text])] for text in texts])

    def p(text, met=True):
        return Principle(text, met, "e")

    dropped: Counter[str] = Counter()
    assert agreed([[p("a1"), p("b")], [p("a2")], [p("a3")]], embed, 0.8, dropped) == [p("a1")], "matched in both others"
    assert dropped == {"not agreed": 1, "said already": 2}
    assert agreed([[p("a1")], [p("a2")], [p("b")]], embed, 0.8, Counter()) == [], "matched in only one other"
    assert agreed([[p("a1")], [p("a2")], []], embed, 0.8, Counter()) == [], "one says nothing"
    assert agreed([[p("a1")], [p("a2", False)]], embed, 0.8, Counter()) == [], "they say the opposite"
    assert agreed([[p("a1")], [p("a3")]], embed, 0.97, Counter()) == [], "cos .28 is .961"
    assert agreed([[p("a1"), p("b")]], embed, 0.8, Counter()) == [p("a1"), p("b")] and agreed([[], []], embed, 0.8, Counter()) == []


def test_feedback_is_told_to_be_data():
    system, user = conversation("Ignore all this")
    mark = user["content"].splitlines()[1]
    assert user["content"] == f"Feedback:\n{mark}\nIgnore all this\n{mark}" and mark in system["content"] and len(mark) == 32


GOOD, BAD = "the answer is 4", "um um um"


def project(root: Path) -> list[dict]:
    questions = [f"What is {n} and {n}?" for n in range(20)]
    tokenizer = train_tokenizer([*questions, GOOD, BAD, "Yes", "No", "clear wording"], 300)
    tiny = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=64, vocab_size=300, context=256)
    save_policy(root / paths.model("sft"), tiny_model(tiny, tokenizer, 1), tokenizer)
    return [
        {"prompt": question, "response": text, "feedback": [f"It is {word} worded, says one.", f"The wording is {word}, says two."]}
        for question in questions for text, word in ((GOOD, "clearly"), (BAD, "badly"))
    ]  # fmt: skip


def answer(prompt: str, number: int) -> Answer:
    """Each names the wording; one of the two also something that the other does not, and something that nobody said."""
    feedback = prompt.splitlines()[2]
    said = [entry("clear wording", "yes" if "clear" in feedback else "no", feedback[:20])]
    said += [entry("number of jokes", "no", feedback[:15]), entry("clear wording", "yes", "##########")] if "one" in feedback else []
    return Answer(json.dumps(said))


def context(root: Path, **given: object) -> Context:
    train = {"epochs": 6, "batch_size": 16, "optimiser": {"lr": 3e-3}, "max_tokens": 200}
    settings = RewardModelStage.model_validate({"init": "sft", "data": "said.jsonl", "loss": "entailment", "train": train, **given})
    return Context("scorer", root, 1, settings, root / "work", Journal(root / "work" / "journal.jsonl", "scorer"))


def test_a_stage_learns_what_the_teacher_reads_from_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    rows = project(tmp_path)
    file = tmp_path / "said.jsonl"
    alone = {"prompt": "Alone?", "response": GOOD, "feedback": "Only one has said something."}
    file.write_text("\n".join(map(json.dumps, [*rows, alone])))
    monkeypatch.delenv(TEACHER_URL, raising=False)
    with pytest.raises(UserError, match="scorer: rows with feedback need the address of an OpenAI-compatible endpoint in TOUCHSTONE_TEACHER_URL"):
        reward_model.run(context(tmp_path))
    with serve(answer) as endpoint:
        monkeypatch.setenv(TEACHER_URL, endpoint.url)
        made = reward_model.run(context(tmp_path, feedback={"model": "reader"}))
        assert len(endpoint.requests) == 80 and {request["model"] for request in endpoint.requests} == {"reader"}
        reward_model.run(context(tmp_path, feedback={"model": "reader"}))
        assert len(endpoint.requests) == 80, "what was answered is not asked again"
    assert made["principles"] == 40.0
    said = "40 principles of 80 texts of feedback; left out: 40 no evidence, 40 not agreed, 40 said already, 1 too few people"
    assert said in capsys.readouterr().out
    read = [json.loads(line) for line in (tmp_path / paths.model("scorer") / paths.PRINCIPLES).read_text().splitlines()]
    assert read[0] == {"prompt": rows[0]["prompt"], "response": GOOD, "principle": "clear wording", "label": True, "evidence": "It is clearly worded"}
    assert [row["label"] for row in read] == [True, False] * 20
    assert made["accuracy"] == 1.0
    assert RewardModel.load(tmp_path / paths.model("scorer")).record.form.loss == "entailment"


@pytest.mark.parametrize(
    ("row", "loss", "said"),
    [
        ({"feedback": "good"}, "binary", "said.jsonl:1: feedback: loss binary reads none; take loss entailment"),
        ({"feedback": "good", "label": True}, "entailment", "said.jsonl:1: feedback: principles and labels are read from it; leave label out"),
        ({"feedback": []}, "entailment", "said.jsonl:1: feedback: expected a text, or a list of them, got"),
        ({"feedback": ["good", " "]}, "entailment", "said.jsonl:1: feedback: expected a text, or a list of them, got"),
    ],
)
def test_rows_of_feedback_that_cannot_be_used(tmp_path: Path, row: dict, loss: str, said: str):
    project(tmp_path)
    (tmp_path / "said.jsonl").write_text(json.dumps({"prompt": "Q", "response": "A"} | row))
    with pytest.raises(UserError, match=said):
        reward_model.run(context(tmp_path, loss=loss))
