"""Sentence embeddings: the mean of an encoder's last hidden states, of length 1 (Reimers and Gurevych, arXiv 1908.10084)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from pipelines.errors import UserError
from pipelines.models.packaged import located

logging.disable_progress_bar()  # a stage has a bar of its own

MAX_TOKENS = 256
"""What the model was trained with; a longer text is cut."""


class Embedder:
    """An encoder from a package, a folder or the hub."""

    def __init__(self, source: str) -> None:
        """
        Raises:
            UserError: the package that carries the model is not installed, or there is no such model.
        """
        path = located(source)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path)
            self._model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"embedding model '{source}': {str(error).splitlines()[0]}") from None

    @property
    def size(self) -> int:
        """Length of a vector."""
        return self._model.config.hidden_size

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(len(texts), size) float32, each row of length 1. A text's vector does not depend on the others: each goes through alone, unpadded."""
        vectors = np.zeros((len(texts), self.size), np.float32)
        for place, text in enumerate(texts):
            tokens = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            states = self._model(**tokens).last_hidden_state[0]
            vectors[place] = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        return vectors
