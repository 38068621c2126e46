"""Where every stage reads and writes, relative to the project root. dvc.yaml must agree; a test checks it.

Outputs of stages live under data/ and belong to DVC. Work in progress (resumable checkpoints, caches, the MLflow
store) lives under .touchstone/, because DVC deletes a stage's outputs before it runs.
"""

from __future__ import annotations

from pathlib import Path

PARAMS = Path("params.yaml")
TORN = ".*.part"
"""Pattern of temporary names: what is being written, or was when a process was killed. Never part of a folder's content; .dvcignore says so too."""

SOURCES = Path("data/sources")
PROBLEMS = SOURCES / "problems.parquet"
BENCHMARKS = SOURCES / "benchmarks"
"""One <name>.parquet of problems per benchmark."""

CURATION = Path("data/curation")
SPLITS = {name: CURATION / f"{name}.parquet" for name in ("base", "sft", "rl")}

MODELS = Path("data/models")
"""One folder per model: base, sft, one per RL stage, merged."""
BASE = MODELS / "base"
SFT = MODELS / "sft"
MERGED = MODELS / "merged"
SEARCH = MERGED / "search.json"
"""What a search for the best merge tried, where params ask for one."""

DIFFICULTY = Path("data/difficulty")
SELECTED = DIFFICULTY / "selected.parquet"
"""Problems inside the band, with pass rates."""
GRADED = DIFFICULTY / "graded.parquet"
"""All graded problems."""
UNGRADED = DIFFICULTY / "dropped.parquet"
"""Problems that are not selected, with the reason."""

SYNTHESIS = Path("data/synthesis")
SYNTHESISED = SYNTHESIS / "problems.parquet"

ROLLOUTS = Path("data/rollouts")
"""One folder per RL stage, one Parquet file per some steps."""

EVALUATION = Path("data/evaluation")
SCORES = EVALUATION / "scores.json"
DIAGNOSTICS = EVALUATION / "diagnostics.json"
SAMPLES = EVALUATION / "samples"
"""<model>/<benchmark>.parquet: every response with its verdict."""

REPORT = Path("data/report")
PAGE = REPORT / "index.html"

METRICS = Path("data/metrics")
"""<stage>.json for `dvc metrics show`."""
PLOTS = Path("data/plots")
"""<stage>.csv, one row per step, for `dvc plots`."""

LEDGER = "ledger.json"
"""Name of the step-by-step account in the folder of each curating stage."""
CARD = "card.json"
"""Name of the data card beside them, as values; `card.md` says the same for readers."""
DROPPED = "dropped.parquet"
"""Name of the file of dropped rows in the folder of each curating stage."""
IDENTITY = Path("data/identity")
"""<stage>.json: digests of the code and versions of the libraries that decide the stage's results; DVC's stage `code` writes them."""
MANIFESTS = Path("data/manifests")
"""One provenance statement per stage. They stand apart from the outputs, so that a rerun that writes the same bytes stops there."""
RL_MANIFESTS = MANIFESTS / "rl"
"""Those of the RL stages. Each names the digest of every file of its model, so depending on this folder is depending on all experts."""

EXTERNAL = Path("data/external")
"""<stage>/: links to the local files and folders that params name, so that DVC sees when their content changes."""

STATE = Path(".touchstone")
CODE_MEMORY = STATE / "code.json"
"""What texts of code say, so that they are parsed once."""
CHECKED = STATE / "checked.json"
"""What the tables have said of names in params."""
WORK = STATE / "work"
"""<stage>/: journal, logs and caches of a stage; below it, RESUME."""
RESUME = "resume"
"""Folder in that of a stage: what it continues from when it is interrupted. Cleared once the stage is recorded."""
REPLIES = "replies.sqlite"
"""File of what a teacher or judge answered, so that interrupted work does not ask again."""
FORCED = STATE / "forced"
"""One file per stage that is to run though it is current, until it is recorded."""
FINISHED = STATE / "finished"
"""One file per stage that has ended well, until it is recorded and MLflow knows of it."""


def model(name: str) -> Path:
    """Folder of the model called `name`: base, sft, merged, or an RL stage."""
    return MODELS / name


def manifest(stage: str) -> Path:
    """Provenance statement of a stage; that of the report, which depends on all the others, lies beside the page."""
    if stage == "report":
        return REPORT / "manifest.json"
    name, _, item = stage.partition("@")
    return MANIFESTS / name / f"{item}.json" if item else MANIFESTS / f"{name}.json"


def identity(stage: str) -> Path:
    """What decides a stage's results beside its settings and data; all RL stages share one."""
    return IDENTITY / f"{stage.partition('@')[0]}.json"


def slug(stage: str) -> str:
    """A stage's address (`rl@math`) as a file name (`rl-math`)."""
    return stage.replace("@", "-")
