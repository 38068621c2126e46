"""What a stage says of its progress while it runs."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from pipelines.progress import Journal


def lines(journal: Journal, out: io.StringIO, monkeypatch: pytest.MonkeyPatch, shown: list[tuple[float, int, int]]) -> list[str]:
    """Of (clock, step, total) in turn."""
    for clock, step, total in shown:
        monkeypatch.setattr(time, "monotonic", lambda clock=clock: clock)
        journal.show(step, total)
    return out.getvalue().splitlines()


def test_the_time_left_counts_from_the_first_step_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was resumed at step 90, at ten seconds a step, has a hundred more for ten more steps."""
    journal = Journal(tmp_path / "journal.jsonl", "math", out := io.StringIO())
    assert lines(journal, out, monkeypatch, [(0.0, 90, 102), (10.0, 91, 102), (20.0, 92, 102), (120.0, 102, 102)]) == [
        "math 90/102  ", "math 91/102  ", "math 92/102    1:40 left", "math 102/102  ",
    ]  # fmt: skip


@pytest.mark.parametrize("total", [800, 272])
def test_the_next_of_a_stages_tasks_counts_from_its_own_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    """It began an hour after the stage, and does ten a second; its total may be that of the task before."""
    journal = Journal(tmp_path / "journal.jsonl", "evaluation", out := io.StringIO())
    lines(journal, out, monkeypatch, [(0.0, 100, 800), (3600.0, 800, 800)])
    left = {800: "1:05", 272: "0:12"}[total]
    assert lines(journal, out, monkeypatch, [(3610.0, 50, total), (3620.0, 150, total)])[-1] == f"evaluation 150/{total}    {left} left"
