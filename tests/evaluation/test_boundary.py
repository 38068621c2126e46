"""pass@k curves, crossing, support and answer entropy: by enumeration, by worked numbers, and by what simulation says they promise."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.evaluation import boundary
from pipelines.evaluation.boundary import Counts
from pipelines.evaluation.metrics import pass_at_k
from pipelines.seeding import generator


def counts(*pairs: tuple[int, int]) -> Counts:
    return Counts(*np.array(pairs).T)


def samples(correct: list[list[int]], *, answer_type: str = "integer") -> pa.Table:
    """One problem per list; 1 is correct, 0 wrong, -1 could not be judged."""
    outcome = {1: "correct", 0: "wrong", -1: "infrastructure"}
    rows = [
        {"problem_id": f"p{i}", "outcome": outcome[s], "extracted": str(j % 3), "answer_type": answer_type}
        for i, group in enumerate(correct)
        for j, s in enumerate(group)
    ]
    return pa.Table.from_pylist(rows)


def drawn(rates: np.ndarray, n: int, draw: np.random.Generator) -> pa.Table:
    return samples((draw.random((len(rates), n)) < rates[:, None]).astype(int).tolist())


def test_misses_are_the_metric_s() -> None:
    pairs = [(n, c) for n in range(1, 9) for c in range(n + 1)]
    for n, c in pairs:
        assert 1 - boundary.miss(counts((n, c)), range(1, n + 1))[0] == pytest.approx([pass_at_k(n, c, k) for k in range(1, n + 1)])


def test_support_and_its_control_are_means_over_all_draws() -> None:
    for n, k in ((5, 2), (6, 3)):
        for a, b in itertools.product(range(n + 1), repeat=2):
            one, two = ([1] * c + [0] * (n - c) for c in (a, b))
            pairs = [(any(x), any(y)) for x in itertools.combinations(one, k) for y in itertools.combinations(two, k)]
            seen = Counter(pairs)
            wanted = [seen[True, True], seen[True, False], seen[False, True], seen[False, False]]
            assert boundary.support(counts((n, a)), counts((n, b)), k)[0] * len(pairs) == pytest.approx(wanted)
        for c in range(n + 1):
            rows = [1] * c + [0] * (n - c)
            halves = [(s, t) for s in itertools.combinations(range(n), k) for t in itertools.combinations(sorted({*range(n)} - {*s}), k)]
            seen = Counter((any(rows[i] for i in s), any(rows[i] for i in t)) for s, t in halves)
            wanted = [seen[True, True], seen[True, False], seen[False, True], seen[False, False]]
            assert boundary.self_support(counts((n, c)), k)[0] * len(halves) == pytest.approx(wanted)


def test_ratios_and_detection_limit_worked_numbers() -> None:
    assert boundary.ratios(np.array([2388, 175, 48, 9])) == pytest.approx([0.9317, 0.0197, 0.0386, -0.0486], abs=5e-5)
    assert np.isnan(boundary.ratios(np.array([0.0, 0, 0, 4]))).all()
    assert boundary.detection_limit(8192) == pytest.approx(3.656e-4, abs=5e-8)


def test_crossing_of_the_analytic_case() -> None:
    """RL solves .6 of the problems with p = .9, the others never; its start solves all with p = .2."""
    share, ks = 0.6, boundary.grid(64)
    curve = [share * (1 - 0.1**k) - (1 - 0.8**k) for k in ks]
    (at,) = boundary.crossing(np.array([curve]), ks)
    assert at == pytest.approx(math.log(1 - share) / math.log(0.8), abs=0.03)
    lead, behind = np.array([[0.1, 0.2, 0.1]]), np.array([[-0.1, 0.2, -0.1]])
    assert boundary.crossing(lead, [1, 2, 4])[0] == math.inf and boundary.crossing(behind, [1, 2, 4])[0] == 1.0
    # Touching zero on the way is no crossing; the last zero counts.
    assert boundary.crossing(np.array([[0.2, -0.1, 0.1, -0.1]]), [1, 2, 4, 16])[0] == pytest.approx(8.0)


def test_the_analytic_crossing_from_samples_is_shown_and_covered() -> None:
    covered = 0
    truth = math.log(1 - 0.6) / math.log(0.8)
    for trial in range(30):
        draw = generator(2, trial)
        start, rl = np.full(150, 0.2), np.where(np.arange(150) < 90, 0.9, 0.0)
        found = boundary.compare(drawn(start, 32, draw), drawn(rl, 32, draw), 300, draw)
        crossing = found["crossing"]
        assert crossing["shown"] and 4 <= crossing["behind_from"] <= 8
        covered += crossing["low"] <= truth <= crossing["high"]
        assert found["support"]["full"]["srr"]["high"] < 0.75, "RL has lost 60 of 150 problems"
        assert found["support"]["excess"]["nscr"]["high"] < 0
        assert found["difference"][0]["low"] > 0 > found["difference"][-1]["high"]
    assert covered >= 26


@pytest.mark.parametrize("gain", [0.0, 0.15])
def test_a_crossing_is_rarely_claimed_where_there_is_none(gain: float) -> None:
    """The same policy again, and one that is better everywhere with the same support."""
    shown = 0
    for trial in range(80):
        draw = generator(3, gain, trial)
        rates = draw.beta(0.4, 1.0, 80)
        shown += boundary.compare(drawn(rates, 12, draw), drawn(rates + gain * (1 - rates), 12, draw), 200, draw)["crossing"]["shown"]
    assert shown <= 5  # 2.5 % at most: 2


def test_the_control_takes_the_noise_out_of_shrinkage() -> None:
    """The same policy sampled again seems to have lost problems; against the control it has not."""
    apparent, beyond = [], 0
    for trial in range(100):
        draw = generator(4, trial)
        rates = draw.beta(0.3, 1.5, 120)
        found = boundary.compare(drawn(rates, 12, draw), drawn(rates, 12, draw), 200, draw)["support"]
        apparent.append(found["full"]["srr"]["mean"])
        beyond += not found["excess"]["srr"]["low"] <= 0 <= found["excess"]["srr"]["high"]
        assert found["control"]["nscr"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert np.mean(apparent) < 0.9
    assert beyond <= 13  # 5 promised; percentile intervals of ratios do not quite keep it


def test_compare_accounts_for_every_problem() -> None:
    start = samples([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, -1, -1, -1]])
    rl = samples([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    found: dict[str, Any] = boundary.compare(start, rl, 200, generator(5))
    assert (found["problems"], found["samples"], found["ks"]) == (4, 4, [1, 2, 3, 4]), "the last problem was judged once only"
    full = found["support"]["full"]
    assert [full[name] for name in boundary.SET_NAMES] == pytest.approx([1, 1, 1, 1])
    assert (full["srr"]["mean"], full["ndr"]["mean"], full["nscr"]["mean"]) == pytest.approx((0.5, 0.5, 0.0))
    assert found["support"]["lost"] == {"p1": 1} and found["support"]["found"] == {"p2": 3}
    assert [point["mean"] for point in found["curves"]["start"]] == pytest.approx([3 / 16, 1 / 3, 7 / 16, 1 / 2])
    logs = np.log([1, 2, 3, 4])
    assert found["area"]["mean"] == pytest.approx(np.trapezoid([p["mean"] for p in found["difference"]], logs) / math.log(4))
    with pytest.raises(UserError, match="no problem has two judged samples"):
        boundary.compare(samples([[1, -1]]), samples([[1, 1]]), 10, generator(0))
    with pytest.raises(UserError, match="3 problem.s. in one cluster say nothing about others"):
        boundary.compare(*[samples([[1, 0]] * 3)] * 2, 10, generator(0), {f"p{i}": "passage 1" for i in range(3)})


def test_nothing_lost_so_far_is_no_proof_that_nothing_is() -> None:
    """All resamples of 10 kept problems agree; Wilson's interval of 10 of 10 does not claim certainty, and a net change of 0 has none."""
    found = boundary.compare(*[samples([[1, 1, 1, 0]] * 10)] * 2, 50, generator(6))
    full = found["support"]["full"]
    assert (full["srr"]["mean"], full["srr"]["low"], full["srr"]["high"]) == pytest.approx((1.0, 0.7225, 1.0), abs=5e-5)
    assert full["ndr"]["high"] == pytest.approx(0.2775, abs=5e-5)
    assert full["nscr"] == {"mean": 0.0, "low": None, "high": None}
    assert found["curves"]["rl"][3]["low"] == pytest.approx(0.7225, abs=5e-5)


def test_problems_of_one_passage_are_resampled_together() -> None:
    """Every problem six times over is no more evidence than once; its clusters say so."""
    draw = generator(7)
    start, rl = (drawn(draw.beta(0.5, 1.0, 40), 8, draw) for _ in range(2))
    many = [
        pa.concat_tables([one.set_column(0, "problem_id", pa.array([f"{p} {i}" for p in one["problem_id"].to_pylist()])) for i in range(6)])
        for one in (start, rl)
    ]
    groups = {problem: problem.split()[0] for problem in many[0]["problem_id"].to_pylist()}
    once, naive, clustered = (
        boundary.compare(*tables, 2000, generator(8), given)["difference"][0] for tables, given in (((start, rl), None), (many, None), (many, groups))
    )
    assert once["mean"] == pytest.approx(clustered["mean"])
    assert clustered["high"] - clustered["low"] == pytest.approx(once["high"] - once["low"], rel=0.05)
    assert naive["high"] - naive["low"] < 0.5 * (once["high"] - once["low"])


def test_grid_holds_every_small_k_and_all_powers_of_two() -> None:
    assert boundary.grid(12) == list(range(1, 13))
    assert {2**i for i in range(11)} <= set(boundary.grid(1024)) and len(boundary.grid(1024)) < 80
