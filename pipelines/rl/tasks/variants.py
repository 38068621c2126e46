"""Variants of a problem, harder along one axis after the other, and easier ones where the policy failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pipelines import seeding
from pipelines.records import Problem
from pipelines.rl.history import Tally
from pipelines.rl.tasks.draw import Draw

NEXT: dict[str, tuple[str | None, str | None]] = {
    "base": ("x", None),
    "a": ("b", "b"), "b": ("c", "c"), "c": ("d", "d"), "d": ("e", "e"), "e": ("x", "x"),
    "x": ("xy", "y"), "y": ("xy", None), "xy": ("xz", "z"), "z": ("xz", None), "xz": ("xyz", "yz"), "yz": ("xyz", None), "xyz": (None, None),
}  # fmt: skip
"""Variant -> the next one after a right answer and without any. x: more steps, y: another form, z: more context; a to e lead to x."""
SEED, VARIANT = "seed ", "variant "
"""What the topics begin with that say of which problem a row is a variant, and which."""


class Variants:
    """We-Math 2.0's dynamic data scheduling (arXiv 2508.10433): each family of variants (rows of one topic `seed NAME`, of topics `variant base`,
    `variant xy`, ...) is walked from its base on, as NEXT says, by whether any answer to its last variant was right. A family without a right answer
    goes to the head of the next step, first come first served. Where less is open than a step has, problems are added at random.

    A row without these topics is a family of its own. clear: a family that was served from the head comes in its turn again; in the released code it
    never does (False).
    """

    def __init__(self, *, clear: bool = True) -> None:
        self.clear = clear
        self.at: dict[str, str | None] = {}
        """By family the variant that it stands at; None where it has ended."""
        self.failed: list[str] = []
        """Families that are served first."""
        self._blocked: set[str] = set()
        self._served: dict[str, int] = {}
        self._seen = 0

    def __call__(self, problems: Sequence[Problem], at: Draw) -> list[Problem]:
        if not problems:
            return []
        families: dict[str, dict[str, Problem]] = defaultdict(dict)
        for problem in problems:
            families[_named(problem, SEED, problem.problem_id)][_named(problem, VARIANT, "base")] = problem
        for name, family in families.items():
            self.at.setdefault(name, next(key for key in (*NEXT, *family) if key in family))
        for step in sorted(step for step in at.history.tallies if step > self._seen):
            self.observe(families, step, at.history.tallies[step])
            self._seen = step
        order = seeding.generator(*at.key("families")).permutation(len(families)).tolist()
        names = [list(families)[place] for place in order]
        names.sort(key=lambda name: self._served.get(name, 0))
        waiting = [name for name in names if name not in self._blocked]
        chosen = [problem for name in (*self.failed, *waiting) if (problem := families.get(name, {}).get(self.at[name] or ""))][: at.count]
        random = seeding.generator(*at.key("beside the variants"), at.step)
        return [*chosen, *(problems[place] for place in random.integers(len(problems), size=at.count - len(chosen)))]

    def observe(self, families: Mapping[str, Mapping[str, Problem]], step: int, tallies: Mapping[str, Tally]) -> None:
        """Move on every family whose variant was answered in a step."""
        for name, family in families.items():
            problem = family.get(self.at[name] or "")
            if problem is None or problem.problem_id not in tallies:
                continue
            right = tallies[problem.problem_id].right > 0
            following = NEXT.get(self.at[name] or "", (None, None))[not right]
            self.at[name] = following if following in family else None
            self._served[name] = step
            if name in self.failed:
                self.failed.remove(name)
                if self.clear:
                    self._blocked.discard(name)
            if not right and self.at[name] is not None:
                self.failed.append(name)
                self._blocked.add(name)


def _named(problem: Problem, start: str, otherwise: str) -> str:
    """What follows the first topic that begins so."""
    return next((topic.removeprefix(start) for topic in problem.topics if topic.startswith(start)), otherwise)
