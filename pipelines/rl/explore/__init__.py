"""Slot `explore`: how the episodes of a group are made, a file for each function."""

from pipelines.rl.explore.adaptive import adaptive
from pipelines.rl.explore.samples import samples

__all__ = ["EXPLORE", "adaptive", "samples"]

EXPLORE = {"samples": samples, "adaptive": adaptive}
