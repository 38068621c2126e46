"""Further answers from before a token at which the policy was unsure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines import seeding
from pipelines.records import GUIDE, Segment, Trajectory, cut
from pipelines.rl.account import by_group, episodes, free, training
from pipelines.rl.demands import passes, takes
from pipelines.rl.episodes import Beginning
from pipelines.rl.recompose.recomposition import Recomposition


@takes(lambda n, *, branches, **_: (n, n * (1 + branches)))
@passes("the policy on its answers")
def critical_tokens(
    rollouts: list[Trajectory], at: Recomposition, *, branches: int = 3, top: int = 20, longest: int = 1500, trains: bool = False
) -> list[Trajectory]:
    """CURE (arXiv 2508.11016): in each answer one token is drawn from the `top` at which the policy's entropy is highest, and the policy answers
    `branches` times more from before it. All of them join the group.

    longest: tokens of a beginning; places after it, or after which no room is left for an answer, are not drawn. trains: whether the beginning trains
    with each answer that goes on from it, too.
    """
    groups = by_group(training(rollouts))
    answers = [t for group in groups.values() for t in episodes(group)]
    numbers, begun = free(rollouts), []
    for t, entropy in zip(answers, at.tokens("entropy_old_BT", answers), strict=True):
        most = max(int(min(longest, at.asking.longest - len(t.prompt_ids))), 0)
        if places := candidates(at.asking.tokenizer, t.response_ids[: most + 1], entropy, top):
            place = places[int(seeding.generator(*at.seed, "critical token", at.step, t.group_id, t.sample_id).integers(len(places)))]
            opening = cut(t.turns, place) if trains else (Segment(GUIDE, t.response_ids[:place]),)
            begun.append(Beginning(t, opening, branches, numbers[t.group_id]))
            numbers[t.group_id] += branches
    return [*rollouts, *(t for part in at.continued("branches", begun) for t in part)]


def candidates(tokenizer: Any, ids: Sequence[int], entropy: Sequence[float], top: int) -> list[int]:
    """The `top` places of highest entropy, the highest first, among all but the first one, special tokens, and those of one character or none."""
    special = set(tokenizer.all_special_ids)
    places = [place for place in range(1, len(ids)) if ids[place] not in special and len(tokenizer.decode([ids[place]])) > 1]
    return sorted(places, key=lambda place: -entropy[place])[:top]
