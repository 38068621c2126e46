"""What a function of the slot `recompose` is given beside the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pipelines.models import ranks
from pipelines.records import Problem, Trajectory
from pipelines.rl.adopting import Adopting
from pipelines.rl.episodes import Asking, Beginning
from pipelines.rl.history import History
from pipelines.rl.inputs.probes import Foreseen
from pipelines.rl.rewards import Rewards

T = TypeVar("T")


class More(Protocol):
    """Judged answers to further problems of a step."""

    def __call__(self, number: int, count: int | None = None) -> list[Trajectory]:
        """Those of the step's further draw 1, 2, ..., in groups of new ids: as many problems as the step has, or the first `count` of them."""
        ...


@dataclass
class Recomposition:
    """What a `recompose` function may use.

    Such a function gets all rollouts of the step and gives them back: those that train no more with their reason (`account.drop`), and what
    it adds. A further positional parameter that is called as a role (roles.py) is what the stage has for that role, such as a generator of that
    policy. asking: how problems are put to the policy. foresee(problem, prompt, response) of each: how likely the
    policy holds the right answer to be after the working of the response.
    """

    step: int
    seed: tuple[object, ...]
    problems: Mapping[str, Problem]
    history: History
    rewards: Rewards
    more: More
    asking: Asking
    foresee: Callable[[Sequence[Foreseen]], list[float]]
    adopting: Adopting | None = None
    """What takes in answers of others."""
    continued: Callable[[str, Sequence[Beginning]], list[list[Trajectory]]] = None  # type: ignore[assignment]  # a run always has it
    """See `Source.continued`, of this step."""
    tokens: Callable[[str, list[Trajectory]], list[list[float]]] = None  # type: ignore[assignment]  # likewise
    """tokens(name, trajectories): that tensor (tensors.py) of the policy before the update, for each token of the responses. All processes must ask
    together."""
    held: MutableMapping[str, float] = field(default_factory=dict)
    """Numbers that later steps find again, and that a checkpoint keeps."""

    def judged(self, asked: Sequence[T], answer: Callable[[Sequence[T]], list[list[Trajectory]]]) -> list[list[Trajectory]]:
        """For each of these the further answers to its problem, with their rewards. answer: gives those for some of them; every process answers and
        judges its share."""
        answers = answer(asked[ranks.rank() :: ranks.world()])
        verdicts = iter(self.rewards.pool.verify_batch([(self.problems[t.problem_id], t.response) for of_group in answers for t in of_group]))
        for of_group in answers:
            if of_group:
                said = [t.response for t in of_group]
                self.rewards(self.problems[of_group[0].problem_id], of_group, said, [next(verdicts) for _ in of_group])
        return ranks.collect(answers)


def further(at: Recomposition, count: int, each: int) -> list[Trajectory]:
    """Judged answers to `count` further problems, at most `each` of them a draw."""
    out: list[Trajectory] = []
    for number, before in enumerate(range(0, count, max(each, 1)), 1):
        out += at.more(number, min(each, count - before))
    return out
