"""Decoding by whole forward passes: the same as with a cache where there is one, and as the library's own elsewhere."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from pipelines.config.common import GenerationSettings
from pipelines.config.training import ArchitectureSettings
from pipelines.generation import Request, TorchGenerator
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.models.whole_decoder import WholeDecoder

TOKENIZER = train_tokenizer(["Mia has 3 pears. How many pears has she?"], 300)
PROMPTS = [tuple(TOKENIZER("Mia has 3 pears" + " and more" * i)["input_ids"]) for i in range(4)]


def test_the_same_samples_as_with_a_cache():
    model = tiny_model(ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=128), TOKENIZER, 3).eval()
    requests = [Request(prompt, 3, ("whole", i)) for i, prompt in enumerate(PROMPTS)]
    cached = TorchGenerator(model, TOKENIZER, GenerationSettings(max_new_tokens=16))
    whole = TorchGenerator(model, TOKENIZER, GenerationSettings(max_new_tokens=16, batch_size=5))
    whole._decoder = WholeDecoder(model)
    for expected, found in zip(cached.generate(requests), whole.generate(requests), strict=True):
        assert [s.token_ids for s in found] == [s.token_ids for s in expected]
        torch.testing.assert_close([s.logp for s in found], [s.logp for s in expected], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=128)),
        GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=48,
                max_position_embeddings=128,
            )
        ),
    ],
    ids=["gpt2", "gpt_neox"],
)
def test_other_families_decode_as_the_library_does_and_without_dropout(model):
    model.train()
    greedy = TorchGenerator(model, TOKENIZER, GenerationSettings(max_new_tokens=12, temperature=0.0))
    found = greedy.generate([Request(prompt, 1, ("greedy",)) for prompt in PROMPTS])
    assert model.training
    model.eval()
    for prompt, (sample,) in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        reference = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(prompt) :]
        assert sample.token_ids == reference.tolist()[: len(sample.token_ids)]
