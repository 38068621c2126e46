"""The science of Touchstone: from raw problems to merged weights, with no orchestrator in sight.

Nothing below this package imports prefect, mlflow or dvc, so every stage runs on a bare GPU box with torch,
transformers and pyarrow: `python -m pipelines STAGE` (see `__main__.py`).
"""

import os

# How long OpenMP threads spin before they sleep. The default spins for milliseconds, which makes a machine that is shared
# several times slower; never spinning costs a quiet one half its speed on small matrices. A few microseconds suit both.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch is imported
