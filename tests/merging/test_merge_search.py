"""The search for a merge: by invented scores, whose outcome is known, and as a stage, with models that answer."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import checks, paths
from pipelines.config import load
from pipelines.config.evaluation import MergeStage
from pipelines.config.training import ArchitectureSettings
from pipelines.errors import UserError
from pipelines.merging.search import Candidate, Part, Scores, grid, search
from pipelines.models.loading import load_policy, save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.progress import Journal
from pipelines.records import Problem, problem_id
from pipelines.stages import Context, searching
from pipelines.stages import merge as stage
from pipelines.store import discard, read_json, write_problems

ROOT = Path(__file__).parents[2]


class Table:
    """Scores by name of candidate; keeps who was asked for what."""

    def __init__(self, choose: dict[str, float], confirm: dict[str, float]) -> None:
        self.means = {"choose": choose, "confirm": confirm}
        self.asked: list[tuple[str, Part]] = []

    def score(self, candidate: Candidate, part: Part) -> Scores:
        self.asked.append((candidate.name, part))
        return np.full(4, self.means[part][candidate.name])


MERGES = [*grid("linear", {}, {}), *grid("ties", {"lambda": 1}, {"density": [0.2, 0.5]})]


def test_a_grid_is_every_combination() -> None:
    names = [candidate.name for candidate in grid("ties", {"normalize": False}, {"density": [0.2, 0.5], "lambda": [1, 2]})]
    assert names == [f"ties normalize False, density {d}, lambda {scale}" for d in (0.2, 0.5) for scale in (1, 2)]


def test_one_half_chooses_and_only_the_two_it_chose_see_the_other() -> None:
    choose = {"x": 0.5, "y": 0.6, "linear": 0.55, "ties lambda 1, density 0.2": 0.7, "ties lambda 1, density 0.5": 0.65}
    table = Table(choose, {"y": 0.5, "ties lambda 1, density 0.2": 0.4})
    choice = search(MERGES, ["x", "y"], table.score, budget=9, greedy=False)
    assert (choice.winner.name, choice.expert.name) == ("ties lambda 1, density 0.2", "y")
    assert choice.difference == pytest.approx(np.full(4, -0.1)), "lucky on one half, worse on the other: that is what is told"
    assert [name for name, part in table.asked if part == "confirm"] == ["ties lambda 1, density 0.2", "y"]
    assert [trial.mean for trial in choice.trials] == list(choose.values())


def test_the_greedy_soup_takes_in_whoever_does_not_lower_the_score() -> None:
    singles = {"a": 0.6, "b": 0.8, "c": 0.7}
    soups = {"greedy_soup: b + c": 0.75, "greedy_soup: b + a": 0.8}
    table = Table(singles | soups, {"b": 0.5, "greedy_soup: b + a": 0.6})
    choice = search([], ["a", "b", "c"], table.score, budget=5, greedy=True)
    assert choice.winner == Candidate("greedy_soup: b + a", "linear", {}, ("b", "a"))
    table = Table(singles | dict.fromkeys(soups, 0.1), {"b": 0.5, "greedy_soup: b": 0.5})
    assert search([], ["a", "b", "c"], table.score, budget=5, greedy=True).winner.models == ("b",), "never below the best expert"


def test_the_budget_counts_merges_and_keeps_the_soups_share() -> None:
    names = ["a", "b", "linear", "ties lambda 1, density 0.2", "greedy_soup: a + b"]
    table = Table(dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.5))
    choice = search(MERGES, ["a", "b"], table.score, budget=3, greedy=True)
    assert [trial.candidate.name for trial in choice.trials] == names
    assert choice.winner.name == "linear", "of equal means the first"
    with pytest.raises(UserError, match="nothing to try"):
        search([], ["a"], table.score, budget=3, greedy=False)


def problem(i: int, domain: str = "math") -> Problem:
    prompt, answer = f"What is {i} + 1?", str(i + 1)
    return Problem(problem_id(prompt, answer), domain, prompt, answer, "integer", "math")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models sft, math and code, and problems that difficulty left ungraded."""
    root = tmp_path_factory.mktemp("project")
    tokenizer = train_tokenizer([problem(i).prompt for i in range(30)], 300)
    for seed, name in enumerate(("sft", "math", "code")):
        architecture = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocab_size=300, context=64)
        save_policy(root / paths.model(name), tiny_model(architecture, tokenizer, seed), tokenizer)
    write_problems(root / paths.rows("difficulty/ungraded"), [problem(i, "math" if i % 2 else "code") for i in range(12)])
    write_problems(root / paths.BENCHMARKS / "math.parquet", [problem(99)])
    return root


SETTINGS = MergeStage.model_validate(
    {
        "init": "sft", "models": ["math", "code"],
        "search": {
            "data": "difficulty/ungraded",
            "candidates": [{"method": "ties", "grid": {"density": [0.5]}}, {"method": "task_arithmetic", "grid": {"lambda": [0.5, 1.0]}}],
            "budget": 4, "problems": 6, "samples": 2, "bootstrap": 200, "generation": {"max_new_tokens": 4},
        },
    }
)  # fmt: skip


def context(root: Path, settings: MergeStage = SETTINGS) -> Context:
    work = root / paths.WORK / "merged"
    work.mkdir(parents=True, exist_ok=True)
    return Context("merged", root, 3, settings, work, Journal(work / "journal.jsonl", "merged"))


def test_validation_is_of_rows_that_nothing_was_trained_or_tested_on(project: Path) -> None:
    assert SETTINGS.search is not None
    parts = searching.validation(context(project), SETTINGS.search)
    assert {part: len(problems) for part, problems in parts.items()} == {"choose": 6, "confirm": 6}
    both = [row.problem_id for problems in parts.values() for row in problems]
    assert set(both) == {problem(i, "math" if i % 2 else "code").problem_id for i in range(12)}
    assert all([row.domain for row in problems].count("math") == 3 for problems in parts.values())


def test_a_stage_that_searches_keeps_the_record_and_the_winner(project: Path) -> None:
    metrics = stage.run(context(project))
    record = read_json(project / paths.model("merged") / paths.SEARCH)
    names = [trial["name"] for trial in record["trials"]]
    assert names[:5] == ["math", "code", "ram", "ties density 0.5", "task_arithmetic lambda 0.5"]
    assert names[5].startswith("greedy_soup: ")
    assert all(trial["low"] <= trial["mean"] <= trial["high"] for trial in record["trials"] if "low" in trial)
    merges = [trial for trial in record["trials"] if trial["method"]]
    assert record["winner"] == max(merges, key=lambda trial: trial["mean"])["name"]
    assert metrics["search_low"] <= metrics["search_mean"] <= metrics["search_high"]
    told = json.loads((project / paths.model("merged") / "merge.json").read_text())["predicate"]["buildDefinition"]["externalParameters"]
    assert told["method"] == next(trial for trial in merges if trial["name"] == record["winner"])["method"]
    load_policy(project / paths.model("merged"))


def test_an_interrupted_search_asks_nothing_twice(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    merge = stage.merge

    def counted(config, out, **options):
        made.append(config.method)
        if len(made) == 3:
            raise KeyboardInterrupt
        return merge(config, out, **options)

    discard(context(project).resume)  # as after a run that was recorded
    monkeypatch.setattr(stage, "merge", counted)
    with pytest.raises(KeyboardInterrupt):
        stage.run(context(project))
    stage.run(context(project))
    asked = len(made)
    stage.run(context(project))
    assert len(made) == asked + 1, "until the stage is recorded its responses stay: only the winner is merged again"
    assert made[:3] == ["ram", "ties", "task_arithmetic"] and made[3:5] == ["task_arithmetic", "linear"]


def test_what_stands_in_the_way_of_a_search(project: Path, tmp_path: Path) -> None:
    assert SETTINGS.search is not None
    misspelt = SETTINGS.search.model_copy(update={"candidates": (SETTINGS.search.candidates[0].model_copy(update={"grid": {"densty": [1]}}),)})
    with pytest.raises(UserError, match="did you mean 'density'"):
        stage.run(context(project, SETTINGS.model_copy(update={"search": misspelt})))
    params = load(ROOT / "params.yaml")
    wrong = params.model_copy(update={"stages": params.stages | {"merged": SETTINGS.model_copy(update={"search": misspelt})}})
    ((key, sentence),) = checks.faults(wrong, ROOT)  # `touchstone run` says it before the first stage
    assert key == "stages.merged.search.candidates.0" and sentence.endswith("did you mean 'density'?")
    assert checks.faults(params.model_copy(update={"stages": params.stages | {"merged": SETTINGS}}), ROOT) == []
    write_problems(tmp_path / paths.rows("difficulty/ungraded"), [])
    with pytest.raises(UserError, match=r"merged: no row is left of difficulty/ungraded; there were 0"):
        searching.validation(context(tmp_path), SETTINGS.search)
    write_problems(tmp_path / paths.rows("difficulty/ungraded"), [problem(2)])
    with pytest.raises(UserError, match=r"1 problems are too few to choose"):
        searching.validation(context(tmp_path), SETTINGS.search)
    write_problems(tmp_path / paths.rows("difficulty/ungraded"), [problem(1)])
    write_problems(tmp_path / paths.BENCHMARKS / "math.parquet", [problem(1)])
    with pytest.raises(UserError, match="is in a benchmark"):
        searching.validation(context(tmp_path), SETTINGS.search)
