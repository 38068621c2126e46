"""Settings that must stand before any test imports torch."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # see pipelines/__main__.py
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
