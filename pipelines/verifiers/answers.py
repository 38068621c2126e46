"""`exact` and `logic`: answers that are text.

exact: equal to the gold, or to one of {"accept": [...]}, ignoring case, spacing, a final full stop and text markup.
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

FULL_SCORE = 0.999
MAX_LENGTH = 20_000


def answer_text(text: str) -> str | None:
    """`<answer>...</answer>`, the last box, the stated answer, or the whole final text."""
    if (inside := tagged(text)) is not None:
        return boxed(inside) if has_box(inside) else inside
    return boxed(text) if has_box(text) else (stated_answer(text) or text.strip())


def verify_exact(problem: Problem, text: str) -> Verdict | Job:
    answer = answer_text(text)
    if not answer:
        return failed(Outcome.UNPARSABLE, "no answer in the final text")
    accepted = [problem.answer, *problem.args.get("accept", [])]
    return judged(plain(answer) in {plain(gold) for gold in accepted}, answer)


def plain(text: str) -> str:
    """Without case, markup and extra spaces, for comparing texts."""
    return " ".join(clean(text).casefold().split())


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
