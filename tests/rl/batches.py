"""Batches for tests: the specification's fixtures, and random ragged ones that hold every tensor any recipe reads."""


import torch

from pipelines.rl import Batch, Recipe, aggregates, objective, route, weigh
from pipelines.rl.batch import is_by_row
from pipelines.rl.gathering import add_up
from pipelines.rl.tensors import When, of

REWARDS = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
"""F-adv: prompt P1 with rewards [1,0,0,0], prompt P2 with [1,1,1,0]."""
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
OLD = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
NEW = torch.tensor([[-0.8, -2.3, -0.5]], dtype=torch.float64)
ROLL = torch.tensor([[-1.1, -1.0, -0.5]], dtype=torch.float64)
"""F-pg: one sequence of three tokens."""


def batch(rewards=REWARDS, groups=GROUPS, mask=None, **tensors) -> Batch:
    mask = torch.ones(len(rewards), 1) if mask is None else mask
    return Batch(mask_BT=mask, reward_B=rewards, group_B=groups, logp_old_BT=tensors.pop("logp_old_BT", torch.zeros_like(mask)), **tensors)


def lengths(*count: int) -> torch.Tensor:
    return (torch.arange(max(count)) < torch.tensor(count)[:, None]).float()


def pg(recipe: Recipe, advantage: float, **tensors):
    """Loss and gradient of F-pg at a given advantage."""
    logp = tensors.pop("logp", NEW).clone().requires_grad_()
    one = torch.ones(1, 3, dtype=torch.float64)
    made = batch(torch.tensor([1.0]), torch.tensor([0]), one, **{"logp_old_BT": OLD, "logp_roll_BT": ROLL, "advantage_BT": advantage * one, **tensors})
    loss, _ = objective(recipe, made, logp)
    (gradient,) = torch.autograd.grad(loss, logp)
    return float(loss.detach()), gradient[0]


def ragged(seed: int, rows: int = 12, width: int = 7, group: int = 4, k: int = 5, hidden: int = 6):
    """(batch, live): every tensor of random content, float64; rewards and correctness agree."""
    g = torch.Generator().manual_seed(seed)
    double = {"generator": g, "dtype": torch.float64}
    count = torch.randint(2, width + 1, (rows,), generator=g)
    mask = (torch.arange(width) < count[:, None]).double()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, **double)

    def near(logp: torch.Tensor) -> torch.Tensor:
        return (logp + 0.3 * normal(rows, width)).clamp(max=-1e-3) * mask

    logp = -torch.rand(rows, width, **double) * mask - 0.01 * mask
    old = near(logp)
    right = torch.randint(0, 2, (rows,), generator=g)
    right[:2] = torch.tensor([1, 0])  # the first group has both
    steps = torch.minimum(torch.arange(width) // 3, (count[:, None] - 1) // 3)
    known = torch.arange(3)[None] <= (count[:, None] - 1) // 3
    topk = torch.log_softmax(normal(rows, width, 2 * k), -1)
    made = Batch(
        mask_BT=mask, reward_B=right.double(), group_B=torch.arange(rows) // group, logp_old_BT=old, logp_roll_BT=near(old), logp_ref_BT=near(old),
        truncated_B=torch.rand(rows, generator=g) < 0.2, step=torch.tensor(300), response_limit=torch.tensor(width),
        correct_B=right.bool(), format_B=(right + torch.randint(0, 2, (rows,), generator=g)) > 0, consistency_B=torch.rand(rows, **double),
        confidence_B=torch.rand(rows, **double), candidates_B=torch.full((rows,), 2.0, dtype=torch.float64), rank_B=right.double(),
        level_B=2 - right + torch.randint(0, 2, (rows,), generator=g), diversity_B=torch.rand(rows, **double), baseline_B=torch.rand(rows, **double) / 2,
        components_BK=torch.stack([torch.rand(rows, **double), right.double()], -1), component_weight_K=torch.tensor([0.7, 1.3], dtype=torch.float64),
        pool_mean_B=torch.full((rows,), 0.4, dtype=torch.float64), greedy_B=torch.full((rows,), 0.5, dtype=torch.float64),
        observed_BT=(torch.arange(width) == count[:, None]).double(), turn_BT=torch.arange(width).expand(rows, width) // 3,
        state_BT=torch.arange(width) // 3 + 10 * (torch.arange(rows)[:, None] // group),
        role_baseline_B=torch.full((rows,), 0.3, dtype=torch.float64),
        turn_return_BT=-(torch.arange(rows)[:, None] % 5 + torch.arange(width)[None] // 3).double(),
        guided_BT=((torch.arange(rows) % 3 == 0)[:, None] & (torch.arange(width) < 2)).double(),
        reprompt_B=torch.rand(rows, generator=g) < 0.7, share_BT=torch.where(torch.arange(width) < 1, torch.arange(rows)[:, None] // group, 100 + torch.arange(rows * width).view(rows, width)),
        step_BT=steps, potential_BK=normal(rows, 3).clamp(-1, 1).masked_fill(~known, torch.nan), step_value_BK=torch.rand(rows, 3, **double).masked_fill(~known, torch.nan),
        logp_sft_BT=near(old), logp_dpo_BT=near(old), logp_prev_BT=near(old), logp_tempered_BT=near(old), logp_proxy_BT=old + 0.4 * mask, logp_expert_BT=near(old), mismatched_B=normal(rows),
        entropy_old_BT=torch.rand(rows, width, **double), squares_old_BT=old.exp() ** 2 + (1 - old.exp()) ** 2 * torch.rand(rows, width, **double), value_old_BT=normal(rows, width), vocab_mean_old_BT=normal(rows, width), special_old_B=normal(rows) - 20,
        hidden_old_BTH=normal(rows, width, hidden), topk_BTK=torch.randint(0, 50, (rows, width, k), generator=g),
        teacher_topk_BTK=torch.log_softmax(normal(rows, width, 2 * k), -1)[..., :k], logp_taught_BT=near(old),
        taught_topk_BTK=torch.log_softmax(normal(rows, width, 2 * k), -1)[..., :k], stored_topk_BTK=torch.randint(0, 50, (rows, width, k), generator=g),
        stored_logp_BTK=torch.log_softmax(normal(rows, width, 2 * k), -1)[..., :k], entropy_anchor=torch.tensor(0.4, dtype=torch.float64), special_anchor=torch.tensor(-23.0, dtype=torch.float64),
        value_edges_K=torch.linspace(-0.5, 1.5, k + 1, dtype=torch.float64), cost_B=torch.rand(rows, **double), multiplier=torch.tensor(0.7, dtype=torch.float64), common_BT=(torch.arange(width) % 2 == 0).double().expand(rows, width) * mask, outcome_B=torch.where(right.bool(), 3, torch.arange(rows) % 3), outcome_logits_old_BTK=normal(rows, width, 4), allowed_BTK=torch.full((rows, width, 7), 255, dtype=torch.uint8), logp_allowed_old_BT=near(old),
    )  # fmt: skip
    live = {
        "logp_BT": logp, "logp_allowed_BT": near(logp), "entropy_BT": torch.rand(rows, width, **double), "nucleus_entropy_BT": torch.rand(rows, width, **double),
        "vocab_mean_BT": normal(rows, width), "value_BT": normal(rows, width), "value_logits_BTK": normal(rows, width, k), "student_topk_BTK": topk[..., :k], "student_stored_BTK": torch.log_softmax(normal(rows, width, 2 * k), -1)[..., :k], "special_B": normal(rows) - 20,
        "outcome_logits_BTK": normal(rows, width, 4), "projected_BTK": normal(rows, width, k),
    }  # fmt: skip
    assert set(live) == of(When.LIVE).keys()
    return made, live


def leaves(live):
    return {name: value.clone().requires_grad_() for name, value in live.items()}


def loss_and_gradients(recipe: Recipe, made: Batch, live, slices=None):
    """The loss of a batch, computed in slices if they are given, and its gradient by live tensor."""
    made = route(recipe, made)
    made = weigh(recipe, made)
    here = leaves(live)
    index = slices if slices is not None else [torch.arange(len(made.reward_B))]
    if recipe.having(When.SUM) and slices is not None:
        totals = [aggregates(recipe, made.rows(rows), {n: v[rows] for n, v in live.items()}) for rows in index]
        made = made.having(**add_up(recipe.having(When.SUM), totals, made.mask_BT))
    total = 0.0
    for rows in index:
        part = {name: value[rows] for name, value in here.items()}
        loss, _ = objective(recipe, made.rows(rows), part.pop("logp_BT"), part)
        if loss.requires_grad:
            loss.backward()
        total += float(loss.detach())
    return total, {name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in here.items()}


def reordered(made: Batch, live, order):
    return made.rows(order), {name: value[order] for name, value in live.items()}


def widened(made: Batch, live, extra: int):
    """More padding on the right."""

    def pad(name: str, value: torch.Tensor) -> torch.Tensor:
        if "_BT" not in name:
            return value
        return torch.cat([value, torch.zeros(value.shape[0], extra, *value.shape[2:], dtype=value.dtype)], 1)

    return made.having(**{n: pad(n, v) for n, v in made.tensors().items()}), {n: pad(n, v) for n, v in live.items()}


def with_masked_rows(made: Batch, live, count: int):
    """The batch and `count` rows more, of other content and in groups of their own, that are masked out entirely."""
    others, other_live = ragged(99)

    def grow(name: str, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if not is_by_row(name):
            return value
        more = other[:count]
        return torch.cat([value, torch.zeros_like(more) if name == "mask_BT" else more + 1000 if name in ("group_B", "share_BT", "state_BT") else more])

    grown = {name: grow(name, value, getattr(others, name)) for name, value in made.tensors().items()}
    return made.having(**grown), {name: grow(name, value, other_live[name]) for name, value in live.items()}
