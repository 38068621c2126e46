"""`touchstone up` and `down`: a lasting Prefect server and the MLflow UI, on loopback only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines import paths
from pipelines.errors import UserError
from pipelines.store import write_json
from tasks import settings

START_TIMEOUT = 120.0
STOP_TIMEOUT = 10.0


@dataclass(frozen=True)
class Service:
    """A server that is running: which process (a pid alone may be reused, so its start time too), and where."""

    name: str
    pid: int
    started: float
    url: str

    def alive(self) -> bool:
        import psutil

        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def _file(project: Path) -> Path:
    return project / paths.STATE / "services.json"


def running(project: Path) -> dict[str, Service]:
    """Name -> service, of those that were started for this project and still live."""
    file = _file(project)
    if not file.exists():
        return {}
    services = [Service(**entry) for entry in json.loads(file.read_text())]
    return {service.name: service for service in services if service.alive()}


def prefect_url(project: Path) -> str | None:
    """API address of the lasting Prefect server, if it is up."""
    service = running(project).get("prefect")
    return f"{service.url}/api" if service else None


def up(project: Path) -> list[Service]:
    """Start what is not running, and wait until it answers.

    Raises:
        UserError: a port is taken, or a server does not come up.
    """
    services = running(project)
    ports = {"prefect": settings.prefect_port(), "mlflow": settings.mlflow_port()}
    missing = {name: port for name, port in ports.items() if name not in services}
    for name, port in missing.items():
        _check_free(name, port)
    for name, port in missing.items():
        services[name] = _start(project, name, port)
        write_json(_file(project), [asdict(service) for service in services.values()])
    for name in missing:
        _wait(project, services[name])
    return list(services.values())


def down(project: Path) -> list[str]:
    """Stop what `up` started; returns the names."""
    services = running(project)
    for service in services.values():
        os.killpg(service.pid, signal.SIGTERM)
    limit = time.monotonic() + STOP_TIMEOUT
    for service in services.values():
        while service.alive() and time.monotonic() < limit:
            time.sleep(0.1)
        try:
            os.killpg(service.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    _file(project).unlink(missing_ok=True)
    return list(services)


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.HOST, port))
        except OSError:
            variable = f"TOUCHSTONE_{name.upper()}_PORT"
            raise UserError(f"port {port} on {settings.HOST}, meant for {name}, is in use; free it or set {variable} to another") from None


def _start(project: Path, name: str, port: int) -> Service:
    import psutil

    address = ["--host", settings.HOST, "--port", str(port)]
    command = {
        "prefect": [sys.executable, "-m", "prefect", "server", "start", *address],
        "mlflow": [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", settings.mlflow_uri(project), *address],
    }[name]
    log = project / paths.STATE / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    return Service(name, process.pid, psutil.Process(process.pid).create_time(), f"http://{settings.HOST}:{port}")


def _wait(project: Path, service: Service) -> None:
    health = service.url + {"prefect": "/api/health", "mlflow": "/health"}[service.name]
    limit = time.monotonic() + START_TIMEOUT
    while time.monotonic() < limit and service.alive():
        try:
            with urllib.request.urlopen(health, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    log = project / paths.STATE / f"{service.name}.log"
    down(project)
    raise UserError(f"{service.name} did not come up at {service.url}; see {log}")
