"""Slots `credit` and `token_modify`: from the advantage of a response (B,) to that of its tokens (B, T)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipelines.rl.batch import group_index, group_mean, group_sum, present
from pipelines.rl.objectives.step_regression import step_advantages


def broadcast(advantage_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Every token of a response has its advantage."""
    return advantage_B[:, None] * mask_BT


def _token_rewards(advantage_B: Tensor, token_reward_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Token rewards with the outcome at the last trainable token."""
    last_BT = (mask_BT > 0) & (mask_BT.cumsum(-1) == mask_BT.sum(-1, keepdim=True))
    return (token_reward_BT + advantage_B[:, None] * last_BT) * mask_BT


def return_to_go(advantage_B: Tensor, token_reward_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0) -> Tensor:
    """G_t = rho_t + gamma G_{t+1} over trainable tokens (REINFORCE++, arXiv 2501.03262)."""
    reward_BT = _token_rewards(advantage_B, token_reward_BT, mask_BT)
    running, columns = torch.zeros_like(advantage_B), []
    for t in reversed(range(mask_BT.shape[1])):
        running = torch.where(mask_BT[:, t] > 0, reward_BT[:, t] + gamma * running, running)
        columns.append(running)
    return torch.stack(columns[::-1], -1) * mask_BT


def gae(advantage_B: Tensor, token_reward_BT: Tensor, value_old_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0, lam: float = 1.0) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438), over trainable tokens: delta_t = rho_t + gamma V_{t+1} - V_t."""
    reward_BT = _token_rewards(advantage_B, token_reward_BT, mask_BT)
    ahead, running, columns = torch.zeros_like(advantage_B), torch.zeros_like(advantage_B), []
    for t in reversed(range(mask_BT.shape[1])):
        trained = mask_BT[:, t] > 0
        delta = reward_BT[:, t] + gamma * ahead - value_old_BT[:, t]
        running = torch.where(trained, delta + gamma * lam * running, running)
        ahead = torch.where(trained, value_old_BT[:, t], ahead)
        columns.append(running)
    return torch.stack(columns[::-1], -1) * mask_BT


def step_potential(
    advantage_B: Tensor,
    potential_BK: Tensor,
    step_BT: Tensor,
    mask_BT: Tensor,
    *,
    alpha: float = 0.5,
    xi: float = 0.5,
    saturated: float = 0.9,
) -> Tensor:
    """SPAE (arXiv 2601.03823): A f_k + xi g_k on the tokens of step k, from the potential Phi_k after each step.

    f_k = 1 - alpha (1 - exp(-n_k)), n_k the earlier steps with Phi > `saturated`: what comes after the answer is known
    counts less. g_k = exp(d_k) - mean exp(d), d the gain Phi_k - Phi_{k-1} (0 for the first step) scaled to [0, 1] over the
    batch. A response without steps has f = 1, g = 0; tokens after the last step belong to it.
    """
    known_BK = ~potential_BK.isnan() & present(mask_BT)[:, None]
    phi_BK = potential_BK.nan_to_num(0.0)
    high_BK = (phi_BK > saturated) & known_BK
    before_BK = high_BK.cumsum(-1) - high_BK.long()
    factor_BK = 1 - alpha * (1 - (-before_BK.to(phi_BK)).exp())
    gain_BK = torch.cat([torch.zeros_like(phi_BK[:, :1]), phi_BK[:, 1:] - phi_BK[:, :-1]], -1)
    gains = gain_BK[known_BK]
    if len(gains):
        spread = gains.max() - gains.min()
        unit_BK = (gain_BK - gains.min()) / spread if spread > 0 else torch.zeros_like(gain_BK)
        bonus_BK = unit_BK.exp() - unit_BK.exp()[known_BK].mean()
    else:
        bonus_BK = torch.zeros_like(gain_BK)
    last_B1 = (known_BK.sum(-1, keepdim=True) - 1).clamp(min=0)
    step = torch.minimum(step_BT, last_B1)
    stepped_B1 = known_BK.any(-1, keepdim=True)
    factor_BT = torch.where(stepped_B1, factor_BK.gather(-1, step), 1.0)
    bonus_BT = torch.where(stepped_B1, bonus_BK.gather(-1, step), 0.0)
    return (advantage_B[:, None] * factor_BT + xi * bonus_BT) * mask_BT


def by_importance(
    advantage_B: Tensor, step_value_BK: Tensor, step_BT: Tensor, correct_B: Tensor, mask_BT: Tensor, *, form: Literal["share", "softmax"] = "share"
) -> Tensor:
    """What is left of A from the token's step on, when every step has earned its part of it (`importance_shares`): what changed the chance of a right
    end (ReviBranch, arXiv 2508.17452). The first step has all of A."""
    share_BK = importance_shares(step_advantages(step_value_BK, correct_B).abs(), form)
    left_BK = share_BK.flip(-1).cumsum(-1).flip(-1)
    last_B1 = (~step_value_BK.isnan()).sum(-1, keepdim=True).sub(1).clamp(min=0)
    return advantage_B[:, None] * left_BK.gather(-1, torch.minimum(step_BT, last_B1)) * mask_BT


def importance_shares(importance_BK: Tensor, form: Literal["share", "softmax"]) -> Tensor:
    """I_k / sum I, equal parts where all are 0; or the softmax of I. Steps that are nan have no part."""
    known_BK = ~importance_BK.isnan()
    if form == "softmax":
        return importance_BK.masked_fill(~known_BK, -torch.inf).softmax(-1).nan_to_num(0.0)
    part_BK = importance_BK.nan_to_num(0.0)
    part_BK = torch.where(part_BK.sum(-1, keepdim=True) > 0, part_BK, known_BK.to(part_BK))
    return part_BK / part_BK.sum(-1, keepdim=True).clamp(min=1e-12)


def token_optimal(
    advantage_B: Tensor,
    token_reward_BT: Tensor,
    logp_old_BT: Tensor,
    squares_old_BT: Tensor,
    group_B: Tensor,
    mask_BT: Tensor,
    *,
    zero_tail: bool = False,
) -> Tensor:
    """G_t - B_t, B_t the mean over the group of the returns G at the same place of the response, weighted by the size of the score so far,
    W_t = sum_{s<=t} (1 - 2 pi + sum_v pi_v^2): the baseline of least variance for each token (OTB, arXiv 2602.07078).

    Where one response alone is left the advantage is 0, or G with `zero_tail`; it is 0 in a group of one.
    """
    return_BT = return_to_go(advantage_B, token_reward_BT, mask_BT)
    weight_BT = ((1 - 2 * logp_old_BT.exp() + squares_old_BT) * mask_BT).cumsum(-1)
    trained = mask_BT > 0
    index_B, groups = group_index(group_B)
    place_N = (index_B[:, None] * mask_BT.shape[1] + mask_BT.cumsum(-1).long() - 1)[trained]

    def total(value_BT: Tensor) -> Tensor:
        return torch.zeros(groups * mask_BT.shape[1]).to(mask_BT).index_add(0, place_N, value_BT[trained])[place_N]

    _, size_B = group_sum(advantage_B, group_B)
    rest_BT = torch.where(size_B > 1, 0.0, 1.0)[:, None] * return_BT if zero_tail else return_BT
    baseline_N = torch.where(total(mask_BT) > 1, total(return_BT * weight_BT) / total(weight_BT).clamp(min=1e-8), rest_BT[trained])
    return return_BT - torch.zeros_like(mask_BT).masked_scatter(trained, baseline_N)


def outcome_chance(advantage_B: Tensor, outcome_logits_old_BTK: Tensor, outcome_B: Tensor, mask_BT: Tensor) -> Tensor:
    """A p_t(k), k what came of the response and p_t the chance that the critic gave it before the token (CodeRL, arXiv 2207.01780): what it had not
    foreseen has no credit yet."""
    chance_BT = outcome_logits_old_BTK.softmax(-1).gather(-1, outcome_B[:, None, None].expand(*mask_BT.shape, 1))[..., 0]
    return advantage_B[:, None] * chance_BT * mask_BT


def shared_prefix_mean(advantage_B: Tensor, share_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """ARPO's hard attribution (arXiv 2507.19849): a token that d siblings share has the mean of their advantages."""
    index, _ = group_index(share_BT[mask_BT > 0])
    mean_N = group_mean(advantage_B[:, None].expand_as(mask_BT)[mask_BT > 0], index)
    return torch.zeros_like(mask_BT).masked_scatter(mask_BT > 0, mean_N)


def step_group(
    advantage_B: Tensor, shaped_B: Tensor, turn_BT: Tensor, state_BT: Tensor, mask_BT: Tensor, *, gamma: float = 0.95, omega: float = 1.0
) -> Tensor:
    """A + omega A_S on the tokens of each turn (GiGPO, arXiv 2505.10978): A_S is the turn's return, gamma^(turns left) R, minus the mean of all turns
    of siblings that answer the same state, as often as each comes to it; 0 where no other does.
    """
    trained = mask_BT > 0
    turn_BT, first_BT = _turns(turn_BT, trained)
    first_N = first_BT[trained]
    left_BT = turn_BT.amax(-1, keepdim=True) - turn_BT
    return_N = (shaped_B[:, None] * gamma**left_BT)[trained]
    index_N, states = group_index(state_BT[trained])
    total = torch.zeros(states).to(return_N).index_add(0, index_N[first_N], return_N[first_N])
    size = torch.zeros_like(total).index_add(0, index_N[first_N], torch.ones_like(return_N[first_N]))
    apart_N = torch.where(size[index_N] > 1, return_N - (total / size)[index_N], 0.0)
    return advantage_B[:, None] * mask_BT + omega * torch.zeros_like(mask_BT).masked_scatter(trained, apart_N.to(mask_BT))


def turn_return(turn_return_BT: Tensor, turn_BT: Tensor, group_B: Tensor, mask_BT: Tensor, *, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """(Q - mean_g) / (std_g + eps) on the tokens of each turn, Q its return and both over the siblings' turns of the same number (Traffic-R1, arXiv
    2508.02344); 0 where no other has a turn of that number. What the response is worth as a whole counts nothing.
    """
    trained = mask_BT > 0
    turn_BT, first_BT = _turns(turn_BT, trained)
    index_N, groups = group_index((group_B[:, None] * (turn_BT.max() + 1) + turn_BT)[trained])
    first_N, return_N = first_BT[trained], turn_return_BT.to(mask_BT)[trained]

    def total(value_N: Tensor) -> Tensor:
        return torch.zeros(groups).to(value_N).index_add(0, index_N[first_N], value_N[first_N])[index_N]

    size_N = total(torch.ones_like(return_N))
    centred_N = return_N - total(return_N) / size_N
    std_N = (total(centred_N**2) / (size_N - ddof).clamp(min=1)).sqrt()
    return torch.zeros_like(mask_BT).masked_scatter(trained, torch.where(size_N > 1, centred_N / (std_N + eps), 0.0))


def _turns(turn_BT: Tensor, trained: Tensor) -> tuple[Tensor, Tensor]:
    """Turns of the tokens that train, -1 elsewhere, and whether a token is the first such of its turn."""
    turn_BT = torch.where(trained, turn_BT, -1)
    before_BT = torch.nn.functional.pad(turn_BT.cummax(-1).values[:, :-1], (1, 0), value=-1)
    return turn_BT, turn_BT > before_BT


def projection_residual(
    advantage_B: Tensor,
    hidden_old_BTH: Tensor,
    shaped_B: Tensor,
    group_B: Tensor,
    mask_BT: Tensor,
    *,
    positive: float = 0.1,
    least: float = 0.1,
    rank: int = 64,
    tokens: int = 4096,
    low: float = 0.2,
    high: float = 0.8,
) -> Tensor:
    """ResRL: wrong tokens that look like those of right responses are pushed down less.

    Per group: a basis of the `rank` main directions of right tokens' features (head input, normalised); a wrong token's
    distance from that space, between the quantiles `low` and `high`, gives its weight in [least, 1]. Right responses (reward
    above 0) weigh `positive`. Groups of one sign, or with fewer than four right tokens, keep weight 1 on wrong tokens.
    Past `tokens` right tokens an even subset stands for all.
    """
    feature_BTH = torch.nn.functional.layer_norm(hidden_old_BTH.float(), hidden_old_BTH.shape[-1:])
    trained, right = mask_BT > 0, shaped_B > 0
    weight_BT = torch.where(right, positive, 1.0)[:, None].expand_as(mask_BT).clone().to(mask_BT)
    for group in torch.unique(group_B):
        good, bad = (trained & (mine & (group_B == group))[:, None] for mine in (right, ~right))
        x_NH = feature_BTH[good]
        if len(x_NH) < 4 or not bad.any():
            continue
        if len(x_NH) > tokens:
            x_NH = x_NH[torch.linspace(0, len(x_NH) - 1, tokens, device=x_NH.device).long()]
        distance_N = projection_distance(x_NH, feature_BTH[bad], rank)
        bottom, top = torch.quantile(distance_N, torch.tensor([low, high]).to(distance_N))
        unit_N = ((distance_N - bottom) / (top - bottom)).clamp(0, 1) if top - bottom >= 1e-5 else torch.full_like(distance_N, 0.5)
        weight_BT[bad] = (least + (1 - least) * unit_N).to(weight_BT)
    return advantage_B[:, None] * weight_BT * mask_BT


def projection_distance(basis_NH: Tensor, feature_MH: Tensor, rank: int) -> Tensor:
    """Mean square of what is left of each feature (M, H), less the basis' mean, outside its `rank` main directions."""
    mean_H = basis_NH.mean(0)
    count = min(rank, len(basis_NH) - 1, basis_NH.shape[1])
    directions_HH = torch.linalg.eigh((basis_NH - mean_H).mT @ (basis_NH - mean_H)).eigenvectors[:, -count:]
    centred_MH = feature_MH - mean_H
    return ((centred_MH - centred_MH @ directions_HH @ directions_HH.mT) ** 2).mean(-1)


def whiten(advantage_BT: Tensor, mask_BT: Tensor, *, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """(A - mean) / sqrt(var + eps) over all trainable tokens of the batch; a batch of one token stays as it is."""
    count = mask_BT.sum()
    if count < 2:
        return advantage_BT
    mean = (advantage_BT * mask_BT).sum() / count
    variance = ((advantage_BT - mean) ** 2 * mask_BT).sum() / (count - ddof)
    return (advantage_BT - mean) * (variance + eps).rsqrt() * mask_BT


def own_tokens(advantage_BT: Tensor, guided_BT: Tensor) -> Tensor:
    """0 on what a guide wrote, which learns otherwise."""
    return advantage_BT * (1 - guided_BT)


def teacher_gap(advantage_BT: Tensor, logp_taught_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor, *, coefficient: float = 1.0) -> Tensor:
    """A + coefficient (log teacher - log pi_old): minus the reverse KL to the teacher, sampled at the student's own token (MiMo-V2-Flash, arXiv
    2601.02780; slime)."""
    return (advantage_BT + coefficient * (logp_taught_BT - logp_old_BT)) * mask_BT


def remaining_gap(advantage_BT: Tensor, mask_BT: Tensor, *, weight: float = 0.5) -> Tensor:
    """A (1 + weight (1 - share of sum |A| that came before)): early tokens, whose gap all the rest inherits, count more (IW-OPD, arXiv
    2606.22600)."""
    size_BT = advantage_BT.abs() * mask_BT
    total_B1 = size_BT.sum(-1, keepdim=True)
    before_BT = (size_BT.cumsum(-1) - size_BT) / total_B1.clamp(min=1e-12)
    return advantage_BT * torch.where(total_B1 > 0, 1 + weight * (1 - before_BT), 1.0)


def zero_outliers(
    advantage_BT: Tensor, credited_BT: Tensor, mask_BT: Tensor, *, limit: float = 3.0, around: Literal["zero", "raw_mean"] = "zero"
) -> Tensor:
    """0 where |A| > limit, on whitened advantages (StableReinforce, arXiv 2505.02835). The released code measures the distance from
    the mean before whitening (`raw_mean`)."""
    middle = (credited_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1) if around == "raw_mean" else 0.0
    return torch.where((advantage_BT - middle).abs() > limit, 0.0, advantage_BT)
