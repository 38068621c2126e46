"""Slot `guidance`: what the policy is shown or given beside the problem, a file for each function."""

from pipelines.rl.episodes import Asking, Task
from pipelines.rl.guidance.solution_chunks import solution_chunks
from pipelines.rl.guidance.solution_prefix import solution_prefix
from pipelines.rl.guidance.templates import templates

__all__ = ["GUIDANCE", "none", "solution_chunks", "solution_prefix", "templates"]


def none(task: Task, path: int, at: Asking) -> Task:
    """The problem alone."""
    return task


GUIDANCE = {"none": none, "solution_prefix": solution_prefix, "solution_chunks": solution_chunks, "templates": templates}
