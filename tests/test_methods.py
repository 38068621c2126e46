"""A method is a function, its keyword-only arguments are its settings."""

import pytest

from pipelines.errors import UserError
from pipelines.methods import bind, choose


def clipped(x: float, *, low: float, high: float = 2.0, rounds: int = 1, mode: str | None = None) -> float:
    return max(low, min(high, x)) * rounds


def refused(name, settings):
    with pytest.raises(UserError) as caught:
        bind("clip", {"clipped": clipped}, name, settings)
    return str(caught.value)


def test_settings_become_arguments_and_defaults_stay():
    assert bind("clip", {"clipped": clipped}, "clipped", {"low": 0})(-3.0) == 0
    assert bind("clip", {"clipped": clipped}, "clipped", {"low": 0.5, "high": 1, "rounds": 3})(7.0) == 3


def test_what_is_wrong_is_named():
    assert refused("cliped", {}) == "clip: there is no 'cliped'; did you mean 'clipped'? Known: clipped"
    assert refused("clipped", {"low": 0.0, "hihg": 1}) == "clip 'clipped': unknown setting 'hihg'; did you mean 'high'?"
    assert refused("clipped", {}) == "clip 'clipped': setting 'low' is missing"
    assert refused("clipped", {"low": "abc"}) == "clip 'clipped': setting 'low': expected float, got 'abc'"
    assert refused("clipped", {"low": 0.0, "rounds": 1.5}) == "clip 'clipped': setting 'rounds': expected int, got 1.5"
    assert refused("clipped", {"low": 0.0, "mode": [1]}) == "clip 'clipped': setting 'mode': expected str | None, got [1]"


def test_choose_offers_all_there_is():
    with pytest.raises(UserError, match="clip: there is no 'x'; did you mean '.*'\\? Known: a, b"):
        choose("clip", {"b": 1, "a": 2}, "x")
