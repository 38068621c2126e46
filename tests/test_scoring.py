"""The packed forward pass against the library's own on padded rows: scores, entropies and gradients."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from pipelines.models import packing
from pipelines.models.packing import pack
from pipelines.models.scoring import chosen, entropy_detached, pad, token_scores

COMMON = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**COMMON, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**COMMON),
    "qwen3": Qwen3Config(**COMMON, head_dim=16),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [5, 6, 7, 8]]
ROWS = [prompt + response for prompt in PROMPTS for response in ([20, 21, 22, 23], [24, 25], [26, 27, 28], [29])]


def case(config) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # the library starts biases at 0 and norms at 1
    ids = pad(ROWS)
    score = torch.zeros_like(ids, dtype=torch.bool)
    for row, whole in enumerate(ROWS):
        score[row, len(PROMPTS[row // 4]) : len(whole)] = True
    score[0, 8] = False  # a token in the middle that is not scored
    return model, ids, score


def reference(model, ids, score, temperature) -> dict[str, torch.Tensor]:
    """The library's logits of whole rows."""
    logits = model(input_ids=ids, use_cache=False).logits
    logp = torch.log_softmax(logits.float() / temperature, -1)
    of_next = torch.zeros_like(score, dtype=torch.float32)
    spread = torch.zeros_like(of_next)
    of_next[:, 1:] = logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    spread[:, 1:] = -(logp.exp() * logp).sum(-1)[:, :-1]
    ends = (score * torch.arange(ids.shape[1])).amax(1)
    after = torch.log_softmax(logits[torch.arange(len(ids)), ends].float(), -1)[:, 3]
    return {"logp": of_next * score, "entropy": spread.detach() * score, "after": after}


@pytest.mark.parametrize("sharing", [1.0, 1e9])
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_rows_say_what_padded_ones_say(monkeypatch, family, sharing):
    monkeypatch.setattr(packing, "SHARING", sharing)
    model, ids, score = case(CONFIGS[family])
    weight = torch.arange(ids.numel()).view_as(ids).float()

    def gradients(scores) -> dict[str, torch.Tensor]:
        model.zero_grad()
        ((scores["logp"] * weight).sum() + scores["after"].sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    theirs = reference(model, ids, score, 0.7)
    expected = gradients(theirs)
    wanted = {"logp": chosen, "entropy": entropy_detached}
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        ours = token_scores(model, ids, score, wanted, temperature=0.7, after=("after", 3))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-5)
        for name, gradient in gradients(ours).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-3 * float(expected[name].abs().max()))


def test_packed_rows_hold_no_more_than_they_must():
    _, ids, score = case(CONFIGS["llama"])
    shared = pack(ids, score)
    responses = sum(len(row) - len(PROMPTS[place // 4]) - 1 for place, row in enumerate(ROWS))
    assert len(shared.ids_N) == sum(map(len, PROMPTS)) + responses  # each prompt once; the last token predicts nothing
    assert len(shared.read_M) == int(score.sum())
    alone = pack(ids[::4], score[::4])
    assert alone.responses is None and len(alone.ids_N) == sum(len(row) - 1 for row in ROWS[::4])
    assert alone.ids_N.tolist() == [token for row in ROWS[::4] for token in row[:-1]]
