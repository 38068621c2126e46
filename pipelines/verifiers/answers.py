"""`exact` and `logic`: answers that are text.

exact: equal to the gold, or to one of {"accept": [...]}. {"match"} says what is: the `answer` that the final text states (the default), the whole
`final` text, or the whole `output` with its thinking, as in CLS-RL without thinking (arXiv 2503.16188). Case, spacing, a final full stop and, in an
answer, text markup do not count, unless {"normalise": false}: then every character but spaces at the ends does.
logic: the scorer of a reasoning-gym dataset, {"task": name, "entry": {...}}; partial credit counts as wrong. Those scorers
`eval` answers, so they run in a worker inside the sandbox and nowhere else. Without a task the gold is an assignment of roles
(assignments.py), as in knights and knaves.
"""

from __future__ import annotations

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.assignments import verify_assignment
from pipelines.verifiers.judgement import Engines, Job, failed, judged
from pipelines.verifiers.notation import clean
from pipelines.verifiers.text import boxed, has_box, stated_answer, tagged

MATCHES = ("answer", "final", "output")
FULL_SCORE = 0.999
MAX_LENGTH = 20_000


def answer_text(text: str) -> str | None:
    """`<answer>...</answer>`, the last box, the stated answer, or the whole final text."""
    if (inside := tagged(text)) is not None:
        return boxed(inside) if has_box(inside) else inside
    return boxed(text) if has_box(text) else (stated_answer(text) or text.strip())


def verify_exact(problem: Problem, text: str) -> Verdict | Job:
    """`text` is the final text, or the whole response where `whole_output` says so."""
    match, normalise = problem.args.get("match", "answer"), problem.args.get("normalise", True)
    if match not in MATCHES or not isinstance(normalise, bool):
        raise ValueError(f"match is one of {', '.join(MATCHES)} and normalise true or false, got {match!r} and {normalise!r}")
    answer = answer_text(text) if match == "answer" else text.strip()
    if not answer:
        return failed(Outcome.UNPARSABLE, "no answer in the final text")
    form = str.strip if not normalise else plain if match == "answer" else folded
    accepted = [problem.answer, *problem.args.get("accept", [])]
    return judged(form(answer) in {form(gold) for gold in accepted}, answer)


def whole_output(problem: Problem) -> bool:
    """Whether a response is judged with its thinking."""
    return problem.verifier == "exact" and problem.args.get("match") == "output"


def plain(text: str) -> str:
    """Without case, markup and extra spaces, for comparing texts."""
    return folded(clean(text))


def folded(text: str) -> str:
    """Without case, extra spaces and a final full stop."""
    return " ".join(text.casefold().split()).removesuffix(".")


def verify_logic(problem: Problem, text: str) -> Verdict | Job:
    answer = answer_text(text)
    if not answer or len(answer) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, "no answer in the final text" if not answer else f"the answer exceeds {MAX_LENGTH} characters")
    task, entry = problem.args.get("task"), problem.args.get("entry")
    if not isinstance(task, str) or not isinstance(entry, dict):
        return verify_assignment(problem, text)

    def work(engines: Engines) -> Verdict:
        reply = engines.ask("logic", {"task": task, "entry": entry, "answer": answer})
        if isinstance(reply, Verdict):
            return reply
        return judged(reply["score"] >= FULL_SCORE, answer, f"score {reply['score']:g}")

    return Job(answer, work)
