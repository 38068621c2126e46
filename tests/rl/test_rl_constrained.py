"""Rows that hold back what a policy may become: costs with a multiplier, masks of the weights; and rows whose terms come from another model's word."""

import pytest
import torch
from batches import batch
from loops import policy_of, run
from test_rl_more_objectives import DOUBLE, close, double, killed_and_resumed

from pipelines.config.common import OptimiserSettings, UpdateMaskSettings
from pipelines.config.training import LoraSettings
from pipelines.errors import UserError
from pipelines.models.adapters import add_adapters
from pipelines.models.optimisation import hidden_matrices, make_optimiser
from pipelines.models.spectra import decompose
from pipelines.models.update_masks import mask_of
from pipelines.rl import advantages, recipe
from pipelines.rl.journal import notices
from pipelines.rl.multiplier import Multiplier


def multiplier(form: str, rate: float = 0.5, **settings) -> Multiplier:
    return Multiplier(**{"form": form, "start": 1.0, "rate": rate, "limit": 0.1, "cap": 5.0, "window": 1, "gains": (1.0, 0.5, 0.2), **settings})


def moved(law: Multiplier, costs, value=1.0) -> list[float]:
    return [value := law.after(value, [cost]) for cost in costs]


def test_lagrangian():
    costs = (0.3, 0.2, 0.05, 0.0)
    assert moved(multiplier("plain"), costs) == pytest.approx([1.1, 1.15, 1.125, 1.075])
    assert moved(multiplier("log"), costs) == pytest.approx([1.105171, 1.16796, 1.13435, 1.071803], abs=1e-6)
    assert moved(multiplier("pid"), costs[:3]) == pytest.approx([0.36, 0.25, 0.075])
    assert moved(multiplier("plain", cap=1.12), costs[:2]) == [1.1, 1.12] and moved(multiplier("log", rate=100.0), (9.0,)) == [5.0]
    assert moved(multiplier("plain", rate=9.0), (0.0,), 0.5) == [0.0]
    # the mean of the last three episodes, in whatever batches they come; none leaves it as it is
    law = multiplier("plain", window=3)
    assert law.after(1.0, [0.9, 0.3]) == pytest.approx(1.25) and law.after(1.0, [0.2, 0.1]) == pytest.approx(1.05) and law.after(1.0, []) == 1.0
    for settings, words in (({"start": 0.0}, "form log cannot start at 0"), ({"cap": 0.5}, "cap 0.5 must be at least start"), ({"window": 0}, "window 0")):
        with pytest.raises(UserError, match=words):
            multiplier("log", **settings)
    row = recipe("lagrangian", token_reward=[])
    made = batch(double(1, 1, 0, 0), torch.zeros(4).long(), torch.ones(4, 1, dtype=DOUBLE), cost_B=double(1, 0, 0, 1), multiplier=torch.tensor(0.5))
    close(advantages(row, made)[:, 0], [0.166667, 0.5, -0.166667, -0.5])
    close(advantages(row, made.having(multiplier=torch.tensor(0.0)))[:, 0], advantages(recipe("grpo", scale={"name": "none"}), made)[:, 0])
    # the KL that reward and cost both have, from each token on
    two = batch(
        double(1, 0), torch.zeros(2).long(), torch.ones(2, 2, dtype=DOUBLE), cost_B=double(0.6, 0.2), multiplier=torch.tensor(1.0),
        logp_old_BT=double([-1, -2], [0, 0]), logp_ref_BT=double([-3, -1], [0, 0]),
    )  # fmt: skip
    close(advantages(recipe("lagrangian"), two)[0], [(0.5 - 0.2) / 2 - 0.01 * (2 - 1), (0.5 - 0.2) / 2 - 0.01 * -1])


LIMIT = 0.6
COSTS = {"inputs": {"cost_B": {"part": "length", "lack": True}, "multiplier": {"form": "pid", "start": 0.5, "limit": LIMIT, "window": 24}}}


def test_a_multiplier_goes_on_where_it_was(tmp_path, start):
    """Its window, what it adds up and its last cost are state; the journal and a notice tell of it."""
    _, rows, rollouts = killed_and_resumed(tmp_path, start, "lagrangian", 3, overrides=COSTS, checkpoint_every=1, steps=5)
    costs = [1 - row["reward_length"] for row in rows]
    assert rows[0]["cost"] == pytest.approx(costs[0]) and rows[0]["multiplier"] == 0.5
    law = multiplier("pid", limit=LIMIT)
    assert [row["multiplier"] for row in rows[1:]] == pytest.approx(moved(law, [row["cost"] for row in rows[:4]]))
    assert len({row["multiplier"] for row in rows}) == 5 and len(rollouts) == 5
    capped = [{**row, "multiplier_capped": 1.0} for row in rows]
    assert any("the multiplier of the cost stands at its cap" in text for text in notices(capped))
    with pytest.raises(UserError, match="names part 'kindness' of the reward, and an answer has correct, format"):
        run(tmp_path / "unknown", start, row="lagrangian", overrides={"inputs": {"cost_B": {"part": "kindness"}}})


W0 = torch.tensor([[3, 0.1, -0.2], [0.5, -1, 0.05], [2, 0.3, 0.9]])


def entries(kind: str, weight=W0, share: float = 0.4, rank: int = 1) -> set[tuple[int, int]]:
    made = mask_of(weight, UpdateMaskSettings(kind=kind, share=share, rank=rank), "w")
    return {(row, column) for row, column in made.nonzero().tolist()}


def test_masks_of_the_weights_by_hand():
    close(decompose(W0, 1, 128).values, [3.658426, 1.071217, 0.819093])
    assert entries("principal") == {(0, 0), (0, 2), (1, 0), (2, 0)} and entries("low") == {(0, 1), (0, 2), (1, 2), (2, 1)}
    safe = {(row, column) for row in range(3) for column in (1, 2)}
    assert entries("safe") == safe and len(entries("random")) == 6 and entries("random") != safe
    # the rows of a wide matrix are no other than the columns of a tall one; of equal weights the first in order are the smallest
    wide = torch.cat([W0, W0[:1]]).T.contiguous()
    assert entries("principal", wide) == {(column, row) for row, column in entries("principal", wide.T.contiguous())}
    assert entries("low", torch.ones(2, 3), 0.5) == {(0, 0), (0, 1), (0, 2)}


@pytest.mark.parametrize("name", ["adamw", "muon", "classp"])
def test_an_update_moves_what_its_mask_lets(tmp_path, start, name):
    """Bit by bit, with weight decay, through a kill; vectors and embeddings move as usual."""
    mask = UpdateMaskSettings(kind="safe", share=0.5, rank=4)
    how = OptimiserSettings(name=name, lr=1e-3, muon_lr=1e-3, weight_decay=0.1, schedule="constant", warmup=0.0, mask=mask)
    weights, *_ = killed_and_resumed(tmp_path, start, "grpo", 2, optimiser=how, steps=3, checkpoint_every=1)
    model = policy_of(start)
    matrices = hidden_matrices(model)
    assert len(matrices) == 14
    for matrix, before in start.items():
        moved = weights[matrix] != before
        if matrix in matrices:
            free = mask_of(before, mask, matrix)
            assert not moved[~free].any() and 0.5 < free.float().mean() < 0.95
            assert moved[free].float().mean() > (0.3 if name == "classp" else 0.9)
        else:
            assert moved.any()
    with pytest.raises(UserError, match="adapters train here"):
        add_adapters(model, LoraSettings(rank=2), 1)
        make_optimiser(model, how)
