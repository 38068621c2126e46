"""Pretraining with preferences (arXiv 2302.08582): documents whose sentences have scores, by control tokens and by the other objectives."""

import copy
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from bigrams import Bigrams
from killing import Killed, die_after
from test_supervised import PROBLEMS, TINY, TOKENIZER

from pipelines import paths
from pipelines.config.common import GenerationSettings
from pipelines.config.training import ALIGNED, MISALIGNED, LanguageModellingSettings, PretrainStage, ScoredSettings
from pipelines.errors import UserError
from pipelines.generation import Request, VllmGenerator
from pipelines.generation.responses import Responses
from pipelines.generation.torch_engine import TorchGenerator
from pipelines.generation.vllm_engine import Answer
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.value_head import add_value_head
from pipelines.progress import Journal
from pipelines.sft import scored
from pipelines.sft import train as loop
from pipelines.stages import Context, pretrain
from pipelines.store import write_problems

GOOD, BAD = "A thief is caught. ", "A thief gets away. "
ROWS = [{"texts": [GOOD, BAD] * 2, "scores": [0.1, 0.9, 0.2, 0.8]}, {"texts": [BAD, GOOD], "scores": [0.7, 0.3]}, {"texts": [GOOD], "scores": [0.4]}]
SETTINGS = LanguageModellingSettings()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    save_policy(tmp_path / paths.BASE, tiny_model(TINY, TOKENIZER, 1), TOKENIZER)
    write_problems(tmp_path / paths.rows("curation/base"), PROBLEMS[:4])
    written(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stage(root: Path, by: str | None, name: str = "more", data: object = "rows.jsonl", train: Mapping[str, object] = {}, **settings: object) -> Context:
    train = {"epochs": 8, "batch_size": 2, "max_tokens": 64, "checkpoint_every": 2, "optimiser": {"lr": 1e-2, "warmup": 0}, **train}
    given = {"init": "base", "data": data, "train": train, "scored": {"by": by, **settings} if by else None}
    return Context(name, root, 1, PretrainStage.model_validate(given), root / name, Journal(root / name / "j.jsonl", name, io.StringIO()))


def weights(root: Path, name: str = "more") -> dict[str, torch.Tensor]:
    return load_policy(root / paths.model(name), chat=False)[0].state_dict()


def worked(by: str, logp: list[float], scores: list[float], values: list[float] | None = None, **settings: object) -> tuple[float, Bigrams]:
    """The loss of three tokens after a first, whose log-probabilities and scores are given."""
    documents = [scored.Document("d", ["x"] * len(scores), scores)]
    corpus = scored.Corpus(TOKENIZER, documents, ScoredSettings(by=by, threshold=0.00078), 99, (1,))
    _, objective = scored.METHODS[by](corpus, **settings)
    model = Bigrams(9, {place: {place + 1: value} for place, value in enumerate(logp)})
    if values:
        add_value_head(model)
        model.value_head.weight.data[0, : len(values)] = torch.tensor(values)
    example = scored.Scored(list(range(len(logp) + 1)), [0.0, *scores], "d")
    return loop.gradients(model, [example], SETTINGS, objective), model


def test_worked_losses() -> None:
    assert worked("unlikelihood", [-0.5, -1, -0.2], [0.0001, 0.002, 0.0005])[0] == pytest.approx(0.386225, abs=1e-6)
    assert worked("unlikelihood", [-1], [0.002])[0] == pytest.approx(0.458675, abs=1e-6)
    assert worked("unlikelihood", [-1], [0.002], alpha=0.5)[0] == pytest.approx(0.458675 / 2, abs=1e-6)
    assert worked("rwr", [-0.5, -1, -0.2], [0.1, 2, 0.5])[0] == pytest.approx(0.501334, abs=1e-6)
    assert worked("rwr", [-0.5], [-1e6])[0] == pytest.approx(500), "a weight is 1000 at most"
    loss, model = worked("awr", [-0.5, -1, -0.2], [0.1, 2, 0.5], [-0.5, -1, -0.4])
    assert loss == pytest.approx(0.465542, abs=1e-6)
    assert worked("awr", [-0.5, -1, -0.2], [0.1, 2, 0.5], [-0.5, -1, -0.4], alpha=1.0)[0] == pytest.approx(0.541084, abs=1e-6)
    assert worked("awr", [-0.5, -1, -0.2], [0.1, 2, 0.5], [-0.5, -1, -0.4], alpha=0.0)[0] == pytest.approx(0.39, abs=1e-6)
    missed = [-0.1 + 0.5, -2 + 1, -0.5 + 0.4]  # the policy's weight is a constant: only the square moves the head, and half of it counts
    assert model.value_head.weight.grad[0, :3].tolist() == pytest.approx([-each / 3 for each in missed], abs=1e-6)


def test_micro_batches_and_what_idles_change_no_loss() -> None:
    corpus = scored.Corpus(TOKENIZER, _documents(ScoredSettings()), ScoredSettings(), 12, (1,))
    for by in ("unlikelihood", "rwr", "awr"):
        examples, objective = scored.METHODS[by](corpus)
        seen = []
        for size in (99, 1):
            model = tiny_model(TINY, TOKENIZER, 1)
            add_value_head(model)
            loss = loop.gradients(model, examples, LanguageModellingSettings(micro_batch=size), objective)
            seen.append((loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
            assert float(objective.loss(model, [objective.idle]).detach()) == 0.0
        assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-5)
        torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-3, atol=1e-6)


def _documents(settings: ScoredSettings) -> list[scored.Document]:
    return [scored._document(row, settings) for row in ROWS]


def conditioned(**settings: object) -> list[str]:
    """The documents as conditional training sees them."""
    tokenizer = load_tokenizer_with_controls()
    chosen = ScoredSettings.model_validate({key: value for key, value in settings.items() if key != "drop"})
    corpus = scored.Corpus(tokenizer, _documents(chosen), chosen, 99, (1,))
    examples, _ = scored.conditional(corpus, drop=settings.get("drop", 0.0))
    return [tokenizer.decode(example.ids) for example in examples]


def load_tokenizer_with_controls():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens([ALIGNED, MISALIGNED], special_tokens=True)
    return tokenizer


def test_a_control_token_stands_before_each_sentence() -> None:
    good, bad = ALIGNED + GOOD, MISALIGNED + BAD
    half = conditioned()  # the median of .1 .2 .3 .4 .7 .8 .9 is .4
    assert half == [good + bad + good + bad + "<|end|>", bad + good + "<|end|>", good + "<|end|>"]
    assert conditioned(threshold=0.15)[0] == good + bad + MISALIGNED + GOOD + bad + "<|end|>"
    assert conditioned(better="higher", threshold=0.9)[0] == MISALIGNED + GOOD + ALIGNED + BAD + MISALIGNED + GOOD + MISALIGNED + BAD + "<|end|>"
    assert conditioned(better="higher", threshold=0.75)[1:] == [MISALIGNED + BAD + MISALIGNED + GOOD + "<|end|>", MISALIGNED + GOOD + "<|end|>"]
    assert conditioned(drop=1.0)[2] == GOOD + "<|end|>"


def test_documents_of_a_bad_mean_are_left_out() -> None:
    def left(**settings: object) -> list[str]:
        chosen = ScoredSettings.model_validate(settings)
        examples, _ = scored.filtering(scored.Corpus(TOKENIZER, _documents(chosen), chosen, 99, (1,)))
        return [TOKENIZER.decode(example.ids) for example in examples]

    assert len(left()) == 3, "means .5, .5 and .4, whose median is .5"
    assert left(quantile=0.0) == left(threshold=0.45) == [GOOD + "<|end|>"]


def test_conditional_training_gives_a_model_that_is_told_what_to_say_and_never_says_the_tokens(project: Path) -> None:
    summary = pretrain.run(stage(project, "conditional", data=["rows.jsonl", "curation/base"], train={"epochs": 60}))
    assert summary["examples"] == 3 + 4
    model, tokenizer = load_policy(project / paths.model("more"))
    controls = tokenizer.convert_tokens_to_ids([ALIGNED, MISALIGNED])
    assert model.generation_config.suppress_tokens == sorted(controls) and len(tokenizer) == len(TOKENIZER) + 2
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer)

    def says(token: int, begin: str) -> float:
        ids = torch.tensor([[token, *TOKENIZER("A thief")["input_ids"]]])
        with torch.no_grad():
            return float(torch.softmax(model(ids).logits[0, -1], -1)[TOKENIZER(begin)["input_ids"][0]])

    assert says(controls[0], " is") > 0.9 and says(controls[1], " gets") > 0.9
    generator = TorchGenerator(model, tokenizer, GenerationSettings(max_new_tokens=24))
    samples = generator.generate([Request((controls[0],), 16, ("a",))])[0]
    assert samples and not set(controls) & {token for sample in samples for token in sample.token_ids}
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([[*TOKENIZER(GOOD)["input_ids"]]])).logits[0, -1], -1)
    assert float(probabilities[controls].sum()) > 0.2, "it would say them"
    assert json.loads((project / paths.model("more") / "generation_config.json").read_text())["suppress_tokens"] == sorted(controls)


class Heard:
    """A vLLM that answers every prompt with token 5, and keeps what it was asked."""

    context = 64

    def __init__(self) -> None:
        self.sampling: Sequence[dict[str, Any]] = []

    def answer(self, prompts: Sequence[tuple[int, ...]], sampling: Sequence[dict[str, Any]], _: object) -> list[Answer]:
        self.sampling = sampling
        return [Answer([5], [-0.1], "stop", (self.label,)) for _ in prompts]

    def relabel(self, label: str) -> None:
        self.label = label

    def update(self, folder: Path, label: str) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("banned", [[], [7, 8]])
def test_vllm_is_told_what_it_must_not_say(banned: list[int]) -> None:
    heard, config = Heard(), SimpleNamespace(eos_token_id=1, suppress_tokens=banned or None)
    generator = VllmGenerator(heard, Responses.of(TOKENIZER, config, GenerationSettings(max_new_tokens=4)))
    generator.generate([Request((3, 4), 2, ("a",))])
    assert [asked.get("logit_bias") for asked in heard.sampling] == [dict.fromkeys(banned, -100.0) or None] * 2


def test_the_goal_is_asked_as_aligned(project: Path) -> None:
    goal = {"solved": {"math": 0.0}, "problems": 1, "rounds": 1}
    context = stage(project, "conditional", data=["rows.jsonl", "curation/base"], train={"goal": goal})
    tokenizer = load_tokenizer_with_controls()
    read = pretrain._read(context, tokenizer, 64)
    assert tokenizer.decode(read.prompts[0]) == f"{read.to_solve[0].prompt}\n{ALIGNED}"


@pytest.mark.parametrize("by", ["conditional", "awr"])
def test_killed_and_resumed_it_is_the_same(project: Path, by: str) -> None:
    held = {"held_out": {"problems": 1, "every": 3, "keep": "last"}}
    other = Path(shutil.copytree(project, project / "other"))
    whole = pretrain.run(stage(project, by, train=held))
    cut = stage(other, by, train=held)
    die_after(cut.journal, 5)
    with pytest.raises(Killed):
        pretrain.run(cut)
    assert pretrain.run(stage(other, by, train=held)) == whole
    before, after = weights(project), weights(other)
    assert all(torch.equal(before[name], after[name]) for name in before) and "value_head.weight" not in after


def of_two(rank: int, root: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
    one = stage(Path(root), "awr")
    pretrain.run(one if not rank else replace(one, first=False, journal=Journal(Path(root) / "second.jsonl", "more", io.StringIO())))
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_and_a_value_head_do_what_one_does(project: Path) -> None:
    other = Path(shutil.copytree(project, project / "other"))
    processes.spawn(of_two, (str(other),), nprocs=2)
    pretrain.run(stage(project, "awr"))
    losses = [[row["loss"] for row in Journal(root / "more" / "j.jsonl", "more").rows() if "loss" in row] for root in (project, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    after = weights(other)
    assert all(torch.allclose(value, after[name], atol=1e-3) for name, value in weights(project).items())


def test_without_scores_the_sentences_are_plain_text(project: Path) -> None:
    assert pretrain.run(stage(project, None))["examples"] == 3
    for by, examples in (("filtering", 3), ("unlikelihood", 3), ("rwr", 3)):
        assert pretrain.run(stage(project, by, by))["examples"] == examples
    assert len({weights(project, name)["model.norm.weight"].sum().item() for name in ("more", "unlikelihood", "rwr")}) == 3


def test_what_is_wrong_is_one_sentence(project: Path, tmp_path: Path) -> None:
    written(project / "plain.jsonl", [{"text": "one"}])
    for change, said in (
        ({"by": "rwr", "data": ["rows.jsonl", "plain.jsonl"]}, r"more: scored\.by rwr needs scores of all that trains, and plain\.jsonl has none"),
        ({"by": "conditional", "data": "plain.jsonl"}, "more: scored: no file of data has rows with texts and scores"),
        ({"by": "rwr", "settings": {"alpha": 1.0}}, "scored.by 'rwr': unknown setting 'alpha'"),
    ):
        with pytest.raises(UserError, match=said):
            pretrain.run(stage(project, **change))
    for row, said in (
        ({"texts": [], "scores": []}, "texts: expected sentences, none of them empty"), ({"texts": ["a"], "scores": [1, 2]}, "scores: expected a number"),
        ({"texts": ["a"], "scores": ["1"]}, "scores: expected a number for each of the 1 sentences"),
        ({"texts": ["a"], "scores": [math.nan]}, "scores: expected a number"), ({"texts": ["<|aligned|>"], "scores": [1]}, "texts: holds the control token"),
        ({"texts": ["a"]}, "key 'scores' is missing"),
    ):  # fmt: skip
        written(tmp_path / "bad.jsonl", [ROWS[0], row])
        with pytest.raises(UserError, match=rf"bad\.jsonl:2: {said}"):
            scored.read(tmp_path / "bad.jsonl", ScoredSettings())
