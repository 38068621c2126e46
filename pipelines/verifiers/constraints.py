"""`constraints`: checks of form that need no gold, by the names of IFEval (arXiv 2311.07911).

verifier_args {"instruction_id_list": ["length_constraints:number_words", ...], "kwargs": [{"relation": "at least", "num_words": 300}, ...]}
as IFEval's rows have them. Correct when all hold (IFEval's strict accuracy); the score is the share that holds, so that a reward
may be partial. Words are runs of letters, digits, apostrophes and hyphens; sentences end in . ! or ? before a space or the end. The
instruction language:response_language needs a language detector and is not here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from pipelines.errors import UserError
from pipelines.methods import bind
from pipelines.records import Outcome, Problem, Verdict
from pipelines.verifiers.judgement import Job, failed

MAX_LENGTH = 200_000
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=\s|$)")
_BULLET = re.compile(r"^[ \t]*[*-][ \t]+\S", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<([^<>\n]*)>>")
_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.IGNORECASE | re.DOTALL)
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def compared(count: int, relation: str, wanted: int) -> bool:
    """IFEval's relations, and `exactly`."""
    if relation not in ("at least", "less than", "at most", "exactly"):
        raise ValueError(f"relation '{relation}' is none of at least, less than, at most, exactly")
    return {"at least": count >= wanted, "less than": count < wanted, "at most": count <= wanted, "exactly": count == wanted}[relation]


def number_words(text: str, *, num_words: int, relation: str = "at least") -> bool:
    return compared(len(words(text)), relation, num_words)


def number_sentences(text: str, *, num_sentences: int, relation: str = "at least") -> bool:
    ends = len(_SENTENCE_END.findall(text))
    unfinished = bool(words(_SENTENCE_END.split(text)[-1]))
    return compared(ends + unfinished, relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs divided by `***`, none of them empty but at the ends."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    inner = parts[1:-1]
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs divided by empty lines; the nth begins with the word."""
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    found = words(parts[nth_paragraph - 1])
    return bool(found) and found[0].casefold() == first_word.casefold()


def existence(text: str, *, keywords: list[str]) -> bool:
    return all(_occurrences(text, word) for word in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: str = "at least") -> bool:
    return compared(_occurrences(text, keyword), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    return not any(_occurrences(text, word) for word in forbidden_words)


def _occurrences(text: str, keyword: str) -> int:
    """Whole-word, case-insensitive."""
    return len(re.findall(rf"(?<!\w){re.escape(keyword.casefold())}(?!\w)", text.casefold()))


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str = "at least") -> bool:
    return compared(Counter(text.casefold())[letter.casefold()], let_relation, let_frequency)


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """A line that begins with the marker and says something."""
    marker = re.sub(r"\s", "", postscript_marker).casefold()
    starts = (re.sub(r"\s", "", line).casefold() for line in text.splitlines())
    return any(line.startswith(marker) and len(line) > len(marker) for line in starts)


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    return len(_BULLET.findall(text)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(choice in text for choice in CHOICES)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    return sum(bool(part.strip("* ")) for part in _HIGHLIGHT.findall(text)) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """`SECTION 1`, `SECTION 2`, ... (the keyword is spelt as IFEval spells it)."""
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole response is JSON, perhaps fenced."""
    fenced = _FENCE.match(text.strip())
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    return any(found.strip() for found in _TITLE.findall(text))


def two_responses(text: str) -> bool:
    """Two different answers divided by six asterisks."""
    parts = [part.strip() for part in text.split("******") if part.strip()]
    return len(parts) == 2 and parts[0] != parts[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


def end_checker(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def english_capital(text: str) -> bool:
    return text.isupper()


def english_lowercase(text: str) -> bool:
    return text.islower()


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str = "at least") -> bool:
    return compared(sum(word.isupper() for word in words(text)), capital_relation, capital_frequency)


def no_comma(text: str) -> bool:
    return "," not in text


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "length_constraints:number_words": number_words,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "change_case:capital_word_frequency": capital_word_frequency,
    "punctuation:no_comma": no_comma,
}
"""IFEval's name -> check of the final text; a check's keyword arguments are the instruction's settings."""


def verify_constraints(problem: Problem, text: str) -> Verdict | Job:
    names, settings = problem.args.get("instruction_id_list"), problem.args.get("kwargs")
    if not isinstance(names, list) or not names or (settings is not None and (not isinstance(settings, list) or len(settings) != len(names))):
        raise ValueError("expected instruction_id_list, and kwargs of the same length")
    if len(text) > MAX_LENGTH:
        return failed(Outcome.UNPARSABLE, f"the response has {len(text)} characters; at most {MAX_LENGTH} are read")
    failures = [name for name, given in zip(names, settings or [{}] * len(names), strict=True) if not _holds(name, given or {}, text)]
    score = 1 - len(failures) / len(names)
    detail = f"{len(names) - len(failures)} of {len(names)} hold" + (f"; not {', '.join(failures)}" if failures else "")
    return Verdict(Outcome.WRONG if failures else Outcome.CORRECT, score, None, detail)


def _holds(name: str, given: dict[str, Any], text: str) -> bool:
    """Whether one instruction is followed; settings that are null do not count, as in IFEval's own files."""
    try:
        check = bind("instruction", INSTRUCTIONS, name, {key: value for key, value in given.items() if value is not None})
    except UserError as error:
        raise ValueError(str(error)) from None
    return bool(text.strip()) and check(text)
