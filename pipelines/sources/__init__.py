"""Where problems come from: generators, puzzles, files and Hugging Face datasets, all behind one signature.

A source is `(settings, seed, name, root) -> iterator of Problem | BadRow`. It yields in a fixed order, the same rows for
the same arguments, and never holds a file as a whole in memory. A row that cannot become a Problem is a BadRow that says where and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.records import Problem
from pipelines.sources import arithmetic, files, functions, puzzles
from pipelines.sources.rows import BadRow

SOURCES: dict[str, Callable[[Any, int, str, Path], Iterator[Problem | BadRow]]] = {
    "arithmetic": arithmetic.problems,
    "functions": functions.problems,
    "reasoning_gym": puzzles.problems,
    "file": files.problems,
    "huggingface": files.problems,
}
"""Value of `kind` in params.yaml -> source."""

DOMAINS = {"arithmetic": arithmetic.DOMAIN, "functions": functions.DOMAIN, "reasoning_gym": puzzles.DOMAIN}
"""Generator -> domain of all its problems; rows of the others say it themselves."""

GENERATORS = ("arithmetic", "functions", "reasoning_gym")
"""Kinds that can make as many new problems as asked for."""

__all__ = ["DOMAINS", "GENERATORS", "SOURCES", "BadRow"]
