"""Where problems come from: generators, puzzles, files and Hugging Face datasets, all behind one signature.

A source is `(settings, seed, name, root) -> iterator of Problem | BadRow`. It yields in a fixed order, the same rows for
the same arguments, and never holds a file as a whole in memory. A row that cannot become a Problem is a BadRow that says where and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.records import Problem
from pipelines.sources import arithmetic, files, functions, puzzles, sums
from pipelines.sources.rows import BadRow

SOURCES: dict[str, Callable[[Any, int, str, Path], Iterator[Problem | BadRow]]] = {
    "arithmetic": arithmetic.problems,
    "sums": sums.problems,
    "functions": functions.problems,
    "reasoning_gym": puzzles.problems,
    "file": files.problems,
    "huggingface": files.problems,
}
"""Value of `kind` in params.yaml -> source."""

DOMAINS = {"arithmetic": arithmetic.DOMAIN, "sums": sums.DOMAIN, "functions": functions.DOMAIN, "reasoning_gym": puzzles.DOMAIN}
"""Generator -> domain of all its problems; rows of the others say it themselves."""

__all__ = ["DOMAINS", "SOURCES", "BadRow"]
