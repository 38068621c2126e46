"""How like a response is to the worked solution of its problem, and how unlike to those of others (CARFT, arXiv 2508.15868).

    z = sum_t softmax_t(V) P h_t / its norm        P h_t: `projected_BTK`, V the value head's, over the response; of a wrong one over what it has in
                                                   common with the solution
    L = -mean over responses of log (exp(z a+ / tau) / sum_j exp(z a_j / tau))        a_j: embeddings of the batch's solutions, a+ its own problem's

The solutions are rows of the batch, which a guide wrote. `embeddings_N` lists what all rows are, so that a slice's share of L has the gradient of its
own rows: of its responses through z, of its solutions through a.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding(projected_BTK: Tensor, value_BT: Tensor, mask_BT: Tensor, guided_BT: Tensor, correct_B: Tensor, common_BT: Tensor) -> Tensor:
    """z of each row (B, K), 0 where it has nothing to be of."""
    whole_B = correct_B.bool() | solutions(guided_BT, mask_BT)
    seen_BT = torch.where(whole_B[:, None], mask_BT, mask_BT * common_BT) > 0
    weight_BT = value_BT.masked_fill(~seen_BT, -1e4).softmax(-1) * seen_BT
    return F.normalize((weight_BT[..., None] * projected_BTK).sum(1), dim=-1)


def solutions(guided_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The rows (B,) that a guide wrote."""
    return (guided_BT * mask_BT).sum(-1) > 0


def embeddings(embedding_BK: Tensor, group_B: Tensor, guided_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Group, whether it is a solution, and z of each row that has one, end to end."""
    columns = torch.cat([torch.stack([group_B, solutions(guided_BT, mask_BT)], -1).to(embedding_BK), embedding_BK.detach()], -1)
    return columns[embedding_BK.detach().any(-1)].flatten()


def contrast(
    embedding_BK: Tensor,
    group_B: Tensor,
    guided_BT: Tensor,
    mask_BT: Tensor,
    embeddings_N: Tensor | None = None,
    *,
    coefficient: float = 0.1,
    tau: float = 0.2,
) -> Tensor:
    """CARFT: coefficient * L, this slice's share; responses of problems whose solution is not in the batch are left out."""
    listed = embeddings(embedding_BK, group_B, guided_BT, mask_BT) if embeddings_N is None else embeddings_N
    rows = listed.view(-1, embedding_BK.shape[1] + 2)
    group_S, z_SK = (part[rows[:, 1] == 0] for part in (rows[:, 0], rows[:, 2:]))
    group_M, a_MK = (part[rows[:, 1] == 1] for part in (rows[:, 0], rows[:, 2:]))
    count = int((group_S[:, None] == group_M).any(-1).sum())
    if not count:
        return 0 * embedding_BK.sum()
    here_B, solution_B = embedding_BK.detach().any(-1), solutions(guided_BT, mask_BT)

    def positive(group: Tensor, others: Tensor) -> Tensor:
        same = (group[:, None] == others).to(embedding_BK)
        return same / (group[:, None] == group_M).sum(-1, keepdim=True).clamp(min=1)

    own_BM = positive(group_B, group_M) * (here_B & ~solution_B)[:, None]
    loss = -(own_BM * (embedding_BK @ a_MK.T / tau).log_softmax(-1)).sum()
    pull_SB = positive(group_S, group_B)
    known_S1 = (group_S[:, None] == group_M).any(-1, keepdim=True)
    push_SB = (z_SK @ embedding_BK.detach().T / tau - (z_SK @ a_MK.T / tau).logsumexp(-1, keepdim=True)).exp()
    slope_BK = ((push_SB - pull_SB) * known_S1).T @ z_SK / tau * (here_B & solution_B)[:, None]
    through = (slope_BK.detach() * embedding_BK).sum()
    return coefficient * (loss + through - through.detach()) / count
