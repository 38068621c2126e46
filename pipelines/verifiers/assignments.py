"""Who is a knight and who is a knave: an assignment of roles to names, in prose.

The gold says `Amelia is a knight, Penelope is a knave, and Evelyn is a knight`. A response must give every name its role in its
answer: in `<answer>` or a box a name with two roles is a contradiction and wrong; in free text the last word on a name counts.
"""

from __future__ import annotations

import re

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.judgement import Job, failed, judged
from pipelines.verifiers.text import boxed, has_box, tagged

MAX_LENGTH = 20_000
_SAID = re.compile(r"([^\W\d_][\w'’-]*)\s*(?:\bis\b|\bas\b|:|=|→|->)\s*(?:an?\b|the\b)?\s*\**\s*([^\W\d_]+)")


def roles(text: str) -> list[tuple[str, str]]:
    """(name, role) of every `NAME is a ROLE` and `NAME: ROLE`, in lower case, in order."""
    return [(name.casefold(), role.casefold()) for name, role in _SAID.findall(text.replace("*", ""))]


def verify_assignment(problem: Problem, text: str) -> Verdict | Job:
    gold = dict(roles(problem.answer))
    if not gold:
        raise ValueError("expected a 'task' and an 'entry' of reasoning-gym, or a gold such as 'Amelia is a knight, Bob is a knave'")
    marked = inside if (inside := tagged(text)) is not None else boxed(text) if has_box(text) else None
    answer = text if marked is None else marked
    if len(answer) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, f"the answer exceeds {MAX_LENGTH} characters")
    known = set(gold.values())
    said = [(name, role) for name, role in roles(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", answer)) if name in gold and role in known]
    if not said:
        return failed(Outcome.UNPARSABLE, "no role is given to anybody", answer[:200])
    last = dict(said)
    extracted = ", ".join(f"{name} is a {role}" for name, role in sorted(last.items()))
    if marked is not None and len(set(said)) > len(last):
        return judged(False, extracted, "somebody is given two roles")
    return judged(last == gold, extracted)
