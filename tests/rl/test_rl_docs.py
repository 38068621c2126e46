"""docs/RL.md: its lines are where it says, and its examples run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from loops import run

from pipelines import prompting
from pipelines.records import PROMPT, Segment
from pipelines.rl.environments import ENVIRONMENTS
from pipelines.rl.episodes import Episode, Prompt
from pipelines.rl.guidance import GUIDANCE
from pipelines.rl.rewards import PARTS
from pipelines.rl.slots import SLOTS
from pipelines.rl.tasks import TASKS
from pipelines.store import read_trajectories

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "RL.md").read_text()
NAMES = {
    "replace": replace, "prompting": prompting, "PROMPT": PROMPT, "Segment": Segment, "Episode": Episode, "Prompt": Prompt,
    "TASKS": TASKS, "GUIDANCE": GUIDANCE, "ENVIRONMENTS": ENVIRONMENTS, "PARTS": PARTS, "SLOTS": SLOTS,
}  # fmt: skip
USES = {
    "unsolved": {"tasks": [{"name": "unsolved", "tries": 2}]},
    "politeness": {"guidance": {"name": "politeness"}},
    "second_thought": {"environment": {"name": "second_thought"}},
    "brevity": {"parts": [{"name": "verdict"}, {"name": "format"}, {"name": "brevity"}], "combine": {"name": "weighted", "weights": {"brevity": 1.0}}},
    "low_entropy_only": {"token_mask": [{"name": "low_entropy_only", "below": 0.9}]},
}


def test_every_line_that_it_names_is_there():
    found = re.findall(r"`(\w+)`\s+\((\S+\.py):(\d+)\)", TEXT)
    assert len(found) > 15
    wrong = []
    for name, path, line in found:
        lines = (ROOT / path).read_text().splitlines()
        at = [n for n, text in enumerate(lines, 1) if re.match(rf"\s*(?:async )?(?:def|class) {name}\b", text)]
        if int(line) not in at:
            wrong.append(f"{name}: {path}:{at}, not {line}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", USES)
def test_what_it_adds_can_be_used(tmp_path, start, name):
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if f'["{name}"]' in block]
    families = {key: dict(family) for key, family in NAMES.items() if key.isupper() and isinstance(family, dict) and key != "SLOTS"}
    masks = dict(SLOTS["token_mask"].functions)
    try:
        exec(block, dict(NAMES))
        _, rows, _ = run(tmp_path, start, row="grpo", steps=2, overrides=USES[name])
    finally:
        for key, family in families.items():
            NAMES[key].clear()
            NAMES[key].update(family)
        SLOTS["token_mask"].functions.clear()
        SLOTS["token_mask"].functions.update(masks)
    assert len(rows) == 2
    trajectories = [t for path in sorted((tmp_path / "rollouts").glob("*.parquet")) for t in read_trajectories(path)]
    if name == "second_thought":
        assert any(len(t.turns) == 3 for t in trajectories)
    if name == "politeness":
        assert all(t.trained_prompt and t.trained_prompt != t.prompt_ids for t in trajectories)
    if name == "brevity":
        assert all(t.reward == pytest.approx(-t.written / 100) for t in trajectories)
