r"""`choice`: multiple choice, answered by letter or by the option's text.

verifier_args {"options": ["text of A", "text of B", ...] or {"A": "text", ...}}; the gold is a letter or an option's text. Without
options only letters are compared. The answer is the last box, `<answer>`, the stated answer or a short final text; a letter counts
however it is dressed: B, (B), B., **B**, \text{B}, [[B]], `B) text`, `option B`. A verdict such as [[B]] counts wherever it stands. More than one
letter is a hedge, a letter with the text of another option a contradiction: neither names an option. Where the gold has several letters
(`A, C` or `AC`) the answer is right when it names all of them, in any order, and no other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase

from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.answers import answer_text, plain
from pipelines.verifiers.arithmetic import compare
from pipelines.verifiers.judgement import Job, failed, judged
from pipelines.verifiers.notation import clean
from pipelines.verifiers.text import has_box, tagged

MAX_LENGTH = 4000
MOST_LETTERS = "ABCDEFGHIJ"
"""What may stand in a row of letters where no options are given."""
_VERDICT = re.compile(r"\[\[\s*([A-Za-z](?:[\s,;&]{0,3}[A-Za-z]){0,9})\s*\]\]")
_JOINT = re.compile(r"(?:[,;&\n]|\band\b)[\s,;&]*(?:and\b)?", re.IGNORECASE)
_ROW = re.compile(r"[A-Z](?:[\s,;&()\[\].]*[A-Z])*")
_LEAD = re.compile(r"\A(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\b\s*(?:is\b)?\s*:?\s*", re.IGNORECASE)
_LETTER = re.compile(r"\A[(\[]?([A-Z])(?:[)\].:,]|\s*[-–—](?=\s)|(?=\s)|\Z)\s*", re.IGNORECASE)
_HEDGE = re.compile(r"\A(?:or|and|and/or|,|/|;|&)\s*[(\[]?[A-Z](?:[)\].:,;\s]|\Z)", re.IGNORECASE)


def verify_choice(problem: Problem, text: str) -> Verdict | Job:
    options = _options(problem.args.get("options"))
    gold = letters_of(problem.answer, options)
    if not gold or (len(gold) > 1 and sorted(gold) != [*gold]):
        raise ValueError(f"the gold {problem.answer[:80]!r} is neither letters nor one of the options")
    answer = answer_text(text)
    if (verdicts := {found[1] for found in _VERDICT.finditer(text)}) and (len(verdicts) > 1 or not (has_box(text) or tagged(text) is not None)):
        answer = " or ".join(sorted(verdicts))
    if not answer or len(answer) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, "no answer in the final text" if not answer else f"the answer exceeds {MAX_LENGTH} characters")
    chosen = letters_of(answer, options)
    if not chosen or len(chosen) > 1 == len(gold):
        return failed(Outcome.UNPARSABLE, "the answer names no single option" if len(gold) == 1 else "the answer names no options", answer[:200])
    return judged(set(chosen) == set(gold), ", ".join(sorted(chosen)))


def letters_of(answer: str, options: Mapping[str, str]) -> tuple[str, ...]:
    """All options that `answer` names, as their letters; none where it names none, one twice, or one or another."""
    answer = _VERDICT.sub(lambda found: found[1], answer)
    one = letter_of(answer, options)
    pieces = [piece.strip() for piece in _JOINT.split(answer) if piece.strip()]
    named = [letter_of(piece, options) for piece in pieces] if one is None or not options else [one]
    if len(named) > 1 and all(named):
        return tuple(letter for letter in named if letter) if len(set(named)) == len(named) else ()
    if one is not None:
        return (one,)
    row = clean(answer).strip()
    letters = tuple(re.findall("[A-Z]", row)) if _ROW.fullmatch(row) else ()
    return letters if len(set(letters)) == len(letters) and set(letters) <= set(options or MOST_LETTERS) else ()


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that `answer` names, as its letter; None when it names none, or several, or contradicts itself."""
    said = clean(clean(answer).replace("*", "").replace("\\ ", " ").strip())
    by_text = [letter for letter, option in options.items() if plain(option) == plain(said)]
    if len(by_text) == 1 and not re.fullmatch(r"[A-Za-z]", said):
        return by_text[0]
    bare = _LEAD.sub("", said)
    found = _LETTER.match(bare)
    if found is None or (options and found[1].upper() not in options):
        same = [letter for letter, option in options.items() if len(option) < 100 and compare(option, said) is True]
        return by_text[0] if by_text else same[0] if len(same) == 1 else None
    letter, rest = found[1].upper(), bare[found.end() :].strip()
    if not rest:
        return letter
    if _HEDGE.match(rest) or (found[0].rstrip().endswith(",") and _LETTER.match(rest)):
        return None
    if options:
        return letter if plain(rest) == plain(options[letter]) else None
    return letter if found[0].strip() != found[1] else None  # "A robe" is a sentence, "A) robe" an option


def _options(given: object) -> dict[str, str]:
    """Letter -> text."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        options = {str(letter).strip().upper(): str(text) for letter, text in given.items()}
    elif isinstance(given, list) and len(given) <= len(ascii_uppercase):
        options = dict(zip(ascii_uppercase, map(str, given), strict=False))
    else:
        raise ValueError("options must be a list of at most 26 texts, or a mapping letter -> text")
    if any(letter not in ascii_uppercase or len(letter) != 1 for letter in options):
        raise ValueError(f"options are named by letters, got {', '.join(options)}")
    return options
