"""Records to Parquet and back, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import paths
from pipelines.records import (
    DROPPED_SCHEMA,
    GUIDE,
    POLICY,
    PROBLEM_SCHEMA,
    PROMPT,
    TRAJECTORY_SCHEMA,
    Dropped,
    Problem,
    Segment,
    Trajectory,
    one_turn,
)

_PROBLEM_FIELDS = [f.name for f in fields(Problem)]


def problem_table(problems: Iterable[Problem]) -> pa.Table:
    """Problems as an Arrow table of PROBLEM_SCHEMA."""
    rows = list(problems)
    return pa.table({name: [getattr(row, name) for row in rows] for name in _PROBLEM_FIELDS}, schema=PROBLEM_SCHEMA)


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    write_table(path, problem_table(problems))


def read_problems(path: Path) -> list[Problem]:
    """All problems of a Parquet file written by `write_problems`."""
    return to_problems(pq.read_table(path, schema=PROBLEM_SCHEMA))


def to_problems(table: pa.Table) -> list[Problem]:
    """The rows of a table of PROBLEM_SCHEMA."""
    return [Problem(**{**row, "parents": tuple(row["parents"]), "topics": tuple(row["topics"])}) for row in table.to_pylist()]


def read_dropped(path: Path) -> list[Dropped]:
    """All rows of a Parquet file written by `write_dropped`."""
    table = pq.read_table(path, schema=DROPPED_SCHEMA)
    reasons = table.select(["step", "reason", "detail"]).to_pylist()
    return [Dropped(row, **reason) for row, reason in zip(to_problems(table.select(_PROBLEM_FIELDS)), reasons, strict=True)]


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    rows = list(dropped)
    columns: dict[str, list[Any]] = {name: [getattr(row.problem, name) for row in rows] for name in _PROBLEM_FIELDS}
    columns |= {name: [getattr(row, name) for row in rows] for name in ("step", "reason", "detail")}
    write_table(path, pa.table(columns, schema=DROPPED_SCHEMA))


_FLAT = ("prompt_ids", "response_ids", "behaviour_logp", "policy_version", "allowed")
"""Columns of a trajectory's file that hold its segments' tokens end to end."""


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> None:
    rows = list(trajectories)
    plain = [name for name in TRAJECTORY_SCHEMA.names if name not in ("segments", "trained_prompt_ids")]
    columns = {name: [getattr(row, name) for row in rows] for name in plain}
    columns["reward_parts"] = [list(parts.items()) for parts in columns["reward_parts"]]
    columns["trained_prompt_ids"] = [row.trained_prompt for row in rows]
    columns["segments"] = [
        [{"author": s.author, "tokens": len(s.ids), "sampled": bool(s.versions), "trains": s.trains} for s in row.turns] for row in rows
    ]
    write_table(path, pa.table(columns, schema=TRAJECTORY_SCHEMA))


def read_trajectories(path: Path) -> list[Trajectory]:
    """All trajectories of a Parquet file written by `write_trajectories`, now or before there were segments."""
    columns = pq.read_table(path, schema=TRAJECTORY_SCHEMA).to_pydict()
    columns["reward_parts"] = [dict(parts) for parts in columns["reward_parts"]]
    columns["trained_prompt"] = columns.pop("trained_prompt_ids")
    columns["part"] = [part or 0 for part in columns["part"]]
    spans, policies = columns.pop("segments"), columns["policy"]
    flat = [columns.pop(name) for name in _FLAT]
    columns["segments"] = [_segments(*row) for row in zip(*flat, spans, policies, strict=True)]
    return [Trajectory(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _segments(
    prompt: list[int],
    ids: list[int],
    logp: list[float],
    versions: list[int],
    allowed: list[bytes] | None,
    spans: list[dict[str, Any]] | None,
    policy: str,
) -> list[Segment]:
    """The segments of tokens that stand end to end."""
    if spans is None:
        return one_turn(prompt, ids, logp, versions, GUIDE if policy == GUIDE else POLICY)
    segments, start = [Segment(PROMPT, prompt)], 0
    for span in spans:
        part = slice(start, start + span["tokens"])
        sampled = (logp[part], versions[part]) if span["sampled"] else ([], [])
        sets = allowed[part] if allowed and any(allowed[part]) else []
        segments.append(Segment(span["author"], ids[part], *sampled, span["trains"], sets))
        start = part.stop
    return segments


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet, whole or absent; the same table gives the same bytes."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_json(path: Path, content: object) -> None:
    """Sorted, indented JSON, whole or absent."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that is fsynced and renamed over it when the block succeeds, else removed. The rename is on the disk too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def forget_torn(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`; nobody else may be writing there."""
    for torn in folder.glob(paths.TORN):
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block succeeds, else is removed. Whatever `path` held is gone.

    So it is for places of the pipeline's own; a folder that a user names goes through `pipelines.outputs`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for inner in [*temporary.rglob("*"), temporary]:
            sync(inner)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder, if there is one, at one instant: a kill leaves all of it, or nothing under its name."""
    torn = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(torn, ignore_errors=True)
    if folder.exists():
        folder.rename(torn)
        shutil.rmtree(torn)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
