"""Several experts into one model: `merge(config, out)`, and the published rules as rows of METHODS.

Rules are generators over one tensor (`tensors.py` says what they are given, `methods.py` lists them); files, checks and memory are the
engine's (`streaming.py`). `read_config` reads Touchstone's YAML and mergekit's; `search.py` chooses a merge by validation.
"""

from __future__ import annotations

from pipelines.merging.configs import MergeConfig
from pipelines.merging.mergekit_files import read_config
from pipelines.merging.methods import METHODS, merge_tensors, rule
from pipelines.merging.streaming import MergeSummary, merge

__all__ = ["METHODS", "MergeConfig", "MergeSummary", "merge", "merge_tensors", "read_config", "rule"]
