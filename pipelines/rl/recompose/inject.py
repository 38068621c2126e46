"""A guide's right answer stands in for one of the policy's wrong ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from pipelines import prompting
from pipelines.generation import Generator, Request, Sample
from pipelines.models import ranks
from pipelines.records import GUIDE, Outcome, Segment, Trajectory
from pipelines.rl import account
from pipelines.rl.account import REPLACED, SPARE, by_group, drop, free, training
from pipelines.rl.answering import trainable
from pipelines.rl.demands import takes
from pipelines.rl.episodes import Beginning
from pipelines.rl.recompose.recomposition import Recomposition


@takes(lambda n, *, tries, **_: (n, n + tries))
def inject(rollouts: list[Trajectory], at: Recomposition, guide: Generator, *, at_most: float = 0.25, tries: int = 4) -> list[Trajectory]:
    """NPO (arXiv 2604.20733): in a group whose pass rate is at most `at_most`, one failed rollout gives way to a verified right one of a
    later checkpoint, if `tries` samples of it hold one."""
    groups = by_group(training(rollouts))
    hard = {g: group for g, group in groups.items() if sum(r.outcome == Outcome.CORRECT for r in group) <= at_most * len(group)}
    numbers = free(rollouts)
    begun = [Beginning(group[0], (), tries, numbers[g]) for g, group in hard.items()]
    guided = dict(zip(hard, at.judged(begun, functools.partial(guide_answers, at, guide)), strict=True))
    out = [rollout for rollout in rollouts if rollout.dropped or rollout.group_id not in hard]
    for group_id, group in hard.items():
        wrong = next((r for r in group if r.outcome not in (Outcome.CORRECT, Outcome.INFRASTRUCTURE)), None)
        right = next((r for r in guided[group_id] if r.outcome == Outcome.CORRECT), None)
        swapped = wrong is not None and right is not None
        out += [drop(r, REPLACED) if swapped and r is wrong else r for r in group]
        out += [r if swapped and r is right else drop(r, SPARE) for r in guided[group_id]]
    return out


def guide_answers(at: Recomposition, guide: Generator, begun: Sequence[Beginning]) -> list[list[Trajectory]]:
    """For each of these the answers of the guide that go on from it, not yet judged."""
    key = (*at.seed, GUIDE, at.step)
    requests = [Request(tuple(b.ids), b.count, (*key, b.sibling.group_id, b.sibling.problem_id), b.first) for b in begun]
    answers = guide.generate(requests)
    return [[_guided(each, each.first + n, sample, guide) for n, sample in enumerate(said)] for each, said in zip(begun, answers, strict=True)]


def advice(at: Recomposition, guide: Generator, purpose: str, asked: Sequence[tuple[Trajectory, Sequence[int]]], tokens: int) -> list[str]:
    """What the guide says to prompts, each about an answer, in at most so many tokens, its thoughts left out; "" where it does not come to that, or a
    prompt leaves no room for it. Every process asks for its share."""
    limit = min(tokens, guide.settings.max_new_tokens)
    fitting = [place for place, (_, prompt) in enumerate(asked) if len(prompt) + limit <= guide.context]
    key = (*at.seed, GUIDE, purpose, at.step)
    requests = [Request(tuple(asked[place][1]), 1, (*key, *account.place(asked[place][0])), limit=limit) for place in fitting]
    samples = ranks.collect(guide.generate(requests[ranks.rank() :: ranks.world()]))
    texts = [""] * len(asked)
    for place, (sample,) in zip(fitting, samples, strict=True):
        said = sample.text.rpartition(prompting.END_THINK)[2]
        texts[place] = "" if prompting.THINK in said else said.strip()
    return texts


def _guided(begun: Beginning, number: int, sample: Sample, guide: Generator) -> Trajectory:
    """The guide's answer as number `number` of the group."""
    said = Segment(GUIDE, sample.token_ids, sample.logp, [sample.policy_version] * len(sample.token_ids), trains=True)
    return replace(
        begun.sibling,
        sample_id=number,
        policy=GUIDE,
        origin=GUIDE,
        segments=trainable([begun.sibling.segments[0], *begun.opening, said]),
        finish_reason=sample.finish_reason,
        response=guide.tokenizer.decode(begun.opened) + sample.text,
        reward_parts={},
        part=0,
    )
