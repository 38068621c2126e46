"""Choice, regex, json, constraints, similarity, assignments and the judge."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_endpoint import Answer, serve
from verifier_cases import problem

from pipelines.errors import InfrastructureError
from pipelines.records import Outcome, Problem
from pipelines.verifiers import Limits, VerifierPool
from pipelines.verifiers.constraints import INSTRUCTIONS
from pipelines.verifiers.voting import parties

TASKS = Path(__file__).parents[3] / "shared" / "data" / "tasks"
CORRECT, WRONG, UNPARSABLE, INFRASTRUCTURE = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE, Outcome.INFRASTRUCTURE


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2, limits=Limits(engine_seconds=2.0)) as shared:
        yield shared


OPTIONS = ["a red fox", "42", "1/2", "none of these"]


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (r"\boxed{B}", CORRECT),
        (r"\boxed{\text{(b)}}", CORRECT),
        ("The answer is (B).", CORRECT),
        ("**B**", CORRECT),
        ("B) 42", CORRECT),
        ("Option B: 42", CORRECT),
        ("42", CORRECT),
        (r"\boxed{42.0}", CORRECT),
        ("<answer>b. 42</answer>", CORRECT),
        ("B) 43", UNPARSABLE),
        (r"\boxed{A}", WRONG),
        ("a red fox", WRONG),
        (r"\boxed{0.5}", WRONG),
        (r"\boxed{A or B}", UNPARSABLE),
        (r"\boxed{B, C}", UNPARSABLE),
        (r"\boxed{A, B, C, D}", UNPARSABLE),
        (r"\boxed{E}", UNPARSABLE),
        ("", UNPARSABLE),
    ],
)
def test_choice(pool: VerifierPool, response: str, outcome: Outcome) -> None:
    for gold in ("B", "42"):
        assert pool.verify(problem(gold, "choice", options=OPTIONS), response).outcome is outcome


@pytest.mark.parametrize(
    ("gold", "response", "outcome"),
    [
        ("A, C", r"\boxed{A, C}", CORRECT),
        ("A, C", r"\boxed{C and A}", CORRECT),
        ("AC", "The answer is (A), (C).", CORRECT),
        ("A and C", "<answer>AC</answer>", CORRECT),
        ("A; C", "A) a red fox; C) 1/2", CORRECT),
        ("A", "A) a red fox; C) 1/2", UNPARSABLE),
        ("A, C", "[[A, C]]", CORRECT),
        ("A, C", r"\boxed{A}", WRONG),
        ("A, C", r"\boxed{A, B, C}", WRONG),
        ("A, C", r"\boxed{A, B}", WRONG),
        ("A, C", r"\boxed{A or C}", UNPARSABLE),
        ("A, C", r"\boxed{A, A}", UNPARSABLE),
        ("A, C", r"\boxed{A, F}", UNPARSABLE),
        ("A", "[[A]]", CORRECT),
        ("A", "Assistant A explains it better, so my verdict is [[A]], which is final.", CORRECT),
        ("A", "<answer>[[A]]</answer>", CORRECT),
        ("A", "Both are good, but B is shorter. [[B]]", WRONG),
        ("A", "[[A]] or, on reflection, [[B]]", UNPARSABLE),
        ("A", "<answer>[[A]]</answer> or [[B]]", UNPARSABLE),
        ("A", r"\boxed{A, C}", UNPARSABLE),
    ],
)
def test_several_letters_and_verdicts_in_brackets(pool: VerifierPool, gold: str, response: str, outcome: Outcome) -> None:
    for options in ({"options": OPTIONS}, {}) if "F" not in response else ({"options": OPTIONS},):
        assert pool.verify(problem(gold, "choice", **options), response).outcome is outcome


def test_the_whole_output_can_be_asked_to_equal_the_label(pool: VerifierPool) -> None:
    """CLS-RL without thinking: nothing but the label; and by default the answer that a text states."""
    label = problem("cat", "exact", match="output")
    assert pool.verify(label, "cat").correct and pool.verify(label, " Cat.\n").correct
    for response in ("The answer is cat", "<think>fur</think>cat", r"\boxed{cat}", "<answer>cat</answer>", "a cat"):
        assert pool.verify(label, response).outcome is WRONG
        assert pool.verify(problem("cat", "exact"), response).correct is (response != "a cat")
    final = problem("cat", "exact", match="final")
    assert pool.verify(final, "<think>fur</think>cat").correct and pool.verify(final, "The answer is cat").outcome is WRONG
    exactly = problem("Cat", "exact", match="output", normalise=False)
    assert pool.verify(exactly, "Cat ").correct and pool.verify(exactly, "cat").outcome is WRONG
    assert pool.verify(label, "").outcome is UNPARSABLE
    assert pool.verify(problem("cat", "exact", match="all"), "cat").outcome is INFRASTRUCTURE
    assert parties(label, ["Cat", "dog", "cat"]) == [["Cat", "cat"], ["dog"]]


def test_choice_without_options_or_with_a_broken_gold(pool: VerifierPool) -> None:
    assert pool.verify(problem("C", "choice"), "C. the third one").correct
    assert pool.verify(problem("C", "choice"), "D").outcome is WRONG
    assert pool.verify(problem("E", "choice", options=OPTIONS), "E").outcome is INFRASTRUCTURE
    assert pool.verify(problem("A", "choice", options={"A": "x", "AB": "y"}), "A").outcome is INFRASTRUCTURE


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"{TASKS} is not there")
def test_every_gold_of_mmlu_is_its_own_answer_and_no_other(pool: VerifierPool) -> None:
    rows = [json.loads(line) for line in (TASKS / "mmlu_stem.jsonl").read_text().splitlines()[:400]]
    problems = [problem(row["answer"], "choice", options=row["options"]) for row in rows]
    others = ["ABCD"[("ABCD".index(row["answer"]) + 1) % 4] for row in rows]
    assert all(pool.verify(each, rf"\boxed{{{row['answer']}}}").correct for each, row in zip(problems, rows, strict=True))
    assert not any(pool.verify(each, rf"\boxed{{{other}}}").correct for each, other in zip(problems, others, strict=True))


def test_regex(pool: VerifierPool) -> None:
    date = problem("2024", "regex", pattern=r"(\d{4})-\d\d-\d\d", group=1)
    assert pool.verify(date, "The answer is 2024-05-17").correct
    assert pool.verify(date, "The answer is 2023-05-17").outcome is WRONG
    assert pool.verify(date, "The answer is May 2024").outcome is WRONG
    assert pool.verify(problem("ab+", "regex", flags="i"), "<answer>ABBB</answer>").correct
    assert pool.verify(problem("a", "regex", pattern="("), "a").outcome is INFRASTRUCTURE
    assert pool.verify(problem("a", "regex", pattern="a", flags="q"), "a").outcome is INFRASTRUCTURE


def test_a_pattern_that_explodes_is_killed_in_time(pool: VerifierPool) -> None:
    started = time.monotonic()
    verdict = pool.verify(problem("x", "regex", pattern=r"(a|a)*b"), "<answer>" + "a" * 60 + "</answer>")
    assert verdict.outcome is Outcome.TIMEOUT
    assert time.monotonic() - started < 2.0 + 5.0  # the limit, and a worker that starts on a busy machine


def test_json(pool: VerifierPool) -> None:
    gold = problem('{"a": [1, 2.0], "b": null}', "json")
    assert pool.verify(gold, 'Here:\n```json\n{"b": null, "a": [1, 2]}\n```').correct
    assert pool.verify(gold, '{"a": [2, 1], "b": null}').outcome is WRONG
    assert pool.verify(gold, '{"a": [1, 2], "b": null, "c": 0}').outcome is WRONG
    assert pool.verify(gold, '{"a": [1, true], "b": null}').outcome is WRONG
    assert pool.verify(gold, "a: 1").outcome is UNPARSABLE
    assert pool.verify(gold, "[" * 100_000).outcome is UNPARSABLE
    loose = problem('{"a": {"x": 1}}', "json", match="contains")
    assert pool.verify(loose, '{"a": {"x": 1, "y": 2}, "b": 3}').correct
    assert pool.verify(loose, '{"a": {"y": 2}}').outcome is WRONG


HOLDS = {
    "length_constraints:number_words": ("one two-three don't", {"num_words": 3, "relation": "exactly"}, "one two"),
    "length_constraints:number_sentences": ("One. Two! Three", {"num_sentences": 3, "relation": "at least"}, "One. Two..."),
    "length_constraints:number_paragraphs": ("one\n***\ntwo", {"num_paragraphs": 2}, "one\n\ntwo"),
    "length_constraints:nth_paragraph_first_word": (
        "A b.\n\nSo it is.",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "So.\n\nA b.",
    ),
    "keywords:existence": ("A Cat sat.", {"keywords": ["cat", "sat"]}, "A category sat."),
    "keywords:frequency": ("go, Go, gone", {"keyword": "go", "frequency": 2, "relation": "exactly"}, "go"),
    "keywords:forbidden_words": ("a category", {"forbidden_words": ["cat"]}, "a cat."),
    "keywords:letter_frequency": ("Anna", {"letter": "a", "let_frequency": 2, "let_relation": "exactly"}, "Banana"),
    "detectable_content:number_placeholders": ("[name] and [place]", {"num_placeholders": 2}, "[name]"),
    "detectable_content:postscript": ("Yes.\nP.S. Bring bread.", {"postscript_marker": "P.S."}, "Yes.\nP.S."),
    "detectable_format:number_bullet_lists": ("* a\n- b", {"num_bullets": 2}, "* a\n- b\n* c"),
    "detectable_format:constrained_response": ("My answer is no.", {}, "No."),
    "detectable_format:number_highlighted_sections": ("*a* and **b**", {"num_highlights": 2}, "*a* and **"),
    "detectable_format:multiple_sections": ("SECTION 1\na\nSECTION 2\nb", {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1"),
    "detectable_format:json_format": ('```json\n{"a": 1}\n```', {}, "{a: 1}"),
    "detectable_format:title": ("<<Dawn>>\nIt", {}, "<< >> It"),
    "combination:two_responses": ("yes\n******\nno", {}, "yes\n******\nyes"),
    "combination:repeat_prompt": ("Who? Me.", {"prompt_to_repeat": "who?"}, "Me."),
    "startend:end_checker": ("That is it. Any questions?", {"end_phrase": "Any questions?"}, "Any questions? No."),
    "startend:quotation": ('"yes"', {}, "yes"),
    "change_case:english_capital": ("YES 1", {}, "Yes 1"),
    "change_case:english_lowercase": ("yes 1", {}, "Yes 1"),
    "change_case:capital_word_frequency": ("A BIG dog", {"capital_frequency": 2, "capital_relation": "exactly"}, "A big dog"),
    "punctuation:no_comma": ("a b", {}, "a, b"),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions(pool: VerifierPool, name: str) -> None:
    follows, settings, fails = HOLDS[name]
    row = problem("", "constraints", instruction_id_list=[name], kwargs=[settings | {"unused": None}])
    assert pool.verify(row, f"<think>, NO</think>{follows}").correct
    assert pool.verify(row, fails).outcome is WRONG


def test_constraints_are_strict_with_a_share_as_score(pool: VerifierPool) -> None:
    row = problem("", "constraints", instruction_id_list=["punctuation:no_comma", "change_case:english_lowercase"], kwargs=[{}, {}])
    verdict = pool.verify(row, "One without a comma")
    assert (verdict.outcome, verdict.score) == (WRONG, 0.5)
    assert "change_case:english_lowercase" in verdict.detail
    for broken in ({"instruction_id_list": ["punctuation:no_coma"]}, {"instruction_id_list": []}, {"instruction_id_list": ["keywords:existence"]}):
        assert pool.verify(problem("", "constraints", **broken), "x").outcome is INFRASTRUCTURE


@pytest.mark.parametrize("name", ["length_constraints:number_sentences", "detectable_format:title", "detectable_format:number_highlighted_sections"])
def test_checks_of_form_are_linear(pool: VerifierPool, name: str) -> None:
    row = problem("", "constraints", instruction_id_list=[name], kwargs=[HOLDS[name][1]])
    started = time.monotonic()
    for text in (".", "<<", "*", "[", "<<a "):
        pool.verify(row, (text * 200_000)[:199_999] + "x")
    assert time.monotonic() - started < 10


def test_similarity(pool: VerifierPool) -> None:
    gold = "the cat sat on the mat"
    assert pool.verify(problem(gold, "similarity", metric="chrf", threshold=0.99), gold).score == pytest.approx(1.0)
    assert pool.verify(problem(gold, "similarity", metric="bleu", threshold=0.99), gold).correct
    # one of six words inserted: TER = 1 edit / 6 reference words
    ter = pool.verify(problem(gold, "similarity", metric="ter"), "the old cat sat on the mat")
    assert ter.score == pytest.approx(1 - 1 / 6)
    assert pool.verify(problem(gold, "similarity", metric="rouge"), gold).outcome is INFRASTRUCTURE
    assert pool.verify(problem(gold, "similarity"), "").outcome is UNPARSABLE


def test_labels_are_compared_as_sets(pool: VerifierPool) -> None:
    """Worked number of Curr-ReFT: {a, b} and {b, c} share one of three; a choice of several letters is right in any order, and part of it is not."""
    gold = problem("b, c", "similarity", metric="labels")
    found = [pool.verify(gold, text) for text in ("\\boxed{a, b}", "the answer is C,  B", "\\boxed{\\{b, c\\}}", "d")]
    assert [v.score for v in found] == pytest.approx([1 / 3, 1.0, 1.0, 0.0]) and [v.correct for v in found] == [False, True, True, False]
    letters = problem("AC", "choice")
    assert [pool.verify(letters, text).score for text in ("C, A", "A")] == [1.0, 0.0]


def test_a_patch_is_right_when_it_is_the_gold_and_near_it_otherwise(pool: VerifierPool) -> None:
    gold = problem("-a=1\n+a=2\n", "similarity", metric="patch")
    wrong = pool.verify(gold, "```diff\n-a=1\n+a=3\n```")
    assert (wrong.outcome, wrong.score) == (WRONG, pytest.approx(2 * 8 / (9 + 9)))  # difflib: 2 * matching / total; one character of nine differs
    for response in ("```diff\n-a=1\n+a=2\n```", "It is this:\n```patch\r\n-a=1\r\n+a=2\r\n```", "-a=1\n+a=2"):
        verdict = pool.verify(gold, response)
        assert verdict.correct and verdict.score == 1.0
    loose = problem("-a=1\n+a=2\n", "similarity", metric="patch", threshold=0.8)
    assert pool.verify(loose, "```diff\n-a=1\n+a=3\n```").correct


KNIGHTS = "Amelia is a knight, Penelope is a knave, and Evelyn is a knight"


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (f"<answer>(1) {KNIGHTS}.</answer>", CORRECT),
        ("<answer>Evelyn: knight\nAmelia: knight\nPenelope: knave</answer>", CORRECT),
        (r"\boxed{\text{Amelia is a knight}, \text{Penelope is a knave}, \text{Evelyn is a knight}}", CORRECT),
        (f"If Amelia is a knave then no. So {KNIGHTS}.", CORRECT),
        ("<answer>Amelia is a knight, Penelope is a knight, and Evelyn is a knight</answer>", WRONG),
        ("<answer>Amelia is a knight, Penelope is a knave</answer>", WRONG),
        (f"<answer>{KNIGHTS}, Evelyn is a knave</answer>", WRONG),
        ("<answer>Amelia is not a knave</answer>", UNPARSABLE),
        ("who knows", UNPARSABLE),
    ],
)
def test_assignments(pool: VerifierPool, response: str, outcome: Outcome) -> None:
    assert pool.verify(problem(KNIGHTS, "logic"), response).outcome is outcome


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"{TASKS} is not there")
def test_every_knights_and_knaves_gold_is_its_own_answer_and_no_other(pool: VerifierPool) -> None:
    rows = [json.loads(line) for line in (TASKS / "knights_knaves.jsonl").read_text().splitlines()]
    for row in rows:
        each = problem(row["answer"], "logic")
        assert pool.verify(each, f"<answer>{row['solution_text_format']}</answer>").correct, row
        flipped = row["solution_text_format"].replace("knight", "K", 1) if "knight" in row["solution_text_format"] else ""
        flipped = flipped.replace("a K", "a knave") if flipped else row["solution_text_format"].replace("knave", "knight", 1)
        assert pool.verify(each, f"<answer>{flipped}</answer>").outcome is WRONG, row


RUBRIC = [
    {"name": "right", "description": "agrees with the reference", "weight": 3.0, "veto": True},
    {"name": "brief", "description": "is short", "weight": 1.0},
]


def judged(monkeypatch: pytest.MonkeyPatch, reply: Answer, text: str = "It is 4.", **arguments: object) -> tuple[Outcome, float, list]:
    with serve(lambda prompt, number: reply) as endpoint, VerifierPool(1) as pool:
        monkeypatch.setenv("TOUCHSTONE_JUDGE_URL", endpoint.url)
        monkeypatch.setenv("TOUCHSTONE_JUDGE_KEY", "secret")
        verdicts = pool.verify_batch([(problem("4", "judge", rubric=RUBRIC, row=3, **arguments), text)] * 2)
    assert verdicts[0] == verdicts[1]
    assert "secret" not in repr(verdicts)
    return verdicts[0].outcome, verdicts[0].score, endpoint.requests


def test_the_judge_weighs_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, score, requests = judged(monkeypatch, Answer('Well. {"right": 8, "brief": 4}'))
    assert (outcome, score) == (CORRECT, pytest.approx((3 * 8 + 4) / 40))
    assert len(requests) == 1, "the same response is judged once"
    mark = requests[0]["messages"][0]["content"].split("two lines ")[1].split(";")[0]
    assert requests[0]["messages"][1]["content"].count(mark) == 2
    assert judged(monkeypatch, Answer('{"right": 0, "brief": 10}'))[:2] == (WRONG, 0.0)
    assert judged(monkeypatch, Answer('{"right": 8, "brief": 4}'), threshold=0.9)[0] is WRONG


def test_params_name_the_judge_and_the_environment_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUCHSTONE_JUDGE_MODEL", "another")
    answer = Answer('{"right": 8, "brief": 4}')
    assert judged(monkeypatch, answer)[2][0]["model"] == "default"
    assert judged(monkeypatch, answer, model="wise")[2][0]["model"] == "wise"


@pytest.mark.parametrize(
    "reply", [Answer("fine"), Answer('{"right": 11, "brief": 1}'), Answer('{"right": 5}'), Answer('{"right": true, "brief": 1}'), Answer(status=400)]
)
def test_a_judge_that_says_nothing_usable_is_infrastructure(monkeypatch: pytest.MonkeyPatch, reply: Answer) -> None:
    assert judged(monkeypatch, reply, retries=0)[0] is INFRASTRUCTURE


def test_a_judge_needs_an_address_and_a_rubric_that_holds(monkeypatch: pytest.MonkeyPatch, pool: VerifierPool) -> None:
    monkeypatch.delenv("TOUCHSTONE_JUDGE_URL", raising=False)
    with pytest.raises(InfrastructureError, match="TOUCHSTONE_JUDGE_URL names, which is not set"):
        pool.verify(problem("4", "judge"), "4")
    assert pool.verify(problem("4", "judge", rubic=RUBRIC), "4").outcome is INFRASTRUCTURE
    assert pool.verify(problem("4", "judge"), " ").outcome is UNPARSABLE


def test_a_verifier_that_is_not_there(pool: VerifierPool) -> None:
    verdict = pool.verify(Problem("i", "math", "", "1", "expression", "maths"), "1")
    assert verdict.outcome is INFRASTRUCTURE and "'maths'" in verdict.detail
