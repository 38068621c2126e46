"""Slot `explore`: how the episodes of a group are made, a file for each function."""

from pipelines.rl.explore.adaptive import adaptive
from pipelines.rl.explore.fitted_help import fitted_help
from pipelines.rl.explore.greedy_baseline import greedy_baseline
from pipelines.rl.explore.greedy_failures import greedy_failures
from pipelines.rl.explore.help_after_failure import help_after_failure
from pipelines.rl.explore.samples import samples

__all__ = ["EXPLORE", "adaptive", "fitted_help", "greedy_baseline", "greedy_failures", "help_after_failure", "samples"]

EXPLORE = {
    "samples": samples,
    "adaptive": adaptive,
    "greedy_baseline": greedy_baseline,
    "greedy_failures": greedy_failures,
    "help_after_failure": help_after_failure,
    "fitted_help": fitted_help,
}
