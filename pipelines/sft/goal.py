"""What a model must have learned before its training ends: problems that it does not train on, answered greedily and verified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import seeding
from pipelines.config.training import GoalSettings
from pipelines.generation import TorchGenerator
from pipelines.generation.protocol import Request
from pipelines.records import Outcome, Problem
from pipelines.verifiers import VerifierPool, require_sandbox_for

SOLVED = "solved_"
"""What the journal calls the share of a domain: `solved_math`."""


def set_aside(problems: Sequence[Problem], settings: GoalSettings | None) -> tuple[list[Problem], list[Problem]]:
    """(problems to train on, problems to measure on): `settings.problems` of each domain of the goal, chosen by hash of their ids."""
    if settings is None:
        return list(problems), []
    by_domain: dict[str, list[Problem]] = defaultdict(list)
    for problem in sorted(problems, key=lambda problem: seeding.key("goal", problem.problem_id)):
        by_domain[problem.domain].append(problem)
    held = [problem for domain in settings.solved for problem in by_domain[domain][: settings.problems]]
    ids = {problem.problem_id for problem in held}
    return [problem for problem in problems if problem.problem_id not in ids], held


class Goal:
    """The goal of one training. prompts: token ids of the held-out problems as the model is shown them."""

    def __init__(self, settings: GoalSettings, held_out: Sequence[Problem], tokenizer: Any, prompts: Sequence[Sequence[int]]) -> None:
        require_sandbox_for(held_out)
        self.settings = settings
        self._held_out, self._tokenizer = held_out, tokenizer
        self._requests = [Request(tuple(ids), 1, (problem.problem_id,)) for problem, ids in zip(held_out, prompts, strict=True)]

    def measure(self, model: Any) -> dict[str, float]:
        """Share of the held-out problems of each domain that the model solves, as `solved_DOMAIN`; of those that could be judged."""
        training = model.training
        samples = TorchGenerator(model.eval(), self._tokenizer, self.settings.generation).generate(self._requests)
        model.train(training)
        with VerifierPool() as pool:
            verdicts = pool.verify_batch([(problem, sample.text) for problem, (sample,) in zip(self._held_out, samples, strict=True)])
        right: dict[str, list[bool]] = {domain: [] for domain in self.settings.solved}
        for problem, verdict in zip(self._held_out, verdicts, strict=True):
            if verdict.outcome is not Outcome.INFRASTRUCTURE:
                right[problem.domain].append(verdict.correct)
        return {SOLVED + domain: sum(found) / len(found) if found else 0.0 for domain, found in right.items()}

    def missing(self, measured: Mapping[str, float]) -> list[str]:
        """What of the goal has not been reached: `code: 0.05 of the held-out problems solved, 0.20 wanted`."""
        return [
            f"{domain}: {measured.get(SOLVED + domain, 0.0):.2f} of the held-out problems solved, {wanted:.2f} wanted"
            for domain, wanted in self.settings.solved.items()
            if measured.get(SOLVED + domain, 0.0) < wanted
        ]
