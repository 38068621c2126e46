"""Inside some of the policy's answers a guide comments on the working, and the policy goes on from there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines import prompting, seeding
from pipelines.config.common import PromptSettings, Shot
from pipelines.generation import Generator
from pipelines.records import GUIDE, Segment, Trajectory, cut
from pipelines.rl.account import REPLACED, by_group, drop, episodes, free, place, training
from pipelines.rl.demands import takes
from pipelines.rl.episodes import Beginning
from pipelines.rl.recompose.inject import advice
from pipelines.rl.recompose.recomposition import Recomposition
from pipelines.rl.teachers import token_ends

BEHAVIOURS = {
    "conflict": "doubt a step of it, and say what else could be true",
    "critique": "find the step that is wrong or weakest, and say why",
    "agreement": "say which steps hold, and what is still to be done",
    "consultation": "look at it as another person would who solves the problem another way",
}
"""What the guide shows the policy how to do -> how it is asked for that."""
ASKED = "Problem: {problem}\n\nWorking so far:\n{working}\n\nGo on with this for one or two sentences, in its own voice: {behaviour}. Do not answer."
SHOTS = tuple(
    Shot(
        user=ASKED.replace("{problem}", problem).replace("{working}", working).replace("{behaviour}", BEHAVIOURS[behaviour]),
        assistant=assistant,
    )
    for problem, working, behaviour, assistant in (
        ("A box holds 12 pens, and 3 boxes are bought. 4 pens are lost. How many are left?", "12 + 3 = 15, and 15 - 4 = 11.", "critique",
         "Wait, 3 boxes of 12 pens are not 12 + 3 but 12 * 3. I should compute that step again."),
        ("What is 15 % of 80?", "15 / 100 * 80 = 12.", "agreement", "That holds: a tenth of 80 is 8, half of it 4, and 8 + 4 = 12."),
    )
)  # fmt: skip


@takes(lambda n, **_: (n, 2 * n))
def feedback(rollouts: list[Trajectory], at: Recomposition, guide: Generator, *, share: float = 0.25, tokens: int = 128) -> list[Trajectory]:
    """ThinkTuning (arXiv 2508.07616): an answer gives way, with probability `share`, to one that keeps its working, has in it what the guide (the
    stage's `reference`, by itself a policy of the same size) says of that, and goes on from there by the policy. The guide is asked for one of
    `BEHAVIOURS`, drawn anew each time, after examples. tokens: that it may say. Where it says nothing, or no room is left, the answer stays.
    """
    groups = by_group(training(rollouts))
    drawn = [t for group in groups.values() for t in episodes(group) if _random(at, t).random() < share]
    kept = [cut(t.turns, working(at.asking.tokenizer, t.response_ids)) for t in drawn]
    said = advice(at, guide, "feedback", [(t, _asked(at, guide, t, part)) for t, part in zip(drawn, kept, strict=True)], tokens)
    numbers, begun = free(rollouts), []
    for t, part, comment in zip(drawn, kept, said, strict=True):
        ids = at.asking.tokenizer(f"\n{comment}\n", add_special_tokens=False)["input_ids"]
        beginning = Beginning(t, (*part, Segment(GUIDE, ids, trains=True)), 1, numbers[t.group_id] + t.sample_id)
        if comment and len(beginning.ids) <= at.asking.longest:
            begun.append(beginning)
    gone = {place(beginning.sibling) for beginning in begun}
    continued = at.continued("feedback", begun)
    return [*(drop(t, REPLACED) if place(t) in gone else t for t in rollouts), *(t for part in continued for t in part)]


def working(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many ids of a response come before the end of its thought, or, where it has none, before its end token."""
    said = [token for token in ids if token != tokenizer.eos_token_id]
    end = tokenizer.decode(said).find(prompting.END_THINK)
    return len(said) if end < 0 else bisect_right(token_ends(tokenizer, said), end)


def _random(at: Recomposition, t: Trajectory) -> np.random.Generator:
    return seeding.generator(*at.seed, "feedback", at.step, t.group_id, t.sample_id)


def _asked(at: Recomposition, guide: Generator, t: Trajectory, kept: Sequence[Segment]) -> list[int]:
    """What the guide reads: examples, then the problem, the working, and what to do."""
    random = _random(at, t)
    random.random()  # whether it is asked at all
    behaviour = BEHAVIOURS[str(random.choice(list(BEHAVIOURS)))]
    text = guide.tokenizer.decode([token for segment in kept for token in segment.ids]).replace(prompting.THINK, "").strip()
    problem = at.problems[t.problem_id]
    asked = ASKED.replace("{behaviour}", behaviour).replace("{problem}", problem.prompt).replace("{working}", text)
    return prompting.prompt_ids(guide.tokenizer, replace(problem, prompt=asked), PromptSettings(system="", shots=SHOTS))
