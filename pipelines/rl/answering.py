"""Drawn problems to judged trajectories: what one process does with its share of a step."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Engine, Generator, Progress
from pipelines.records import Outcome, Problem, Segment, Trajectory, Verdict
from pipelines.rl.clock import Clock
from pipelines.rl.episodes import Answers, Asking, Environment, Episode, Explore, Guide, Play, Round, Task
from pipelines.rl.explore import samples
from pipelines.rl.rewards import Rewards


class Answering:
    """Answers tasks with what `generator` serves. Verifiers judge an episode from the moment it ends, while others go on."""

    def __init__(self, generator: Generator, rewards: Rewards, play: Play, environment: Environment, guide: Guide, explore: Explore) -> None:
        self.generator, self.rewards, self.play, self.guide, self.explore = generator, rewards, play, guide, explore
        longest = generator.context - generator.settings.max_new_tokens
        self.asking = Asking(environment, generator.tokenizer, generator.settings.prompt, longest)

    def task(self, problem: Problem, place: int, samples: int, key: tuple[Any, ...], progress: float = 0.0) -> Task:
        """The problem at `place` of a draw, whose groups have ids from `place * play.width` on."""
        key = (*key, place, problem.problem_id)
        return Task(problem, place * self.play.width, samples, key, self.asking.prompt(problem), progress=progress)

    def played(self, tasks: Sequence[Task], step: int, policy: str, clock: Clock, progress: Progress | None = None) -> list[list[Trajectory]]:
        """What came of each task, in order. Where the policy is sharded all processes must call this together, also with no tasks."""
        engine = Engine(self.generator, progress)
        games = [Game(self, engine, task, step, policy) for task in tasks]
        played = engine.run([game.play() for game in games])
        clock.lap("generate")
        for game in games:
            game.judge()
        clock.lap("verify")
        return played


class Game:
    """What one drawn problem leads to, as it comes, on one engine."""

    def __init__(self, answering: Answering, engine: Engine, task: Task, step: int, policy: str) -> None:
        self.task, self._answering, self._groups = task, answering, 1
        self._group = functools.partial(_Group, answering, engine, step, policy)
        self._round = Round(self._further, self._state, self._answer, self._judged, self._propose, engine.together, answering.asking)
        self._to_judge: list[tuple[_Group, list[Trajectory]]] = []

    async def play(self) -> list[Trajectory]:
        """The trajectories of all groups, of which some may still have to be judged."""
        return await self._answering.play(self.task, self._round)

    def judge(self) -> None:
        """Wait for the verdicts of what `play` has not had judged."""
        for group, trajectories in self._to_judge:
            group.judge(trajectories)

    def _further(self, problem: Problem, samples: int) -> Task:
        key = (*self.task.key[:-1], problem.problem_id)
        prompt = self._answering.asking.prompt(problem)
        task = Task(problem, self.task.group_id + self._groups, samples, key, prompt, progress=self.task.progress)
        self._groups += 1
        return task

    def _state(self, opening: Sequence[Segment]) -> Task:
        key = (*self.task.key[:-1], f"{self.task.problem.problem_id} state {self._groups}")
        task = replace(self.task, group_id=self.task.group_id + self._groups, key=key, opening=tuple(opening))
        self._groups += 1
        return task

    async def _answer(self, task: Task) -> list[Trajectory]:
        group = self._group(task)
        trajectories = await group.answer()
        self._to_judge.append((group, trajectories))
        return trajectories

    async def _judged(self, task: Task) -> list[Trajectory]:
        group = self._group(task)
        trajectories = await group.answer()
        await asyncio.to_thread(group.judge, trajectories)
        return trajectories

    async def _propose(self, task: Task) -> list[Trajectory]:
        return await self._group(task, proposing=True).answer()


class _Group:
    """The episodes of one task. proposing: they are plain ones, which no verifier judges."""

    def __init__(self, answering: Answering, engine: Engine, step: int, policy: str, task: Task, *, proposing: bool = False) -> None:
        self._answering, self._engine, self._step, self._policy, self._task, self._proposing = answering, engine, step, policy, task, proposing
        self._answers = Answers(self._answer, functools.partial(self._answer, greedy=True), self._judge_between, engine.together)
        self._judged: dict[int, tuple[str, Future[Verdict]]] = {}
        """By number of the episode: its answer, and the verdict."""

    async def answer(self) -> list[Trajectory]:
        """All episodes of the group, which may still have to be judged."""
        return await (samples if self._proposing else self._answering.explore)(self._task, self._answers)

    async def _answer(self, path: int, given: float | None = None, *, greedy: bool = False) -> list[Trajectory]:
        task = self._task if self._proposing else self._answering.guide(replace(self._task, given=given), path, self._answering.asking)
        try:
            episode = await self._answering.asking.environment.run(task, path, self._engine.greedy if greedy else self._engine)
        except InfrastructureError as error:  # of a tool or an environment; the engine's own do not come up here
            episode = Episode(task.start, "infrastructure", "", "", Verdict(Outcome.INFRASTRUCTURE, 0.0, detail=str(error)))
        if not self._proposing:
            self._judged[path] = episode.answer, self._verdict(episode)
        return [
            Trajectory(
                problem_id=task.problem.problem_id,
                group_id=task.group_id,
                sample_id=path,
                step=self._step,
                policy=self._policy,
                segments=trainable(segments),
                finish_reason=episode.finish_reason,
                trained_prompt=task.trained_prompt,
                response=episode.text,
                outcome=episode.verdict.outcome.value if self._proposing and episode.verdict else "",
                reward_parts={**task.figures, **episode.figures},
                part=part,
            )
            for part, segments in enumerate([*episode.earlier, episode.segments])
        ]

    def _verdict(self, episode: Episode) -> Future[Verdict]:
        if episode.verdict is None:
            return self._answering.rewards.pool.submit(self._task.problem, episode.answer)
        known: Future[Verdict] = Future()
        known.set_result(episode.verdict)
        return known

    async def _judge_between(self, trajectories: Sequence[Trajectory]) -> None:
        await asyncio.to_thread(self.judge, trajectories)

    def judge(self, trajectories: Sequence[Trajectory]) -> None:
        """Wait for the verdicts of these, and give them their rewards."""
        answers, verdicts = zip(*(self._judged[t.sample_id] for t in trajectories), strict=True)
        self._answering.rewards(self._task.problem, trajectories, answers, [each.result() for each in verdicts])


def trainable(segments: list[Segment]) -> list[Segment]:
    """The segments of an episode.

    Raises:
        UserError: the engine gave no log-probabilities of what it sampled.
    """
    for segment in segments:
        if segment.trains and segment.versions and len(segment.logp) != len(segment.ids):
            raise UserError(
                f"the engine gave {len(segment.logp)} log-probabilities of {len(segment.ids)} tokens that it sampled, and RL trains on them; "
                "choose generation.engine torch, vllm or vllm_server"
            )
    return segments
