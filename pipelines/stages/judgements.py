"""Stored responses as a reward model learns from them: pairs, or responses with what they are worth, each as text in the model's own form.

A row of a file may name a `principle` beside its response (loss entailment), or have people's feedback on it, from which a teacher reads principles
(pipelines/reward_model/principles.py):

    {prompt | messages | problem_id, response, principle, label}
    {prompt | messages | problem_id, response, feedback: text | [text, ...]}
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines import paths
from pipelines.chat import TEACHER_URL, Reply, teacher
from pipelines.config.reward_model import RewardModelStage
from pipelines.config.stage import ROLLOUTS
from pipelines.errors import UserError
from pipelines.models import ranks
from pipelines.models.embedding import Embedder
from pipelines.models.reward_model import Form, Text, prompt_ids, text_ids
from pipelines.records import Outcome, Problem, Trajectory, problem_id
from pipelines.reward_model.examples import Example, Marked, Pair
from pipelines.reward_model.principles import Principle, agreed, conversation, extracted
from pipelines.row_files import Malformed
from pipelines.stages import Context, responses, rows
from pipelines.stages.pairing import paired
from pipelines.stages.responses import CHOSEN, REJECTED, RESPONSE, SCORES, ScoredFile, text_of


@dataclass(frozen=True)
class Commented:
    """A response with what each who gave feedback on it has said. reference: the file."""

    problem: Problem
    response: Trajectory
    feedback: list[str]
    reference: str


class JudgementFile(ScoredFile):
    """A file of responses for one loss. principles: problem id -> the principle that its responses are held to, of rows that name one. commented:
    takes rows with feedback."""

    def __init__(self, settings: RewardModelStage, principles: dict[str, str], commented: list[Commented], *given: Any) -> None:
        super().__init__(*given)
        self._settings, self._principles, self._commented = settings, principles, commented

    def _read(self, row: Mapping[str, Any]) -> None:
        if "feedback" in row:
            self._take(row)
            return
        if not self._settings.paired and (CHOSEN in row or REJECTED in row):
            raise Malformed(f"loss {self._settings.loss} learns from responses with a label or a score each, and this is a pair")
        super()._read(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        if self._settings.loss != "entailment":
            raise Malformed(f"feedback: loss {self._settings.loss} reads none; take loss entailment")
        if named := [name for name in ("principle", "label", *SCORES) if name in row]:
            raise Malformed(f"feedback: principles and labels are read from it; leave {named[0]} out")
        texts = [row["feedback"]] if isinstance(row["feedback"], str) else row["feedback"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise Malformed(f"feedback: expected a text, or a list of them, got {str(row['feedback'])[:80]!r}")
        problem, prompt = super()._prompt(row)
        name = next((name for name in RESPONSE if name in row), None)
        if name is None:
            raise Malformed("expected response beside feedback")
        self._commented.append(Commented(problem, self._response(problem, prompt, text_of(row, name)), texts, self._name))

    def _prompt(self, row: Mapping[str, Any]) -> tuple[Problem, list[int]]:
        problem, ids = super()._prompt(row)
        named, entailment = row.get("principle"), self._settings.loss == "entailment"
        if named is None and (self._settings.principle or not entailment):
            return problem, ids
        if not entailment:
            raise Malformed(f"principle: loss {self._settings.loss} reads none; take loss entailment")
        if named is None:
            raise Malformed("key 'principle' is missing; the stage's own `principle` says one for all rows that name none")
        if not isinstance(named, str) or not named.strip():
            raise Malformed(f"principle: expected text, got {named!r}")
        problem = replace(problem, problem_id=problem_id(problem.prompt, named))
        self._principles[problem.problem_id] = named
        return problem, ids

    def _worth(self, row: Mapping[str, Any]) -> tuple[float, str]:
        reward, outcome = super()._worth(row)
        if sentence := _unfit(reward, self._settings):
            raise Malformed(sentence)
        return reward, outcome


def _unfit(target: float, settings: RewardModelStage) -> str:
    """Why a loss cannot learn from such a target; "" where it can."""
    if settings.loss in ("binary", "entailment") and target not in (0.0, 1.0):
        return f"score: loss {settings.loss} learns from 0 and 1, or from a label, got {target:g}"
    if settings.loss == "hl_gauss" and settings.span and not settings.span[0] <= target <= settings.span[1]:
        return f"score: {target:g} is outside `span` {list(settings.span)}"
    return ""


def _shared(replies: list[Reply]) -> list[Reply]:
    """What the first process has, on all."""
    (whole,) = ranks.collect([replies] if ranks.rank() == 0 else [])
    return whole


class Reader:
    """The responses that the stage's references give, as examples. form: with the span of their scores. too_long: responses left out.
    read_of_feedback: rows that a teacher has read from feedback."""

    def __init__(self, context: Context, tokenizer: Any, form: Form) -> None:
        self.form, self._context, self._tokenizer, self._settings = form, context, tokenizer, context.settings
        self._principles: dict[str, str] = {}
        commented: list[Commented] = []
        file = functools.partial(JudgementFile, self._settings, self._principles, commented)
        self._found = responses.read(context, tokenizer, form.max_tokens, file)
        self.read_of_feedback: list[dict[str, Any]] = []
        if commented:
            self._read_feedback(commented)
        known = self._found.of.items()
        self._sampled = {of for reference, ids in known if reference.endswith(ROLLOUTS) for of in ids}
        self._of_rows = {of for reference, ids in known if not reference.endswith(ROLLOUTS) for of in ids}
        self._prompts: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        self.too_long = self._found.too_long

    def examples(self, device: str) -> Sequence[Example]:
        """All that is short enough, written down as seen.

        Raises:
            UserError: there is none.
        """
        read: Sequence[Example] = self._pairs(device) if self._settings.paired else self._marked()
        told = responses.told(self._found)
        if not read:
            raise UserError(f"{self._context.stage}: nothing to train on: there were {told}" + "; a pair needs two rewards" * self._settings.paired)
        self._context.journal.say(f"{len(read)} {'pairs' if self._settings.paired else 'responses'} to train and to measure on, of {told}")
        return read

    def _read_feedback(self, commented: Sequence[Commented]) -> None:
        """Enter a response for each principle that its feedback agrees on. Of several processes the first asks for all.

        Raises:
            UserError: there is no endpoint, or it answers nothing.
        """
        context, how = self._context, self._settings.feedback
        enough = [each for each in commented if len(each.feedback) >= how.people]
        asked = [text for each in enough for text in each.feedback]
        replies: list[Reply] = []
        if ranks.rank() == 0:
            client = teacher(how, context.resume / paths.REPLIES)
            if client is None:
                raise UserError(f"{context.stage}: rows with feedback need the address of an OpenAI-compatible endpoint in {TEACHER_URL}")
            show = functools.partial(context.journal.show, text="texts of feedback")
            conversations = [conversation(text) for text in asked]
            replies = client.complete_all(conversations, temperature=how.temperature, max_tokens=how.max_tokens, progress=show)
        replies = _shared(replies)
        if replies and all(reply.text is None for reply in replies):
            raise UserError(f"{context.stage}: the teacher answered none of {len(replies)} requests; the first failed with: {replies[0].error}")
        dropped: Counter[str] = Counter({"too few people": len(commented) - len(enough)})
        embed, answers = Embedder(how.embedding), iter(zip(asked, replies, strict=True))
        for each in enough:
            given = [extracted(reply, text, how.evidence, dropped) for text, reply in itertools.islice(answers, len(each.feedback))]
            for principle in agreed(given, embed, how.cosine, dropped):
                self._enter(each, principle)
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count) or "nothing"
        context.journal.say(f"{len(self.read_of_feedback)} principles of {len(asked)} texts of feedback; left out: {told}")

    def _enter(self, commented: Commented, principle: Principle) -> None:
        of = problem_id(commented.problem.prompt, principle.text)
        problem, outcome = replace(commented.problem, problem_id=of), Outcome.CORRECT if principle.met else Outcome.WRONG
        response = replace(commented.response, problem_id=of, reward=float(principle.met), outcome=outcome.value)
        self._principles[of], self._found.problems[of] = principle.text, problem
        self._found.of.setdefault(commented.reference, set()).add(of)
        self._found.by_prompt.setdefault((of, tuple(response.prompt_ids)), {})[tuple(response.response_ids)] = response
        row = {"prompt": problem.prompt, "response": response.response, "principle": principle.text, "label": principle.met}
        self.read_of_feedback.append(row | {"evidence": principle.evidence})

    def _pairs(self, device: str) -> list[Pair]:
        found, read = [], []
        for better, worse in paired(self._context, self._found, self._settings.pairs, device):
            texts = [self._text(response) for response in (better, worse)]
            if texts[0][0] != texts[1][0] and self._fit(texts):
                read.append((better, worse))
                found.append(Pair(texts[0], texts[1], better.reward - worse.reward, self._of(better)))
        rows.see(self._context, responses.used(self._found, read))
        return found

    def _marked(self) -> list[Marked]:
        found, read = [], []
        for kept in self._found.by_prompt.values():
            for response in kept.values():
                target = self._target(response)
                text = self._text(response)
                if self._fit([text]):
                    read.append([response])
                    found.append(Marked(text, target, self._of(response), response.problem_id))
        rows.see(self._context, responses.used(self._found, read))
        if self._settings.loss == "hl_gauss" and self.form.span is None and found:
            span = min(each.target for each in found), max(each.target for each in found)
            if span[0] == span[1]:
                raise UserError(f"{self._context.stage}: every response has the score {span[0]:g}; there is nothing to tell apart")
            self.form = self.form.model_copy(update={"span": span})
        return found

    def _target(self, response: Trajectory) -> float:
        """Right or wrong where that is known and asked for, else the reward."""
        if self._settings.loss != "hl_gauss" and response.outcome:
            return float(response.outcome == Outcome.CORRECT)
        if sentence := _unfit(response.reward, self._settings):
            raise UserError(f"{self._context.stage}: {response.policy}: a response to problem {response.problem_id}: {sentence}")
        return response.reward

    def _text(self, response: Trajectory) -> Text:
        problem = self._found.problems[response.problem_id]
        principle = self._principles.get(problem.problem_id, self._settings.principle)
        if self._settings.loss == "entailment" and principle is None:
            raise UserError(f"{self._context.stage}: rollouts name no principle; say one under `principle`")
        return text_ids(self._tokenizer, self.form, self._prompt(response, problem), problem, response.response, principle)

    def _prompt(self, response: Trajectory, problem: Problem) -> list[int]:
        """The prompt in the model's own form, as it will be when it is asked; turns of files stand as they are.

        Raises:
            UserError: the problem's text is not known, and its prompt was made otherwise than `prompt` says.
        """
        key = problem.problem_id, tuple(response.prompt_ids)
        if problem.problem_id not in self._sampled:
            return response.prompt_ids
        if key not in self._prompts:
            own = prompt_ids(self._tokenizer, self.form, problem)
            if problem.problem_id not in self._of_rows and own != response.prompt_ids:
                told = f"{self._context.stage}: what problem {problem.problem_id} says cannot be told from the prompt of its rollouts"
                raise UserError(f"{told}: name its rows beside them in data, such as [difficulty, math{ROLLOUTS}]")
            self._prompts[key] = own
        return self._prompts[key]

    def _of(self, response: Trajectory) -> str:
        """What is held out whole: all responses to one text."""
        return problem_id(self._found.problems[response.problem_id].prompt, "")

    def _fit(self, texts: Sequence[Text]) -> bool:
        longer = sum(len(ids) > self.form.max_tokens for ids, *_ in texts)
        self.too_long += longer
        return not longer
