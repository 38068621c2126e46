"""Run one stage's science without any orchestrator: `python -m pipelines STAGE [--params params.yaml] [--root .]`.

The flows start the same command, with `--settings FILE` in place of `--params`: one JSON object {seed, kind, settings, reads, makes, records},
already resolved, so that the stage loads the code of its own kind only. Exit codes: 0 done, 2 a sentence for the user on stderr.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from pipelines import answered, paths
from pipelines.errors import UserError
from pipelines.lineage.manifests import begin, write_manifest
from pipelines.preloaded import die_with_parent
from pipelines.progress import Journal
from pipelines.stages import ENTRIES, ON_CHANGE, Context
from pipelines.store import discard, replacing, write_json

KERNELS = "64"
"""Of oneDNN: more than the shapes of one micro-batch."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    parser.add_argument("stage", help="name of a stage")
    parser.add_argument("--params", type=Path, default=paths.PARAMS, help="a whole params file")
    parser.add_argument("--settings", type=Path, help="this stage's resolved settings as JSON, instead of --params")
    parser.add_argument("--root", type=Path, default=Path(), help="project root")
    parser.add_argument("--device", default=os.environ.get("TOUCHSTONE_DEVICE", "cpu"), help="torch device")
    kept = "leave what an interrupted run continues from to whoever records this one; else the manifest is the record, and it is cleared"
    parser.add_argument("--keep-work", action="store_true", help=kept)
    parser.add_argument("--lines", action="store_true", help="tell progress line by line on a terminal, too: others write there")
    parser.add_argument("--threads", type=int, help="compute with so many; default: what the libraries find, and for several processes one each")
    changed = parser.add_mutually_exclusive_group()
    changed.add_argument("--accept-changes", dest="on_change", action="store_const", const="accept", help=ON_CHANGE["accept"])
    changed.add_argument("--discard", dest="on_change", action="store_const", const="discard", help=ON_CHANGE["discard"])
    parser.set_defaults(on_change=os.environ.get("TOUCHSTONE_ON_CHANGE", "refuse"))
    options = parser.parse_args(argv)
    try:
        given = load_settings(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if (processes := given["settings"].get("processes", 1)) > 1 and "RANK" not in os.environ:
        become_torchrun(processes, sys.argv[1:] if argv is None else argv)
    if options.threads and processes == 1:
        compute_with(options.threads)
    keep_few_kernels()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(options.stage, options.root.resolve(), given, options.device, options.on_change, options.keep_work, options.lines)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (28, 122):  # ENOSPC, EDQUOT
            raise
        print(f"{options.stage}: no space left on the disk of {error.filename or options.root}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def load_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the stage is given, from the file the flow wrote or resolved here from params."""
    if options.settings:
        return json.loads(options.settings.read_text())
    from pipelines import checks, graph  # all sections, which a flow's child does not need

    params = checks.load(options.params, options.root)
    stages = graph.graph(params)
    if options.stage not in stages:
        raise UserError(f"there is no stage '{options.stage}'; there are {', '.join(stages)}")
    return stages[options.stage].given(params.seed)


def run(
    stage: str, root: Path, given: dict[str, Any], device: str, on_change: Any = "refuse", keep_work: bool = False, lines: bool = False
) -> dict[str, float]:
    """Run `stage`, then write its metrics, its plot and its manifest, and clear its work unless it is to be kept. Returns the metrics."""
    module, settings_module, settings_class = ENTRIES[given["kind"]]
    settings = getattr(importlib.import_module(settings_module), settings_class).model_validate(given["settings"])
    work = root / paths.WORK / stage
    work.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    journal = Journal(work / f"rank-{rank}.jsonl", stage, io.StringIO()) if rank else Journal(work / "journal.jsonl", stage, lines=lines)
    context = Context(stage, root, given["seed"], settings, work, journal, device, on_change, first=not rank)
    decided = {name: given[name] for name in ("seed", "kind", "settings")}
    reads, makes, records = ([Path(path) for path in given[name]] for name in ("reads", "makes", "records"))
    beginning = None if rank else begin(root, stage, decided, inputs=reads, modules=(module, settings_module))
    answers = answered.of_stage(root, stage, decided, work, begin=not rank)
    with answered.kept(answers):
        summary = importlib.import_module(module).run(context)
    if beginning is None:
        return summary  # the first process writes for all
    for path in records:
        if path.suffix == ".json":
            write_json(root / path, summary)
        else:
            write_plot(root / path, journal.rows())
    told = {"accepted": context.accepted, "origins": context.origins, "endpoints": answers.summary(), "notices": context.notices, "device": device}
    write_manifest(beginning, outputs=makes, installed=context.installed, measured=context.measured, **told)
    if not keep_work:
        discard(context.resume)
    return summary


def keep_few_kernels() -> None:
    """Have oneDNN, and torch beside it, keep KERNELS of what they make for each shape of a product: batches of all lengths would fill much memory
    with 1,024 in either place."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", KERNELS)


def compute_with(threads: int) -> None:
    """Have torch, imported already or later, and what this process starts use so many threads."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def become_torchrun(processes: int, arguments: list[str]) -> NoReturn:
    """Replace this process by torchrun, which starts this command `processes` times on this machine."""
    os.environ["TOUCHSTONE_CHILD"] = str(os.getpid())  # the children end with it
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "pipelines"]
    os.execv(sys.executable, [*launcher, *arguments])


def write_plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """The journal as CSV, one row per step, for `dvc plots`."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["step"]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    if starter := os.environ.get("TOUCHSTONE_CHILD"):
        die_with_parent(int(starter))
    sys.exit(main())
