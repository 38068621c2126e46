"""Where rollouts come from: the step's problems, answered by every process its share, judged, in one order for all.

With one step of asynchrony the next step's problems are answered in a thread while this step's update runs. What they are sampled from
are the weights before that update, whatever the clock does, so a run is as reproducible as one that waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.config.common import GenerationSettings
from pipelines.config.rl import RlStage
from pipelines.errors import InfrastructureError
from pipelines.generation import Generator, Progress, Request, Sample, serving
from pipelines.models.adapters import plain_weights
from pipelines.models.sharding import weights
from pipelines.records import Outcome, Problem, Rollout
from pipelines.rl import ranks
from pipelines.rl.data import Clock, draw, rollouts
from pipelines.verifiers import VerifierPool


class Stopped(Exception):
    """Nobody waits for these rollouts any more."""


class Follower:
    """The generator of a process whose first one has the engine: it takes part in gathering weights, and answers nothing."""

    def __init__(self, policy: Any, tokenizer: Any, settings: GenerationSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.push(policy, 0)  # the engine starts from gathered weights too

    def push(self, model: Any, version: int) -> None:
        plain_weights(model)

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Sample]]:
        return []

    def close(self) -> None: ...


def engine_of(policy: Any, tokenizer: Any, settings: GenerationSettings, folder: Path) -> Generator:
    """What serves the policy: in each process where it decodes in this library's own engine, in the first one elsewhere."""
    if settings.engine == "torch" or ranks.rank() == 0:
        return serving(settings, policy, tokenizer, folder)
    return Follower(policy, tokenizer, settings)


class Sampler:
    """Answers problems with what `generator` serves: `policy`, or, where the stage is asynchronous, `behaviour`, a copy of it that is never
    trained. eligible: which problems may be drawn, None for all."""

    def __init__(
        self,
        generator: Generator,
        pool: VerifierPool,
        problems: Sequence[Problem],
        settings: RlStage,
        seed: tuple[int, str],
        policy: Any,
        behaviour: Any = None,
        eligible: Callable[[Problem], bool] | None = None,
    ) -> None:
        self.generator, self.pool = generator, pool
        self._problems, self._settings, self._seed, self._eligible = problems, settings, seed, eligible
        self._policy, self._behaviour = policy, behaviour
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="rollouts") if behaviour is not None else None
        self._under_way: tuple[Clock, Future[list[list[Rollout]]]] | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        self.generator.close()

    def take(self, step: int, clock: Clock) -> list[Rollout]:
        """The rollouts of `step`. With asynchrony the thread has them; at the start of a run, and of a resumed one, it begins here."""
        if self._behaviour is None:
            self.generator.push(self._policy, step - 1)
            return self.draw(step, clock)
        if self._under_way is None:
            self._begin(step)
        assert self._under_way is not None
        beside, future = self._under_way
        mine = future.result()
        self._under_way = None
        clock.lap("wait")
        clock.beside = beside.seconds
        return _flat(ranks.collect(mine))

    def ahead(self, step: int) -> None:
        """Begin `step` with the policy as it stands, if the stage is asynchronous."""
        if self._behaviour is not None:
            self._behaviour.load_state_dict(weights(self._policy), strict=False)  # a value head is no part of it
            self._begin(step)

    def draw(self, step: int, clock: Clock, number: int = 0) -> list[Rollout]:
        """Judged responses to the problems of the step's further draw 1, 2, ..., of what is served now. No two draws share a group's id."""
        answers = _flat(ranks.collect(self._answer(self._chosen(step, number), step, clock, number)))
        return [replace(r, group_id=number * self._settings.prompts_per_step + r.group_id) for r in answers] if number else answers

    def pass_rate(self, problems: Sequence[Problem], samples: int, step: int) -> float:
        """Share of right responses of the policy as it stands after `step`, among those that could be judged.

        Raises:
            InfrastructureError: none could.
        """
        if self._under_way:
            self._under_way[1].result()
        self.generator.push(self._policy, step)
        clock = Clock()
        slots = self._share(len(problems))
        mine = [problems[slot] for slot in slots]
        answers = rollouts(self.generator, self.pool, mine, samples, (*self._seed, "validation"), step, clock, slots)
        outcomes = [r.outcome for r in answers if r.outcome != Outcome.INFRASTRUCTURE]
        figures = ranks.total({"right": outcomes.count(Outcome.CORRECT), "all": len(outcomes)})
        if self._behaviour is not None:
            self.generator.push(self._behaviour, max(step - 1, 0))
        if not figures["all"]:
            raise InfrastructureError(f"step {step}: no response to a held-out problem could be judged")
        return figures["right"] / figures["all"]

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep to answer again what is under way."""
        return {} if self._behaviour is None else {"behaviour": self._behaviour}

    def _begin(self, step: int) -> None:
        assert self._threads is not None
        clock, chosen = Clock(), self._chosen(step)  # chosen now: what may be drawn depends on the steps before
        self.generator.push(self._behaviour, max(step - 2, 0))
        self._under_way = clock, self._threads.submit(self._answer, chosen, step, clock)

    def _chosen(self, step: int, number: int = 0) -> list[Problem]:
        seed, stage = self._seed
        key = (stage, f"draw {number}") if number else stage
        return draw(self._problems, self._settings.prompts_per_step, seed, key, step, self._eligible)

    def _answer(self, chosen: Sequence[Problem], step: int, clock: Clock, draw: int = 0) -> list[list[Rollout]]:
        """This process' groups, numbered as in `chosen`."""
        slots, seed = self._share(len(chosen)), (*self._seed, "rollout")
        mine = [chosen[slot] for slot in slots]
        made = rollouts(self.generator, self.pool, mine, self._settings.group_size, seed, step, clock, slots, draw, self._beat)
        return [[r for r in made if r.group_id == slot] for slot in slots]

    def _share(self, count: int) -> range:
        """Which of so many problems this process answers: every `world`-th, or all where the first process has the engine."""
        if self._settings.generation.engine == "torch":
            return range(ranks.rank(), count, ranks.world())
        return range(count if ranks.rank() == 0 else 0)

    def _beat(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Stopped


def _flat(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]
