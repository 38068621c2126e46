r"""What rules can tell of a problem: its kind, language, parts. Signals name a row's trait; `filters.drop` says which traits go.

After Big-Math (arXiv 2502.17387) for the first eight, AceReason (arXiv 2505.16400) for figures, DAPO-17k (arXiv 2503.14476) for
integers. Three of Big-Math's rules are narrower here, because most of what they took of DAPO-17k, MATH and DeepScaleR they took wrongly:
lists of conditions for parts or options, and a line "is divided by 9?" after a formula for a yes-no question. Big-Math asks a language
identifier for P(English); here a text counts as foreign when most of its letters are not Latin, or when it has sentences but hardly
one of English's commonest words.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pipelines.records import Problem

_LINK = re.compile(r"\\url\b|\\href\b|https?://|\bwww\.")
_EMPTY_BOX = re.compile(r"\\boxed\{\s*\}")
_PARTS = (
    re.compile(r"\((?:i{1,3}|iv|v)\)"),
    re.compile(r"(?:(?<![\w\\])\([a-e]\)|(?<![\w(\\{])[a-e]\))\s"),
    re.compile(r"(?m)^\s*[1-9][.)]\s"),
)
_ASKS = re.compile(r"\?|\b(?:find|determine|calculate|compute|evaluate|prove|show that|what|how|solve|express|deduce)\b", re.IGNORECASE)
_PROOF = re.compile(r"\bprove that\b|(?<!without )\ba proof\b|\bprove:|(?:\A|[.!?]\s+)(?:prove|show)\b(?:\s+that)?", re.IGNORECASE)
_FORMULA = re.compile(r"\[asy\].*?\[/asy\]|\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[a-zA-Z]+", re.DOTALL)
_FIGURE = re.compile(r"\[asy\]|\\includegraphics|\b(?:figure|diagram|picture|graph|shown) (?:below|above)\b|\bas shown\b", re.IGNORECASE)
_YES_NO_QUESTION = re.compile(r"\A\W*(?:is|are|do|does|can)\b", re.IGNORECASE)
_INTEGER = re.compile(r"[-+]?\d+")
_WORD = re.compile(r"[^\W\d_]+")
_COMMON = re.compile(
    "the|of|and|a|to|in|is|that|for|it|as|with|on|at|by|be|are|what|how|many|find|he|she|his|her|from|each|has|have|this|which|there|all|value"
    "|given|let|does|do|can|an|or|did|was|were|they|their|will|who|more|than|then|when|while|after|if|not|its|per|into|out",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
LAST_OPTION = 80
"""Characters of a numbered option; where more follows the last number it is a list of conditions."""


def hyperlink(problem: Problem) -> bool:
    """A link in the problem or its solution."""
    return bool(_LINK.search(problem.prompt) or _LINK.search(problem.solution or ""))


def empty_answer(problem: Problem) -> bool:
    r"""No answer, or an empty \boxed{}."""
    return not problem.answer.strip() or bool(_EMPTY_BOX.search(problem.answer) or _EMPTY_BOX.search(problem.solution or ""))


def multiple_choice(problem: Problem) -> bool:
    """The last labels A, B, C, D (or 1 to 4, with little after the last) are all there and in order."""
    return _in_order(problem.prompt, "ABCD") or _in_order(problem.prompt, "1234", after=LAST_OPTION)


def _in_order(text: str, labels: str, after: int | None = None) -> bool:
    places = []
    for label in labels:
        bare = rf"(?:^|\s){label}[).:]\s" if label.isalpha() else rf"^\s*{label}[).]\s"
        found = [match.start() for match in re.finditer(rf"(?<!\w)\({label}\)|{bare}|\\text(?:bf|rm)?\{{\(?{label}[).]\s*\}}", text, re.MULTILINE)]
        if not found:
            return False
        places.append(found[-1])
    return places == sorted(places) and (after is None or len(text) - places[-1] <= after)


def proof(problem: Problem) -> bool:
    """Asks to prove or show something."""
    return bool(_PROOF.search(problem.prompt))


def true_false(problem: Problem) -> bool:
    """The answer is true or false."""
    return problem.answer.strip(" .").casefold() in ("true", "false")


def yes_no(problem: Problem) -> bool:
    """The answer is yes or no, or the last sentence begins as a question for one does (is, are, do, does, can)."""
    if problem.answer.strip(" .").casefold() in ("yes", "no"):
        return True
    last = _SENTENCE_END.split(problem.prompt.rstrip())[-1]
    return not _INTEGER.fullmatch(problem.answer.strip()) and bool(_YES_NO_QUESTION.match(last) and last.endswith("?"))


def multi_part(problem: Problem) -> bool:
    """(i) ... (ii), (a) ... (b), or numbered lines 1. ... 2., of which two ask for something; conditions and rules are listed like this too."""
    if multiple_choice(problem):
        return False
    return any(sum(bool(_ASKS.search(part)) for part in label.split(problem.prompt)[1:]) >= 2 for label in _PARTS)


def foreign(problem: Problem) -> bool:
    """Not English: most letters are not Latin, or of at least twelve words fewer than one in twelve is common in English."""
    words = _WORD.findall(_FORMULA.sub(" ", problem.prompt))
    letters = "".join(words)
    if len(letters) < 10:
        return False
    if sum(letter < "ɐ" for letter in letters) * 2 < len(letters):
        return True
    return len(words) >= 12 and sum(bool(_COMMON.fullmatch(word)) for word in words) * 12 < len(words)


def figure(problem: Problem) -> bool:
    """Depends on a drawing."""
    return bool(_FIGURE.search(problem.prompt))


def not_integer(problem: Problem) -> bool:
    """The answer is no integer, so a string comparison is not safe."""
    return not _INTEGER.fullmatch(problem.answer.strip().replace(",", ""))


SIGNALS: dict[str, Callable[[Problem], bool]] = {
    "hyperlink": hyperlink,
    "empty_answer": empty_answer,
    "multiple_choice": multiple_choice,
    "proof": proof,
    "true_false": true_false,
    "yes_no": yes_no,
    "multi_part": multi_part,
    "foreign": foreign,
    "figure": figure,
    "not_integer": not_integer,
}


def test_count(problem: Problem) -> int | None:
    """How many tests a code problem has, None for any other."""
    if problem.verifier != "code":
        return None
    given = problem.args
    stdin = given.get("stdin_tests")
    pairs = stdin.get("inputs", []) if isinstance(stdin, dict) else stdin or []
    return len(given.get("tests") or []) + len(pairs) + len(given.get("asserts") or []) + bool(given.get("check"))
