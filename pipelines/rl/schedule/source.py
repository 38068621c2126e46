"""What every schedule shares: the problems of a step, which of them this process answers, and what the engine serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.config.common import GenerationSettings
from pipelines.config.rl import SamplingStage
from pipelines.errors import InfrastructureError
from pipelines.generation import Blocking, Generator, Progress, Request, Sample, serving
from pipelines.models import ranks
from pipelines.models.adapters import plain_weights
from pipelines.records import Outcome, Problem, Trajectory
from pipelines.rl.account import episodes
from pipelines.rl.answering import Answering
from pipelines.rl.clock import Clock
from pipelines.rl.episodes import Beginning, Task
from pipelines.rl.ledger import Ledger


class Follower(Blocking):
    """The generator of a process whose first one has the engine: it takes part in gathering weights, and answers nothing."""

    def __init__(self, policy: Any, tokenizer: Any, settings: GenerationSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.push(policy, 0)  # the engine starts from gathered weights too

    def push(self, model: Any, version: int) -> None:
        plain_weights(model)
        self.version = version

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        return []

    def close(self) -> None: ...


def engine_of(policy: Any, tokenizer: Any, settings: GenerationSettings, folder: Path) -> Generator:
    """What serves the policy: in each process where it decodes in this library's own engine, in the first one elsewhere."""
    if settings.engine == "torch" or ranks.rank() == 0:
        return serving(settings, policy, tokenizer, folder)
    return Follower(policy, tokenizer, settings)


class Source:
    """Groups of answers to drawn problems, from `answering`, or from the ledger where they have been answered before.

    examining: what answers held-out problems. problems: by id, to which those are added that `play` makes. draw(step, number): the problems of a
    step's own draw 0, and of further ones. seed: (run, stage).
    """

    def __init__(
        self,
        answering: Answering,
        examining: Answering,
        problems: dict[str, Problem],
        draw: Callable[[int, int], list[Problem]],
        settings: SamplingStage,
        seed: tuple[int, str],
        ledger: Ledger,
    ) -> None:
        self.answering, self.examining, self.problems, self.draw = answering, examining, problems, draw
        self.settings, self.seed, self.ledger = settings, seed, ledger

    @property
    def generator(self) -> Generator:
        return self.answering.generator

    def tasks(self, step: int, number: int = 0, count: int | None = None) -> list[Task]:
        """This process' share of a draw, or of its first `count` problems. A problem that comes twice is answered twice: its place is part of the
        key."""
        drawn = self.draw(step, number)[:count]
        return [self.task(step, number, slot, drawn[slot]) for slot in self.share(len(drawn))]

    def task(self, step: int, number: int, slot: int, problem: Problem) -> Task:
        """The problem at place `slot` of a draw."""
        progress = (step - 1) / max(self.settings.steps - 1, 1)
        return self.answering.task(problem, slot, self.settings.group_size, (*self.seed, "rollout", step, number), progress)

    def answer(self, step: int, number: int, tasks: Sequence[Task], clock: Clock, progress: Progress | None = None) -> list[list[Trajectory]]:
        """What came of this process' tasks."""
        return self.answering.played(tasks, step, self.seed[1], clock, progress)

    def gathered(self, step: int, number: int, played: Sequence[Sequence[Trajectory]]) -> list[Trajectory]:
        """The answers of all processes to a draw, in the order of its problems. No two draws of a step share a group's id."""
        answers = [trajectory for of_task in ranks.collect(played) for trajectory in of_task]
        if number:
            before = number * self.settings.prompts_per_step * self.answering.play.width
            answers = [replace(r, group_id=before + r.group_id) for r in answers]
        self.ledger.record(step, number, answers)
        self.learn(answers)
        return answers

    def answered(self, step: int, number: int) -> list[Trajectory] | None:
        """What was answered in a draw, if a run before this one has recorded it."""
        answers = self.ledger.answered(step, number)
        if answers is not None:
            self.learn(answers)
        return answers

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """Know the problems that `play` made in a step."""
        self.problems.update(self.answering.play.problems(trajectories, self.problems))

    def further(self, step: int, clock: Clock, number: int, count: int | None = None) -> list[Trajectory]:
        """Judged answers to the problems, or to `count` of them, of the step's further draw 1, 2, ..., of what is served now."""
        known = self.answered(step, number)
        return self.gathered(step, number, self.answer(step, number, self.tasks(step, number, count), clock)) if known is None else known

    def continued(self, step: int, clock: Clock, name: str, begun: Sequence[Beginning]) -> list[list[Trajectory]]:
        """For each of these the judged answers that go on from it, of what is served now, without further help. name: what the ledger calls them,
        another for each call in a step. All processes must ask for the same together."""
        known = self.ledger.answered(step, name)
        if known is None:
            tasks = [self._continuing(step, name, slot, begun[slot]) for slot in self.share(len(begun))]
            played = self.examining.played(tasks, step, self.seed[1], clock)
            known = [trajectory for of_task in ranks.collect(played) for trajectory in of_task]
            self.ledger.record(step, name, known)
        parts: list[list[Trajectory]] = [[] for _ in begun]
        for trajectory in known:
            parts[trajectory.group_id].append(trajectory)
        return [
            [replace(t, group_id=each.sibling.group_id, sample_id=each.first + t.sample_id) for t in part]
            for each, part in zip(begun, parts, strict=True)
        ]

    def _continuing(self, step: int, name: str, slot: int, begun: Beginning) -> Task:
        """Whose group is numbered by its place until all are back."""
        sibling = begun.sibling
        task = self.examining.task(self.problems[sibling.problem_id], slot, begun.count, (*self.seed, name, step))
        prompt = replace(task.prompt, ids=sibling.prompt_ids)
        figures = {"given": float(len(begun.opened))}
        return replace(task, prompt=prompt, trained_prompt=sibling.trained_prompt, opening=begun.opening, figures=figures)

    def pass_rate(self, problems: Sequence[Problem], samples: int, step: int) -> float:
        """Share of right answers of what is served, the policy after `step`, among those that could be judged.

        Raises:
            InfrastructureError: none could.
        """
        key = (*self.seed, "validation", step, 0)
        tasks = [self.examining.task(problems[slot], slot, samples, key) for slot in self.share(len(problems))]
        groups = self.examining.played(tasks, step, self.seed[1], Clock())
        outcomes = [r.outcome for group in groups for r in episodes(group) if r.outcome != Outcome.INFRASTRUCTURE]
        figures = ranks.total({"right": outcomes.count(Outcome.CORRECT), "all": len(outcomes)})
        if not figures["all"]:
            raise InfrastructureError(f"step {step}: no response to a held-out problem could be judged")
        return figures["right"] / figures["all"]

    def share(self, count: int) -> range:
        """Which of so many problems this process answers: every `world`-th, or all where the first process has the engine."""
        if self.settings.generation.engine == "torch":
            return range(ranks.rank(), count, ranks.world())
        return range(count if ranks.rank() == 0 else 0)
