"""`exact` and `logic`: answers that are text.

exact: equal to the gold, or to one of {"accept": [...]}, ignoring case, spacing, a final full stop and text markup.
logic: the scorer of a reasoning-gym dataset, {"task": name, "entry": {...}}; partial credit counts as wrong. Those scorers
`eval` answers, so they run in a worker inside the sandbox and nowhere else.
"""

from __future__ import annotations

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.arithmetic import clean
from pipelines.verifiers.judgement import Engines, Job, failed, judged
from pipelines.verifiers.text import boxed, has_box, stated_answer

FULL_SCORE = 0.999
MAX_LENGTH = 20_000


def answer_text(text: str) -> str | None:
    """`<answer>...</answer>`, the last box, the stated answer, or the whole final text."""
    _, opening, inside = text.rpartition("<answer>")
    if opening:
        return inside.partition("</answer>")[0].strip()
    return boxed(text) if has_box(text) else (stated_answer(text) or text.strip())


def verify_exact(problem: Problem, text: str) -> Verdict | Job:
    answer = answer_text(text)
    if not answer:
        return failed(Outcome.UNPARSABLE, "no answer in the final text")
    accepted = [problem.answer, *problem.args.get("accept", [])]
    return judged(_plain(answer) in {_plain(gold) for gold in accepted}, answer)


def _plain(text: str) -> str:
    return " ".join(clean(text).casefold().split())


def verify_logic(problem: Problem, text: str) -> Verdict | Job:
    answer = answer_text(text)
    if not answer or len(answer) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, "no answer in the final text" if not answer else f"the answer exceeds {MAX_LENGTH} characters")
    task, entry = problem.args.get("task"), problem.args.get("entry")
    if not isinstance(task, str) or not isinstance(entry, dict):
        return failed(Outcome.INFRASTRUCTURE, f"problem {problem.problem_id}: verifier_args need a 'task' name and an 'entry' object")

    def job(engines: Engines) -> Verdict:
        reply = engines.ask("logic", {"task": task, "entry": entry, "answer": answer})
        if isinstance(reply, Verdict):
            return reply
        return judged(reply["score"] >= FULL_SCORE, answer, f"score {reply['score']:g}")

    return job
