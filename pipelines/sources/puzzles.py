"""Puzzles of reasoning-gym (arXiv 2505.24760): some 100 procedural tasks, each with its own scorer.

The whole entry travels in `verifier_args`, because a scorer may accept other answers than the one given (the verifier
`logic` hands it back). Entries go through JSON here, so what is judged later is what was stored.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.config.checking import nearest
from pipelines.config.sources import ReasoningGymSource
from pipelines.errors import UserError
from pipelines.records import Problem, problem_id
from pipelines.sources.rows import RAW_CHARS, BadRow

DOMAIN = "logic"
SEEDS = 2**31
"""Some tasks seed NumPy's old generator, which takes no more."""


def problems(settings: ReasoningGymSource, seed: int, name: str, root: Path) -> Iterator[Problem | BadRow]:
    """`settings.count` entries of `settings.task`, the same for the same seed.

    Raises:
        UserError: reasoning-gym is missing, has no such task, or refuses the settings.
    """
    for index, entry in enumerate(_dataset(settings, seed, name)):
        kept = {key: entry[key] for key in ("question", "answer", "metadata")}
        arguments = json.dumps({"task": settings.task, "entry": kept}, default=_plain)
        if not isinstance(entry["answer"], str) or not entry["answer"].strip():
            yield BadRow(f"reasoning_gym:{settings.task}", index + 1, "answer", "this task gives no answer of its own", arguments[:RAW_CHARS])
            continue
        yield Problem(
            problem_id=problem_id(entry["question"], entry["answer"]),
            domain=DOMAIN,
            prompt=entry["question"],
            answer=entry["answer"],
            answer_type="text",
            verifier="logic",
            verifier_args=arguments,
            solution="",
            source=name,
            source_id=f"{name}/{index}",
            licence="generated",
            topics=settings.topics,
        )


def _dataset(settings: ReasoningGymSource, seed: int, name: str) -> Any:
    try:
        made, config = configured(settings.task, settings.count, settings.settings, seed % SEEDS)
        return made(config=config)
    except UserError as error:
        raise UserError(f"sources: '{name}': {error}") from None
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"sources: '{name}': {_refused(settings.task, error)}") from None


def configured(task: str, count: int, settings: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """Class and configuration of the task's data set; no entry is made yet.

    Raises:
        UserError: reasoning-gym is missing, has no such task or setting, or refuses a value.
    """
    try:
        import reasoning_gym  # noqa: F401  a second to import, and only this kind of source needs it; it fills the table
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError("kind reasoning_gym needs the package 'reasoning-gym'") from None
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {len(DATASETS)}, such as {', '.join(sorted(DATASETS)[:5])}"
        raise UserError(f"reasoning-gym has no task '{task}'; {hint}")
    made, kind = DATASETS[task]
    known = [each.name for each in fields(kind) if each.init and each.name not in ("size", "seed")]
    for name in settings:
        if name not in known:
            raise UserError(f"reasoning-gym refuses the settings of '{task}': it has no '{name}'{nearest(name, known)}")
    try:
        config = kind(size=count, seed=seed, **settings)
        if hasattr(config, "validate"):
            config.validate()
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(_refused(task, error)) from None
    return made, config


def _refused(task: str, error: Exception) -> str:
    return f"reasoning-gym refuses the settings of '{task}': {str(error) or type(error).__name__}"


def _plain(value: Any) -> Any:
    """What JSON does not know: sets (sorted, so that bytes repeat) and NumPy scalars."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "item"):
        return value.item()
    return str(value)
