"""Tasks to groups of judged trajectories: what one process does with its share of a step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from pipelines.errors import InfrastructureError, UserError
from pipelines.generation import Engine, Generator, Progress
from pipelines.records import Outcome, Problem, Segment, Trajectory, Verdict
from pipelines.rl.clock import Clock
from pipelines.rl.episodes import Answers, Asking, Environment, Episode, Explore, Guide, Task
from pipelines.rl.rewards import Rewards


class Answering:
    """Answers tasks with what `generator` serves. Verifiers judge an episode from the moment it ends, while others go on."""

    def __init__(self, generator: Generator, rewards: Rewards, environment: Environment, guide: Guide, explore: Explore) -> None:
        self.generator, self.rewards, self.guide, self.explore = generator, rewards, guide, explore
        self.asking = Asking(environment, generator.tokenizer, generator.settings.prompt)

    def task(self, problem: Problem, group_id: int, samples: int, key: tuple[Any, ...]) -> Task:
        return Task(problem, group_id, samples, key, self.asking.prompt(problem))

    def groups(self, tasks: Sequence[Task], step: int, policy: str, clock: Clock, progress: Progress | None = None) -> list[list[Trajectory]]:
        """One group a task, in order. Where the policy is sharded all processes must call this together, also with no tasks."""
        engine = Engine(self.generator, progress)
        open_groups = [Group(self, engine, task, step, policy) for task in tasks]
        groups = engine.run([group.answer() for group in open_groups])
        clock.lap("generate")
        for group, trajectories in zip(open_groups, groups, strict=True):
            group.judge(trajectories)
        clock.lap("verify")
        return groups


class Group:
    """The episodes of one task as they come, on one engine."""

    def __init__(self, answering: Answering, engine: Engine, task: Task, step: int, policy: str) -> None:
        self.task, self.answers = task, Answers(self._answer, self._judge_between, engine.together)
        self._answering, self._engine, self._step, self._policy = answering, engine, step, policy
        self._judged: dict[int, tuple[str, Future[Verdict]]] = {}
        """By number of the episode: its answer, and the verdict."""

    async def answer(self) -> list[Trajectory]:
        """All episodes of the group, which may still have to be judged."""
        return await self._answering.explore(self.task, self.answers)

    async def _answer(self, path: int) -> list[Trajectory]:
        task = self._answering.guide(self.task, path, self._answering.asking)
        try:
            episode = await self._answering.asking.environment.run(task, path, self._engine)
        except InfrastructureError as error:  # of a tool or an environment; the engine's own do not come up here
            episode = Episode(task.start, "infrastructure", "", "", Verdict(Outcome.INFRASTRUCTURE, 0.0, detail=str(error)))
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
                reward_parts=dict(episode.figures),
                part=part,
            )
            for part, segments in enumerate([*episode.earlier, episode.segments])
        ]

    def _verdict(self, episode: Episode) -> Future[Verdict]:
        if episode.verdict is None:
            return self._answering.rewards.pool.submit(self.task.problem, episode.answer)
        known: Future[Verdict] = Future()
        known.set_result(episode.verdict)
        return known

    async def _judge_between(self, trajectories: Sequence[Trajectory]) -> None:
        await asyncio.to_thread(self.judge, trajectories)

    def judge(self, trajectories: Sequence[Trajectory]) -> None:
        """Wait for the verdicts of these, and give them their rewards."""
        answers, verdicts = zip(*(self._judged[t.sample_id] for t in trajectories), strict=True)
        self._answering.rewards(self.task.problem, trajectories, answers, [each.result() for each in verdicts])


def trainable(segments: list[Segment]) -> list[Segment]:
    """The segments of an episode.

    Raises:
        UserError: the engine gave no log-probabilities of what it sampled.
    """
    for segment in segments:
        if segment.trains and len(segment.logp) != len(segment.ids):
            raise UserError(
                f"the engine gave {len(segment.logp)} log-probabilities of {len(segment.ids)} tokens that it sampled, and RL trains on them; "
                "choose generation.engine torch, vllm or vllm_server"
            )
    return segments
