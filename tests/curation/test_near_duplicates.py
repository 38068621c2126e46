"""Near duplicates: by hand, against brute force, and on real problems that were changed a little."""

import json
from pathlib import Path

import numpy as np
import pytest
from one_step import alone

from pipelines.config.curation import CurationSettings, NearDuplicateSettings
from pipelines.curation.near_duplicates import NEIGHBOURS, Shingles, _within_buckets, sketched
from pipelines.curation.run import curate
from pipelines.curation.steps import Batch
from pipelines.records import Problem, problem_id

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tasks"
TEXT = "A baker bakes 12 loaves every morning and sells 3 of them to each of his regular customers before noon on market days"


def row(prompt: str, source_id: str = "1", **fields: object) -> Problem:
    given = {"answer_type": "integer", "verifier": "math", "source": "s"} | fields
    return Problem(problem_id=problem_id(prompt, "1"), domain="math", prompt=prompt, answer="1", source_id=source_id, **given)


def deduplicated(*problems: Problem, known=(), **settings: object):
    return alone("near_dedup", problems, known=known, near_duplicates=settings)


def shingles_of(texts: list[str], settings=None) -> Shingles:
    return Shingles(sketched(settings or NearDuplicateSettings(), Batch.of([row(text) for text in texts])), np.arange(len(texts)))


def jaccard(shingles: Shingles, one: int, other: int) -> float:
    return shingles.jaccard(np.array([one]), np.array([other]))[0]


def pairs(shingles: Shingles, **options: bool) -> set[tuple[int, int]]:
    return set(zip(*(part.tolist() for part in shingles.pairs(**options)), strict=True))


def test_similarity_is_that_of_the_sets_of_shingles():
    # words a b c d e / a b c d f: shingles abc bcd cde / abc bcd cdf: 2 of 4
    shingles = shingles_of(["a b c d e", "a b c d f", "a b"])
    assert jaccard(shingles, 0, 1) == 0.5
    assert len(shingles.of(2)) == 0 and not [pair for pair in pairs(shingles) if 2 in pair]
    assert jaccard(shingles_of(["a b c a b c"]), 0, 0) == 1.0  # each distinct one once


def test_a_reworded_row_goes_and_says_what_it_resembles():
    changed = row(TEXT.replace("regular ", "usual "), "2")
    kept, dropped = deduplicated(row(TEXT), changed, threshold=0.7)
    assert [r.source_id for r in kept] == ["1"]
    assert dropped[0].problem == changed and dropped[0].reason == "near_duplicate"
    assert dropped[0].detail == "Jaccard 0.750 with s 1"  # 21 shingles each, 3 of them changed: 18 of 24


def test_other_numbers_are_another_problem():
    sibling = row(TEXT.replace("12", "15").replace(" 3 ", " 5 "), "2")
    assert len(deduplicated(row(TEXT), sibling, threshold=0.5)[0]) == 2
    assert len(deduplicated(row(TEXT), sibling, threshold=0.5, numbers="any")[0]) == 1


def test_what_stays_is_preferred_whatever_the_order():
    solved, bare = row(TEXT + ".", "9", solution="12 - 3"), row(TEXT.replace("every", "each"), "1")
    for rows in ((solved, bare), (bare, solved)):
        assert [r.source_id for r in deduplicated(*rows, threshold=0.5)[0]] == ["9"]


def test_a_chain_of_changes_is_not_one_duplicate():
    words = [f"w{n}" for n in range(40)]
    first, second, third = (" ".join(words[start : start + 30]) for start in (0, 5, 10))
    kept, dropped = deduplicated(row(first, "1"), row(second, "2"), row(third, "3"), threshold=0.6, numbers="any")
    assert {r.source_id for r in kept} == {"1", "3"}  # the third resembles the second, which is gone, and not the first
    assert [r.problem.source_id for r in dropped] == ["2"]


def test_known_rows_stay_unseen_and_what_resembles_them_goes():
    kept, dropped = deduplicated(row(TEXT + " again", "2"), known=[row(TEXT)], threshold=0.6)
    assert kept == [] and dropped[0].reason == "near_known"


def test_bands_must_be_whole():
    with pytest.raises(ValueError, match="64 permutations cannot be cut into 10 equal bands"):
        NearDuplicateSettings(bands=10)


def test_large_buckets_compare_with_the_preceding_and_the_first():
    def found(*sizes: int) -> list[tuple[int, int]]:
        keys = np.repeat(np.arange(len(sizes)), sizes)
        return [pair for later, earlier in _within_buckets(keys) for pair in zip(later.tolist(), earlier.tolist(), strict=True)]

    assert sorted(found(1, 4, 1, 2)) == [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3), (7, 6)]
    large = found(3, 3 * NEIGHBOURS)
    last = 3 + 3 * NEIGHBOURS - 1
    assert len(large) == len(set(large)) and all(later > earlier for later, earlier in large)
    assert {earlier for later, earlier in large if later == last} == {*range(3, 3 + NEIGHBOURS), *range(last - NEIGHBOURS, last)}
    assert {earlier for later, earlier in large if later == 3 + 40} == set(range(3, 3 + 40))
    assert found() == []


def test_pairs_with_other_numbers_are_left_out_when_asked():
    shingles = shingles_of([TEXT, TEXT.replace("12", "13"), TEXT + "!"])
    assert pairs(shingles) >= {(2, 0)} and pairs(shingles, equal_numbers=True) == {(2, 0)}


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data beside the project")
def test_changed_copies_of_real_problems_are_found_and_little_else():
    texts = [json.loads(line)["question"] for line in (SHARED / "gsm8k_train.jsonl").open()][:1500]
    random = np.random.default_rng(0)
    copies = []
    for number, text in enumerate(texts[:300]):
        words = text.split()
        places = [place for place in range(len(words)) if words[place].isalpha()]
        words[places[int(random.integers(len(places)))]] = "indeed"
        copies.append(row(" ".join(words), f"copy {number}", source="t"))
    originals = [row(text, f"{number:05d}") for number, text in enumerate(texts)]
    settings = CurationSettings(steps=("near_dedup",))
    result = curate([*originals, *copies], {}, settings)
    gone = {r.problem.source_id for r in result.dropped}
    shingles = shingles_of([*texts[:300], *(copy.prompt for copy in copies)])
    due = [f"copy {n}" for n in range(300) if jaccard(shingles, n, 300 + n) >= 0.8]
    assert len(due) > 200 and len(gone & set(due)) >= 0.99 * len(due)
    assert len(gone - {f"copy {n}" for n in range(300)}) <= 3  # few problems of the set itself resemble each other
    assert curate([*copies, *originals], {}, settings) == result


def test_pairs_of_brute_force_are_found():
    random = np.random.default_rng(3)
    base = [" ".join(f"w{n}" for n in random.integers(0, 60, size=40)) for _ in range(40)]
    texts = [*base, *(text.replace("w7 ", "w61 ", 1) for text in base)]
    shingles = shingles_of(texts)
    close = {(j, i) for i in range(80) for j in range(i + 1, 80) if jaccard(shingles, i, j) >= 0.8}
    assert close and close <= pairs(shingles)
