r"""Responses that state more than one answer: \boxed{3} or \boxed{4}, \boxed{3} (or 4). They are right where all that they state is the gold.

`rivals` finds what stands beside the answer and is not taken back; `all_right` puts the verdicts on both together. Hedges inside an answer,
`3 or 4` and `2 + 2 = 5`, are a matter of its form: lists and chains of shapes.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pipelines.records import Outcome, Verdict
from pipelines.verifiers.judgement import Engines, Job, judged
from pipelines.verifiers.text import box_places, tag_places

_MOVED_ON = re.compile(
    r"\b(?:wait|actually|wrong|mistaken?|incorrect|correct(?:ed|ion|ing)?|instead|rather|re-?check(?:ing)?|re-?comput\w+|final(?:ly)?|answer|"
    r"so|then|therefore|thus|hence|consequently|next|now|overall|total|conclude|conclusion)\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|probably|alternatively|alternative|might|may|could|either|another|also|else|unsure|not\s+sure|guess)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?](?:\s|$)|\n")
_OTHERWISE = re.compile(r"[\s$\])]*+(?:[,;(]\s*+)?(?:or|and/or)\b(?:\s+(?:else|maybe|perhaps|possibly|even)\b)?([^\n]{0,200})", re.IGNORECASE)


def rivals(text: str, last: int = 1) -> list[str]:
    r"""What a text states beside its `last` boxes or <answer>s: earlier ones that it does not take back, and what follows after `or`.

    An earlier one is taken back, or a step on the way, where a word such as `wait`, `then`, `so` or `final` stands before the last, and
    no word of doubt, such as `or`, `perhaps` or `another`, in its clause.
    """
    marks = tag_places(text) if "<answer>" in text else [place for place in box_places(text) if place[2]]
    if not marks:
        return []
    start, end = marks[-last:][0][0], marks[-1][1]
    stated = rivals(marks[-1][2] or "") if "<answer>" in text else []
    for _, until, content in reversed(marks[:-last]):
        between = text[until:start]
        if _MOVED_ON.search(between) and not _DOUBT.search(_CLAUSE.split(between)[-1]):
            break
        stated.append(content or "")
    other = _OTHERWISE.match(text, end)
    if other is not None and (said := _CLAUSE.split(other[1])[0].replace("$", "").strip(" .")):
        stated.append(said[:-1].strip() if said.count(")") > said.count("(") and said.endswith(")") else said)
    return [each for each in stated if each]


def all_right(answer: str, others: list[str], judge: Callable[[str], Verdict | Job]) -> Verdict | Job:
    """The verdict on `answer`, which is wrong where one of the others is not right as well."""
    first = judge(answer)
    rest = [(other, judge(other)) for other in dict.fromkeys(others)]
    if not rest or (isinstance(first, Verdict) and not first.correct):
        return first
    if all(isinstance(each, Verdict) for each in (first, *(verdict for _, verdict in rest))):
        return _least(answer, [(text, verdict) for text, verdict in [(answer, first), *rest] if isinstance(verdict, Verdict)])

    def work(engines: Engines) -> Verdict:
        return _least(answer, [(text, each if isinstance(each, Verdict) else each.work(engines)) for text, each in [(answer, first), *rest]])

    return Job("\0".join([answer, *(other for other, _ in rest)]), work)


def _least(answer: str, verdicts: list[tuple[str, Verdict]]) -> Verdict:
    (_, first), *rest = verdicts
    for other, verdict in rest:
        if first.correct and not verdict.correct:
            detail = f"the response also states {other[:80]}"
            return verdict if verdict.outcome is Outcome.INFRASTRUCTURE else judged(False, answer, detail)
    return first
