"""The table of recipes: what is wrong is named, what is read is declared, and docs/METHODS.md says what the code does."""

import inspect
import sys
from pathlib import Path

import pytest
import torch

from pipelines.errors import UserError
from pipelines.rl import RECIPES, Batch, advantages, objective, recipe
from pipelines.rl.costs import Cost, another_forward, cost, needs, reads
from pipelines.rl.demands import Need
from pipelines.rl.recipe import DERIVED, inputs_of, names
from pipelines.rl.slots import SLOTS
from pipelines.rl.table import found, markdown, worked_examples
from pipelines.rl.tensors import TENSORS, When, of

ROOT = Path(__file__).parents[2]

@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: recipe("gropo"), "did you mean 'grpo'"),
        (lambda: recipe("sapo"), "'sapo' is the name of two methods: Soft Adaptive Policy Optimization is the row 'soft_adaptive_po', and the swarm"),
        (lambda: recipe("grpo", clipp={"name": "ppo"}), "did you mean 'clip'"),
        (lambda: recipe("grpo", clip={"name": "pppo"}), "did you mean 'ppo'"),
        (lambda: recipe("grpo", clip={"name": "ppo", "hgih": 0.3}), "did you mean 'high'"),
        (lambda: recipe("grpo", clip={"name": "ppo", "high": "much"}), "setting 'high': expected float, got 'much'"),
        (lambda: recipe("grpo", clip="ppo"), "expected a mapping with a name"),
        (lambda: recipe("grpo", regularisers="kl"), "expected a list of mappings"),
        (lambda: recipe("grpo", regularisers=[{"name": "kl"}]), "regularisers 'kl': setting 'coefficient' is missing"),
        (lambda: recipe("grpo", regularisers=[{"name": "kl", "coefficient": "a lot"}]), "expected float, got 'a lot'"),
        (lambda: recipe("grpo", regularisers=[{"name": "kl", "coefficient": 0.1, "estimator": "k4"}]), "estimator"),
        (
            lambda: recipe("pacs", mismatch=[{"name": "veto"}]),
            "slot 'mismatch' weighs tokens, and the objective 'implicit_critic' has no loss per token",
        ),
        (lambda: recipe("grpo", inputs={"low_B": {}}), "did you mean 'low_BT'"),
        (lambda: recipe("lp_reg", inputs={"low_BT": {"part": 0.1}}), "did you mean 'share'"),
        (lambda: recipe("grpo", inputs=[1]), "expected a mapping from tensors to settings"),
    ],
)
def test_a_wrong_recipe_names_what_is_wrong(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_a_slot_that_no_one_knows_ends_the_table(monkeypatch):
    monkeypatch.setattr(
        sys.modules["pipelines.rl.recipe"], "_rows", lambda: {"default": {"clip": {"name": "ppo"}}, "mine": {"paper": "p", "formula": "f", "clp": 1}}
    )
    with pytest.raises(UserError, match="recipe 'mine': slot: there is no 'clp'; did you mean 'clip'"):
        recipe("mine")


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_says_where_it_is_from(name):
    row = RECIPES[name]
    assert row.paper and row.formula
    assert row.fidelity == ("reconstructed" if row.assumed else "published")


def test_every_row_has_a_worked_example():
    """That `test_<row>` runs the row itself is seen to by `conftest.py` when it runs."""
    assert list(worked_examples(ROOT / "tests" / "rl")) == names()


@pytest.mark.parametrize("functions", [*(slot.functions for slot in SLOTS.values()), {n: d.compute for n, d in of(*DERIVED).items()}])
def test_functions_read_tensors_that_exist_and_say_what_they_do(functions):
    for function in functions.values():
        assert {name for name, _ in inputs_of(function)} <= set(TENSORS), function
        assert inspect.getdoc(function)


def test_every_tensor_is_declared_once_and_can_be_had():
    """What is computed has a function, of tensors that are declared; what is given stands there without one."""
    for name, declared in TENSORS.items():
        given = declared.when in (When.GIVEN, When.COMPOSED)
        assert declared.about and (declared.compute is None) == given, name
        assert {*declared.with_, *filter(None, (declared.live, declared.held_of))} <= set(TENSORS), name


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_row_needs_the_loop_can_give(name):
    """No pass before the update is asked for what only the update has, and what is had of others is bound to its settings."""
    row = RECIPES[name]
    assert set(row.derived) >= {tensor for tensor in row.needs if TENSORS[tensor].when in DERIVED}
    assert not row.before & of(When.LIVE, When.ROWS, When.SUM).keys() - {"logp_BT", "entropy_BT"} or row.shrinks
    for tensor in row.needs:
        assert set(TENSORS[tensor].with_) <= row.needs


def test_only_what_needs_another_forward_pass_asks_for_one():
    assert another_forward(RECIPES["grpo"]) == another_forward(RECIPES["ulorl"]) == another_forward(RECIPES["rover"]) == set()
    assert another_forward(RECIPES["grpo_kl"]) == {"logp_ref_BT"}
    assert another_forward(RECIPES["ppo"]) == {"value_old_BT"}
    assert another_forward(RECIPES["sdpo"]) == {"teacher_topk_BTK", "topk_BTK"}
    assert reads(RECIPES["grpo"]) == []


def test_a_missing_tensor_is_named():
    made = Batch(mask_BT=torch.ones(1, 2), reward_B=torch.ones(1), group_B=torch.zeros(1).long(), logp_old_BT=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="recipe 'ppo' needs the tensor value_old_BT"):
        advantages(RECIPES["ppo"], made)
    with pytest.raises(ValueError, match="advantage_BT is empty"):
        objective(RECIPES["grpo"], made, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="no method reads entropy_BB"):
        objective(RECIPES["pacs"], made, torch.zeros(1, 2), {"entropy_BB": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="one row per rollout"):
        Batch(mask_BT=torch.ones(2, 2), reward_B=torch.ones(1), group_B=torch.zeros(1).long(), logp_old_BT=torch.zeros(1, 2))


def test_methods_md_is_fresh():
    assert (ROOT / "docs" / "METHODS.md").read_text() == markdown(ROOT / "tests" / "rl"), "run `touchstone methods --markdown > docs/METHODS.md`"


def test_what_a_row_needs_and_costs():
    """By hand: answers to a problem with groups of 8, passes beside the update's own, what else is in memory."""
    assert cost(RECIPES["grpo"]) == Cost((8, 8), (), (), value=False)
    assert cost(RECIPES["dapo"]).answers == (8, 8 * (1 + 3))
    assert cost(RECIPES["reinforce_ada"], group=4).answers == (8, 4 * 8)
    assert cost(RECIPES["remax"]).answers == (9, 9)
    assert cost(RECIPES["npo"]).answers == (8, 8 + 4) and cost(RECIPES["npo"]).policies == ("guide",)
    assert cost(RECIPES["svs"]).answers == (8, 8 * (1 + 4 * (1 + 8)))
    assert cost(RECIPES["ppo_kl"]) == Cost((8, 8), ("ref", "the policy before the update"), ("ref",), value=True)
    assert cost(RECIPES["stored_distillation"]).policies == ()
    assert needs(RECIPES["grpo"]) == frozenset()
    assert needs(RECIPES["ppo_kl"]) == {Need.POLICY, Need.VALUE}
    assert needs(RECIPES["calib_rl"]) >= {Need.SOLUTIONS}
    assert needs(recipe("grpo", guidance={"name": "solution_prefix"})) == {Need.SOLUTIONS}
    assert needs(RECIPES["topk_distillation"]) == {Need.TEACHER}
    assert needs(RECIPES["mccl"]) == {Need.RATES}
    assert needs(RECIPES["swarm"]) == {Need.RUNS} and cost(RECIPES["swarm"]).answers == (8, 16)
    assert cost(RECIPES["self"]).answers == (1, 9) and cost(RECIPES["remax"]).answers == (9, 9)


def test_rows_are_found_by_slot_paper_and_need():
    found_by_part = ["coderl", "guide", "ghpo", "seele", "self", "dars_et", "dars_hw", "reinforce_ada", "reinforce_ada_positive", "remax"]
    assert [row.name for row in found(part="explore")] == found_by_part
    assert [row.name for row in found(paper="2508.14029")] == ["svs"]
    assert [row.name for row in found(need="value", paper="ppo as in")] == ["ppo_kl"]
    with pytest.raises(UserError, match="did you mean 'explore'"):
        found(part="explor")
    with pytest.raises(UserError, match="did you mean 'solutions'"):
        found(need="solution")
