"""Serve what prefect.yaml declares, without a work pool: one process that waits for runs and starts them here."""

from __future__ import annotations

from typing import Any

from prefect import serve
from prefect.flows import EntrypointType, load_flow_from_entrypoint
from prefect.schedules import Cron

from pipelines.config import read_yaml
from tasks import settings


def serve_all() -> None:
    """Every deployment of prefect.yaml, until the process ends."""
    project = settings.root()
    declared: list[dict[str, Any]] = read_yaml(project / "prefect.yaml")["deployments"]
    serve(*(_deployment(entry) for entry in declared), print_starting_message=True)


def _deployment(entry: dict[str, Any]) -> Any:
    """prefect.yaml names a file; a served run imports the module instead, so that `flows` is a package."""
    file, _, name = entry["entrypoint"].partition(":")
    found = load_flow_from_entrypoint(f"{file.removesuffix('.py').replace('/', '.')}.{name}")
    schedules = [Cron(each["cron"], timezone=each["timezone"], active=each["active"]) for each in entry["schedules"]]
    return found.to_deployment(
        entry["name"],
        description=entry["description"],
        parameters=entry["parameters"],
        schedules=schedules,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
