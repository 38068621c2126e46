r"""`math`: is the stated answer the gold? verifier_args: {"require_boxed": bool, "percent": "value" | "ignore"}.

The answer is the last \boxed{}; without one, what follows '####' or 'answer is', a response that is nothing but a short
answer, or else what Math-Verify finds in the text. Order of judgement: exact comparison (arithmetic.py), a size check,
then the symbolic engine in a worker process.
"""

from __future__ import annotations

import re

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.arithmetic import clean, compare, number, squeeze
from pipelines.verifiers.judgement import Engines, Job, failed, judged
from pipelines.verifiers.text import boxed, has_box, stated_answer

MAX_LENGTH = 2000
_BARE = 100
_EXPLOSIVE = re.compile(
    r"\^\{?\(?[A-Za-z0-9.]{1,20}\)?\^\{?\(?[A-Za-z0-9.]{1,20}\)?\^"  # towers of three
    r"|\^\{?\d+\^\{?\d{2,}"
    r"|\^\{?\d{6,}"
    r"|\d{5,}\)?!|\^\{?\d+\}?\)!|\)!!|!!!"
)
_CODE = re.compile(r"__|\blambda\b|\bimport\b|\\(?:input|write|include|def(?![a-z]))")


def verify_math(problem: Problem, text: str) -> Verdict | Job:
    """Judge the final text of a response against `problem.answer`."""
    arguments = problem.args
    answer = boxed(text) if has_box(text) else None
    if answer is None and (has_box(text) or arguments.get("require_boxed", False)):
        return failed(Outcome.UNPARSABLE, "no complete \\boxed{} answer")
    if answer == "" or not text.strip():
        return failed(Outcome.UNPARSABLE, "the answer is empty")
    if answer is None:
        return _unboxed(problem, text, arguments.get("percent", "value"))
    if len(answer) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, f"the answer has {len(answer)} characters; at most {MAX_LENGTH} are read", answer[:100])
    same = compare(problem.answer, answer, arguments.get("percent", "value"))
    if same is not None:
        return judged(same, answer)
    if _EXPLOSIVE.search(answer.replace(" ", "")):
        return failed(Outcome.UNPARSABLE, "the answer is too large to evaluate", answer)
    if _CODE.search(answer):
        return failed(Outcome.UNPARSABLE, "the answer is code, not mathematics", answer)
    return lambda engines: _symbolic(problem.answer, answer, text, engines)


def _unboxed(problem: Problem, text: str, percent: str) -> Verdict | Job:
    """Prose around an answer is the engine's to read, unless what is stated is a plain number or the gold itself."""
    stated = stated_answer(text)
    answer = stated if stated is not None else text.strip() if len(text) <= _BARE else None
    if answer is not None and (number(squeeze(clean(answer))) is not None or compare(problem.answer, answer, percent) is True):
        return judged(bool(compare(problem.answer, answer, percent)), answer)
    source = (answer or text)[-MAX_LENGTH:]
    if _EXPLOSIVE.search(source.replace(" ", "")) or _CODE.search(source):
        return failed(Outcome.UNPARSABLE, "the text holds code or numbers too large to evaluate", source[:100])
    return lambda engines: _symbolic(problem.answer, None, source, engines)


def _symbolic(gold: str, answer: str | None, text: str, engines: Engines) -> Verdict:
    request = {"gold": clean(gold), "answer": None if answer is None else clean(answer), "text": text}
    reply = engines.ask("math", request)
    if isinstance(reply, Verdict):
        return reply
    extracted = answer if answer is not None else reply["extracted"]
    if not reply["gold_read"]:
        return judged(False, extracted, "the gold is no mathematical expression; compared as text")
    if not reply["answer_read"]:
        return failed(Outcome.UNPARSABLE, "no mathematical expression found", extracted)
    return judged(reply["equal"], extracted)
