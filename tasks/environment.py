"""The environment of Prefect, MLflow and DVC: state under .touchstone, quiet, nothing reported to anyone."""

from __future__ import annotations

import atexit
import os

from pipelines import paths
from pipelines.errors import UserError
from tasks import services, settings
from tasks.preloading import PRELOADED


def prepare() -> None:
    """Fill in what is not set. Must come before `import prefect`, which reads its settings once."""
    try:
        project = settings.root()
    except UserError:
        return  # a command that needs a project says so itself
    home = project / paths.STATE / "prefect"
    defaults = {
        "PREFECT_HOME": str(home),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "storage"),  # does not follow PREFECT_HOME
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # errors reach the user as one sentence from the command line
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, for jobs that nobody here submits
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if url := services.prefect_url(project):
        defaults["PREFECT_API_URL"] = url
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # registered before Prefect is imported, hence run after its own hooks, which still talk to the server
    atexit.register(services.TEMPORARY.stop)
    atexit.register(PRELOADED.stop)
