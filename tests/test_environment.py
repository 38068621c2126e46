"""The pinned set works together, which pip's own check does not show: everything imports, and the Prefect server starts."""

import os
import re
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest

from tasks.services import TemporaryPrefect

ROOT = Path(__file__).parents[1]
LOCK = [line.split("==") for line in (ROOT / "requirements/lock.txt").read_text().splitlines() if line and not line.startswith("#")]
DIRECT = re.findall(r'^    "([\w.-]+)', (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0], re.MULTILINE)

MODULES = {"pyyaml": "yaml", "ruamel.yaml": "ruamel.yaml", "import-linter": "importlinter", "pytest-xdist": "xdist"}
"""Packages whose module has another name."""


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_installed_set_is_the_lock():
    differs = {name: (version, metadata.version(name)) for name, version in LOCK if metadata.version(name).partition("+")[0] != version}
    assert differs == {}


def test_the_lock_covers_what_the_project_asks_for():
    locked = {normal(name) for name, _ in LOCK}
    assert len(DIRECT) > 15
    assert {normal(name) for name in DIRECT} <= locked
    assert dict(LOCK)["torch"] == "2.13.0"
    assert not {"torchvision", "torchaudio"} & locked


def test_every_pinned_package_imports():
    """One process for all: a clash between two shows only when both are loaded."""
    wanted = [MODULES.get(name, normal(name).replace("-", "_")) for name in DIRECT]
    assert {"torch", "transformers", "datasets", "duckdb", "pyarrow", "dvc", "mlflow", "prefect", "fastapi", "math_verify", "reasoning_gym"} <= set(
        wanted
    )
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\nfrom transformers import LlamaForCausalLM, Qwen2ForCausalLM"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *wanted], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_prefects_server_starts(tmp_path, monkeypatch):
    """By itself; the tests of commands start it too."""
    (tmp_path / "tasks").symlink_to(ROOT / "tasks")
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    server = TemporaryPrefect()
    server.start(tmp_path)
    try:
        server.wait()
        with urllib.request.urlopen(f"{server.url}/admin/version", timeout=10) as response:
            assert response.read().decode().strip('"') == dict(LOCK)["prefect"]
    finally:
        server.stop()
        os.environ.pop("PREFECT_API_URL", None)


@pytest.mark.parametrize("command", [["make", "-n", "run"], ["make", "-n", "test"]])
def test_the_two_commands(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("touchstone run" if command[-1] == "run" else "pytest") in done.stdout
