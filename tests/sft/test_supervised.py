"""The supervised loop on real tiny models: what the loss counts, that it learns, that it resumes exactly."""

from pathlib import Path

import pytest
import torch
from killing import Killed, die_after

from pipelines.config.common import OptimiserSettings
from pipelines.config.sources import ArithmeticSource, FunctionsSource
from pipelines.config.training import ArchitectureSettings, LanguageModellingSettings
from pipelines.errors import UserError
from pipelines.models.checkpoints import Checkpoints
from pipelines.models.optimisation import Muon, make_optimiser, orthogonal, schedule
from pipelines.models.scoring import chosen, entropy_detached, pad, token_scores
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.sft import train as loop
from pipelines.sft.examples import Example, batches, chat_examples, corpus_examples, document
from pipelines.sources.arithmetic import problems as arithmetic
from pipelines.sources.functions import problems as functions

PROBLEMS = [
    *arithmetic(ArithmeticSource(kind="arithmetic", count=120), 1, "a", Path()),
    *functions(FunctionsSource(kind="functions", count=60), 1, "f", Path()),
]
TOKENIZER = train_tokenizer([document(p) for p in PROBLEMS], 400)
TINY = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=256)


def test_the_loss_counts_the_response_only():
    examples, left_out = chat_examples(TOKENIZER, PROBLEMS, 256)
    assert (len(examples), left_out) == (180, 0)
    for example, problem in zip(examples, PROBLEMS, strict=True):
        prompt, response = TOKENIZER.decode(example.ids[: example.spans[0][0]]), TOKENIZER.decode(example.ids[example.spans[0][0] :])
        assert prompt == f"<|user|>{problem.prompt}<|end|><|assistant|>"
        assert response.startswith("<think>") and response.endswith("<|end|>")
        assert problem.answer in response
    assert chat_examples(TOKENIZER, PROBLEMS, 5) == ([], 180)


def test_token_log_probabilities_match_the_plain_forward_pass():
    model = tiny_model(TINY, TOKENIZER, 1)
    rows = [[5, 6, 7, 8, 9], [9, 8, 7]]
    ids = pad(rows)
    score = torch.tensor([[False, False, True, True, True], [False, True, True, False, False]])
    with torch.no_grad():
        scores = token_scores(model, ids, score, {"logp": chosen, "entropy": entropy_detached}, temperature=0.7)
        hot = token_scores(model, ids, score, {"logp": chosen}, temperature=torch.tensor([0.7, 1.4]))["logp"]
    logp, entropy = scores["logp"], scores["entropy"]
    torch.testing.assert_close(hot[0], logp[0])  # a temperature a row
    assert not torch.allclose(hot[1], logp[1])
    for row, tokens in enumerate(rows):
        reference = torch.log_softmax(model(torch.tensor([tokens])).logits[0].detach() / 0.7, -1)
        for t in range(ids.shape[1]):
            if score[row, t]:
                assert float(logp[row, t]) == pytest.approx(float(reference[t - 1, tokens[t]]), abs=1e-5)
                assert float(entropy[row, t]) == pytest.approx(float(-(reference[t - 1].exp() * reference[t - 1]).sum()), abs=1e-4)
            else:
                assert float(logp[row, t]) == 0.0


def test_chunked_scores_have_the_same_value_and_gradient(monkeypatch):
    model = tiny_model(TINY, TOKENIZER, 1)
    ids = pad([[5, 6, 7, 8, 9, 10], [9, 8, 7, 6]])
    score = ids > 0
    score[:, 0] = False

    def run():
        model.zero_grad()
        scores = token_scores(model, ids, score, {"logp": chosen, "entropy": entropy_detached})
        scores["logp"].sum().backward()
        return scores["logp"].detach(), scores["entropy"], [p.grad.clone() for p in model.parameters()]

    whole = run()
    monkeypatch.setattr("pipelines.models.scoring.CHUNK", 3 * len(TOKENIZER))
    torch.testing.assert_close(run(), whole)


def test_micro_batches_change_neither_loss_nor_gradient():
    examples, _ = corpus_examples(TOKENIZER, PROBLEMS[:10], 256)

    def seen(size):
        model = tiny_model(TINY, TOKENIZER, 1)
        loss = loop.gradients(model, examples, LanguageModellingSettings(**size))
        return loss, torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, gradient = seen({"micro_batch": 10})
    for size in ({"micro_batch": 1}, {"micro_batch": 3}, {"micro_tokens": 100}):
        loss, found = seen(size)
        assert loss == pytest.approx(whole, rel=1e-6)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)


def test_every_example_once_per_epoch_in_an_order_of_its_own():
    examples = [Example.after(list(range(n % 17 + 2)), 1) for n in range(333)]
    first, again, second = ([id(e) for b in batches(examples, 16, 1, "p", epoch) for e in b] for epoch in (0, 0, 1))
    assert sorted(first) == sorted(map(id, examples))
    assert first == again != second


def test_a_batch_holds_short_and_long_examples_shortest_first():
    examples = [Example.after(list(range(n + 2)), 1) for n in range(320)]
    lengths = [[len(e.ids) for e in batch] for batch in batches(examples, 32, 1, "p", 0)]
    assert all(batch == sorted(batch) and batch[0] < 100 and batch[-1] > 220 for batch in lengths)


def test_the_schedule_warms_up_and_falls():
    cosine = OptimiserSettings(lr=1.0, warmup=0.1, final_share=0.2)
    rates = [schedule(cosine, step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[-1] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(0.6)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert schedule(cosine.model_copy(update={"schedule": "constant"}), 100, 100) == 1.0


def test_orthogonal_updates_have_even_singular_values():
    matrices = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0))
    for x in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonal(x))
        assert values.min() > 0.5 and values.max() < 1.3


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = tiny_model(TINY, TOKENIZER, 1)
    settings = OptimiserSettings(name="muon", lr=1e-3, muon_lr=0.02, weight_decay=0.0)
    optimiser = make_optimiser(model, settings)
    assert isinstance(optimiser, Muon)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    examples, _ = corpus_examples(TOKENIZER, PROBLEMS[:8], 256)
    loop.gradients(model, examples, LanguageModellingSettings())
    loop.update(model, optimiser, 1.0, 1.0, 1.0, Path)
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for name, delta in moved.items():
        if delta.ndim == 2 and "embed" not in name:
            assert 0.5 * 0.02 < float(torch.linalg.matrix_norm(delta, 2)) < 1.3 * 0.02 * max(1, delta.shape[0] / delta.shape[1]) ** 0.5
        else:  # Adam's first step is the sign of the gradient times the rate, where there is one
            assert float(delta.abs().max()) == pytest.approx(1e-3, rel=0.02)


def train(folder: Path, stop_at: int | None = None, model=None, **changes):
    """One run; with `stop_at` it dies there, as a killed process would."""
    model = model or tiny_model(TINY, TOKENIZER, 1)
    examples, _ = corpus_examples(TOKENIZER, PROBLEMS, 256)
    muon = OptimiserSettings(name="muon", lr=3e-3)
    settings = LanguageModellingSettings(**{"epochs": 2.5, "batch_size": 16, "checkpoint_every": 4, "optimiser": muon, **changes})
    journal = Journal(folder / "journal.jsonl", "test")
    checkpoints = Checkpoints(folder, {"settings": 1})
    checkpoints.prepare()

    if stop_at:
        die_after(journal, stop_at)
        with pytest.raises(Killed):
            loop.train(model, examples, settings, seed=1, purpose="t", journal=journal, checkpoints=checkpoints)
    else:
        loop.train(model, examples, settings, seed=1, purpose="t", journal=journal, checkpoints=checkpoints)
    rows = [(row["step"], row["loss"]) for row in journal.rows()]
    return rows, model.state_dict()


def test_training_learns_and_a_killed_run_resumes_to_the_same_weights(tmp_path):
    rows, weights = train(tmp_path / "whole")
    assert rows[-1][1] < rows[0][1] - 1.0
    train(tmp_path / "cut", stop_at=10)
    resumed_rows, resumed = train(tmp_path / "cut")
    assert resumed_rows == rows
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_slow_steps_are_kept_by_the_clock(tmp_path, capsys):
    """Killed long before `checkpoint_every`, it goes on from the last step all the same."""
    rows, weights = train(tmp_path / "whole")
    often = {"checkpoint_every": 1000, "checkpoint_minutes": 1e-9}
    train(tmp_path / "cut", stop_at=3, **often)
    capsys.readouterr()
    resumed_rows, resumed = train(tmp_path / "cut", **often)
    assert "resuming after step 2 of" in capsys.readouterr().out
    assert resumed_rows == rows and all(torch.equal(weights[name], resumed[name]) for name in weights)


@pytest.mark.parametrize(("factor", "said"), [(torch.nan, "norm of its gradient nan"), (torch.inf, "norm of its gradient (inf|nan)")])
def test_a_gradient_that_is_not_finite_stops_it_before_the_weights(tmp_path, factor, said):
    model = tiny_model(TINY, TOKENIZER, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * factor)
    with pytest.raises(UserError, match=f"{said}, which must be finite: no weight was changed, and the batch is kept in .*not-finite-00000001.pt"):
        train(tmp_path, model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = torch.load(tmp_path / "not-finite-00000001.pt")
    assert len(kept["ids"]) == len(kept["spans"]) == 16
    assert train(tmp_path)[0][0][0] == 1, "the next run begins with that step"
