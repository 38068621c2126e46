"""Stage `report`: data/report/index.html from what the other stages left. What is missing leaves its section out."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import graph, paths
from pipelines.evaluation.report import Graded, Group, Inputs, StageNode, render
from pipelines.evaluation.report.samples import compared
from pipelines.lineage.digests import combine
from pipelines.lineage.manifests import code, digest, notices, parameters, resolved, told
from pipelines.lineage.walk import Lineage
from pipelines.records import GUIDE, REPLAY, Outcome
from pipelines.stages import Context
from pipelines.store import read_json, replacing

STEP = re.compile(r"step-(\d+)")
"""Name of a file of rollouts, without its ending."""
OF_ROLLOUTS = ["problem_id", "group_id", "part", "outcome", "dropped", "origin", "trained_prompt_ids", "segments"]


def run(context: Context) -> dict[str, float]:
    """Write the page. Returns its size in bytes."""
    page = render(read(context.root), context.settings.samples)
    with replacing(context.root / paths.PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    context.journal.say(f"report: {context.root / paths.PAGE}")
    return {"bytes": len(page.encode())}


def read(root: Path) -> Inputs:
    """Everything that is there."""
    scores = read_json(root / paths.SCORES) if (root / paths.SCORES).is_file() else None
    lineage = Lineage(root)
    kinds = {stage: parameters(statement)["kind"] for stage, statement in lineage.statements.items()}
    curating = {stage: kind for stage, kind in kinds.items() if kind in graph.CURATING}
    ledgers = {stage: root / graph.makes(stage, kind, rollouts=False, keeps=False)[0] / paths.LEDGER for stage, kind in curating.items()}
    wanted = {(model, name) for name, pair in compared(scores).items() for model in pair} if scores else set()
    samples = {key: root / paths.SAMPLES / key[0] / f"{key[1]}.parquet" for key in sorted(wanted)}
    return Inputs(
        scores=scores,
        diagnostics=read_json(root / paths.DIAGNOSTICS) if (root / paths.DIAGNOSTICS).is_file() else None,
        ledgers={stage: read_json(file) for stage, file in ledgers.items() if file.is_file()},
        metrics={file.stem: read_json(file) for file in sorted((root / paths.METRICS).glob("*.json"))},
        curves={file.stem: _curve(file) for file in sorted((root / paths.PLOTS).glob("*.csv")) if file.stem in kinds},
        card=read_json(root / paths.CURATION / paths.CARD) if (root / paths.CURATION / paths.CARD).is_file() else None,
        graded={stage: _graded(root / paths.ROWS / stage) for stage, kind in kinds.items() if kind == "grade"},
        trained_on={stage: list(groups_of(root / paths.ROLLOUTS / stage)) for stage, kind in kinds.items() if kind == "rl"},
        given={stage: _given(root / paths.seen(stage)) for stage, kind in kinds.items() if kind == "rl"},
        kinds=kinds,
        samples={key: pq.read_table(file).to_pylist() for key, file in samples.items() if file.is_file()},
        graph=[_node(lineage, stage) for stage in lineage.chain(sorted(lineage.statements)) if stage != "report"],
    )


def _curve(file: Path) -> list[dict[str, float]]:
    """A plot's rows; empty cells and what is no number leave no point."""
    with file.open(newline="") as handle:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(handle)]
    return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]


def _graded(folder: Path) -> list[Graded]:
    """What a stage of kind grade has found; nothing where its files are gone."""
    if not (folder / paths.GRADED).is_file():
        return []
    selected = set(pq.read_table(folder / paths.MADE, columns=["problem_id"])["problem_id"].to_pylist())
    rows = pq.read_table(folder / paths.GRADED, columns=["problem_id", "domain", "pass_rate", "pass_n"]).to_pylist()
    return [Graded(r["domain"], r["pass_rate"], r["pass_n"] or 0, r["problem_id"] in selected) for r in rows if r["pass_rate"] is not None]


def groups_of(folder: Path) -> Iterator[Group]:
    """What each step did with each problem; nothing where the rollouts are gone. An episode of several parts is one answer."""
    for file in sorted(folder.glob("*.parquet")):
        if not (name := STEP.fullmatch(file.stem)):
            continue
        table = pq.read_table(file, columns=[column for column in OF_ROLLOUTS if column in pq.read_schema(file).names])
        whole = {name: table[name].to_pylist() for name in ("problem_id", "group_id", "outcome", "dropped", "origin")}
        part = table["part"].to_pylist() if "part" in table.column_names else [0] * table.num_rows
        found: dict[tuple[str, int], Counter[str]] = {}
        for row, (problem, group_id, helped) in enumerate(zip(whole["problem_id"], whole["group_id"], _helped(table), strict=True)):
            if not part[row]:
                told = {"right": whole["outcome"][row] == Outcome.CORRECT, "trained": not whole["dropped"][row]}
                told |= {"replayed": whole["origin"][row] == REPLAY, "helped": bool(helped)}
                found.setdefault((problem, group_id), Counter()).update({"answers": 1, **told})
        for (problem, _), counts in found.items():
            yield Group(problem, int(name[1]), *(int(counts[each]) for each in ("answers", "right", "trained", "replayed", "helped")))


def _helped(table: pa.Table) -> np.ndarray:
    """Of each answer, whether a guide wrote a part of it, or it was sampled in a prompt that training does not see."""
    helped = np.array([origin == GUIDE for origin in table["origin"].to_pylist()])
    if "trained_prompt_ids" in table.column_names:
        helped |= np.array(table["trained_prompt_ids"].is_valid())
    if "segments" in table.column_names:
        for row, segments in enumerate(table["segments"].to_pylist()):
            helped[row] |= any(segment["author"] == GUIDE for segment in segments or ())
    return helped


def _given(file: Path) -> dict[str, str]:
    """Problem -> the reference that a stage has read it by."""
    return dict(zip(*(pq.read_table(file)[name].to_pylist() for name in ("problem_id", "data")), strict=True)) if file.is_file() else {}


def _node(lineage: Lineage, stage: str) -> StageNode:
    statement = lineage.statements[stage]
    given, state = parameters(statement), code(statement)
    files = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    return StageNode(
        stage=stage,
        kind=given["kind"],
        parents=tuple(lineage.parents(stage)),
        made={folder.as_posix(): _folder_digest(folder, files) for folder in graph.made(given)},
        read={entry.get("name") or entry["uri"]: digest(entry) or "" for entry in resolved(statement)},
        origins={entry.get("name") or entry["uri"]: more for entry in resolved(statement) if (more := told(entry))},
        seed=given["seed"],
        settings=given["settings"],
        code=state["sha256"],
        commit=(state["git_commit"] or "none")[:12] + (" with uncommitted changes" if state["dirty"] else ""),
        versions=state["libraries"] | statement["predicate"]["runDetails"]["builder"]["version"],
        seen=lineage.seen(stage),
        notices=notices(statement),
    )


def _folder_digest(folder: Path, files: dict[str, Any]) -> str:
    """The digest that a later stage records when it reads this folder."""
    return combine({Path(name).relative_to(folder).as_posix(): digest for name, digest in files.items() if Path(name).is_relative_to(folder)})
