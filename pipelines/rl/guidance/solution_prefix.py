"""The beginning of the problem's worked solution."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pipelines import prompting, seeding
from pipelines.records import GUIDE, Segment
from pipelines.rl.demands import Need, needs
from pipelines.rl.episodes import Asking, Task
from pipelines.rl.guidance.solution_chunks import solution_steps

Unit = Literal["tokens", "characters", "steps"]


@needs(Need.SOLUTIONS)
def solution_prefix(
    task: Task,
    path: int,
    at: Asking,
    *,
    episodes: int = 1,
    share: tuple[float, float] = (0.25, 0.75),
    low_at_end: float | None = None,
    unit: Unit = "tokens",
    shown: Literal["opening", "hint"] = "opening",
    trains: bool = False,
    hint: str = "{problem}\nThe solution begins: {prefix}",
) -> Task:
    """A share of the worked solution, counted in `unit`: as the `opening` of the answer, which the policy goes on from (Prefix-RFT, arXiv
    2507.01679; SEELE), or as a `hint` in the prompt (Guide, arXiv 2506.13923; GHPO).

    Where `explore` says the share, it is that. Else the first `episodes` of a group are given one that is drawn from `share`; with `low_at_end` the
    lower end of that falls to it along half a cosine, from the first step of the stage to the last. trains: the tokens of the opening train, by the
    policy's own log-probabilities before the update, and a hint is in the prompt that training sees too. A problem without a solution, or without
    room for the hint, is left as it is. The figure `given` is the share.
    """
    part = _share(task, path, share, low_at_end) if task.given is None and path < episodes else task.given
    if not part or not task.problem.solution:
        return replace(task, figures={"given": 0.0})
    figures = {"given": part}
    if shown == "opening":
        ids = _opening(task, at, part, unit)[: max(int(min(at.longest, 2**31)) - len(task.prompt.ids), 0)]
        return replace(task, opening=(Segment(GUIDE, ids, trains=trains),), figures=figures)
    hinted = hint.replace("{problem}", task.problem.prompt).replace("{prefix}", _beginning(task.problem.solution, at, part, unit))
    prompt = at.prompt(replace(task.problem, prompt=hinted))
    if len(prompt.ids) > at.longest:
        return replace(task, figures={"given": 0.0})
    return replace(task, prompt=prompt, trained_prompt=prompt.ids if trains else task.prompt.ids, figures=figures)


def _share(task: Task, path: int, share: tuple[float, float], low_at_end: float | None) -> float:
    low, high = share
    if low_at_end is not None:
        low = falling(low, low_at_end, task.progress)
    return float(seeding.generator(*task.key, path, "prefix").uniform(low, high))


def falling(first: float, last: float, progress: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def _opening(task: Task, at: Asking, part: float, unit: Unit) -> list[int]:
    """Ids of a response that writes the solution, up to the end of the share."""
    if unit == "tokens":
        whole = prompting.response_ids(at.tokenizer, task.problem, at.settings)
        return whole[: math.ceil(part * len(whole))]
    solution = task.problem.solution or ""
    before, found, _ = prompting.response(task.problem, at.settings).partition(solution)
    text = f"{before}{_beginning(solution, at, part, unit)}".rstrip() if found else ""
    return at.tokenizer(text, add_special_tokens=False)["input_ids"]


def _beginning(solution: str, at: Asking, part: float, unit: Unit) -> str:
    if unit == "characters":
        return solution[: round(part * len(solution))]
    if unit == "steps":
        steps = solution_steps(solution)
        return "".join(steps[: round(part * len(steps))])
    ids = at.tokenizer(solution, add_special_tokens=False)["input_ids"]
    return at.tokenizer.decode(ids[: math.ceil(part * len(ids))])
