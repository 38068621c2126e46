"""What Prefect's UI shows of a run: progress, the table of scores, the way to MLflow."""

from __future__ import annotations

from pathlib import Path
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
    """Metrics of the evaluation as a table, if it has run."""
    file = project / paths.METRICS / "evaluation.json"
    if file.exists():
        create_markdown_artifact(score_table(read_json(file)), key="scores", description="metrics of evaluation")


def score_table(metrics: dict[str, float]) -> str:
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    return f"| metric | value |\n|---|---:|\n{rows}\n"
