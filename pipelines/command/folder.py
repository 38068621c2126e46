"""The folder that the program starts in: settings.json, model/, rows.parquet, rows.jsonl, touchstone_stage.py, resume/, and out/ to fill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.lineage.digests import files_below
from pipelines.records import PROBLEM_SCHEMA, Problem
from pipelines.store import discard, problem_table, write_json, write_table

CLIENT = Path(__file__).with_name("touchstone_stage.py")
CONTRACT = 1
"""Of the folder, so that a program can tell."""
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ROW_SCHEMA = PROBLEM_SCHEMA.append(pa.field("messages", TURNS)).append(pa.field("completion", pa.string()))
"""A problem with its prompt in chat turns, and its worked solution as it should be written, null where there is none."""
SETTINGS, OUT, RESUME = "settings.json", "out", "resume"


def make(folder: Path, model: Path, resume: Path, rows: pa.Table, told: dict[str, Any]) -> None:
    """Write the folder anew. model: the folder to start from, whose files are linked. resume: what survives an interruption. rows: of ROW_SCHEMA.
    told: the rest of settings.json."""
    discard(folder)
    (folder / OUT).mkdir(parents=True)
    resume.mkdir(parents=True, exist_ok=True)
    (folder / RESUME).symlink_to(resume)
    for file in files_below(model):
        link = folder / "model" / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    shutil.copyfile(CLIENT, folder / CLIENT.name)
    write_table(folder / "rows.parquet", rows)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())
    places = {"model": "model", "rows_parquet": "rows.parquet", "rows_jsonl": "rows.jsonl", "out": OUT, "resume": RESUME}
    write_json(folder / SETTINGS, {"contract": CONTRACT, **told, **{name: str(folder / place) for name, place in places.items()}})
    (folder / SETTINGS).chmod(0o600)  # it has the address of the scorer


def row_table(problems: Sequence[Problem], tokenizer: Any, prompt: PromptSettings) -> pa.Table:
    """Problems as the program gets them, of ROW_SCHEMA."""
    messages = [prompting.conversation(tokenizer, problem, prompt) for problem in problems]
    completions = [None if problem.solution is None else prompting.response(problem, prompt) for problem in problems]
    table = problem_table(problems)
    return table.append_column("messages", pa.array(messages, TURNS)).append_column("completion", pa.array(completions, pa.string()))
