"""Answers that came as text from outside the run, as if its own policy had given them: tokenised, judged and scored by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipelines.models import ranks
from pipelines.records import GUIDE, PROMPT, SHARED, Problem, Segment, Trajectory
from pipelines.rl.answering import Answering
from pipelines.rl.ledger import Ledger

OUTSIDE = "outside"
"""In the ledger: what a step took from outside."""


@dataclass(frozen=True)
class Adopting:
    """What takes in such answers for one step. limit: tokens that an answer may have. logp: log-probabilities of the responses' tokens under the
    policy that the step trains; all processes must ask together."""

    step: int
    answering: Answering
    limit: int
    ledger: Ledger
    logp: Callable[[list[Trajectory]], list[list[float]]]

    def judged(self, problem: Problem, answers: Sequence[tuple[str, bool]], group_id: int, policy: str) -> list[Trajectory]:
        """The answers to a problem, each with whether it ends there or was cut, as a judged group, not yet scored. Empty where one of them cannot be
        an answer of this run: it is too long, has no tokens, or would open or close a turn."""
        asking = self.answering.asking
        tokenizer, prompt = asking.tokenizer, asking.prompt(problem).ids
        reserved = set(tokenizer.all_special_ids)
        group = []
        for number, (text, ended) in enumerate(answers):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            response = [*ids, tokenizer.eos_token_id] if ended else ids
            if not 0 < len(response) <= self.limit or reserved.intersection(ids):
                return []
            segments = [Segment(PROMPT, prompt), Segment(GUIDE, response, trains=True)]
            finish = "stop" if ended else "length"
            group.append(
                Trajectory(problem.problem_id, group_id, number, self.step, policy, segments, finish, response=text, origin=SHARED)
            )
        verdicts = self.answering.rewards.pool.verify_batch([(problem, text) for text, _ in answers])
        self.answering.rewards(problem, group, [text for text, _ in answers], verdicts)
        return group

    def taken(self, choose: Callable[[], list[Trajectory]]) -> list[Trajectory]:
        """What the step takes: what the first process chooses, scored; or what a run that was interrupted had taken, whatever is there now."""
        known = self.ledger.answered(self.step, OUTSIDE)
        if known is None:
            known = self._scored(ranks.collect(choose() if ranks.rank() == 0 else []))
            self.ledger.record(self.step, OUTSIDE, known)
        return known

    def _scored(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        """As sampled by the weights that the step trains."""
        scored = []
        for t, logp in zip(trajectories, self.logp(trajectories) if trajectories else [], strict=True):
            prompt, said = t.segments
            scored.append(replace(t, segments=[prompt, replace(said, logp=logp, versions=[self.step - 1] * len(said.ids))]))
        return scored
