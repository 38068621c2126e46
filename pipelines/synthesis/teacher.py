r"""New problems from a teacher model behind an OpenAI-compatible endpoint, with answers by consensus (SwS, arXiv 2506.08989).

For each new problem the teacher sees three problems of a weak topic and writes one like them. Then it solves what it wrote `votes`
times, independently. Answers that the topic's verifier holds for equal form one party; the largest party wins if it has `agree`
votes and is alone at the top, and its answer is the gold. SwS differs in that judges rate each problem, and votes are 8 with 4 agreeing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines import seeding
from pipelines.chat import ChatClient, Messages, Reply
from pipelines.config.curation import TeacherSettings
from pipelines.errors import UserError
from pipelines.records import Dropped, Problem, problem_id
from pipelines.synthesis.proposals import Proposals
from pipelines.synthesis.weakness import Topic, allocate
from pipelines.verifiers.text import final_text
from pipelines.verifiers.voting import boxed_answer, parties

EXEMPLARS = 3
VERIFIERS = ("math", "exact")
"""Verifiers whose gold is one short answer, which can be voted on."""
_PROBLEM = re.compile(r"<problem>(.*?)</problem>", re.DOTALL)
WRITE = (
    "These problems are of one kind, and a student often gets them wrong:\n\n{exemplars}\n\n"
    "Write one new problem of the same kind and difficulty. Change the situation and the numbers; it must be complete, have exactly one "
    "correct answer, and that answer must be short enough to be checked. Do not solve it. Put the problem between <problem> and </problem>."
)
SOLVE = "{problem}\n\nReason step by step, and put the final answer within \\boxed{{}}."


@dataclass(frozen=True)
class _Draft:
    """A problem without its answer."""

    problem: Problem
    reply: Reply


def propose(weak: Sequence[Topic], budget: int, client: ChatClient, settings: TeacherSettings, seed: int) -> Proposals:
    """Up to `budget` problems whose answers the teacher's own solutions agree on.

    Raises:
        UserError: not one request was answered, so the endpoint is at fault and not a problem.
    """
    proposals = Proposals()
    able = []
    for topic in weak:
        if topic.weakest[0].verifier in VERIFIERS:
            able.append(topic)
        else:
            proposals.notes.append(f"{topic.domain} {', '.join(topic.topics)}: answers of verifier {topic.weakest[0].verifier} cannot be voted on")
    drafts = _drafts(able, budget, client, settings, seed, proposals)
    if drafts and all(draft.reply.text is None for draft in drafts):
        raise UserError(f"synthesis: the teacher answered none of {len(drafts)} requests; the first failed with: {drafts[0].reply.error}")
    written = []
    for draft in drafts:
        problem = _written(draft)
        if isinstance(problem, Dropped):
            proposals.dropped.append(problem)
        else:
            written.append(problem)
    conversations = [_user(SOLVE.format(problem=problem.prompt)) for problem in written for _ in range(settings.votes)]
    replies = client.complete_all(conversations, temperature=settings.temperature, max_tokens=settings.max_tokens)
    for i, problem in enumerate(written):
        answered = elect(problem, replies[i * settings.votes : (i + 1) * settings.votes], settings.agree)
        (proposals.dropped if isinstance(answered, Dropped) else proposals.problems).append(answered)  # type: ignore[arg-type]
    return proposals


def elect(problem: Problem, replies: Sequence[Reply], agree: int) -> Problem | Dropped:
    """The problem with the answer of its largest party of votes, or why it has none."""
    answers = [answer for answer in (boxed_answer(reply.text) for reply in replies) if answer]
    found = parties(problem, answers)
    count = ", ".join(f"{party[0]!r} x {len(party)}" for party in found)
    if not found:
        errors = [reply.error for reply in replies if reply.text is None]
        return Dropped(problem, "teacher", "no_votes", errors[0] if errors else "no solution has a boxed answer")
    if len(found) > 1 and len(found[0]) == len(found[1]):
        return Dropped(problem, "teacher", "tie", count)
    if len(found[0]) < agree:
        return Dropped(problem, "teacher", "no_consensus", f"{count}; {agree} must agree")
    answer = found[0][0]
    return replace(problem, answer=answer, problem_id=problem_id(problem.prompt, answer))


def _drafts(weak: Sequence[Topic], budget: int, client: ChatClient, settings: TeacherSettings, seed: int, proposals: Proposals) -> list[_Draft]:
    """One request per problem to write, and what came back."""
    blanks: list[Problem] = []
    conversations: list[Messages] = []
    for topic, count in zip(weak, allocate(budget, [1 - topic.pass_rate for topic in weak]), strict=True):
        proposals.proposed[topic.domain, topic.topics] = count
        for i in range(count):
            rng = seeding.generator(seed, "synthesis", "teacher", topic.domain, *topic.topics, i)
            chosen = [topic.weakest[j] for j in rng.permutation(len(topic.weakest))[:EXEMPLARS]]
            blanks.append(_blank(topic, chosen, i, settings.model))
            exemplars = "\n\n".join(f"{number}. {problem.prompt}" for number, problem in enumerate(chosen, 1))
            conversations.append(_user(WRITE.format(exemplars=exemplars)))
    replies = client.complete_all(conversations, temperature=settings.temperature, max_tokens=settings.max_tokens)
    return [_Draft(blank, reply) for blank, reply in zip(blanks, replies, strict=True)]


def _blank(topic: Topic, exemplars: Sequence[Problem], i: int, model: str) -> Problem:
    """What is known of a problem before it is written."""
    like = exemplars[0]
    return Problem(
        problem_id="",
        domain=topic.domain,
        prompt="",
        answer="",
        answer_type=like.answer_type,
        verifier=like.verifier,
        verifier_args=like.verifier_args if like.verifier == "math" else "{}",
        source="synthesis/teacher",
        source_id="/".join(("synthesis", "teacher", topic.domain, *topic.topics, str(i))),
        licence=f"written by {model}",
        parents=tuple(problem.problem_id for problem in exemplars),
        topics=topic.topics,
    )


def _written(draft: _Draft) -> Problem | Dropped:
    if draft.reply.text is None:
        return Dropped(draft.problem, "teacher", "request_failed", draft.reply.error)
    found = _PROBLEM.findall(final_text(draft.reply.text) or "")
    prompt = found[-1].strip() if found else ""
    if not prompt:
        return Dropped(draft.problem, "teacher", "no_problem", f"nothing between <problem> and </problem> in {draft.reply.text[:200]!r}")
    return replace(draft.problem, prompt=prompt, problem_id=problem_id(prompt, ""))


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]
