r"""Steps that ask a model behind an OpenAI-compatible endpoint. Without one they fail, or, where `curation.endpoint.missing` says so, are
skipped, and the ledger tells it.

    reformulate  a multiple-choice problem becomes an open one, checked by form, by the gold option and by a second look (Big-Math, arXiv 2502.17387)
    consensus    the model's own solutions must agree with the gold answer (AceReason, arXiv 2505.16400; DeepMath, arXiv 2504.11456)
    grade        the mean of several ratings of difficulty, from 1 to 10 in half steps (DeepMath)
    solve        rows without a worked solution get the model's, where their verifier takes its answer (rejection sampling, arXiv 2308.01825)

What a model says is data: it is read as JSON or as a number, or its answer is judged by the rules, and otherwise refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines import verifiers
from pipelines.chat import TEACHER_URL, ChatClient, Messages, Reply
from pipelines.config.curation import CurationSettings
from pipelines.curation.signals import multiple_choice
from pipelines.curation.steps import Apply, Decided, Inputs, Reason, Rows, Skipped
from pipelines.errors import UserError
from pipelines.records import Outcome, Problem, problem_id
from pipelines.verifiers.voting import boxed_answer, parties

KEYS = ("question_type", "core_task", "given_information", "role_of_options", "plan", "open_question", "answer", "one_answer")
VERDICT_KEYS = ("verdict", "issues", "open_question", "answer")
NOT_POSSIBLE = "N/A"
REWRITE = (
    "Below is a multiple-choice problem and its correct option. Rewrite it as an open question with the same single answer, that can be "
    "answered without seeing any option and does not mention options. If that is impossible, say " + NOT_POSSIBLE + ". Answer with one JSON "
    "object with exactly these keys, in this order, all strings: " + ", ".join(KEYS) + ". `open_question` is the whole new problem (or "
    + NOT_POSSIBLE + "), `answer` its answer and nothing else.\n\nProblem:\n{prompt}\n\nCorrect option: {answer}"
)
REVIEW = (
    "A multiple-choice problem was rewritten as an open question. Judge whether the new question is complete, mentions no options, and has "
    "exactly one answer, the given one. Answer with one JSON object with exactly these keys, all strings: " + ", ".join(VERDICT_KEYS) + ". "
    "`verdict` is accept, correct or reject; for correct, `open_question` and `answer` hold your correction, else they repeat what was given.\n\n"
    "Original:\n{prompt}\n\nCorrect option: {answer}\n\nNew question:\n{question}\n\nAnswer: {new_answer}"
)
SOLVE = "{prompt}\n\nReason step by step, and put the final answer within \\boxed{{}}."
RATE = (
    "Rate how hard this problem is, from 1 (a first exercise) to 10 (the hardest of an international olympiad), in steps of 0.5. "
    "Answer with the number within \\boxed{{}}.\n\n{prompt}"
)
ASKING = ("reformulate", "consensus", "grade", "solve")
"""Steps of this module."""
VOTED = ("math", "exact", "choice")
"""Verifiers whose gold is one short answer, which can be voted on."""
_OPTION = re.compile(r"\([A-E]\)|(?m:^\s*[A-E][).:]\s)")
_LETTER = re.compile(r"\W*\(?([A-E])\)?\W*")


def reformulate(rows: Rows, inputs: Inputs) -> Apply:
    """Multiple-choice rows as open ones, which name the old row as parent; those that cannot be go as `not_reformulated`.

    Raises:
        Skipped: there is no endpoint, which the settings allow.
        UserError: not one request was answered.
    """
    client = _client(inputs)
    goes: dict[int, Reason] = {}
    becomes: dict[int, Problem] = {}
    for chosen in _chosen(rows, lambda problem: problem.verifier == "choice" or multiple_choice(problem)):
        first = _ask(client, inputs, [REWRITE.format(prompt=problem.prompt, answer=_gold(problem)) for _, problem in chosen])
        drafts: list[tuple[int, Problem, str, str]] = []
        for (row, problem), reply in zip(chosen, first, strict=True):
            draft = _object(reply, KEYS)
            why = draft if isinstance(draft, str) else _objection(problem, draft["open_question"], draft["answer"])
            if why or isinstance(draft, str):
                goes[row] = "not_reformulated", why
            else:
                drafts.append((row, problem, draft["open_question"], draft["answer"]))
        asked = [REVIEW.format(prompt=p.prompt, answer=_gold(p), question=question, new_answer=answer) for _, p, question, answer in drafts]
        for (row, problem, question, answer), reply in zip(drafts, _ask(client, inputs, asked), strict=True):
            review = _object(reply, VERDICT_KEYS)
            if isinstance(review, str):
                goes[row] = "not_reformulated", review
                continue
            if review["verdict"] == "correct":
                question, answer = review["open_question"], review["answer"]
            accepted = review["verdict"] in ("accept", "correct")
            why = _objection(problem, question, answer) if accepted else f"the review says {review['issues'][:200]!r}"
            if why:
                goes[row] = "not_reformulated", why
            else:
                becomes[row] = _opened(problem, question, answer)
    return Decided(goes, becomes)


def consensus(rows: Rows, inputs: Inputs) -> Apply:
    """Drop rows whose gold is not what enough of the model's solutions say: `consensus_against_gold`, `no_consensus`, `no_votes`.

    Raises:
        Skipped: there is no endpoint, which the settings allow.
        UserError: not one request was answered.
    """
    client, settings = _client(inputs), inputs.settings.consensus
    goes: dict[int, Reason] = {}
    for chosen in _chosen(rows, lambda problem: problem.verifier in VOTED):
        for row, problem, replies in _polled(client, inputs, chosen, SOLVE, settings.votes):
            found = parties(problem, [answer for answer in (boxed_answer(reply.text) for reply in replies) if answer])
            against = _against(problem, found, settings.agree)
            if against:
                goes[row] = against if found else ("no_votes", _first_error(replies) or "no solution has a boxed answer")
    return Decided(goes)


def grade(rows: Rows, inputs: Inputs) -> Apply:
    """Set `difficulty` to a tenth of the mean rating; rows outside the band go as `rated_too_easy` or `rated_too_hard`, unrated ones as `not_rated`.

    Raises:
        Skipped: there is no endpoint, which the settings allow.
        UserError: not one request was answered.
    """
    client, settings = _client(inputs), inputs.settings.grading
    goes: dict[int, Reason] = {}
    becomes: dict[int, Problem] = {}
    low, high = settings.band
    for chosen in _chosen(rows):
        for row, problem, replies in _polled(client, inputs, chosen, RATE, settings.samples):
            ratings = [rating for rating in (_rating(reply) for reply in replies) if rating is not None]
            if not ratings:
                goes[row] = "not_rated", _first_error(replies) or "no reply holds a rating from 1 to 10 in half steps"
                continue
            mean = sum(ratings) / len(ratings)
            if not low <= mean <= high:
                goes[row] = "rated_too_easy" if mean < low else "rated_too_hard", f"mean of {len(ratings)} ratings is {mean:.2f}"
            becomes[row] = replace(problem, difficulty=mean / 10)
    return Decided(goes, becomes)


def solve(rows: Rows, inputs: Inputs) -> Apply:
    """Give rows without a worked solution one of the model's; none goes, and who has no right one in `tries` stays without.

    Raises:
        Skipped: there is no endpoint, which the settings allow.
        UserError: not one request was answered.
    """
    client = _client(inputs)
    chosen = _chosen(rows, lambda problem: problem.solution is None and problem.verifier in VOTED)
    return Decided({}, {row: problem for batch in chosen for row, problem in _solved(client, inputs, batch)})


def _solved(client: ChatClient, inputs: Inputs, batch: Sequence[tuple[int, Problem]]) -> Iterator[tuple[int, Problem]]:
    """The rows that get a right solution, with it. Only a first round without any answer is the endpoint's fault; later it may be the rows'."""
    settings, left = inputs.settings.solving, list(batch)
    for attempt in range(settings.tries):
        questions = [settings.prompt.replace("{prompt}", problem.prompt) for _, problem in left]
        replies = (_replies if attempt else _ask)(client, inputs, questions, {"seed": attempt})
        written = [(reply.text or "").rpartition("</think>")[2] for reply in replies]
        verdicts = verifiers.verify_batch([(problem, text) for (_, problem), text in zip(left, written, strict=True)])
        unsolved = []
        for (row, problem), text, verdict in zip(left, written, verdicts, strict=True):
            working, mark, _ = text.rpartition("####")
            if verdict.correct and mark and working.strip():
                yield row, replace(problem, solution=working.strip())
            else:
                unsolved.append((row, problem))
        left = unsolved


def _client(inputs: Inputs) -> ChatClient:
    if inputs.client is None:
        raise Skipped(f"{TEACHER_URL} is not set, and curation.endpoint.missing is skip")
    return inputs.client


def refuse_without_endpoint(settings: CurationSettings, there: bool) -> None:
    """
    Raises:
        UserError: a step asks an endpoint, none is there, and the settings do not let the step be skipped.
    """
    asking = [step for step in settings.steps if step in ASKING]
    if asking and not there and settings.endpoint.missing == "fail":
        raise UserError(
            f"curation: {', '.join(asking)}: asks the OpenAI-compatible endpoint that {TEACHER_URL} names, which is not set; set it, or let "
            "these steps be left out: curation.endpoint.missing: skip"
        )


def _chosen(rows: Rows, wanted: Callable[[Problem], bool] = bool) -> Iterator[list[tuple[int, Problem]]]:
    """Per batch the (row number, row) of those that are asked about; by default of all."""
    for batch in rows.batches():
        chosen = [(row, problem) for row, problem in zip(batch.rows.tolist(), batch.problems, strict=True) if wanted(problem)]
        if chosen:
            yield chosen


def _ask(client: ChatClient, inputs: Inputs, questions: Sequence[str], options: Mapping[str, Any] | None = None) -> list[Reply]:
    """One reply to each question. options: further fields of each request.

    Raises:
        UserError: not one was answered.
    """
    replies = _replies(client, inputs, questions, options)
    if replies and all(reply.text is None for reply in replies):
        raise UserError(f"curation: the endpoint answered none of {len(replies)} requests; the first failed with: {replies[0].error}")
    return replies


def _replies(client: ChatClient, inputs: Inputs, questions: Sequence[str], options: Mapping[str, Any] | None = None) -> list[Reply]:
    endpoint = inputs.settings.endpoint
    conversations: list[Messages] = [[{"role": "user", "content": question}] for question in questions]
    more = [options or {}] * len(conversations)
    return client.complete_all(conversations, temperature=endpoint.temperature, max_tokens=endpoint.max_tokens, options=more)


def _polled(
    client: ChatClient, inputs: Inputs, chosen: Sequence[tuple[int, Problem]], question: str, times: int
) -> Iterator[tuple[int, Problem, list[Reply]]]:
    """(row number, row, replies) of rows that are each asked the same question `times` times."""
    replies = _ask(client, inputs, [question.format(prompt=problem.prompt) for _, problem in chosen for _ in range(times)])
    for place, (row, problem) in enumerate(chosen):
        yield row, problem, replies[place * times : (place + 1) * times]


def _first_error(replies: Sequence[Reply]) -> str:
    return next((reply.error for reply in replies if reply.error), "")


def _object(reply: Reply, keys: Sequence[str]) -> dict[str, str] | str:
    """The JSON object of a reply with exactly these keys, or what is wrong with it."""
    if reply.text is None:
        return reply.error
    text = verifiers.final_text(reply.text) or ""
    try:
        found: Any = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError):
        return "the reply holds no JSON object"
    if not isinstance(found, dict) or set(found) != set(keys) or not all(isinstance(value, str) for value in found.values()):
        return f"the object must have exactly the keys {', '.join(keys)}, all strings"
    return found


def _objection(problem: Problem, question: str, answer: str) -> str:
    """What is wrong with a rewritten problem, "" for nothing."""
    if question.strip() in ("", NOT_POSSIBLE) or answer.strip() in ("", NOT_POSSIBLE):
        return "the model says that it cannot be an open question"
    if _OPTION.search(question) or _LETTER.fullmatch(answer):
        return "the new question or answer still names options"
    option = _option(problem)
    if option is not None:
        verdict = verifiers.verify(_opened(problem, question, option), f"\\boxed{{{answer}}}")
        if not verdict.correct:
            return f"the new answer {answer[:100]!r} is not the correct option {option[:100]!r}"
    return ""


def _gold(problem: Problem) -> str:
    option = _option(problem)
    return problem.answer if option is None else f"{problem.answer} ({option})"


def _option(problem: Problem) -> str | None:
    """The text of the correct option, where the row lists its options."""
    options, letter = problem.args.get("options"), _LETTER.fullmatch(problem.answer.replace("\\text", "").strip("${} "))
    if isinstance(options, dict):
        return options.get(letter[1] if letter else problem.answer)
    if isinstance(options, list):
        place = ord(letter[1]) - ord("A") if letter else -1
        return str(options[place]) if 0 <= place < len(options) else problem.answer if problem.answer in options else None
    return None


def _opened(problem: Problem, question: str, answer: str) -> Problem:
    prompt, answer = question.strip(), answer.strip()
    return replace(
        problem,
        problem_id=problem_id(prompt, answer), prompt=prompt, answer=answer, answer_type="expression", verifier="math", verifier_args="{}",
        solution=None, parents=(problem.problem_id,),
    )  # fmt: skip


def _against(problem: Problem, found: Sequence[Sequence[str]], agree: int) -> Reason | None:
    """Why the parties of votes do not carry the gold, None if they do."""
    count = ", ".join(f"{party[0]!r} x {len(party)}" for party in found)
    if not found or len(found[0]) < agree:
        return "no_consensus", f"{count}; {agree} must agree"
    verdict = verifiers.verify(problem, f"\\boxed{{{found[0][0]}}}")
    if verdict.outcome is Outcome.INFRASTRUCTURE:
        return "no_consensus", verdict.detail
    return None if verdict.correct else ("consensus_against_gold", f"{count}; the gold is {problem.answer[:100]!r}")


def _rating(reply: Reply) -> float | None:
    try:
        rating = float(boxed_answer(reply.text) or "")
    except ValueError:
        return None
    return rating if 1 <= rating <= 10 and (2 * rating).is_integer() else None
