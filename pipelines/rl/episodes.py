"""From a problem to groups of trajectories: the records and protocols that play, guidance, exploration and environments share.

    trajectories = await play(task, round)                slot `play`: what a drawn problem leads to, one group or several
    task = guide(task, path, asking)                      slot `guidance`: what the policy is shown or given
    episode = await environment.run(task, path, engine)   slot `environment`: turns until it ends
    group = await explore(task, answers)                  slot `explore`: how many episodes, and which
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.config.common import PromptSettings
from pipelines.generation import Engine, Key
from pipelines.records import PROMPT, Problem, Segment, Trajectory, Verdict


@dataclass(frozen=True)
class Prompt:
    """What opens an episode, as ids, and as chat turns for engines that take no ids."""

    ids: list[int]
    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Task:
    """A problem as the policy meets it: one group of a step.

    samples: how many answers a group has where `explore` does not say otherwise. key: what every draw of the group depends on: the place of the
    problem that was drawn, and last the id of this one, which is the same or one that it led to. opening: what has been written for the policy at the
    start of its answer. trained_prompt: the prompt that training sees, where it is another. figures: what the guidance tells of itself; parts of the
    reward and the journal find it among `reward_parts`. given: how much of its help the guidance is to give, from 0 to 1, where `explore` says so;
    None: it decides itself. progress: how far the stage has come, 0 in its first step and 1 in its last.
    """

    problem: Problem
    group_id: int
    samples: int
    key: Key
    prompt: Prompt
    opening: tuple[Segment, ...] = ()
    trained_prompt: list[int] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    given: float | None = None
    progress: float = 0.0

    @property
    def start(self) -> list[Segment]:
        """The segments that every episode of the task begins with."""
        return [Segment(PROMPT, self.prompt.ids), *self.opening]


@dataclass(frozen=True)
class Beginning:
    """What further answers of a group go on from: the prompt of `sibling`, and `opening`, which stands after it. count: how many; they are numbered
    from `first` on."""

    sibling: Trajectory
    opening: tuple[Segment, ...]
    count: int
    first: int

    @property
    def ids(self) -> list[int]:
        """Prompt and opening."""
        return [*self.sibling.prompt_ids, *self.opened]

    @property
    def opened(self) -> list[int]:
        """The opening alone."""
        return [token for segment in self.opening for token in segment.ids]


@dataclass
class Episode:
    """What came of a task once.

    finish_reason: `stop`, `length`, or why the environment ended it. text: of all after the prompt. answer: the part that is judged.
    verdict: the environment's own, None where the problem's verifier says. figures: what the environment counted, such as calls of tools. earlier:
    what was seen and said before a turn that did not follow from it, as often as that was so.
    """

    segments: list[Segment]
    finish_reason: str
    text: str
    answer: str
    verdict: Verdict | None = None
    figures: dict[str, float] = field(default_factory=dict)
    earlier: list[list[Segment]] = field(default_factory=list)


class Environment(Protocol):
    """How an episode goes, turn by turn. The keyword-only parameters of its class are its settings; a run makes one, which serves all episodes."""

    def prompt(self, tokenizer: Any, problem: Problem, settings: PromptSettings) -> Prompt:
        """How the problem is put.

        Raises:
            UserError: the tokenizer's chat template cannot express what the environment needs.
        """
        ...

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """One episode; every draw of it is keyed by (*task.key, path, ...). What it awaits beside the engine, the engine waits for."""
        ...


@dataclass(frozen=True)
class Asking:
    """How problems are put to the policy of a run. longest: tokens of a prompt with what opens the answer, so that the answer has room."""

    environment: Environment
    tokenizer: Any
    settings: PromptSettings
    longest: float = math.inf

    def prompt(self, problem: Problem) -> Prompt:
        return self.environment.prompt(self.tokenizer, problem, self.settings)


Guide = Callable[[Task, int, Asking], Task]
"""(task, path, how problems are put) -> the task as episode number `path` of its group gets it."""


@dataclass(frozen=True)
class Answers:
    """What `explore` may ask for. answer(path): the trajectories (mostly one) of episode number `path` of the group, not yet judged;
    answer(path, given): with so much help (`Task.given`). greedy(path): the same as the first, of the policy's likeliest token each time.
    judge(trajectories): wait for their verdicts. together: run several side by side."""

    answer: Callable[..., Awaitable[list[Trajectory]]]
    greedy: Callable[[int], Awaitable[list[Trajectory]]]
    judge: Callable[[Sequence[Trajectory]], Awaitable[None]]
    together: Callable[[Sequence[Any]], Awaitable[list[Any]]]


class Explore(Protocol):
    """How a group is made."""

    async def __call__(self, task: Task, answers: Answers) -> list[Trajectory]:
        """The trajectories of one group, those that are not to train marked (account.py)."""
        ...


@dataclass(frozen=True)
class Round:
    """What `play` may ask for, of one problem that was drawn.

    task(problem, samples): a problem that this one led to, as a group of its own; no two of a round have one id. state(segments): the drawn problem
    once more, as a group whose answers go on from these segments. answer(task): the group as the recipe makes it, not yet judged. judged(task): the
    same with verdicts and rewards. propose(task): `task.samples` episodes without guidance, which no verifier judges: `play` says what came of them.
    together: run several side by side. asking: how problems are put.
    """

    task: Callable[[Problem, int], Task]
    state: Callable[[Sequence[Segment]], Task]
    answer: Callable[[Task], Awaitable[list[Trajectory]]]
    judged: Callable[[Task], Awaitable[list[Trajectory]]]
    propose: Callable[[Task], Awaitable[list[Trajectory]]]
    together: Callable[[Sequence[Any]], Awaitable[list[Any]]]
    asking: Asking


class Play(Protocol):
    """What a drawn problem leads to. The keyword-only parameters of its class are its settings; a run makes one, which remembers nothing.

    width: most groups that one problem may lead to, its own among them.
    """

    width: int

    async def __call__(self, task: Task, at: Round) -> list[Trajectory]:
        """The trajectories of all groups of the problem."""
        ...

    def problems(self, trajectories: Sequence[Trajectory], known: Mapping[str, Problem]) -> dict[str, Problem]:
        """By id the problems that trajectories of a step are of, beyond those that are known: what they were asked follows from what was said."""
        ...
