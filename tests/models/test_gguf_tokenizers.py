"""How a GGUF file's tokenizer cuts a text: by the rule of its model, worked by hand, and as llama.cpp cuts it where a real model is at hand."""

import json
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.models.cache import cached
from pipelines.models.gguf.header import Header, read_header
from pipelines.models.gguf.tokenizer import ends, read_tokenizer
from pipelines.models.known import known_models

GOLDEN = json.loads((Path(__file__).parent / "golden_ids.json").read_text())
"""Texts, and for each known model the ids that llama.cpp gives them (its server's /tokenize of xllamacpp 2026.10, special tokens read, none added)."""


def header(**tokenizer):
    settings = {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    return Header(Path("x.gguf"), settings, {})


def byte_level(pre, merges=("1 2", "12 12", "Ġ Ġ", "a b", "' s"), more=()):
    """A tokenizer of all bytes and these merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges), "<|im_end|>", *more]
    kinds = [1] * (len(tokens) - 1 - len(more)) + [3] + [4] * len(more)
    return header(model="gpt2", pre=pre, tokens=tokens, token_type=kinds, merges=list(merges), eos_token_id=len(tokens) - 1 - len(more))


def pieces(head, text):
    tokenizer = read_tokenizer(head)
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_digits_stay_together_or_apart_as_the_model_has_it():
    assert pieces(byte_level("gpt-2"), "1212") == ["1212"]
    assert pieces(byte_level("smollm"), "1212") == ["1", "2", "1", "2"]
    assert pieces(byte_level("qwen2"), "1212") == ["1", "2", "1", "2"]
    assert pieces(byte_level("llama-bpe"), "1212") == ["12", "1", "2"]  # in threes, from the left: 121, 2


def test_spaces_before_a_word_are_cut_as_the_model_has_it():
    assert pieces(byte_level("gpt-2"), "  ab") == ["Ġ", "Ġ", "ab"]  # one space goes with the word
    assert pieces(byte_level("gpt-2"), "   ") == ["ĠĠ", "Ġ"]
    assert pieces(byte_level("smollm"), "  1") == ["ĠĠ", "1"]  # digits take no space
    assert pieces(byte_level("gpt-2"), "  1") == ["Ġ", "Ġ", "1"]


def test_capitals_of_a_contraction():
    assert pieces(byte_level("qwen2"), "a's") == ["a", "'s"] == pieces(byte_level("gpt-2"), "a's")
    assert pieces(byte_level("gpt-2"), "A'S") == ["A", "'", "S"]


def test_qwen_reads_composed_letters_and_the_others_what_is_written():
    assert pieces(byte_level("qwen2"), "e\u0301") == pieces(byte_level("qwen2"), "é") == ["Ã", "©"]
    assert pieces(byte_level("smollm"), "e\u0301") == ["e", "Ì", "ģ"]


def test_special_and_user_defined_tokens_are_read_whole_and_end_what_they_end():
    head = byte_level("smollm", more=("<file>",))
    assert pieces(head, "ab<|im_end|> <file>ab") == ["ab", "<|im_end|>", "Ġ", "<file>", "ab"]
    tokenizer = read_tokenizer(head)
    assert tokenizer.decode(tokenizer("ab<|im_end|><file>")["input_ids"], skip_special_tokens=True) == "ab<file>"
    assert ends(head) == [tokenizer.eos_token_id] == tokenizer.convert_tokens_to_ids(["<|im_end|>"])


def sentencepiece(**changes):
    pieces = [("<pad>", 3, 0.0), ("<eos>", 3, 0.0), ("<bos>", 3, 0.0), ("<unk>", 2, 0.0)]
    pieces += [(f"<0x{byte:02X}>", 6, 0.0) for byte in range(256)]
    pieces += [(piece, 1, -float(rank)) for rank, piece in enumerate(["ab", "▁a", "▁ab", "abab", "▁", "a", "b", "c"])]
    tokens, kinds, scores = zip(*pieces, strict=True)
    given = {"model": "llama", "tokens": list(tokens), "token_type": list(kinds), "scores": list(scores), "add_space_prefix": False, "add_bos_token": True}
    return header(**given | {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0} | changes)


def test_sentencepiece_merges_the_best_piece_first():
    assert pieces(sentencepiece(), " ab") == ["▁ab"]
    assert pieces(sentencepiece(), "aab") == ["a", "ab"]
    assert pieces(sentencepiece(), "ababab") == ["abab", "ab"]
    assert pieces(sentencepiece(), " a c") == ["▁a", "▁", "c"]


def test_sentencepiece_spells_what_it_has_no_piece_for_and_begins_with_its_token():
    tokenizer = read_tokenizer(sentencepiece())
    assert pieces(sentencepiece(), "é") == ["<0xC3>", "<0xA9>"]
    assert tokenizer("ab")["input_ids"][0] == 2 and tokenizer.decode(tokenizer("é ab")["input_ids"], skip_special_tokens=True) == "é ab"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"add_space_prefix": True}, "puts a space before the text"),
        ({"model": "bert"}, "of the kind 'bert', which is not read; gpt2 and llama are"),
        ({"tokens": []}, "the tokenizer is missing"),
        ({"scores": [0.0]}, "not every token has a score"),
        ({"token_type": [1]}, "a token stands twice or has no type"),
        ({"eos_token_id": 9999}, "eos_token_id is 9999 of 268 tokens"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        read_tokenizer(sentencepiece(**changes))


def test_merges_of_what_is_no_token_are_refused():
    with pytest.raises(UserError, match="is damaged: a merge of 1 and zz, which are no tokens"):
        read_tokenizer(byte_level("smollm", merges=("1 zz",)))


@pytest.mark.parametrize("name", known_models())
def test_a_known_model_cuts_texts_as_llama_cpp_does(name):
    known = known_models()[name]
    if not cached(known).is_file():
        pytest.skip(f"{name} is not in the cache: touchstone models get {name}")
    tokenizer = read_tokenizer(read_header(cached(known)))
    for text, ids in zip(GOLDEN["texts"], GOLDEN[name], strict=True):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
