"""Servers on loopback: the lasting ones of `touchstone up` and `down`, and a Prefect server for one command where none is up."""

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
from collections.abc import Callable
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


class TemporaryPrefect:
    """A Prefect server that lives as long as this process. `start` returns at once, so that imports run meanwhile; `wait` blocks."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, project: Path) -> None:
        """Start it, unless an address is set already or a server is starting."""
        if self._process or os.environ.get("PREFECT_API_URL"):
            return
        with socket.socket() as probe:
            probe.bind((settings.HOST, 0))
            port = probe.getsockname()[1]
        log = project / paths.STATE / "temporary_prefect.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tasks.temporary_server", str(port), str(os.getpid())]
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, cwd=project, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        self.url = f"http://{settings.HOST}:{port}/api"
        os.environ["PREFECT_API_URL"] = self.url

    def wait(self) -> None:
        """Block until it answers.

        Raises:
            UserError: it does not.
        """
        process = self._process
        if process and not _answers(f"{self.url}/health", lambda: process.poll() is None):
            raise UserError(f"Prefect's temporary server did not come up within {START_TIMEOUT:.0f} s; see .touchstone/temporary_prefect.log")

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


TEMPORARY = TemporaryPrefect()


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
    if not _answers(health, service.alive):
        down(project)
        raise UserError(f"{service.name} did not come up at {service.url}; see {project / paths.STATE / service.name}.log")


def _answers(url: str, alive: Callable[[], bool]) -> bool:
    """Wait until `url` answers; False when its process dies or START_TIMEOUT passes first."""
    limit = time.monotonic() + START_TIMEOUT
    while time.monotonic() < limit and alive():
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False
