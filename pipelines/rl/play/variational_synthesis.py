"""The policy writes variants of what it hardly solves, and answers them too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.records import Outcome, Problem, Trajectory, problem_id
from pipelines.rl.account import episodes
from pipelines.rl.episodes import Round, Task

INSTRUCTION = "Here is a solution of a problem that is not shown:\n\n{response}\n\nWrite a problem that it solves. Say nothing but the problem."


class VariationalSynthesis:
    """SvS (arXiv 2508.14029): of a group of which some, but no more than a share of `at_most`, are right, each right answer (`responses` of them at
    most) is shown to the policy without the problem, and it writes `variants` problems that this answers. A variant has the answer of the problem
    that it was made of, and is answered as often. Writing one earns 1 where a share of `low` to `high` of those answers is right, else 0: then it is
    neither too easy, nor too hard, nor most likely another problem.

    All of it trains together. Equal variants of one problem are answered once; one that is the problem itself earns 0 and is not answered.
    """

    def __init__(
        self, *, at_most: float = 0.5, responses: int = 4, variants: int = 8, low: float = 0.125, high: float = 0.625, instruction: str = INSTRUCTION
    ) -> None:
        self._at_most, self._responses, self._variants, self._low, self._high = at_most, responses, variants, low, high
        self._instruction = instruction
        self.width = 1 + responses * (1 + variants)

    async def __call__(self, task: Task, at: Round) -> list[Trajectory]:
        """See `Play`."""
        answered = await at.judged(task)
        right, judged = _right(answered)
        if not 0 < len(right) <= self._at_most * judged:
            return answered
        responses = list(dict.fromkeys(trajectory.response for trajectory in right))[: self._responses]
        asked = [at.task(self._asking(task.problem, response), self._variants) for response in responses]
        written = await at.together([at.propose(each) for each in asked])
        proposals = [trajectory for group in written for trajectory in group]
        variants = {variant.problem_id: variant for t in proposals if (variant := self._variant(task.problem, t))}
        tasks = [at.task(variant, task.samples) for variant in variants.values()]
        solved = dict(zip(variants, await at.together([at.judged(each) for each in tasks]), strict=True))
        for proposal in proposals:
            variant = self._variant(task.problem, proposal)
            self._reward(proposal, solved[variant.problem_id] if variant else None)
        return [*answered, *proposals, *(trajectory for group in solved.values() for trajectory in group)]

    def problems(self, trajectories: Sequence[Trajectory], known: Mapping[str, Problem]) -> dict[str, Problem]:
        """See `Play`."""
        met = {trajectory.problem_id for trajectory in trajectories}
        asked: dict[str, Problem] = {}
        parents: dict[str, Problem] = {}
        for trajectory in trajectories:
            if trajectory.outcome == Outcome.CORRECT and trajectory.problem_id in known:
                parent = known[trajectory.problem_id]
                asking = self._asking(parent, trajectory.response)
                if asking.problem_id in met:
                    asked[asking.problem_id], parents[asking.problem_id] = asking, parent
        variants = (self._variant(parents[t.problem_id], t) for t in trajectories if t.problem_id in parents)
        return asked | {variant.problem_id: variant for variant in variants if variant and variant.problem_id in met}

    def _asking(self, parent: Problem, response: str) -> Problem:
        """What the policy is asked when it shall write variants."""
        prompt = self._instruction.replace("{response}", response)
        name = problem_id(prompt, json.dumps([parent.problem_id, "variants"]))
        return replace(_made(parent, prompt), problem_id=name, answer="", answer_type="text")

    def _variant(self, parent: Problem, proposal: Trajectory) -> Problem | None:
        """What was written, as a problem; None where it was cut off, or is none of its own."""
        text = proposal.response.strip()
        variant = replace(_made(parent, text), problem_id=problem_id(text, parent.answer))
        copied = variant.problem_id == problem_id(parent.prompt, parent.answer)
        return variant if text and proposal.finish_reason == "stop" and not copied else None

    def _reward(self, proposal: Trajectory, answers: Sequence[Trajectory] | None) -> None:
        if proposal.outcome == Outcome.INFRASTRUCTURE:
            return
        right, judged = _right(answers or ())
        if answers is not None and not judged:
            proposal.outcome, proposal.detail = Outcome.INFRASTRUCTURE.value, "no answer to the variant could be judged"
            return
        earned = judged > 0 and self._low * judged <= len(right) <= self._high * judged
        proposal.outcome = (Outcome.CORRECT if earned else Outcome.WRONG).value
        proposal.reward, proposal.reward_parts = float(earned), {"variant": float(earned), "role": 1.0}
        proposal.detail = f"{len(right)} of {judged} answers to it are right" if answers is not None else "no variant"


def _made(parent: Problem, prompt: str) -> Problem:
    """A problem of the parent's domain, verifier and answer, whose prompt the policy made."""
    return replace(
        parent, prompt=prompt, solution=None, source=f"variant/{parent.source}", source_id="", parents=(parent.problem_id,), pass_rate=None,
        pass_n=None, difficulty=None,
    )  # fmt: skip


def _right(group: Sequence[Trajectory]) -> tuple[list[Trajectory], int]:
    """The right answers, and how many could be judged."""
    judged = [trajectory for trajectory in episodes(group) if trajectory.outcome != Outcome.INFRASTRUCTURE]
    return [trajectory for trajectory in judged if trajectory.outcome == Outcome.CORRECT], len(judged)
