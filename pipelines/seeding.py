"""Randomness from explicit keys: (run seed, purpose, ...) -> an independent stream. No global state anywhere."""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: object) -> int:
    """64 bits of SHA-256 over the parts, so that streams of different purposes never meet."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little")


def generator(*parts: object) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based: the same on every platform) for this key."""
    return np.random.Generator(np.random.Philox(key(*parts)))
