"""A wrong answer is mended at its first bad step, and the policy learns the mended beginning."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.generation import Generator
from pipelines.records import GUIDE, Outcome, Segment, Trajectory
from pipelines.rl.account import PROBE, by_group, drop, episodes, free, training
from pipelines.rl.demands import Need, needs, takes
from pipelines.rl.episodes import Beginning
from pipelines.rl.explore.help_after_failure import failed
from pipelines.rl.guidance.solution_chunks import before_answer
from pipelines.rl.inputs.probes import step_starts
from pipelines.rl.recompose.feedback import working
from pipelines.rl.recompose.inject import advice
from pipelines.rl.recompose.recomposition import Recomposition

ASKED = (
    "Problem: {problem}\n\nA right solution:\n{solution}\n\nThe steps of a wrong one:\n{steps}\n\nWhich is the first step that is wrong, and what "
    "should stand in its place? Write its number, a colon, and one step that mends it, in the voice of the wrong solution. Do not say the answer."
)
REPLY = re.compile(r"\D*(\d+)\s*[:.)]\s*(\S.*)", re.DOTALL)


@needs(Need.SOLUTIONS)
@takes(lambda n, *, traces, continuations, **_: (n, n + traces * continuations))
def interventions(
    rollouts: list[Trajectory],
    at: Recomposition,
    guide: Generator,
    *,
    traces: int = 1,
    continuations: int = 32,
    beginning_trains: bool = True,
    delimiter: str = "\n\n",
    tokens: int = 256,
) -> list[Trajectory]:
    """InT: in a group without a right answer the guide (the stage's `reference`, by itself the policy as it was) is shown the worked solution and the
    steps of the first `traces` answers, and names the first bad step and one that mends it. The policy answers `continuations` times from there; if
    one of those is right, the beginning and the step in place of the bad one train, as what a guide wrote and in a group of their own. Steps that say
    the final answer are left out, and so is what cannot be read. beginning_trains: whether what stands before the new step trains too.
    """
    groups = [group for group in by_group(training(rollouts)).values() if failed(group)]
    shown = [(t, number) for group in groups for number, t in enumerate(episodes(group)[:traces]) if at.problems[t.problem_id].solution]
    starts = [_steps(at.asking.tokenizer, t, delimiter) for t, _ in shown]
    prompts = [_asked(at, guide, t, ends) for (t, _), ends in zip(shown, starts, strict=True)]
    replies = advice(at, guide, "intervention", [(t, prompt) for (t, _), prompt in zip(shown, prompts, strict=True)], tokens)
    numbers, begun = free(rollouts), []
    for (t, number), ends, reply in zip(shown, starts, replies, strict=True):
        mended = intervention(reply, len(ends) - 1, at.problems[t.problem_id].answer)
        if mended is not None:
            before, new = t.response_ids[: ends[mended[0]]], at.asking.tokenizer(mended[1], add_special_tokens=False)["input_ids"]
            opening = tuple(Segment(GUIDE, ids, trains=trains) for ids, trains in ((before, beginning_trains), (new, True)) if ids)
            beginning = Beginning(t, opening, continuations, numbers[t.group_id] + number * continuations)
            if len(beginning.ids) <= at.asking.longest:
                begun.append(beginning)
    quiet = [replace(each, opening=tuple(replace(s, trains=False) for s in each.opening)) for each in begun]
    answered = at.continued("interventions", quiet)
    useful = [(b, right) for b, part in zip(begun, answered, strict=True) if (right := next((t for t in part if t.outcome == Outcome.CORRECT), None))]
    first = max((t.group_id for t in rollouts), default=-1) + 1
    return [
        *rollouts,
        *(drop(t, PROBE) for part in answered for t in part),
        *(_taught(at, each, right, first + place) for place, (each, right) in enumerate(useful)),
    ]


def intervention(reply: str, steps: int, answer: str) -> tuple[int, str] | None:
    """What a reply says: how many steps stay, of so many, and the one that comes after them; None if it cannot be read or says the answer."""
    found = REPLY.match(reply)
    if not found or not 1 <= int(found[1]) <= steps or not before_answer([found[2]], answer):
        return None
    return int(found[1]) - 1, found[2].strip()


def _steps(tokenizer: Any, t: Trajectory, delimiter: str) -> list[int]:
    """Where each step of the working begins, and last where it ends."""
    end = working(tokenizer, t.response_ids)
    return [*(start for start in step_starts(tokenizer, t.response_ids, (delimiter,)) if start < end), end]


def _asked(at: Recomposition, guide: Generator, t: Trajectory, ends: Sequence[int]) -> list[int]:
    problem, decode = at.problems[t.problem_id], guide.tokenizer.decode
    steps = [decode(t.response_ids[a:b]).replace(prompting.THINK, "").strip() for a, b in itertools.pairwise(ends)]
    shown = ASKED.replace("{steps}", "\n".join(f"{number}: {step}" for number, step in enumerate(steps, 1)))
    asked = shown.replace("{solution}", problem.solution or "").replace("{problem}", problem.prompt)
    return prompting.prompt_ids(guide.tokenizer, replace(problem, prompt=asked), PromptSettings(system=""))


def _taught(at: Recomposition, begun: Beginning, right: Trajectory, group_id: int) -> Trajectory:
    """The beginning alone, as it trains; it is worth what the answer that it led to is."""
    segments, text = [right.segments[0], *begun.opening], at.asking.tokenizer.decode(begun.opened)
    return replace(
        right, group_id=group_id, sample_id=0, policy=GUIDE, origin=GUIDE, segments=segments, finish_reason="stop", response=text
    )
