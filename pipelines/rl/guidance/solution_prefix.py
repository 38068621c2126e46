"""The beginning of the problem's worked solution."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pipelines import prompting, seeding
from pipelines.records import GUIDE, Segment
from pipelines.rl.demands import Need, needs
from pipelines.rl.episodes import Asking, Task


@needs(Need.SOLUTIONS)
def solution_prefix(
    task: Task,
    path: int,
    at: Asking,
    *,
    episodes: int = 1,
    share: tuple[float, float] = (0.25, 0.75),
    shown: Literal["opening", "hint"] = "opening",
    hint: str = "{problem}\nThe solution begins: {prefix}",
) -> Task:
    """The first `episodes` of a group are given a share, drawn from `share`, of the tokens of the worked solution: as the `opening` of the
    answer, which the policy goes on from (Prefix-RFT, arXiv 2507.01679, which also trains the prefix where its entropy is high: here it does not
    train), or as a `hint` in the prompt, which training does not see (Guide, arXiv 2506.13923). A problem without a solution is left as it is.
    """
    if path >= episodes or not task.problem.solution:
        return task
    part = seeding.generator(*task.key, path, "prefix").uniform(*share)
    if shown == "opening":
        whole = prompting.response_ids(at.tokenizer, task.problem, at.settings)
        return replace(task, opening=(Segment(GUIDE, whole[: math.ceil(part * len(whole))]),))
    words = at.tokenizer(task.problem.solution, add_special_tokens=False)["input_ids"]
    prefix = at.tokenizer.decode(words[: math.ceil(part * len(words))])
    hinted = replace(task.problem, prompt=hint.replace("{problem}", task.problem.prompt).replace("{prefix}", prefix))
    return replace(task, prompt=at.prompt(hinted), trained_prompt=task.prompt.ids)
