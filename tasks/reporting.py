"""What Prefect's UI shows of a run: progress, the table of scores, the way to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_progress_artifact, update_progress_artifact

from pipelines import paths
from pipelines.store import read_json


def start_progress() -> UUID:
    """A progress bar over the stages of this flow run."""
    return create_progress_artifact(0.0, key="progress", description="stages done")


def show_progress(artifact: UUID, done: int, total: int, text: str) -> None:
    update_progress_artifact(artifact, progress=100.0 * done / total, description=f"{done} of {total} stages; {text}")


def show_link(link: str) -> None:
    create_link_artifact(link, link_text="this run in MLflow (`touchstone up` serves it)", key="mlflow")


def show_scores(project: Path) -> None:
    """The evaluation as a table, if it has run."""
    file = project / paths.SCORES
    if file.exists():
        create_markdown_artifact(score_table(read_json(file)), key="scores", description="pass@k of every model on every benchmark")


def score_table(scores: dict[str, Any]) -> str:
    """scores.json as Markdown: a row per benchmark and model, mean and 95 % interval per k, then what the gate said."""
    ks = sorted({int(k) for results in scores["models"].values() for figures in results.values() for k in figures["pass_at_k"]})
    lines = ["| benchmark | model | " + " | ".join(f"pass@{k}" for k in ks) + " |", "|---|---|" + "---:|" * len(ks)]
    for benchmark in scores["benchmarks"]:
        for model, results in scores["models"].items():
            intervals = [results[benchmark]["pass_at_k"][str(k)] for k in ks]
            cells = [f"{i['mean']:.3f} ({i['low']:.3f} to {i['high']:.3f})" for i in intervals]
            lines.append(f"| {benchmark} | {model} | " + " | ".join(cells) + " |")
    gate = scores["gate"]
    verdict = f"The gate {'passes' if gate['passed'] else 'does not pass'} {gate['candidate']}."
    return "\n".join([*lines, "", verdict, *(f"- {reason}" for reason in gate["reasons"])]) + "\n"
