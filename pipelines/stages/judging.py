"""A reward model in place of the endpoint of verifier `judge`."""

from __future__ import annotations

from pipelines import paths
from pipelines.config.stage import Served
from pipelines.errors import UserError
from pipelines.models.reward_model import RewardModel, served
from pipelines.records import Outcome, Problem, Verdict
from pipelines.stages import Context
from pipelines.verifiers.judge import rubric
from pipelines.verifiers.judgement import Engines, Job, Verifier


def reward_model(context: Context, given: Served, device: str) -> RewardModel:
    """The one that a stage names.

    Raises:
        UserError: it is not good enough.
    """
    try:
        return served(context.root / paths.model(given.stage), given.bound, device)
    except UserError as error:
        raise UserError(f"{context.stage}: {error}") from None


def judge_of(context: Context, given: Served | None, device: str) -> Verifier | None:
    """What judges problems of verifier `judge`: the model's probability is the score, and correct means at least the rubric's threshold. None leaves
    it to the endpoint."""
    if given is None:
        return None
    model = reward_model(context, given, device)

    def verify(problem: Problem, response: str) -> Job:
        threshold = rubric(problem).threshold

        def judge(_: Engines) -> Verdict:
            (score,) = model.scores([(problem, response)], "probability", given.principle)
            return Verdict(Outcome.CORRECT if score >= threshold else Outcome.WRONG, score, None, f"{given.stage} {score:.3f}")

        return Job(f"{problem.prompt}\0{response}", judge)

    return verify
