"""The best mixture of sets by a quadratic fit to runs on others (MoDoMoDo), and the command that reads finished stages."""

import json

import numpy as np
import pytest

from flows import cli
from flows.tools.mixtures import finished
from pipelines import paths, seeding
from pipelines.curation.mixtures import best, figures, fit, left_out, on_simplex, seeds
from pipelines.errors import UserError

NAMES = ("a", "b", "c")
TARGET = np.array([0.5, 0.3, 0.2])


def truth(shares: np.ndarray) -> np.ndarray:
    return 1 - ((shares - TARGET) ** 2).sum(-1)


def runs(extra: int) -> np.ndarray:
    """Every set alone, all but one, all alike, and random mixtures."""
    begun = np.array([[shares.get(name, 0.0) for name in NAMES] for shares in seeds(NAMES)])
    return np.concatenate([begun, seeding.generator(1, "t").dirichlet(np.ones(3), size=extra)])


def test_the_worked_mixture_is_found():
    """L = 1 - sum (w - t)^2, t = (.5, .3, .2), without noise: the argmax is within .02 of t, and every mixture is foretold."""
    shares = runs(10)
    assert len(shares) == 17 and figures(3) == 6
    surface = fit(shares, truth(shares))
    assert np.abs(best(surface) - TARGET).max() < 0.02
    unseen = seeding.generator(2, "t").dirichlet(np.ones(3), size=100)
    assert np.abs(surface(unseen) - truth(unseen)).max() < 1e-3
    missed, plain = left_out(shares, truth(shares))
    assert missed < 1e-3 < 0.05 < plain
    noisy = truth(shares) + 0.01 * seeding.generator(3, "t").standard_normal(17)
    assert np.abs(best(fit(shares, noisy, 1e-3)) - TARGET).max() < 0.1


def test_the_best_may_lie_at_an_edge_or_among_several_summits():
    linear = fit(runs(10), runs(10) @ np.array([0.1, 0.9, 0.5]))
    assert best(linear) == pytest.approx([0, 1, 0], abs=1e-6)
    shares = runs(10)
    valley = fit(shares, (shares**2 @ np.array([0.8, 1.0, 0.9])))  # every corner is a summit
    assert best(valley) == pytest.approx([0, 1, 0], abs=1e-6)


def test_points_move_to_the_nearest_mixture():
    found = on_simplex(np.array([[0.5, 0.3, 0.2], [2.0, 0.0, 0.0], [0.6, 0.6, 0.0], [-1.0, -1.0, -1.0]]))
    assert found == pytest.approx(np.array([[0.5, 0.3, 0.2], [1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3]))


def test_mixtures_to_begin_with():
    assert [tuple(each) for each in seeds(NAMES)] == [("a",), ("b",), ("c",), ("b", "c"), ("a", "c"), ("a", "b"), ("a", "b", "c")]
    assert seeds(NAMES)[3] == {"b": 0.5, "c": 0.5} and [tuple(each) for each in seeds(("a", "b"))] == [("a",), ("b",), ("a", "b")]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Stages p0, p1, ... that have run on the worked mixtures, as their manifests and scores say."""
    shares = runs(3)
    models = {}
    (tmp_path / paths.MANIFESTS).mkdir(parents=True)
    for number, (run, score) in enumerate(zip(shares, truth(shares), strict=True)):
        data = {name: {"where": {}, "share": float(share)} for name, share in zip(NAMES, run, strict=True) if share}
        if len(data) == 1:
            data = {name: rows | {"share": None} for name, rows in data.items()}
        write_statement(tmp_path, f"p{number}", {"data": data, "steps": 9})
        models[f"p{number}"] = {"puzzles": {"pass_at_k": {"1": {"mean": float(score)}}}}
    write_statement(tmp_path, "whole", {"data": {name: {"where": {}, "share": None} for name in NAMES}})
    write_statement(tmp_path, "longer", {"data": {"a": {"where": {}, "share": None}}, "steps": 10})
    write_statement(tmp_path, "merged", {"models": ["p0"]})
    models["whole"] = models["p0"]
    (tmp_path / paths.EVALUATION).mkdir(parents=True)
    (tmp_path / paths.SCORES).write_text(json.dumps({"models": models}))
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setenv("TOUCHSTONE_ROOT", str(tmp_path))
    return tmp_path


def write_statement(root, stage: str, settings) -> None:
    given = {"stage": stage, "kind": "rl", "seed": 1, "settings": settings}
    content = {"predicate": {"buildDefinition": {"externalParameters": given}}}
    (root / paths.manifest(stage)).write_text(json.dumps(content))


def test_the_command_prints_the_data_of_the_stage_to_train(project, capsys):
    names = [f"p{number}" for number in range(10)]
    assert cli.main(["mixture", *names, "--benchmark", "puzzles"]) == 0
    said = capsys.readouterr().out
    assert "10 runs of 3 sets, 6 figures to fit" in said and "look at this" not in said
    assert said.splitlines()[-1].startswith("data: {a: {share: 0.5") or said.splitlines()[-1].startswith("data: {a: {share: 0.49")
    assert cli.main(["mixture", *names[:4], "--benchmark", "puzzles"]) == 0 and "look at this" in capsys.readouterr().out
    assert cli.main(["mixture", "a", "b", "--seeds"]) == 0
    assert capsys.readouterr().out == "data: {a: {share: 1.0000}}\ndata: {b: {share: 1.0000}}\ndata: {a: {share: 0.5000}, b: {share: 0.5000}}\n"


def test_what_cannot_be_compared_is_refused(project):
    for names, benchmark, words in (
        (["p0", "nope"], "puzzles", "'nope' is no stage with `data` that has run"),
        (["p0", "merged"], "puzzles", "'merged' is no stage with `data` that has run"),
        (["p0"], "sums", "there is no score of 'p0' on the benchmark 'sums'; it has puzzles"),
        (["p0", "longer"], "puzzles", "'longer' differs from 'p0' in steps too"),
        (["whole"], "puzzles", "'whole' takes all rows of a, b, c"),
    ):
        with pytest.raises(UserError, match=words):
            finished(project, names, benchmark)
