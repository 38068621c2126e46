"""Settings that must stand before any test imports torch."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # see pipelines/__init__.py
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run side by side, and tensors this small only lose by sharing. Children inherit it: another number of threads rounds otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
