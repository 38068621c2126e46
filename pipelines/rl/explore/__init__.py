"""Slot `explore`: how the episodes of a group are made, a file for each function."""

from pipelines.rl.explore.adaptive import adaptive
from pipelines.rl.explore.difficulty_adaptive import difficulty_adaptive
from pipelines.rl.explore.fitted_help import fitted_help
from pipelines.rl.explore.greedy_baseline import greedy_baseline
from pipelines.rl.explore.greedy_failures import greedy_failures
from pipelines.rl.explore.help_after_failure import help_after_failure
from pipelines.rl.explore.samples import samples

__all__ = [
    "EXPLORE", "adaptive", "difficulty_adaptive", "fitted_help", "greedy_baseline", "greedy_failures", "help_after_failure", "samples",
]  # fmt: skip

EXPLORE = {
    "samples": samples,
    "adaptive": adaptive,
    "difficulty_adaptive": difficulty_adaptive,
    "greedy_baseline": greedy_baseline,
    "greedy_failures": greedy_failures,
    "help_after_failure": help_after_failure,
    "fitted_help": fitted_help,
}
