"""The embedded model's tokenizer, byte-level BPE trained on its own corpus; and tokens that any model gets later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipelines.prompting import BOXED, CHAT_TEMPLATE, END_FENCE, END_THINK, FENCE, THINK

PAD, END = "<|pad|>", "<|end|>"
MARKS = (THINK, END_THINK, BOXED, FENCE, END_FENCE)
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` entries; the marks of the answer format are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [AddedToken(word, special=False, normalized=False) for word in MARKS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(words), special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(words)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )


@torch.no_grad()
def add_control_tokens(model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Give model and tokenizer special tokens, in place, which sampling never says (`suppress_tokens` of the generation config). Those that are new
    begin at the mean of all embeddings."""
    new = [token for token in tokens if token not in tokenizer.get_vocab()]
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new])
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    if new:
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight[known : len(tokenizer)] = module.weight[:known].mean(0)
    model.generation_config.suppress_tokens = sorted({*(model.generation_config.suppress_tokens or ()), *ids})
