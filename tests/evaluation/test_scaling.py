"""The sigmoid of reward over compute: known parameters come back, intervals keep their promise, and what is not identified is refused."""

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.evaluation import scaling
from pipelines.seeding import generator

PAPER = np.arange(1500.0, 12001.0, 100.0)


def sigmoid(compute: np.ndarray, a: float, b: float, middle: float, start: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return start + (a - start) / (1 + (middle / compute) ** b)


def test_the_papers_example_without_noise() -> None:
    reward = sigmoid(PAPER, 0.645, 1.7, 3000, 0.2)
    for initial in (0.2, None):
        found = scaling.fit(PAPER, reward, initial=initial)
        best = found.best
        assert (best.asymptote[0], best.steepness[0], best.midpoint[0]) == pytest.approx((0.645, 1.7, 3000), rel=1e-3)
        assert found.refused == ()
        assert found.interval("asymptote") == pytest.approx((0.645, 0.645), abs=1e-4)


def test_the_published_search_finds_nothing_better() -> None:
    """A from .45 to .8 by .005, C_mid in 100 steps, B fitted for each."""
    draw = generator(1)
    compute = PAPER[::3]
    reward = sigmoid(compute, 0.6, 1.5, 4000, 0.2) + draw.normal(0, 0.01, len(compute))
    steepness = np.linspace(0.25, 6, 300)
    best = (np.inf, 0.0)
    for middle in np.linspace(100, 40000, 100):
        risen = 1 / (1 + (middle / compute) ** steepness[:, None])
        for a in np.arange(0.45, 0.8001, 0.005):
            best = min(best, (float(((0.2 + (a - 0.2) * risen - reward) ** 2).sum(1).min()), a))
    found = scaling.fit(compute, reward, initial=0.2).best
    assert found.sse[0] <= best[0] and found.sse[0] == pytest.approx(((found.at(compute)[0] - reward) ** 2).sum())
    assert found.asymptote[0] == pytest.approx(best[1], abs=scaling.SAME)


def test_plausible_curves_are_those_within_reach_of_the_best() -> None:
    """Against random search: no curve that fits as well lies outside the interval, and the interval's ends fit as well."""
    draw = generator(2)
    compute = np.arange(60.0)
    reward = sigmoid(compute, 0.7, 2.0, 12, 0.3) + draw.normal(0, 0.03, 60)
    found = scaling.fit(compute, reward)
    low, high = found.interval("asymptote")
    allowed = found.plausible.sse.max()
    assert low < found.best.asymptote[0] < high
    spans = [(float(values.min()), float(values.max())) for values in vars(found.plausible).values()][:4]
    tried = [draw.uniform(a - (b - a) / 4, b + (b - a) / 4, 400_000) for a, b in spans]
    sse = np.zeros(400_000)
    for c, r in zip(compute[1:], reward[1:], strict=True):
        sse += (tried[0] + (tried[1] - tried[0]) / (1 + (tried[2] / c) ** tried[3]) - r) ** 2
    sse += (tried[0] - reward[0]) ** 2
    fits = tried[1][sse <= allowed]
    assert len(fits) > 200 and fits.min() > low - 0.005 and fits.max() < high + 0.005
    ends = found.plausible.asymptote[[found.plausible.asymptote.argmin(), found.plausible.asymptote.argmax()]]
    assert tuple(ends) == (low, high) and fits.max() > high - 0.03


@pytest.mark.parametrize(("middle", "steepness"), [(10.0, 1.7), (25.0, 1.7), (60.0, 1.7), (10.0, 1.0)])
def test_the_first_half_predicts_the_second_as_often_as_promised(middle: float, steepness: float) -> None:
    """Whether or not the first half identifies an asymptote, and an asymptote is seldom told wrongly."""
    compute, trials, covered, wrong = np.arange(80.0), 60, 0, 0
    for trial in range(trials):
        draw = generator(3, middle, steepness, trial)
        reward = sigmoid(compute, 0.65, steepness, middle, 0.3) + draw.normal(0, 0.04, 80)
        found = scaling.fit(compute[:40], reward[:40])
        expected = scaling.predict(found, compute[40:])
        covered += expected.mean_low <= reward[40:].mean() <= expected.mean_high
        low, high = found.interval("asymptote")
        wrong += not found.refused and not low <= 0.65 <= high
    assert covered >= 52  # 57 expected
    assert wrong <= 7  # 3 at most


def test_a_run_that_has_levelled_off_tells_its_asymptote() -> None:
    told = 0
    for trial in range(20):
        draw = generator(4, trial)
        reward = sigmoid(np.arange(200.0), 0.65, 1.7, 15, 0.3) + draw.normal(0, 0.04, 200)
        found = scaling.fit(np.arange(200.0), reward)
        told += not found.refused and found.interval("asymptote")[1] - found.interval("asymptote")[0] < 0.15
    assert told >= 18


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (0.2 + 0.004 * np.arange(60), "half of its gain still ahead"),
        (np.where(np.arange(60) < 5, 0.2, 0.999), "whose asymptote is 1"),
        (0.5 - 0.002 * np.arange(60), "does not rise"),
    ],
)
def test_what_is_not_identified_is_refused_and_said(reward: np.ndarray, reason: str) -> None:
    found = scaling.fit(np.arange(60.0), reward + generator(5).normal(0, 0.01, 60).clip(None, 0.0))
    assert any(reason in sentence for sentence in found.refused)
    settled = scaling.fit(PAPER, sigmoid(PAPER, 0.6, 1.5, 3000, 0.2))
    with pytest.raises(UserError, match="the second run cannot be ranked: a curve"):
        scaling.rank(settled, found)


def test_runs_are_ranked_by_asymptote_then_by_steepness() -> None:
    def run(a: float, b: float, seed: int) -> scaling.Fit:
        return scaling.fit(PAPER, sigmoid(PAPER, a, b, 3000, 0.2) + generator(6, seed).normal(0, 0.002, len(PAPER)), initial=0.2)

    assert scaling.rank(run(0.6, 1.5, 1), run(0.7, 1.5, 2)).startswith("the second run has the higher asymptote: -0.1")
    assert scaling.rank(run(0.6, 3.0, 1), run(0.605, 1.5, 2)).startswith("the first run has the higher steepness: +1.")
    assert scaling.rank(run(0.6, 1.5, 1), run(0.6, 1.5, 2)) == "no difference in asymptote or steepness is shown"


def test_neighbouring_points_that_move_together_widen_the_interval() -> None:
    draw = generator(7)
    noise = draw.normal(0, 0.04, 120)
    for i in range(1, 120):
        noise[i] = 0.6 * noise[i - 1] + 0.8 * noise[i]
    line, compute = sigmoid(np.arange(120.0), 0.65, 1.7, 20, 0.3), np.arange(120.0)
    together, shuffled = scaling.fit(compute, line + noise), scaling.fit(compute, line + draw.permutation(noise))
    assert together.inflation > 2.0 > 1.5 > shuffled.inflation
    assert np.ptp(together.interval("asymptote")) > 1.2 * np.ptp(shuffled.interval("asymptote"))


def test_student_quantiles() -> None:
    for free, value in ((4, 2.776), (10, 2.228), (30, 2.042), (10**6, 1.960)):
        assert scaling._t(0.95, free) == pytest.approx(value, abs=0.01)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="expected 8 or more points"):
        scaling.fit(np.arange(7.0), np.arange(7.0))
    with pytest.raises(UserError, match="compute must rise"):
        scaling.fit(np.zeros(9), np.zeros(9))
