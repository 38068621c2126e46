"""A training that begins anew from where it is: when, and what is left of reference and optimiser (ProRL, arXiv 2505.24864)."""

import itertools

import pytest
import torch
from killing import Killed
from loops import policy_of, run, settings, trained

from pipelines.config.rl import ResetSettings, RlStage, ValidationSettings
from pipelines.errors import UserError
from pipelines.models.checkpoints import Numbers
from pipelines.rl.resets import Resets, forget

EVERY_STEP = ValidationSettings(every=1, problems=2, samples=2, keep="last")
STALLED = {"row": "grpo_kl", "validation": EVERY_STEP, "reset": ResetSettings(stalled=2)}


def asked(rules: ResetSettings, *rates: float, kl: float = 0.0) -> list[str]:
    resets = Resets(rules, Numbers())
    return [resets.why({"validation": rate, "kl_reference": kl}) for rate in rates]


def test_a_stall_is_so_many_measurements_without_a_new_best_since_the_last_reset():
    why = "2 measurements without a new best"
    assert asked(ResetSettings(stalled=2), 0.30, 0.32, 0.32, 0.31) == ["", "", "", why]
    assert asked(ResetSettings(stalled=2), 0.30, 0.32, 0.32, 0.31, 0.31, 0.30) == ["", "", "", why, "", why]
    assert asked(ResetSettings(stalled=2), 0.30, 0.31, 0.30, 0.32, 0.31, 0.33) == [""] * 6  # it goes on getting better


def test_a_step_that_is_not_measured_counts_for_nothing():
    resets = Resets(ResetSettings(stalled=1), Numbers())
    assert [resets.why(figures) for figures in ({"validation": 0.5}, {}, {"validation": 0.5}, {})] == ["", "", "1 measurements without a new best", ""]


def test_a_spike_of_the_kl_resets_and_begins_the_count_anew():
    resets = Resets(ResetSettings(stalled=2, kl=0.1), Numbers())
    told = [resets.why({"validation": 0.5, "kl_reference": kl}) for kl in (0.0, 0.1, 0.2, 0.0, 0.0)]
    assert told == ["", "", "2 measurements without a new best and KL to the reference 0.2", "", "2 measurements without a new best"]
    assert asked(ResetSettings(kl=0.1), 0.3, kl=0.2) == ["KL to the reference 0.2"]


def test_an_optimiser_that_forgets_steps_as_a_new_one():
    def made():
        weight = torch.nn.Parameter(torch.ones(3))
        return weight, torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)

    def step(weight, optimiser, gradient):
        weight.grad = torch.tensor(gradient)
        optimiser.step()

    weight, optimiser = made()
    step(weight, optimiser, [1.0, -2.0, 3.0])
    forget(optimiser)
    assert not any(value.any() for value in optimiser.state[weight].values())
    with torch.no_grad():
        weight.fill_(1.0)
    new, its_own = made()
    step(weight, optimiser, [0.5, 0.25, -4.0])
    step(new, its_own, [0.5, 0.25, -4.0])
    assert torch.equal(weight, new) and float(optimiser.state[weight]["step"]) == 1.0


def test_the_reference_is_the_policy_after_a_reset(tmp_path, start):
    """Each step with a reset is followed by one in which the KL to the reference is 0; before it is not."""
    _, rows, _ = run(tmp_path, start, **STALLED)
    resets = [row["step"] for row in rows if row["reset"]]
    assert resets and resets[0] >= 3 and all(row["validation"] is not None for row in rows)
    best, stalled, expected = -1.0, 0, []
    for row in rows:
        best, stalled = (row["validation"], 0) if row["validation"] > best else (best, stalled + 1)
        if stalled == 2:
            expected.append(row["step"])
            stalled = 0
    assert resets == expected
    for before, after in itertools.pairwise(rows):
        if before["reset"]:
            assert abs(after["kl_reference"]) < 1e-9
        elif after["step"] > 2:
            assert after["kl_reference"] > 1e-7
    _, plain, _ = run(tmp_path / "plain", start, row="grpo_kl", validation=EVERY_STEP)
    assert "reset" not in plain[0] and plain[resets[0] - 1]["loss"] == rows[resets[0] - 1]["loss"]


def test_a_reset_clears_the_moments_that_the_next_checkpoint_keeps(tmp_path, start):
    trained(tmp_path, policy_of(start), steps=2, row="grpo_kl", frozen={"ref": policy_of(start)}, reset=ResetSettings(kl=1e-7), checkpoint_every=2)
    state = torch.load(tmp_path / "checkpoints" / "step-00000002.pt")
    assert not any(value.any() for moments in state["optimiser"]["state"].values() for value in moments.values())
    assert all(torch.equal(value, state["model"][name]) for name, value in state["others"]["ref"].items())


@pytest.mark.parametrize("stop_at", [3, 5])
def test_a_killed_run_resets_when_the_whole_one_does(tmp_path, start, stop_at):
    weights, rows, files = run(tmp_path / "whole", start, **STALLED)
    with pytest.raises(Killed):
        run(tmp_path / "cut", start, stop_at=stop_at, **STALLED)
    resumed, resumed_rows, resumed_files = run(tmp_path / "cut", start, **STALLED)
    assert resumed_rows == rows and resumed_files == files
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_what_could_never_reset_anything_is_refused(tmp_path, start):
    base = settings().model_dump(mode="json")
    for reset, message in (({}, "give `stalled` or `kl`"), ({"stalled": 2}, "reset.stalled counts measurements of `validation`, and there is none")):
        with pytest.raises(ValueError, match=message):
            RlStage.model_validate(base | {"reset": reset})
    with pytest.raises(UserError, match="reset.kl is of the KL to the reference, which recipe 'grpo' does not read"):
        run(tmp_path, start, reset=ResetSettings(kl=0.1))
