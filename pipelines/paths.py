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
"""One folder per model: base, and one per stage that makes one."""
BASE = MODELS / "base"
SEARCH = "search.json"
"""Name of what a search for the best merge tried, in the folder of its model."""

REWARD_MODEL = "reward_model.json"
"""Name of what makes a folder a reward model: how it reads responses, what was fitted and measured."""

PRINCIPLES = "principles.jsonl"
"""Name of the rows {prompt, response, principle, label, evidence} that were read from feedback, in the folder of the reward model they taught."""

EXTRAPOLATION = "extrapolation.json"
"""Name of what an extrapolation found of every tensor, in the folder of its model."""

ROWS = Path("data/rows")
"""One folder per stage that makes rows."""
MADE = "problems.parquet"
"""Name of the rows that such a stage hands on."""
GRADED = "graded.parquet"
"""Name of all graded problems, of a stage of kind grade."""
UNGRADED = "ungraded.parquet"
"""Name of the problems beyond its limit."""
REFLECTIONS = "reflections.parquet"
"""Name of the wrong answers that a reflector has corrected, of a stage of kind sample."""
OUTPUTS = "outputs.parquet"
"""Name of what a teacher has said of answers' tokens, of a stage of kind sample."""
STRONG = "strong.parquet"
"""Name of those that its second policy graded, with that one's pass rates."""
SCORED = "scores.parquet"
"""Name of the scores of rows, of a stage of kind select."""

SEEN = Path("data/seen")
"""<stage>.parquet: problem ids of the rows that a stage has read, and where it found them."""

ROLLOUTS = Path("data/rollouts")
"""One folder per stage that leaves rollouts, one Parquet file per some steps."""
VOCABULARY = "vocabulary.json"
"""Name of a digest of the vocabulary that their token ids are of, in such a folder."""

KEPT = Path("data/kept")
"""One folder per stage that keeps weights along its training, with a model folder a step."""

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
"""<kind>.json: digests of the code and versions of the libraries that decide the results of a kind; DVC's stage `code-identity` writes them."""
ENVIRONMENTS = IDENTITY / "environments"
"""<environment>.json: what is installed in a virtual environment that a stage of kind command runs in."""
MANIFESTS = Path("data/manifests")
"""<stage>.json: one provenance statement per stage. They stand apart from the outputs, so that a rerun that writes the same bytes stops there."""
GRAPH = Path("data/dvc.yaml")
"""The stages of params.yaml as DVC reads them; whoever runs them writes it."""

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
    """Folder of the model called `name`: base, or that of a stage."""
    return MODELS / name


def rows(reference: str) -> Path:
    """File of the rows that a reference in params names: `curation/SPLIT`, `STAGE`, `STAGE/FILE`, or a file of the project's own;
    the folder of `STAGE/rollouts`."""
    if reference.endswith((".jsonl", ".parquet", ".txt")):
        return Path(reference)
    stage, _, file = reference.partition("/")
    if file == "rollouts":
        return ROLLOUTS / stage
    return SPLITS[file] if stage == "curation" else ROWS / stage / f"{file or 'problems'}.parquet"


def seen(stage: str) -> Path:
    """Which rows a stage has read."""
    return SEEN / f"{stage}.parquet"


def manifest(stage: str) -> Path:
    """Provenance statement of a stage; that of the report, which depends on all the others, lies beside the page."""
    return REPORT / "manifest.json" if stage == "report" else MANIFESTS / f"{stage}.json"


def environment(folder: str) -> Path:
    """What is installed in the virtual environment `folder`, relative to the root of the project."""
    name = folder.replace("/", "-")
    return ENVIRONMENTS / f"{'_' + name[1:] if name.startswith('.') else name}.json"


def identity(kind: str) -> Path:
    """What decides the results of stages of a kind beside their settings and data."""
    return IDENTITY / f"{kind}.json"
