"""Slots `anchor` and `ratio`: the importance ratio. A ratio function gives the log ratio x (B, T) whose exponent weighs a token.

Sequence and cumulative ratios have the value of many tokens and the gradient of the token they stand at, written
sg(v) + logp - sg(logp); the gradients of a sequence's tokens add up to that of its ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_LIMIT = 20.0
"""Log ratios of a token are kept inside +-20 before exp, those of many tokens below 10, as verl does."""


def anchor_old(logp_old_BT: Tensor) -> Tensor:
    """The proximal policy."""
    return logp_old_BT


def anchor_roll(logp_roll_BT: Tensor) -> Tensor:
    """The behaviour policy itself: the ratio then corrects staleness and engine mismatch at once."""
    return logp_roll_BT


def anchor_allowed(logp_allowed_old_BT: Tensor) -> Tensor:
    """The proximal policy among the tokens that it could say (NLPO)."""
    return logp_allowed_old_BT


def anchor_ref(logp_ref_BT: Tensor) -> Tensor:
    """The reference policy."""
    return logp_ref_BT


def token(logp_BT: Tensor, anchor_BT: Tensor, *, limit: float = LOG_LIMIT) -> Tensor:
    """log pi - log anchor, token by token, inside +-limit."""
    return (logp_BT - anchor_BT).clamp(-limit, limit)


def token_allowed(logp_allowed_BT: Tensor, anchor_BT: Tensor, *, limit: float = LOG_LIMIT) -> Tensor:
    """`token` of a policy that could say only some tokens: both sides renormalised on the set that the token was drawn from (NLPO, arXiv
    2210.01241)."""
    return token(logp_allowed_BT, anchor_BT, limit=limit)


def sequence_geometric(logp_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over the response at every token (GSPO, arXiv 2507.18071, in its token form)."""
    length = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return _through_own_token(((logp_BT - anchor_BT) * mask_BT).sum(-1, keepdim=True) / length, logp_BT)


def sequence_geometric_clipped(logp_BT: Tensor, anchor_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, limit: float = 0.4) -> Tensor:
    """The same mean, of log ratios that are at most `limit` where A > 0 and at least -limit where A < 0: one token moves it no further, and has no
    gradient beyond (GMPO, arXiv 2507.20673)."""
    x_BT = logp_BT - anchor_BT
    x_BT = torch.where(advantage_BT > 0, x_BT.clamp(max=limit), torch.where(advantage_BT < 0, x_BT.clamp(min=-limit), x_BT))
    length = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return _through_own_token((x_BT * mask_BT).sum(-1, keepdim=True) / length, x_BT)


def sequence_product(logp_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The sum over the response at every token: the exact ratio of the whole response."""
    return _through_own_token(((logp_BT - anchor_BT) * mask_BT).sum(-1, keepdim=True), logp_BT)


def cumulative_product(logp_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The sum up to and with the token (CTPO, arXiv 2605.07331)."""
    return _through_own_token(((logp_BT - anchor_BT).clamp(-LOG_LIMIT, LOG_LIMIT) * mask_BT).cumsum(-1), logp_BT)


def cumulative_geometric(logp_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean up to and with the token (CTPO's variant)."""
    total = ((logp_BT - anchor_BT).clamp(-LOG_LIMIT, LOG_LIMIT) * mask_BT).cumsum(-1)
    return _through_own_token(total / mask_BT.cumsum(-1).clamp(min=1), logp_BT)


def _through_own_token(value: Tensor, own_BT: Tensor) -> Tensor:
    return value.detach().clamp(max=10.0) + own_BT - own_BT.detach()
