r"""`math`: is the stated answer the gold? verifier_args: {"require_boxed": bool, "percent", "units", "form"}, see Policy.

The answer is what `<answer>` holds, the last \boxed{} (several are one list when only commas, `and` or `or` stand between them), what
follows '####' or 'answer is', or a response that is nothing but an answer; else whatever Math-Verify finds in the text. Order of
judgement: the form of the answer (shapes.py), its single values exactly (arithmetic.py), a size check, then the symbolic engine in a
worker process for the values that are left.

form: `any`, or `number`: then a gold that is a number wants a number that is stated, with nothing left to work out. `15 + 3` equals 18, and so does
`36/2`; where `any` takes them, RL can learn to leave the working out.
"""

from __future__ import annotations

import re

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers import shapes, statements
from pipelines.verifiers.arithmetic import Policy, compare, conflicting, measured, numeral, worked_out
from pipelines.verifiers.choice import letter_of
from pipelines.verifiers.hedges import all_right, rivals
from pipelines.verifiers.judgement import Engines, Job, failed, judged
from pipelines.verifiers.notation import TEXT, clean, latex, squeeze, without_text
from pipelines.verifiers.reading import parse
from pipelines.verifiers.text import boxes, boxes_in_a_row, has_box, last_boxes, stated_answer, tagged

MAX_LENGTH = 2000
MAX_PAIRS = 200
_BARE = 200
_EXPLOSIVE = re.compile(
    r"\^\{?\(?[A-Za-z0-9.]{1,20}\)?\^\{?\(?[A-Za-z0-9.]{1,20}\)?\^"  # towers of three
    r"|\^\{?\d+\^\{?\d{2,}"
    r"|\^\{?\d{6,}"
    r"|\d{5,}\)?!|\^\{?\d+\}?\)!|\)!!|!!!"
)
_CODE = re.compile(r"__|\blambda\b|\bimport\b|\\(?:input|write|include|def(?![a-z]))")
_PROSE = re.compile(r"[^\W\d_]{3,}")
_WORDS = re.compile(rf"(?:{TEXT}|\\operatorname)\s*\{{[^{{}}]*\}}")
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+")
_RELATION = re.compile(r"[=<>]|\\(?:leq?|geq?|lt|gt|neq?|in)(?![a-z])")
_PLAIN_MATHS = re.compile(
    r"\b(?:a?(?:sin|cos|tan)h?|arc(?:sin|cos|tan)|cot|sec|csc|ln|log|exp|sqrt|infinity|inf|theta|alpha|beta|and|gcd|lcm|mod|percent)\b"
)
_NAME = re.compile(
    r"\A(?!\\(?:pi|infty)(?![a-z]))"
    r"(\\(?:text|mathrm)\s*\{[A-Za-z ]+\}(?:_\{?\w+\}?)?|(?:\\?[A-Za-z]+(?:\s*_\s*(?:\{[^{}]*\}|\w))?'*\s*){1,2}(?:\([^()=]*\))?)"
    r"\s*(?:=|\\approx(?![a-z])|:=)\s*(?=\S)(?!.*[<>])"
)
_ORDER = re.compile(r"[<>]|\\(?:leq?q?|geq?q?|leqslant|geqslant|lt|gt|neq?|not)(?![a-z])")
_PRIME = re.compile(r"'|\\prime(?![a-z])")
_DOUBT = re.compile(r"\b(?:maybe|perhaps|possibly|not sure|unsure|or\s+(?:maybe\s+|perhaps\s+|possibly\s+)?[$\\(-]*\d)", re.IGNORECASE)
_OPTION = re.compile(r"[A-J]")
_GOLD_LEAD = re.compile(r"\A(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*", re.IGNORECASE)


def verify_math(problem: Problem, text: str) -> Verdict | Job:
    """Judge the final text of a response against `problem.answer`."""
    arguments = problem.args
    if not text.strip():
        return failed(Outcome.UNPARSABLE, "the answer is empty")
    answer = stated(text)
    if answer is None if has_box(text) else arguments.get("require_boxed", False):
        return failed(Outcome.UNPARSABLE, "no complete \\boxed{} answer")
    if answer == "":
        return failed(Outcome.UNPARSABLE, "the answer is empty")
    gold = gold_of(problem.answer)
    policy = Policy(arguments.get("percent", "value"), arguments.get("units", "lenient"))
    if arguments.get("form") == "number" and numeral(clean(gold)):
        if answer is None:
            return failed(Outcome.UNPARSABLE, "no answer is stated")
        if not worked_out(clean(gold), clean(answer)):
            return judged(False, answer, "the answer is no number that is worked out")
    if answer is not None and (has_box(text) or tagged(text) is not None or is_bare(answer)):
        if len(answer) > MAX_LENGTH:
            return failed(Outcome.UNPARSABLE, f"the answer has {len(answer)} characters; at most {MAX_LENGTH} are read", answer[:100])
        run = [answer] if tagged(text) is not None else last_boxes(text)
        if len(run) > 1 and not parse(clean(gold)).parts:
            run, answer = run[-1:], run[-1]
        others = [other for other in rivals(text, len(run)) if not has_prose(other)] if answer == ", ".join(run) else []
        return all_right(answer, others, lambda stated: _compared(gold, stated, policy))
    if answer is not None and _DOUBT.search(answer):
        return judged(False, answer, "the answer is a hedge")
    source = (answer or text)[-MAX_LENGTH:]
    if squeeze(clean(gold)) == squeeze(clean(source)):
        return judged(True, source)
    return _hostile(source) or Job(source, lambda engines: _found_in_prose(gold, source, engines))


def stated(text: str) -> str | None:
    """The answer that a final text states, as it stands there; None where only a reader of prose could find one."""
    if (inside := tagged(text)) is not None:
        inner = stated(inside) if inside else inside
        return inside if inner is None else inner
    if has_box(text):
        found = boxes(text)
        rest = text[max(text.rfind("\\boxed"), text.rfind("\\fbox")) :]
        if "final answer is" in rest.casefold() and (later := stated_answer(rest)) is not None and "\\boxed" not in later:
            return later
        return found
    answer = stated_answer(text)
    if answer is not None:
        return answer
    return text.strip() if is_bare(text) else None


def is_bare(text: str) -> bool:
    """Whether a text is an answer and nothing else: short, and without words that are no mathematics."""
    text = text.strip()
    return len(text) <= _BARE and "\n\n" not in text and not has_prose(text)


def has_prose(text: str) -> bool:
    r"""Whether there are words that are no mathematics, outside of \text{...}."""
    words = _WORDS.sub("", text)
    return _PROSE.search(_PLAIN_MATHS.sub(" ", _COMMAND.sub(" ", words))) is not None


def gold_of(answer: str) -> str:
    """The gold itself where a dataset has a solution or a sentence in its place; several boxes are a list."""
    answer = answer.strip()
    if has_box(answer):
        return ", ".join(boxes_in_a_row(answer)) or answer
    return _GOLD_LEAD.sub("", answer)


def _compared(gold: str, answer: str, policy: Policy) -> Verdict | Job:
    """A stated answer against the gold: its form, then its single values."""
    if "answer" in answer.casefold() and (inner := stated_answer(clean(answer))) is not None:
        answer = inner
    if _OPTION.fullmatch(gold.strip()) and (chosen := letter_of(without_text(answer), {})) is not None:
        return judged(chosen == gold.strip(), chosen)
    clean_gold, clean_answer = clean(gold), clean(answer)
    exact: dict[tuple[str, str], bool | None] = {}

    def same(one: str, other: str) -> bool | None:
        key = one, other
        if key not in exact:
            exact[key] = compare(*values(one, other, policy), policy)
        return exact[key]

    whole = same(clean_gold, clean_answer)
    if whole is not None:
        return judged(whole, answer)
    sides = _shapes(clean_gold, clean_answer, policy)
    if sides is None:
        return judged(False, answer, "the answer is a relation or a derivative, the gold is none")
    left, right = sides
    possible = shapes.equal(left, right, lambda one, other: same(one, other) is not False)
    if not possible and _one_relation(clean_gold, left) and _one_relation(clean_answer, right):
        left, right, possible = shapes.leaf(clean_gold), shapes.leaf(clean_answer), True
    if not possible or shapes.equal(left, right, lambda one, other: same(one, other) is True):
        return judged(possible, answer)
    if (refused := _hostile(clean_answer)) is not None:
        return refused
    if has_prose(clean_answer) and not has_prose(clean_gold):
        return judged(False, answer, "the answer is prose")
    open_pairs = [pair for pair in dict.fromkeys(shapes.leaves(left, right)) if same(*pair) is None]
    if len(open_pairs) > MAX_PAIRS:
        return failed(Outcome.UNPARSABLE, f"the answer has {len(open_pairs)} parts to compare; at most {MAX_PAIRS} are", answer[:100])
    return Job(answer, lambda engines: _symbolic(left, right, exact, open_pairs, answer, policy, engines))


def _shapes(gold: str, answer: str, policy: Policy) -> tuple[shapes.Shape, shapes.Shape] | None:
    """The forms of both sides; in that of an answer to a gold without relations every side of an equality counts. None where the answer says
    more, less, unequal or prime and the gold does not."""
    left, right = map(parse, values(gold, answer, policy))
    said = list(shapes.texts(left))
    if any(_RELATION.search(text) for text in said):
        return left, right
    if not _ORDER.search(gold) and any(_ORDER.search(text) for text in shapes.texts(right)):
        return None
    if any(map(_PRIME.search, shapes.texts(right))) and not _PRIME.search(gold):
        return None
    symbolic, decimal = any(map(statements.has_symbols, said)), all("." in text for text in said)
    return left, shapes.mapped(right, lambda text: statements.sides(text, symbolic, decimal))


def _one_relation(text: str, shape: shapes.Shape) -> bool:
    """Whether a text is one equation or inequality, which may be written in many ways."""
    return shape.kind in ("leaf", "interval", "union") and _RELATION.search(text) is not None and "\\{" not in text and not statements.several(text)


def values(gold: str, answer: str, policy: Policy) -> tuple[str, str]:
    """Both sides without what only one of them says: the name in `x = 5`, or a unit."""
    gold_name, answer_name = _NAME.match(gold), _NAME.match(answer)
    if (gold_name or answer_name) and (statements.several(gold) or statements.several(answer)):
        gold_name = answer_name = None
    alike = gold_name and answer_name and squeeze(gold_name[1]) == squeeze(answer_name[1])
    if answer_name and (alike or not _RELATION.search(gold)):
        answer = _end_of_chain(answer[answer_name.end() :])
    if gold_name and (alike or not _RELATION.search(answer)):
        gold = _end_of_chain(gold[gold_name.end() :])
    (gold_value, gold_unit), (answer_value, answer_unit) = measured(gold), measured(answer)
    fitting = policy.units == "lenient" and (gold_unit or answer_unit) and not conflicting(gold_unit, answer_unit)
    if policy.units == "ignore" or fitting or (gold_unit and gold_unit == answer_unit):
        return gold_value, answer_value
    return gold, answer


def _end_of_chain(text: str) -> str:
    """`y = z = 5` -> 5, where what stands before the last sign are names; anything else stays."""
    while (name := _NAME.match(text)) is not None:
        text = text[name.end() :]
    return text


def _hostile(text: str) -> Verdict | None:
    if _EXPLOSIVE.search(text.replace(" ", "")):
        return failed(Outcome.UNPARSABLE, "the answer is too large to evaluate", text[:100])
    if _CODE.search(text):
        return failed(Outcome.UNPARSABLE, "the answer is code, not mathematics", text[:100])
    return None


def _symbolic(
    left: shapes.Shape,
    right: shapes.Shape,
    exact: dict[tuple[str, str], bool | None],
    pairs: list[tuple[str, str]],
    answer: str,
    policy: Policy,
    engines: Engines,
) -> Verdict:
    """The engine's word on every pair of values that is open, then the forms again."""
    request = {"pairs": [[latex(side) for side in values(*pair, policy)] for pair in pairs]}
    reply = engines.ask("math", request)
    if isinstance(reply, Verdict):
        return reply
    known = exact | dict(zip(pairs, reply["equal"], strict=True))
    if shapes.equal(left, right, lambda one, other: known.get((one, other)) is True):
        return judged(True, answer)
    if not any(reply["gold_read"]):
        return judged(False, answer, "the gold is no mathematical expression; compared as text")
    if not any(reply["answer_read"]):
        return failed(Outcome.UNPARSABLE, "no mathematical expression found", answer)
    return judged(False, answer)


def _found_in_prose(gold: str, text: str, engines: Engines) -> Verdict:
    """What Math-Verify finds in a text that states no answer."""
    reply = engines.ask("math", {"gold": latex(clean(gold)) if is_bare(gold) else None, "prose_gold": gold, "text": text})
    if isinstance(reply, Verdict):
        return reply
    if not reply["gold_read"]:
        return judged(False, reply["extracted"], "the gold is no mathematical expression; compared as text")
    if not reply["answer_read"]:
        return failed(Outcome.UNPARSABLE, "no mathematical expression found", reply["extracted"])
    return judged(reply["equal"], reply["extracted"])
