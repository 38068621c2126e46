"""The tokenizer that a GGUF file carries, made of its vocabulary, merges and special tokens.

Not as transformers makes it from such a file, which gives other ids: it splits digits and spaces by GPT-2's rule whatever `tokenizer.ggml.pre` says
of SmolLM2, leaves out Qwen2's normal form NFC, and may add a class's own special tokens. Here each `pre` is what the model's own tokenizer.json
does, and a `pre` that is not in the table is refused, since another way to split gives other ids and no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipelines.errors import UserError
from pipelines.models.gguf.header import Header

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are matched whole in a text; the first are special."""
MARK = "\u2581"
"""SentencePiece's space."""
ENDS = ("<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<eos>", "<|eot_id|>", "<|end_of_text|>", "</s>")
"""Control tokens that end a turn or a text, whatever the file names as its end; llama.cpp stops at them too."""
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer cuts a text before it merges. words: null is GPT-2's rule. whole: a word that is a token is not merged up."""

    words: str | None = None
    digits: bool = False
    nfc: bool = False
    whole: bool = False


SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": Splitting(digits=True),
    "qwen2": Splitting(words=QWEN2, nfc=True),
    "llama-bpe": Splitting(words=LLAMA3, whole=True),
}
"""`tokenizer.ggml.pre` -> what the tokenizers of these models do."""


def read_tokenizer(header: Header) -> PreTrainedTokenizerFast:
    """The file's tokenizer with its chat template, padding on the left.

    Raises:
        UserError: there is none, it is damaged, or of a kind that is not read.
    """
    settings = {key.removeprefix("tokenizer.ggml."): value for key, value in header.settings.items() if key.startswith("tokenizer.")}
    tokens, kinds = settings.get("tokens"), settings.get("token_type")
    if not tokens or not settings.get("model"):
        raise UserError(f"{header.path}: the tokenizer is missing from the GGUF file (tokenizer.ggml.tokens)")
    if not isinstance(tokens, list) or not isinstance(kinds, list) or len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise UserError(f"{header.path}: the tokenizer of the GGUF file is damaged: a token stands twice or has no type")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if settings["model"] not in builders:
        known = " and ".join(builders)
        raise UserError(f"{header.path}: its tokenizer is of the kind '{settings['model']}', which is not read; {known} are")
    tokenizer = builders[settings["model"]](header, settings)
    special = {
        role: _token(header, settings, f"{key}_token_id")
        for role, key in {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}.items()
    }
    for kind, wanted in ((CONTROL, True), (USER_DEFINED, False)):
        added = [AddedToken(token, special=wanted, normalized=False) for token, found in zip(tokens, kinds, strict=True) if found == kind]
        tokenizer.add_special_tokens(added) if wanted else tokenizer.add_tokens(added)
    if settings.get("add_bos_token", settings["model"] == "llama") and special["bos_token"]:
        first = special["bos_token"]
        pair, ids = f"{first} $A {first}:1 $B:1", [(first, settings["bos_token_id"])]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", pair=pair, special_tokens=ids)
    template = settings.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, chat_template=template or None, **special
    )  # fmt: skip


def ends(header: Header) -> list[int]:
    """Ids at which generation stops: what the file names, and control tokens that are known to end a turn or a text; its own end first."""
    settings = header.settings
    named = [settings.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    kinds = settings["tokenizer.ggml.token_type"]
    known = [i for i, token in enumerate(settings["tokenizer.ggml.tokens"]) if token in ENDS and kinds[i] == CONTROL]
    return list(dict.fromkeys(i for i in (*named, *known) if i is not None))


def _token(header: Header, settings: dict[str, Any], key: str) -> str | None:
    number = settings.get(key)
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(settings["tokens"]):
        raise UserError(f"{header.path}: the tokenizer of the GGUF file is damaged: {key} is {number!r} of {len(settings['tokens'])} tokens")
    return settings["tokens"][number]


def _byte_level(header: Header, settings: dict[str, Any]) -> Tokenizer:
    """GPT-2's kind: bytes spelled as letters, merges in the file."""
    pre, merges = settings.get("pre"), settings.get("merges")
    if pre not in SPLITTINGS:
        raise UserError(f"{header.path}: its tokenizer splits text as '{pre}' does, which is not known here; {', '.join(SPLITTINGS)} are")
    if not isinstance(merges, list) or settings.get("add_space_prefix"):
        raise UserError(f"{header.path}: its byte-level tokenizer has no merges, or puts a space before the text, which is not read")
    how = SPLITTINGS[pre]
    vocabulary = {token: i for i, token in enumerate(settings["tokens"])}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if wrong := next((pair for pair in pairs if not {*pair, "".join(pair)} <= vocabulary.keys()), None):
        raise UserError(f"{header.path}: the tokenizer of the GGUF file is damaged: a merge of {' and '.join(wrong)}, which are no tokens")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=how.whole))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if how.digits else []
    steps += [pre_tokenizers.Split(Regex(how.words), behavior="isolated")] if how.words else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=how.words is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(header: Header, settings: dict[str, Any]) -> Tokenizer:
    """Gemma's kind: pieces with scores, the space as a mark, bytes for what no piece spells. Merges follow from the scores."""
    scores = settings.get("scores")
    if not isinstance(scores, list) or len(scores) != len(settings["tokens"]):
        raise UserError(f"{header.path}: the tokenizer of the GGUF file is damaged: not every token has a score")
    if settings.get("add_space_prefix", True):
        raise UserError(f"{header.path}: its tokenizer puts a space before the text (SentencePiece of Llama 2 and Mistral), which is not read")
    vocabulary = {token: i for i, token in enumerate(settings["tokens"])}
    unknown = _token(header, settings, "unknown_token_id")
    bpe = models.BPE(vocab=vocabulary, merges=_merges(settings), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", MARK)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _merges(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Every way to join two normal pieces to a third, by the third's score and then as SentencePiece meets them."""
    normal = {token: score for token, score, kind in zip(settings["tokens"], settings["scores"], settings["token_type"], strict=True) if kind == 1}
    found = [
        (-score, len(token[:cut]), token[:cut], token[cut:])
        for token, score in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
