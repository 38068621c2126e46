"""Packages that only some settings need, and how each is had."""

from __future__ import annotations

import importlib.util

from pipelines.errors import UserError

PACKAGES = {
    "vllm": ("vLLM", "`make install-vllm`, or `pip install vllm` for a GPU"),
    "ray": ("Ray", "pip install 'touchstone[ray]'"),
    "websockets": ("websockets", "pip install 'touchstone[environments]'"),
    "xllamacpp": ("llama.cpp", "pip install 'touchstone[llamacpp]'"),
    "peft": ("PEFT", "pip install 'touchstone[train]'"),
    "datasets": ("Hugging Face datasets", "pip install 'touchstone[train]'"),
}
"""Package -> its name for people, and how it is installed."""


def require(package: str, what: str) -> None:
    """
    Raises:
        UserError: `what` needs the package, which is not installed.
    """
    if importlib.util.find_spec(package) is None:
        name, how = PACKAGES[package]
        raise UserError(f"{what} needs {name}, which is not installed: {how}")
