"""DeRTa (arXiv 2407.09121): refusals behind the beginning of an answer that should not be given, and at any of its tokens."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bigrams import Bigrams
from killing import Killed, die_after
from test_sft_stage import context, losses, root, run, same, weights  # noqa: F401
from test_supervised import TOKENIZER

from pipelines import paths, prompting
from pipelines.config.training import LanguageModellingSettings, RefusalSettings
from pipelines.errors import UserError
from pipelines.models.loading import load_policy
from pipelines.sft import refusals
from pipelines.sft import train as loop
from pipelines.sft.examples import Example, weighed
from pipelines.stages import sft

ROWS = [
    {"prompt": f"What is {n} + 3 for a thief?", "chosen": "Sorry, no.", "rejected": f"The thief adds {n} to 3 and finds what he has, all of it."}
    for n in range(9)
]
WORDS = ROWS[0]["rejected"].split()


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(tmp_path: Path, rows: list[dict[str, object]] = ROWS, **settings: float) -> list[Example]:
    read = refusals.read(written(tmp_path / "pairs.jsonl", rows), TOKENIZER)
    return refusals.examples(TOKENIZER, read, RefusalSettings.model_validate(settings), prompting.PLAIN, (1, "s"))


def prefixes(examples: list[Example]) -> list[str]:
    """What stands between the request and the refusal."""
    found = [TOKENIZER.decode(example.ids[: example.spans[0][0]]) for example in examples if example.target is None]
    return [text.partition("<|assistant|>")[2] for text in found]


def test_the_worked_loss() -> None:
    """Mean of the refusal's tokens .3, of the transition 1.380365: together 1.680365, of which a batch that weighs both alike has the half."""
    sorry = 5
    table = {place: {sorry: math.log(p)} for place, p in enumerate([0.1, 0.2, 0.4, 0.5])} | {6: {7: -0.2}, 7: {8: -0.4}}
    transition = Example([0, 1, 2, 3, 4], tuple((at, at + 1, 1.0) for at in (1, 2, 3, 4)), "a", sorry)
    safe = Example.after([6, 7, 8], 1, "a")

    def loss(*examples: Example) -> float:
        return loop.gradients(Bigrams(9, table), examples, LanguageModellingSettings())

    assert loss(transition) == pytest.approx(5.521461 / 4, abs=1e-6) == pytest.approx(1.380365, abs=1e-6)
    assert loss(safe) == pytest.approx(0.3)
    assert 2 * loss(safe, weighed(transition, 0.5)) == pytest.approx(1.680365, abs=1e-6)
    assert loss(safe, transition) == pytest.approx((0.6 + 5.521461) / 6, abs=1e-6), "by tokens, as released"


def test_of_a_hundred_tokens_five_are_drawn() -> None:
    draw = np.random.default_rng(1)
    assert [len(refusals.places(tokens, 0.05, draw)) for tokens in (100, 101, 3)] == [5, 6, 1]
    assert refusals.places(100, 0.0, draw) == []
    drawn = [place for _ in range(400) for place in refusals.places(10, 0.1, draw)]
    assert min(np.bincount(drawn, minlength=10)) > 20


def test_the_refusal_follows_some_words_of_the_answer_or_none(tmp_path: Path) -> None:
    examples = made(tmp_path)
    found = prefixes(examples)
    words = [text.split() for text in found]
    assert [not each for each in words] == [False, False, True] * 3, "every third has none"
    assert all(row["rejected"].startswith(text) and len(each) <= len(WORDS) - 2 for row, text, each in zip(ROWS, found, words, strict=True))
    assert len({len(each) for each in words}) > 2
    for example in examples:
        if example.target is None:
            assert TOKENIZER.decode(example.ids[example.spans[0][0] :]) == "Sorry, no.<|end|>" and example.spans[0][1] == len(example.ids)
    assert prefixes(made(tmp_path, bare_every=1)) == [""] * 9
    short = [{**ROWS[0], "rejected": "Take it."}] * 2
    assert prefixes(made(tmp_path, short)) == ["", ""], "two words have no place for a k in 1 .. words - 2"


def test_the_transition_wants_the_refusals_first_token_inside_the_answer(tmp_path: Path) -> None:
    first = TOKENIZER("Sorry, no.", add_special_tokens=False)["input_ids"][0]
    transitions = [example for example in made(tmp_path, share=0.3) if example.target is not None]
    assert {example.target for example in transitions} == {first} and len(transitions) == 9
    for example in transitions:
        text = TOKENIZER.decode(example.ids)
        answer = len(TOKENIZER(text.partition("<|assistant|>")[0] + "<|assistant|>", add_special_tokens=False)["input_ids"])
        assert all(answer <= begin == end - 1 < len(example.ids) for begin, end, _ in example.spans)
        assert example.scored < math.ceil(0.3 * example.tokens), "some of those that are drawn are the request's"
    assert all(example.target is None for example in made(tmp_path, share=0.0))
    assert made(tmp_path, share=0.3) == made(tmp_path, share=0.3)
    one = [example for example in made(tmp_path, share=0.001) if example.target is not None]
    assert len(one) < 9, "one token that is the request's makes no example"


def test_a_stage_mixes_them_with_helpful_rows(root: Path) -> None:  # noqa: F811
    """40 worked solutions, a prefix row and a transition of each of 9 pairs; after training the refusal is likely inside the answer."""
    stage = {"data": ["curation/sft", "pairs.jsonl"], "refusals": {"share": 0.3}, "train": {"epochs": 6}}
    for name in ("derta", "derta-cut"):
        context(root, name, **stage)
        written(root / name / "pairs.jsonl", ROWS)
    assert run(root, "derta", **stage)["examples"] == 40 + 9 + 9
    seen = pq.read_table(root / "derta" / paths.seen("sft")).to_pylist()
    assert len({row["problem_id"] for row in seen if row["data"] == "pairs.jsonl"}) == 9
    asked, begun = prompting.turns_ids(TOKENIZER, [{"role": "user", "content": ROWS[0]["prompt"]}]), TOKENIZER("The thief adds")["input_ids"]
    first = TOKENIZER("Sorry", add_special_tokens=False)["input_ids"][0]
    likely = []
    for model in (paths.BASE, paths.MODELS / "sft"):
        with torch.no_grad():
            logits = load_policy(root / "derta" / model)[0](torch.tensor([[*asked, *begun]])).logits[0, -1]
        likely.append(float(torch.softmax(logits, -1)[first]))
    assert likely[0] < 0.05 and likely[1] > 0.3
    cut = context(root, "derta-cut", **stage)
    die_after(cut.journal, 7)
    with pytest.raises(Killed):
        sft.run(cut)
    run(root, "derta-cut", **stage)
    assert losses(root, "derta-cut") == losses(root, "derta") and same(weights(root, "derta-cut"), weights(root, "derta"))


def test_what_is_wrong_is_one_sentence(root: Path, tmp_path: Path) -> None:  # noqa: F811
    context(root, "pairs")
    written(root / "pairs" / "pairs.jsonl", ROWS)
    with pytest.raises(UserError, match="sft: data: pairs.jsonl holds pairs: say `refusals: {}` where they are such, or train on them by kind prefe"):
        run(root, "pairs", data=["pairs.jsonl"])
    with pytest.raises(UserError, match=r"sft: data: pairs\.jsonl holds pairs, which take neither where nor share"):
        run(root, "pairs", data={"pairs.jsonl": {"share": 1.0}}, refusals={})
    for wrong, said in (
        ({"chosen": 3}, "chosen: expected a text, got 3"), ({"rejected": " "}, "rejected: expected a text, got ' '"),
        ({"prompt": None}, "key 'prompt' is null"), ({"rejected": "yes<|end|>"}, "rejected: holds <|end|>, which frames turns"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"pairs\.jsonl:2: {re.escape(said)}"):
            made(tmp_path, [ROWS[0], ROWS[1] | wrong])
