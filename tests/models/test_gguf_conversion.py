"""A converted GGUF file is the model that was written into it: weights, logits, tokenizer, template, ends."""

import json
import random

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from ggufs import MODELS, TEXTS, WINDOW, permuted, tensors, tiny, write
from transformers import AutoModelForCausalLM

from pipelines.errors import UserError
from pipelines.models.gguf import convert as conversion
from pipelines.models.gguf.convert import convert
from pipelines.models.loading import load_policy, load_tokenizer, save_policy


def converted(tmp_path, architecture, changes=None, **how):
    """(the model that was written, its tokenizer, the file, the folder). changes: of the model's config."""
    model, tokenizer = tiny(architecture, **changes or {})
    file = write(tmp_path / "tiny.gguf", architecture, model, tokenizer, **how)
    folder = tmp_path / "folder"
    folder.mkdir()
    convert(file, folder)
    return model, tokenizer, file, folder


def ids(rows=2, tokens=3 * WINDOW):
    return torch.randint(5, 300, (rows, tokens), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("architecture", MODELS)
def test_weights_are_those_written_rounded_to_bfloat16(tmp_path, architecture):
    model, _, _, folder = converted(tmp_path, architecture)
    read, _ = load_policy(folder, dtype="auto")
    written, found = dict(model.named_parameters()), dict(read.named_parameters())
    assert written.keys() == found.keys()
    for name, weight in written.items():
        assert found[name].dtype == torch.bfloat16
        if architecture == "gemma3" and name.endswith("norm.weight"):  # stored as weight + 1, which float32 rounds
            weight = (weight.detach() + 1) - 1
        assert torch.equal(found[name], weight.detach().to(torch.bfloat16)), name


@pytest.mark.parametrize("architecture", MODELS)
@torch.no_grad()
def test_logits_are_those_of_the_model_written_past_its_window(tmp_path, architecture):
    """With weights that bfloat16 holds nothing is rounded, so config, rotary positions and windows must be the same."""
    model, tokenizer = tiny(architecture)
    for name, weight in model.named_parameters():
        shift = 1 if architecture == "gemma3" and name.endswith("norm.weight") else 0
        weight.copy_((weight + shift).to(torch.bfloat16).float() - shift)
        weight.copy_(weight.to(torch.bfloat16).float())
    (tmp_path / "folder").mkdir()
    convert(write(tmp_path / "tiny.gguf", architecture, model, tokenizer), tmp_path / "folder")
    read, _ = load_policy(tmp_path / "folder")
    assert (read(ids()).logits - model(ids()).logits).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1", "BF16"])
@torch.no_grad()
def test_every_architecture_reads_as_transformers_reads_it(tmp_path, kind):
    architecture = {"F16": "llama", "Q8_0": "qwen2", "Q4_0": "qwen3", "Q4_1": "gemma3", "BF16": "llama"}[kind]
    heads = {"head_dim": 256, "query_pre_attn_scalar": 256} if architecture == "gemma3" else {}  # the only size with which transformers reads it
    _, _, file, folder = converted(tmp_path, architecture, heads, kind=kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    mine, _ = load_policy(folder, dtype="auto")
    for name, weight in theirs.named_parameters():
        assert torch.equal(weight.to(torch.bfloat16), mine.get_parameter(name)), name
    apart = (theirs(ids()).logits - mine.float()(ids()).logits).abs().max()
    assert apart < 0.02 * theirs(ids()).logits.abs().max()


def test_blocks_are_taken_apart_as_the_package_put_them_together(tmp_path):
    model, _, _, folder = converted(tmp_path, "llama", kind="Q4_0")
    read, _ = load_policy(folder, dtype="auto")
    weight = tensors("llama", model)["blk.1.attn_q.weight"]
    kind = GGMLQuantizationType.Q4_0
    back = gguf.dequantize(gguf.quantize(weight, kind), kind)
    expected = np.empty_like(back)
    expected[permuted(np.arange(len(back)), 4)] = back  # where each row was before llama.cpp's order
    assert torch.equal(read.get_parameter("model.layers.1.self_attn.q_proj.weight"), torch.from_numpy(expected).to(torch.bfloat16))
    assert not np.allclose(expected, back)


def a_thousand_texts():
    draw = random.Random(5)
    alphabet = "abc ABC 0123456789 \n\t.,'(){}<>|éж中😀\u0301\u00a0" + "".join(TEXTS[:4])
    special = ["<|end|>", "<|user|>", "<think>", "<|pad|>"]
    return [
        "".join(draw.choice(special) if draw.random() < 0.05 else draw.choice(alphabet) for _ in range(draw.randrange(60))) for _ in range(1000)
    ]


def test_the_tokenizer_gives_the_same_ids_on_a_thousand_texts(tmp_path):
    _, tokenizer, _, folder = converted(tmp_path, "qwen2")
    read = load_tokenizer(folder)
    for text in a_thousand_texts():
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"], text
        assert read.decode(read(text)["input_ids"]) == text
    assert read.chat_template == tokenizer.chat_template
    assert (read.eos_token, read.pad_token, read.padding_side) == (tokenizer.eos_token, tokenizer.pad_token, "left")
    chat = [{"role": "user", "content": "12 + 1?"}]
    assert read.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


def test_generation_stops_at_the_end_that_the_file_names(tmp_path):
    _, tokenizer, _, folder = converted(tmp_path, "llama")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [tokenizer.eos_token_id]
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_the_folder_is_whole_and_the_account_names_types_and_libraries(tmp_path):
    model, tokenizer = tiny("llama")
    file = write(tmp_path / "tiny.gguf", "llama", model, tokenizer, kind="Q8_0")
    account = convert(file, tmp_path)
    assert account["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert account["quantisation"] == {"Q8_0": 16, "F32": 5}
    assert account["converted"]["to"] == "bfloat16" and account["converted"]["by"]["gguf"] == conversion.metadata.version("gguf")
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {e.name for e in tmp_path.iterdir()}


def refused(tmp_path, architecture="llama", chat=True, **how):
    """Why a file that was written so is not converted."""
    model, tokenizer = tiny(architecture)
    file = write(tmp_path / "tiny.gguf", architecture, model, tokenizer, **how)
    with pytest.raises(UserError) as told:
        convert(file, tmp_path, chat=chat)
    assert str(told.value).startswith(f"{file}: ") and len(str(told.value).splitlines()) == 1
    assert not (tmp_path / "config.json").exists()
    return str(told.value)


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    settings = {"llama.rope.scaling.type": "yarn"}
    assert "llama.rope.scaling.type = yarn, which is not read" in refused(tmp_path, settings=settings)
    assert "the tokenizer is missing" in refused(tmp_path, leave_out=("tokenizer",))
    assert "no chat template" in refused(tmp_path, leave_out=("chat_template",))
    assert "splits text as 'falcon' does" in refused(tmp_path, pre="falcon")
    assert "it has no tensor blk.1.ffn_up.weight" in refused(tmp_path, leave_out=("blk.1.ffn_up.weight",))
    assert "it has no setting llama.block_count" in refused(tmp_path, leave_out=("llama.block_count",))
    assert "has the tensor rope_freqs.weight, which is not read" in refused(tmp_path, add={"rope_freqs.weight": np.ones(8)})
    wrong = {"blk.0.attn_norm.weight": np.ones(63)}
    assert "blk.0.attn_norm.weight has the shape (63,), expected (64,)" in refused(tmp_path, add=wrong)
    broken = {"output_norm.weight": np.full(64, np.nan)}
    assert "model.norm.weight has weights that are not finite" in refused(tmp_path, add=broken)
    assert "llama.expert_count = 8, which is not read" in refused(tmp_path, settings={"llama.expert_count": 8})


def test_a_base_model_needs_no_chat_template(tmp_path):
    model, tokenizer = tiny("llama")
    convert(write(tmp_path / "tiny.gguf", "llama", model, tokenizer, leave_out=("chat_template",)), tmp_path, chat=False)
    assert load_tokenizer(tmp_path, chat=False).chat_template is None


def test_an_architecture_that_is_not_read_is_refused_by_name(tmp_path):
    model, tokenizer = tiny("llama")
    file = write(tmp_path / "tiny.gguf", "falcon", model, tokenizer)
    with pytest.raises(UserError, match="architecture 'falcon', which is not read from GGUF; llama, qwen2, qwen3, gemma3 are"):
        convert(file, tmp_path)


def test_a_model_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    assert conversion.available_memory() > 10**8
    monkeypatch.setattr(conversion, "available_memory", lambda: 100_000)
    assert "is too large for this machine: it needs 0.0 GB of memory" in refused(tmp_path)


def test_a_tiny_qwen2_of_our_own_keeps_its_tokenizer(tmp_path):
    """AutoTokenizer would take Qwen2's class in its place, which splits digits."""
    model, tokenizer = tiny("qwen2")
    save_policy(tmp_path / "folder", model, tokenizer)
    assert load_tokenizer(tmp_path / "folder")("12 1212")["input_ids"] == tokenizer("12 1212")["input_ids"]
