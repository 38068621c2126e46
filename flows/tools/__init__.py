"""Subcommands of `touchstone` that work on files alone: the same science as the stages, for scripts.

rows.py reads files of loose rows; each other module holds the commands of one subject.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from flows.tools import curation, diagnostics, evaluation, merging, methods, mixtures, models, query, verification

Add = Callable[..., argparse.ArgumentParser]


def register(add: Add) -> None:
    """Add the subcommands; `add(name, function, text)` makes one."""
    sub = add("methods", methods.methods, "the table of recipes, or one row with its formula, paper and slots")
    sub.add_argument("name", nargs="?", help="a row")
    sub.add_argument("--part", metavar="SLOT", help="rows that say something of their own of this slot, such as explore or clip")
    sub.add_argument("--paper", metavar="WORDS", help="rows of this paper: words of its title, a name, an arXiv id")
    sub.add_argument("--needs", metavar="WHAT", help="rows that cannot run without: solutions, rates, policy, teacher or value")
    sub.add_argument("--diff", nargs=2, metavar=("A", "B"), help="the slots in which two rows differ")
    sub.add_argument("--markdown", action="store_true", help="docs/METHODS.md, to standard output")
    models.register(add)
    sub = add("query", query.query, "SQL over problems, ledgers, rollouts and samples")
    sub.add_argument("sql", nargs="?", metavar="SQL", help="one statement, which reads views and 'data://FILE'; without, the views and their columns")
    sub.add_argument("--format", choices=("table", "json"), default="table", help="json: one object a line, nothing cut")
    sub = add("verify", verification.verify, "judge rows {gold or problem fields, prediction, verifier} of a JSONL file")
    sub.add_argument("input", type=Path, metavar="IN.jsonl")
    sub.add_argument("--out", type=Path, required=True, metavar="OUT.jsonl", help="one verdict per row, in order")
    held = "refuse (exit 1) verdicts that may agree with `expected` less often than this: the lower end of the 95 % interval counts"
    sub.add_argument("--agreement", type=float, metavar="SHARE", help=held)
    sub = add("curate", curation.curate, "run the steps of curation over files of problems, every dropped row with its reason")
    sub.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="JSONL or Parquet; rows with `prompt` (or question, problem) and `answer`")
    sub.add_argument("--against", type=Path, action="append", default=[], metavar="B", help="a benchmark to decontaminate against; may be repeated")
    sub.add_argument("--params", type=Path, metavar="params.yaml", help="take the section `curation` of this file; default: its defaults")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets problems, dropped and malformed rows, the ledger and a data card")
    sub = add("decontaminate", curation.decontaminate, "drop the rows of a JSONL file that overlap with a benchmark")
    sub.add_argument("input", type=Path, metavar="IN.jsonl", help="rows with `prompt` (or question, problem, text)")
    sub.add_argument("--against", type=Path, required=True, metavar="B.jsonl")
    sub.add_argument("--out", type=Path, required=True, metavar="KEPT.jsonl")
    sub.add_argument("--dropped", type=Path, required=True, metavar="DROPPED.jsonl", help="with rule, benchmark item and shared span")
    embedding = "searches paraphrases: all-MiniLM-L6-v2 (default where the extra `embedding` is installed), a folder, a hub id, or none"
    sub.add_argument("--embedding", metavar="MODEL", help=embedding)
    evaluation.arguments(add("evaluate", evaluation.evaluate, "pass@k and more of a checkpoint on a benchmark, with intervals"))
    evaluation.comparing(add("compare", evaluation.compare, "the paired table of two evaluated checkpoints: differences, intervals, p-values, Holm"))
    diagnostics.register(add)
    mixtures.register(add)
    sub = add("merge", merging.merge, "merge model folders as a YAML file says, in Touchstone's form (base, models, method, settings) or mergekit's")
    sub.add_argument("config", type=Path, metavar="CONFIG.yaml")
    sub.add_argument("folder", type=Path, nargs="?", metavar="OUT", help="the model folder to write")
    sub.add_argument("--out", type=Path, metavar="OUT", help="the same as an option")
    sub.add_argument("--seed", type=int, help="of the random methods (the file's, or 0)")
    sub.add_argument("--workers", type=int, help="tensors under way at once (one for each processor)")
