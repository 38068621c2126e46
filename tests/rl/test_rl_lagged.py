"""NLPO: a policy that says only what a lagged copy of it allows, and trains on the same sets."""

import numpy as np
import pytest
import torch
from batches import batch, leaves
from loops import IN_FLIGHT, ONE_AHEAD, TOKENIZER, policy_of, run
from test_rl_inputs import step_of
from test_rl_more_objectives import DOUBLE, close, double, killed_and_resumed

from pipelines.config.common import GenerationSettings, OptimiserSettings
from pipelines.config.learning import KlControl
from pipelines.config.rl import ValidationSettings
from pipelines.errors import UserError
from pipelines.generation import Request, TorchGenerator
from pipelines.generation.action_set import ActionSet
from pipelines.rl import advantages, objective, recipe
from pipelines.rl.inputs import facts
from pipelines.rl.inputs.scores import of_allowed
from pipelines.rl.run import kl_factor
from pipelines.store import read_trajectories

CHANCES = double([0.5, 0.3, 0.15, 0.04, 0.01])
OLD, NEW = double([1, 2, 0, 3, 0.5]), double([1, 2.2, 0, 2.7, 0.5])


def packed(sets) -> torch.Tensor:
    return torch.from_numpy(np.packbits(np.array(sets, dtype=bool), axis=-1))


def allowed_ids(p=0.9, top_k=0, least=1, always=(), chances=CHANCES):
    return [row.nonzero()[:, 0].tolist() for row in ActionSet(p, top_k, least, always).of(chances)]


def test_nlpo():
    assert [allowed_ids(p)[0] for p in (0.4, 0.5, 0.8, 0.9, 0.95)] == [[0], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert allowed_ids(0.5, least=4) == [[0, 1, 2, 3]] and allowed_ids(always=(4,)) == [[0, 1, 2, 4]]
    assert allowed_ids(1.0) == [[0, 1, 2, 3, 4]] and allowed_ids(1.0, top_k=2, always=(4,)) == [[0, 1, 4]]
    keep = ActionSet(0.9, 0, 1, (4,)).of(CHANCES)
    at = {"target": torch.tensor([1]), "allowed_BTK": packed(keep)}
    old, new = (of_allowed(logits.log_softmax(-1), at) for logits in (OLD, NEW))
    raw_old, raw_new = (logits.log_softmax(-1)[:, 1] for logits in (OLD, NEW))
    close(keep * OLD.softmax(-1) / 0.388412, [[0.213097, 0.579259, 0.078394, 0, 0.12925]])
    close([old, raw_old, (new - old).exp(), (raw_new - raw_old).exp(), (raw_new - old).exp()], [-0.546006, -1.491696, 1.082564, 1.370359, 0.532264])
    # the gradient is that of the kept logits alone; one kept token has none
    logits = NEW.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of_allowed(logits.log_softmax(-1), at).sum(), logits)
    close(gradient, torch.nn.functional.one_hot(at["target"], 5) - NEW.masked_fill(~keep, -torch.inf).softmax(-1))
    alone = {"target": torch.tensor([1]), "allowed_BTK": packed([[0, 1, 0, 0, 0]])}
    (gradient,) = torch.autograd.grad(of_allowed(logits.log_softmax(-1), alone).sum(), logits)
    assert float(of_allowed(NEW.log_softmax(-1), alone)) == 0 and not gradient.any()
    # the row: the ratio within the set, clipped; the KL in the reward over all tokens; whitening left out
    row = recipe("nlpo", token_modify=[])
    one = torch.ones(1, 1, dtype=DOUBLE)
    given = {"advantage_BT": 2 * one, "return_BT": one, "value_old_BT": 0 * one, "allowed_BTK": at["allowed_BTK"][None], "logp_allowed_old_BT": old[None]}
    here = leaves({"logp_BT": raw_new[None], "logp_allowed_BT": new[None], "value_BT": 0.4 * one})
    loss, _ = objective(row, batch(double(1.0), torch.tensor([0]), one, logp_old_BT=raw_old[None], **given), here.pop("logp_BT"), here)
    close(loss.detach(), -2 * 1.082564 + 0.5 * 0.6**2)
    two = torch.ones(1, 2, dtype=DOUBLE)
    made = batch(double(1.0), torch.tensor([0]), two, logp_old_BT=double([-1.0, -0.5]), logp_ref_BT=double([-1.5, -0.25]), value_old_BT=double([0.2, 0.4]))
    last = 1 - 0.2 * (-0.25) - 0.4
    close(advantages(row, made), [[-0.2 * 0.5 + 0.99 * 0.4 - 0.2 + 0.99 * 0.95 * last, last]])
    beta = [0.2]
    for kl in (0.9, 0.5, 0.0):
        beta.append(beta[-1] * kl_factor(KlControl(target=0.5), kl))
    close(beta[1:], [0.204, 0.204, 0.19992])
    with pytest.raises(UserError, match="p 0 must be above 0"):
        ActionSet(0.0, 0, 1, ())


NARROW = {"p": 0.6, "top_k": 0, "least": 3, "every": 2}
CHANGES = {
    "overrides": {"inputs": {"allowed_BTK": NARROW}}, "steps": 5, "minibatches": 2, "kl_control": KlControl(target=1e-9), "checkpoint_every": 2,
    "optimiser": OptimiserSettings(lr=3e-3, schedule="constant", warmup=0.0),
}  # fmt: skip


def test_a_run_trains_on_the_sets_it_sampled_from(tmp_path, start):
    """Both ends of the ratio agree with the sampler, the set is that of the lagged copy as it was two steps ago, and a killed run goes on alike."""
    _, rows, _ = killed_and_resumed(tmp_path, start, "nlpo", 3, **CHANGES)
    assert all(row["mismatch_max"] < 1e-4 for row in rows) and rows[-1]["kl_reference"] > 0
    assert [row["kl_scale"] for row in rows] == pytest.approx([1.0, 0.98, *(0.98 * 1.02**n for n in (1, 2, 3))])
    specials = set(TOKENIZER.all_special_ids)
    # the copy is renewed before the update of step 2: at step 3 it is the policy after step 1
    made, _, _ = run(tmp_path / "one", start, row="nlpo", **(CHANGES | {"steps": 1}))
    for step, weights in {1: start, 2: start, 3: made}.items():
        model = policy_of(weights)
        for rollout in read_trajectories(tmp_path / "alone" / "rollouts" / f"step-{step:06d}.parquet")[:4]:
            ids = rollout.prompt_ids + rollout.response_ids
            with torch.no_grad():
                chances = model(torch.tensor([ids])).logits[0, len(rollout.prompt_ids) - 1 : -1].softmax(-1)
            assert rollout.allowed is not None and len(rollout.allowed) == len(rollout.response_ids)
            wanted = ActionSet(0.6, 0, 3, tuple(specials)).of(chances)
            got = torch.from_numpy(np.unpackbits(np.frombuffer(b"".join(rollout.allowed), np.uint8).reshape(len(wanted), -1), axis=-1))
            assert (got[:, : wanted.shape[1]].bool() != wanted).sum() <= 1  # but for one at the border
            assert 3 <= wanted.sum(-1).min() < wanted.shape[1] / 4


def test_it_needs_an_engine_that_can_and_waits(tmp_path, start):
    for changes in ({"schedule": ONE_AHEAD}, {"schedule": IN_FLIGHT}):
        with pytest.raises(UserError, match="needs generation.engine torch and schedule.kind synchronous, got torch and"):
            run(tmp_path, start, row="nlpo", **changes)
    with pytest.raises(UserError, match="allowed_BTK.every must be at least 1 step"):
        run(tmp_path, start, row="nlpo", overrides={"inputs": {"allowed_BTK": {"every": 0}}})
    with pytest.raises(UserError, match="step 1: a token trains that is not among those it could be drawn from"):
        facts.allowed(step_of())
    _, rows, _ = run(tmp_path / "held", start, row="nlpo", steps=2, validation=ValidationSettings(every=1, problems=2, samples=2), minibatches=1)
    assert all("validation" in row and row["ratio"] == 1 for row in rows)


def test_a_restricted_engine_renormalises(start):
    """Its log-probabilities are those of what it allows; greedy answers stay inside too."""
    generator = TorchGenerator(policy_of(start), TOKENIZER, GenerationSettings(max_new_tokens=6))
    prompt = tuple(TOKENIZER("1 + 1", add_special_tokens=False)["input_ids"])
    (free,) = generator.generate([Request(prompt, 1, ("a",), greedy=True)])[0]
    generator.restrict(policy_of({name: -value for name, value in start.items()}), p=1e-9, top_k=0, least=1)
    for request in (Request(prompt, 3, ("a",)), Request(prompt, 1, ("a",), greedy=True)):
        for sample in generator.generate([request])[0]:
            sets = np.unpackbits(np.frombuffer(b"".join(sample.allowed), np.uint8).reshape(len(sample.token_ids), -1), axis=-1)
            assert (sets.sum(-1) <= 1 + len(set(TOKENIZER.all_special_ids))).all() and not free.allowed
            assert all(row[token] for row, token in zip(sets, sample.token_ids, strict=True))
