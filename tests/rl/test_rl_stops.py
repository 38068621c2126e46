"""What stops a stage before it harms the weights, and how a stage goes on when its settings were changed."""

import re

import pytest
import torch
from batches import ragged
from killing import Killed
from loops import ONE_AHEAD, TOKENIZER, policy_of, prepared, run, settings, trained

from pipelines.config.common import OptimiserSettings
from pipelines.config.training import ArchitectureSettings, LoraSettings
from pipelines.errors import UserError
from pipelines.models.adapters import add_adapters
from pipelines.models.optimisation import make_optimiser
from pipelines.models.tiny import tiny_model
from pipelines.rl import objective, recipe, weigh


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_stage_before_the_weights(tmp_path, start, minibatches):
    huge = {"reward": [{"name": "rescale", "low": 0.0, "high": 1e39}], "center": {"name": "none"}, "scale": {"name": "none"}}
    policy = policy_of(start)
    with pytest.raises(UserError, match="must be finite: no weight was changed, and the batch is kept in .*; lower optimiser.lr") as stopped:
        trained(tmp_path, policy, overrides=huge, minibatches=minibatches)
    assert all(torch.equal(value, start[name]) for name, value in policy.state_dict().items())
    path = re.search(r"kept in (\S+);", str(stopped.value)).group(1)
    kept = torch.load(path)
    assert path == f"{tmp_path}/checkpoints/not-finite-00000001.pt"
    assert kept["ids_BT"].shape == kept["mask_BT"].shape and torch.isinf(kept["advantage_BT"]).any()
    assert len(kept["group_B"].unique()) == 4 // minibatches


def test_a_gradient_that_is_not_finite_stops_it_too(tmp_path, start):
    """The loss is a number, its gradient is none."""
    policy = policy_of(start)
    weight = policy.get_input_embeddings().weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([5]), torch.nan))
    with pytest.raises(UserError, match=r"the loss is -?[0-9.e-]+ and the norm of its gradient nan"):
        trained(tmp_path, policy)
    assert all(torch.equal(value, start[name]) for name, value in policy.state_dict().items())


def test_weights_that_reject_every_token_give_a_loss_of_zero():
    row = recipe("tis", mismatch=[{"name": "token_window", "low": 10.0, "high": 20.0}, {"name": "divide_by_mean"}])
    made, live = ragged(3)
    leaf = live["logp_BT"].clone().requires_grad_()
    loss, _ = objective(row, weigh(row, made), leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(loss.detach()) == 0.0 and not gradient.any()
    some = recipe("tis", mismatch=[{"name": "token_window", "low": 0.9, "high": 1.1}, {"name": "divide_by_mean"}])
    assert torch.isfinite(objective(some, weigh(some, made), leaf)[0])


CHANGES = {
    "remix": ({"row": "remix"}, {"prev"}),
    "ppo": ({"row": "ppo"}, {"value head", "optimiser"}),
    "sdpo": ({"row": "sdpo"}, {"teacher"}),
    "asynchronous": ({"schedule": ONE_AHEAD}, {"behaviour"}),
    "muon": ({"optimiser": OptimiserSettings(name="muon", lr=1e-3)}, {"optimiser"}),
    "reset": ({"row": "grpo_kl", "reset_reference": (6,)}, {"ref"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_accepted_changes_start_afresh_what_the_checkpoint_lacks(tmp_path, start, capsys, name):
    changes, afresh = CHANGES[name]
    with pytest.raises(Killed):
        run(tmp_path, start, stop_at=5)
    before = torch.load(tmp_path / "checkpoints" / "step-00000004.pt")["model"]
    capsys.readouterr()
    weights, rows, _ = run(tmp_path, start, **changes)
    said = capsys.readouterr().out
    assert set(re.findall(r"the checkpoint has no (.+) for these settings: it starts afresh", said)) == afresh
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert any(not torch.equal(weights[tensor], before[tensor]) for tensor in before)
    if name == "asynchronous":  # what it starts to sample from is the policy as it stood
        assert abs(rows[4]["mismatch_k3"]) < 1e-6


def test_what_is_no_longer_needed_is_left_out(tmp_path, start, capsys):
    with pytest.raises(Killed):
        run(tmp_path, start, stop_at=5, row="ppo")
    weights, rows, _ = run(tmp_path, start)
    assert "the checkpoint has no optimiser for these settings" in capsys.readouterr().out
    assert not any("value_head" in name for name in weights) and len(rows) == 6


def test_an_accepted_rate_is_the_rate_from_then_on(tmp_path, start):
    with pytest.raises(Killed):
        run(tmp_path, start, stop_at=5)
    state = torch.load(tmp_path / "checkpoints" / "step-00000004.pt")
    weights, rows, _ = run(tmp_path, start, optimiser=OptimiserSettings(lr=1e-30, schedule="constant", weight_decay=0.0))
    assert rows[-1]["lr"] == 1e-30
    assert all(torch.equal(weights[name], value) for name, value in state["model"].items())


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, start):
    with pytest.raises(Killed):
        run(tmp_path, start, stop_at=3)
    _, checkpoints = prepared(tmp_path)
    adapted = policy_of(start)
    add_adapters(adapted, LoraSettings(rank=2), 1)
    wider = tiny_model(ArchitectureSettings(hidden_size=64, layers=2, heads=2, intermediate_size=64, context=128), TOKENIZER, 1)
    for model, name in ((adapted, r"base_layer|lora|_proj"), (wider, "weight of shape")):
        held = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(UserError, match=rf"step-00000002.pt: it is of a model with other weights \(such as .*({name}).*remove .* to begin again"):
            checkpoints.restore(model, make_optimiser(model, settings().optimiser))
        assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items())
