"""The torch engine against the model's own forward pass, on real tiny models."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipelines.config.common import GenerationSettings
from pipelines.config.sources import ArithmeticSource
from pipelines.config.training import ArchitectureSettings, LoraSettings
from pipelines.errors import UserError
from pipelines.generation import Request, TorchGenerator, respond
from pipelines.generation.torch_engine import pick
from pipelines.models import precision
from pipelines.models.adapters import add_adapters, plain_weights
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.sft.examples import document
from pipelines.sources.arithmetic import problems as arithmetic

PROBLEMS = list(arithmetic(ArithmeticSource(kind="arithmetic", count=40), 1, "test", Path()))
TOKENIZER = train_tokenizer([document(p) for p in PROBLEMS], 330)


def model(family="llama", scale=8.0):
    made = tiny_model(ArchitectureSettings(family=family, hidden_size=32, layers=2, heads=2, intermediate_size=48, context=256), TOKENIZER, 3).eval()
    with torch.no_grad():  # larger weights: a distribution far from uniform, so that sampling is put to a test
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return made


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_log_probabilities_are_those_of_the_distribution_sampled_from(family, temperature, top_p):
    policy = model(family)
    generator = TorchGenerator(policy, TOKENIZER, GenerationSettings(max_new_tokens=12, temperature=temperature, top_p=top_p))
    for problem, samples in zip(PROBLEMS[:6], respond(generator, PROBLEMS[:6], 3, ("a",)), strict=True):
        prompt = list(respond_prompt(problem))
        for sample in samples:
            with torch.no_grad():
                logits = policy(torch.tensor([prompt + sample.token_ids])).logits[0, len(prompt) - 1 : -1] / temperature
            expected, sure = torch.log_softmax(logits, -1), torch.ones(len(logits), dtype=torch.bool)
            if top_p < 1:
                for place, row in enumerate(expected):
                    order = row.argsort(descending=True)
                    mass = row[order].exp().cumsum(0)
                    row[order[1:][mass[:-1] >= top_p]] = -torch.inf
                    sure[place] = (mass - top_p).abs().min() > 1e-5  # else rounding decides whether one token more is in
                assert sure.float().mean() > 0.8
                expected = torch.log_softmax(expected, -1)
            wanted = expected[torch.arange(len(sample.token_ids)), torch.tensor(sample.token_ids)]
            torch.testing.assert_close(torch.tensor(sample.logp)[sure], wanted[sure], atol=2e-5, rtol=0)


def respond_prompt(problem):
    from pipelines.prompting import prompt_ids

    return prompt_ids(TOKENIZER, problem)


def test_a_sample_depends_on_its_key_alone():
    generator = TorchGenerator(model(), TOKENIZER, GenerationSettings(max_new_tokens=16))
    small = TorchGenerator(model(), TOKENIZER, GenerationSettings(max_new_tokens=16, batch_size=3))
    everyone = respond(generator, PROBLEMS[:8], 4, ("seed", 1))
    alone = respond(generator, PROBLEMS[5:6], 4, ("seed", 1))
    backwards = respond(small, PROBLEMS[:8][::-1], 4, ("seed", 1))[::-1]
    other = respond(generator, PROBLEMS[:8], 4, ("seed", 2))
    ids = [[s.token_ids for s in samples] for samples in everyone]
    assert [s.token_ids for s in alone[0]] == ids[5]
    assert [[s.token_ids for s in samples] for samples in backwards] == ids
    assert [[s.token_ids for s in samples] for samples in other] != ids
    later = respond(generator, PROBLEMS[:8], 2, ("seed", 1), first=2)
    assert [[s.token_ids for s in samples] for samples in later] == [samples[2:] for samples in ids]


def test_greedy_decoding_agrees_with_the_library():
    policy = model()
    generator = TorchGenerator(policy, TOKENIZER, GenerationSettings(max_new_tokens=20, temperature=0.0))
    for problem, (sample,) in zip(PROBLEMS[:5], respond(generator, PROBLEMS[:5], 1, ("x",)), strict=True):
        prompt = torch.tensor([respond_prompt(problem)])
        reference = policy.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert sample.token_ids == reference


def test_samples_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(40000, 1)
    uniform = torch.rand(40000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen, logp = pick(logits, uniform, 1.0, 1.0)
    share = torch.bincount(chosen, minlength=4) / 40000
    probability = torch.softmax(logits[0], -1)
    assert (share - probability).abs().max() < 4 * (0.25 / 40000) ** 0.5
    torch.testing.assert_close(logp.exp(), probability[chosen])
    nucleus, _ = pick(logits, uniform, 1.0, 0.6)
    assert set(nucleus.tolist()) == {2}


def test_a_uniform_of_nearly_one_still_picks_a_token():
    chosen, _ = pick(torch.zeros(1, 5), torch.tensor([1 - 1e-16], dtype=torch.float64), 1.0, 1.0)
    assert int(chosen) == 4


@pytest.mark.parametrize("size", [300, 512, 1000])
def test_a_large_vocabulary_is_drawn_from_as_one_running_sum_would(size):
    draws = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(2000, size, generator=draws)
    uniform = torch.rand(2000, generator=draws, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1 - 2.0**-53
    chosen, logp = pick(logits, uniform, 1.0, 1.0)
    running = torch.softmax(logits.double(), -1).cumsum(-1)
    expected = torch.searchsorted(running, (uniform * running[:, -1])[:, None], right=True)[:, 0]
    assert (chosen == expected).float().mean() > 0.999  # float32 chances move a limit now and then
    assert len(set((chosen // 256).tolist())) == -(-size // 256)
    torch.testing.assert_close(logp, torch.log_softmax(logits, -1).gather(-1, chosen[:, None])[:, 0])
    last, _ = pick(torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]]), torch.tensor([1 - 2.0**-53], dtype=torch.float64), 1.0, 1.0)
    assert int(last) == 1  # never one without a chance


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_bfloat16_samples_are_those_of_a_copy_that_follows_the_weights(monkeypatch, heads):
    monkeypatch.setattr(precision, "_has_units", lambda kind: True)  # it is emulated here if need be
    architecture = ArchitectureSettings(hidden_size=32, layers=2, heads=4, intermediate_size=48, context=256)
    policy = tiny_model(architecture, TOKENIZER, 3).eval()
    policy = type(policy)(type(policy.config)(**{**policy.config.to_dict(), "num_key_value_heads": heads})).eval()
    settings = GenerationSettings(max_new_tokens=12, precision="bfloat16")
    engine = TorchGenerator(policy, TOKENIZER, settings)

    def furthest() -> float:
        """Largest difference of log-probabilities of what is sampled from those of the policy in float32."""
        away = []
        for problem, samples in zip(PROBLEMS[:6], respond(engine, PROBLEMS[:6], 3, ("a",)), strict=True):
            prompt = list(respond_prompt(problem))
            for sample in samples:
                with torch.no_grad():
                    logits = policy(torch.tensor([prompt + sample.token_ids])).logits[0, len(prompt) - 1 : -1]
                ours = torch.log_softmax(logits, -1)[torch.arange(len(sample.token_ids)), torch.tensor(sample.token_ids)]
                away.append(float((torch.tensor(sample.logp) - ours).abs().max()))
        return max(away)

    assert 0 < furthest() < 0.02
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    assert furthest() > 0.02  # the head is the policy's, the copy is of the weights before
    engine.push(policy, 1)
    assert furthest() < 0.05
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())


def test_bfloat16_samples_of_adapters_are_those_of_the_merged_weights(monkeypatch):
    monkeypatch.setattr(precision, "_has_units", lambda kind: True)
    settings = GenerationSettings(max_new_tokens=12, precision="bfloat16")
    adapted, merged = model(), model()
    add_adapters(adapted, LoraSettings(rank=2), 1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    merged.load_state_dict(plain_weights(adapted))
    ours, theirs = (respond(TorchGenerator(policy, TOKENIZER, settings), PROBLEMS[:6], 3, ("a",)) for policy in (adapted, merged))
    assert ours == theirs
    before = respond(TorchGenerator(model(), TOKENIZER, settings), PROBLEMS[:6], 3, ("a",))
    assert ours != before


def test_bfloat16_is_refused_where_it_cannot_be(monkeypatch):
    monkeypatch.setattr(precision, "_has_units", lambda kind: False)
    with pytest.raises(UserError, match="precision bfloat16: this cpu has no units for it"):
        TorchGenerator(model(), TOKENIZER, GenerationSettings(precision="bfloat16"))
    assert TorchGenerator(model(), TOKENIZER, GenerationSettings(precision="auto")).generate([]) == []
    monkeypatch.setattr(precision, "_has_units", lambda kind: True)
    foreign = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=330))
    with pytest.raises(UserError, match="generation.precision bfloat16: engine torch decodes llama, .* got 'gpt2'; use float32"):
        TorchGenerator(foreign, TOKENIZER, GenerationSettings(precision="bfloat16"))


def test_finish_reasons_and_limits():
    policy = model()
    generator = TorchGenerator(policy, TOKENIZER, GenerationSettings(max_new_tokens=30))
    samples = [s for group in respond(generator, PROBLEMS, 4, ("f",)) for s in group]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for sample in samples:
        assert (sample.token_ids[-1] == TOKENIZER.eos_token_id) == (sample.finish_reason == "stop")
        assert TOKENIZER.eos_token_id not in sample.token_ids[:-1]
        assert len(sample.logp) == len(sample.token_ids) <= 30
    with pytest.raises(UserError, match="exceed the model's context of 256"):
        generator.generate([Request(tuple(range(5, 240)), 1, ("k",))])


def test_finished_rows_make_room_for_waiting_ones(monkeypatch):
    from pipelines.models.decoder import Decoder

    widths = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, ids_B, *arguments, **named: widths.append(len(ids_B)) or step(self, ids_B, *arguments, **named))
    settings = GenerationSettings(max_new_tokens=30, batch_size=8)
    refilled = respond(TorchGenerator(model(), TOKENIZER, settings), PROBLEMS, 6, ("f",))
    tokens = sum(len(s.token_ids) for group in refilled for s in group)
    assert len({len(s.token_ids) for group in refilled for s in group}) > 5  # responses of many lengths
    assert sum(widths) < 1.5 * tokens and widths.count(8) > 0.8 * len(widths)  # rows hold little that has ended
    widths.clear()
    whole = respond(TorchGenerator(model(), TOKENIZER, GenerationSettings(max_new_tokens=30, batch_size=1000)), PROBLEMS, 6, ("f",))
    assert [[s.token_ids for s in group] for group in whole] == [[s.token_ids for s in group] for group in refilled]


def test_top_k_keeps_the_likeliest_and_their_log_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(20000, 1)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen, logp = pick(logits, uniform, 1.0, 1.0, 2)
    assert set(chosen.tolist()) == {1, 2}
    expected = torch.softmax(torch.tensor([1.0, 2.0]), 0)
    torch.testing.assert_close(logp.exp(), expected[chosen - 1])
    assert abs(float((chosen == 2).float().mean()) - float(expected[1])) < 0.02
    both, logp = pick(logits, uniform, 1.0, 0.7, 2)  # 2 alone has a mass of 0.73 of what top_k left
    assert set(both.tolist()) == {2} and float(logp.abs().max()) < 1e-6
    torch.testing.assert_close(pick(logits, uniform, 1.0, 1.0, 9), pick(logits, uniform, 1.0, 1.0))


def test_stop_strings_end_a_response_and_its_text():
    policy = model()
    free = [s for group in respond(TorchGenerator(policy, TOKENIZER, GenerationSettings(max_new_tokens=30)), PROBLEMS[:10], 4, ("f",)) for s in group]
    stop = next(s.text[5:8] for s in free if len(s.text) > 40 and s.text[5:8].strip())
    settings = GenerationSettings(max_new_tokens=30, stop=(stop, "never to be said"))
    stopped = [s for group in respond(TorchGenerator(policy, TOKENIZER, settings), PROBLEMS[:10], 4, ("f",)) for s in group]
    cut = 0
    for one, other in zip(free, stopped, strict=True):
        assert other.token_ids == one.token_ids[: len(other.token_ids)]
        where = one.text.find(stop)
        if where >= 0:
            assert other.text == one.text[:where] and other.finish_reason == "stop"
            cut += len(other.token_ids) < len(one.token_ids)
        else:
            assert (other.text, other.finish_reason) == (one.text, one.finish_reason)
    assert cut > 0
