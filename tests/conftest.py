"""Settings that must stand before any test imports torch."""

import os
import sys

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # see pipelines/__init__.py
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run side by side, and tensors this small only lose by sharing. Children inherit it: another number of threads rounds otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests start hundreds of processes; without files of bytecode each would compile the whole project again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
