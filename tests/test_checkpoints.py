"""State that survives: whole or absent, bound to what it was made from, passed over when it is damaged."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.config.training import ArchitectureSettings
from pipelines.errors import UserError
from pipelines.interrupted import differences
from pipelines.models.checkpoints import Checkpoints, Pace
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["Mia has 3 pears. How many pears has Mia?"], 300)
TINY = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=64)


def test_state_of_another_identity_is_never_continued(tmp_path):
    model = tiny_model(TINY, TOKENIZER, 1)
    optimiser = torch.optim.AdamW(model.parameters())
    first = Checkpoints(tmp_path, {"data": "a", "seed": 1})
    assert first.prepare() == ""
    first.save(7, model, optimiser)
    assert Checkpoints(tmp_path, {"data": "a", "seed": 1}).restore(model, optimiser) == 7
    changed = {"data": "b" * 64, "seed": 1, "settings": {"lr": 2}}
    with pytest.raises(UserError, match=r"at step 7 that was made otherwise: data; settings: None -> \{'lr': 2\}\. .*--accept-changes.*--discard"):
        Checkpoints(tmp_path, changed).prepare()
    assert first.restore(model, optimiser) == 7  # a refusal leaves it alone
    accepted = Checkpoints(tmp_path, changed, "accept")
    assert accepted.prepare().startswith("continuing after step 7 though this changed: data")
    assert accepted.accepted() == [{"step": 7, "changes": ["data", "settings: None -> {'lr': 2}"]}]
    assert accepted.restore(model, optimiser) == 7
    assert Checkpoints(tmp_path, changed).prepare() == ""  # what was accepted is the identity now
    discarded = Checkpoints(tmp_path, {"data": "c", "seed": 1}, "discard")
    assert discarded.prepare().startswith("starting afresh: data")
    assert discarded.restore(model, optimiser) == 0


def test_differences_name_the_key_and_both_values():
    old = {"settings": {"optimiser": {"lr": 1e-3, "name": "adamw"}, "steps": 4}, "code": "a" * 64, "problems": ["x", "y"]}
    new = {"settings": {"optimiser": {"lr": 1e-2, "name": "adamw"}, "steps": 4}, "code": "b" * 64, "problems": ["x", "z"]}
    assert differences(old, new) == ["code", "problems", "settings.optimiser.lr: 0.001 -> 0.01"]
    assert differences(old, old) == []


def saved(folder, *steps):
    model = tiny_model(TINY, TOKENIZER, 1)
    optimiser = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(folder, {})
    checkpoints.prepare()
    for step in steps:
        checkpoints.save(step, model, optimiser)
    return checkpoints, model, optimiser


@pytest.mark.parametrize("damage", ["cut", "flip", "no digest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    checkpoints, model, optimiser = saved(tmp_path, 1, 2, 3)
    newest = tmp_path / "step-00000003.pt"
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.with_suffix(".sha256").unlink()
    assert checkpoints.restore(model, optimiser) == 2
    (tmp_path / "step-00000002.pt").write_bytes(b"")
    assert checkpoints.restore(model, optimiser) == 0


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    checkpoints, model, optimiser = saved(tmp_path, 4)
    (tmp_path / ".step-00000005.pt.123.part").write_bytes(b"half")
    assert checkpoints.prepare() == "" and not list(tmp_path.glob(".*.part"))
    assert checkpoints.restore(model, optimiser) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identity.json", "machine.json", "step-00000004.pt", "step-00000004.sha256"]


FULL = """
import resource, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from pathlib import Path
from test_checkpoints import saved
folder = Path(sys.argv[1])
checkpoints, model, optimiser = saved(folder, 1)
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoints.save(2, model, optimiser)
except (OSError, RuntimeError) as error:
    print("failed")
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path, here, here.parent], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "failed\n"
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-00000001.pt"] and not list(tmp_path.glob(".*.part"))
    model = tiny_model(TINY, TOKENIZER, 2)
    assert Checkpoints(tmp_path, {}).restore(model, torch.optim.AdamW(model.parameters())) == 1


def test_a_checkpoint_is_due_by_steps_or_by_minutes(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("pipelines.models.checkpoints.time.monotonic", lambda: now[0])
    pace, due = Pace(every=100, minutes=2), []
    for step in range(1, 401):
        now[0] += 1.0 if step <= 200 else 50.0
        if pace.due(step):
            due.append(step)
    assert due[:2] == [100, 200], "120 seconds have not passed between them"
    assert due[2:6] == [203, 206, 209, 212], "three steps of 50 seconds"
    assert {300, 400} <= set(due), "whatever the clock says"
    slow = Pace(every=100, minutes=2, longest=lambda seconds: max(seconds, 120.0))  # another process has measured more
    assert slow.due(1)
