"""Draws among what is left: quotas, shares, and rows that mean the same."""

import numpy as np
import pytest
from one_step import alone

from pipelines.config.curation import CurationSettings, SemanticDuplicateSettings
from pipelines.curation.semantic_duplicates import duplicates, k_means
from pipelines.models.packaged import installed
from pipelines.records import Problem, problem_id


def rows(source: str, count: int, **fields: object) -> list[Problem]:
    made = []
    for number in range(count):
        prompt = f"{source} {number}"
        made.append(
            Problem(problem_id(prompt, "1"), "math", prompt, "1", "integer", "math", source=source, source_id=prompt, **fields)  # type: ignore[arg-type]
        )
    return made


def test_at_most_so_many_of_a_kind_and_the_draw_depends_on_the_row_alone() -> None:
    problems = rows("a", 30, topics=("t", "u")) + rows("b", 5, topics=("v",))
    kept, dropped = alone("select", problems, selection={"per": "topics", "at_most": 10})
    assert [sum(p.source == source for p in kept) for source in "ab"] == [10, 5] and len(dropped) == 20
    assert (dropped[0].reason, dropped[0].detail) == ("over_quota", "30 rows of topics t, u, at most 10")
    fewer, _ = alone("select", problems, selection={"per": "topics", "at_most": 4})
    assert {p.problem_id for p in fewer} < {p.problem_id for p in kept}
    assert alone("select", problems[::-1], selection={"per": "topics", "at_most": 10}) == (kept, dropped)


def test_shares_bound_by_the_scarcest_source() -> None:
    problems = rows("a", 30) + rows("b", 10) + rows("c", 7)
    kept, dropped = alone("mix", problems, mix={"shares": {"a": 3, "b": 2}})
    assert {source: sum(p.source == source for p in kept) for source in "abc"} == {"a": 15, "b": 10, "c": 0}
    assert {item.problem.source: item.reason for item in dropped} == {"a": "over_share", "c": "no_share"}
    kept, _ = alone("mix", problems, mix={"shares": {"a": 1, "b": 1}, "rows": 7})
    assert {source: sum(p.source == source for p in kept) for source in "ab"} == {"a": 3, "b": 3}
    assert alone("mix", problems, mix={"shares": {"z": 1, "a": 1}})[0] == []  # a source with a share but no row allows none


def test_steps_that_need_a_section_say_so() -> None:
    with pytest.raises(ValueError, match="mix: missing; the step mix needs its shares"):
        CurationSettings.model_validate({"steps": ["mix"]})
    with pytest.raises(ValueError, match="semantic_duplicates: missing; the step semantic_dedup needs its threshold"):
        CurationSettings.model_validate({"steps": ["semantic_dedup"]})
    with pytest.raises(ValueError, match="filters stands there twice"):
        CurationSettings.model_validate({"steps": ["filters", "filters"]})


def test_big_maths_example_of_three_vectors() -> None:
    def unit(angle: float) -> list[float]:
        return [np.cos(angle), np.sin(angle)]

    vectors = np.array([unit(0), unit(np.arccos(0.995)), unit(-np.arccos(0.6))], np.float32)
    assert len(duplicates(vectors, SemanticDuplicateSettings(threshold=0.99))) == 1
    assert len(duplicates(vectors, SemanticDuplicateSettings(threshold=0.4))) == 2


def test_k_means_finds_what_is_apart_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4, 16)
    vectors = np.repeat(centres, 50, axis=0) + 0.05 * rng.standard_normal((200, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found, means = k_means(vectors, 4, 20)
    assert np.allclose(np.linalg.norm(means, axis=1), 1, atol=1e-5)
    assert all(len(set(found[start : start + 50])) == 1 for start in range(0, 200, 50))
    assert np.array_equal(k_means(vectors, 4, 20)[0], found)


@pytest.mark.skipif(not installed("all-MiniLM-L6-v2"), reason="the extra `embedding` is not installed")
def test_rows_that_mean_the_same() -> None:
    def row(prompt: str, number: int) -> Problem:
        return Problem(problem_id(prompt, "7"), "math", prompt, "7", "integer", "math", source="s", source_id=str(number))

    problems = [
        row("Lisa picks five apples and then two more. How many apples does she have?", 1),
        row("Lisa picks five apples and after that two more. How many apples does she have now?", 2),
        row("What is the area of a circle of radius three?", 3),
    ]
    kept, dropped = alone("semantic_dedup", problems, semantic_duplicates={"threshold": 0.9})
    assert len(kept) == 2 and dropped[0].reason == "semantic_duplicate" and dropped[0].problem.source_id in "12"
    assert alone("semantic_dedup", problems[::-1], semantic_duplicates={"threshold": 0.9}) == (kept, dropped)
