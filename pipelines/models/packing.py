"""Sequences laid end to end, so that no matrix product meets padding, with a prompt that several rows share laid down once.

Every layer works on the packed tokens (N, E); only attention looks at them as rows, prompts by themselves and responses with
their prompt's keys and values before their own. Shapes: B rows, T tokens of a padded row, N packed tokens, M scored positions,
U distinct prompts, P the longest of them, R the longest response, H heads, K key-value heads, D head size, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHARING = 1.25
"""Tokens of whole rows over tokens with shared prompts from which on prompts are shared."""


@dataclass(frozen=True)
class Rows:
    """Where packed tokens stand when they are seen as rows: token n of this part at `place_n` of rows * width."""

    place_n: Tensor
    rows: int
    width: int

    def spread(self, x_nHD: Tensor) -> Tensor:
        """(rows, H, width, D), zero where no token stands."""
        flat = x_nHD.new_zeros((self.rows * self.width, *x_nHD.shape[1:])).index_copy(0, self.place_n, x_nHD)
        return flat.view(self.rows, self.width, *x_nHD.shape[1:]).transpose(1, 2)

    def gather(self, x_rHWD: Tensor) -> Tensor:
        """(n, H * D), the tokens again."""
        return x_rHWD.transpose(1, 2).reshape(self.rows * self.width, -1).index_select(0, self.place_n)


@dataclass(frozen=True)
class Packing:
    """ids_N and position_N of the packed tokens; read_M: the packed tokens that predict the scored ones, in the order of ids_BT[score_BT]."""

    ids_N: Tensor
    position_N: Tensor
    read_M: Tensor
    prompts: Rows
    responses: Rows | None
    prompt_of_B: Tensor
    visible_BRS: Tensor | None
    """Keys that the queries of a response see: P of its prompt, R of its own."""
    end_B: Tensor | None
    """The last scored token of each row, where it was asked for."""

    def attend(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        """Causal attention within each sequence: (N, H * D)."""
        if q_NHD.device.type == "cpu":  # where the library's attention takes half as long again in bfloat16
            return self._attend(q_NHD.float(), k_NKD.float(), v_NKD.float()).to(v_NKD.dtype)
        return self._attend(q_NHD, k_NKD, v_NKD)

    def _attend(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
        grouped = q_NHD.shape[1] != k_NKD.shape[1]
        n = len(self.prompts.place_n)
        q, k, v = (self.prompts.spread(x[:n]) for x in (q_NHD, k_NKD, v_NKD))
        first = self.prompts.gather(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped))
        if self.responses is None:
            return first
        own_q, own_k, own_v = (self.responses.spread(x[n:]) for x in (q_NHD, k_NKD, v_NKD))
        keys, values = (torch.cat((x.index_select(0, self.prompt_of_B), own), 2) for x, own in ((k, own_k), (v, own_v)))
        assert self.visible_BRS is not None
        rest = F.scaled_dot_product_attention(own_q, keys, values, attn_mask=self.visible_BRS[:, None], enable_gqa=grouped)
        return torch.cat((first, self.responses.gather(rest)))


def pack(ids_BT: Tensor, score_BT: Tensor, *, ends: bool = False) -> Packing:
    """Lay down what predicts the tokens where `score_BT` is true, and no more; with `ends` each row's last scored token too.

    What stands before the first scored token of a row is its prompt. Every row must have a scored token, and none at position 0.
    """
    device, (count, width) = ids_BT.device, ids_BT.shape
    place_T = torch.arange(width, device=device)
    start_B = score_BT.int().argmax(1)
    last_B = (score_BT * place_T).amax(1)
    stop_B = last_B + ends  # tokens from here on need not run
    longest = int(start_B.max())
    prompt_BP = ids_BT[:, :longest].masked_fill(place_T[:longest] >= start_B[:, None], -1)
    prompt_UP, of_B = prompt_BP.unique(dim=0, return_inverse=True)
    total = int(stop_B.sum())
    if int((prompt_UP >= 0).sum() + (stop_B - start_B).sum()) * SHARING > total:  # each row whole, as a prompt without response
        inside_BT = place_T < stop_B[:, None]
        offset_B = stop_B.cumsum(0) - stop_B
        wide = int(stop_B.max())
        row_B = torch.arange(count, device=device)
        rows = Rows((row_B[:, None] * wide + place_T)[inside_BT], count, wide)
        read_M = (offset_B[:, None] + place_T - 1)[score_BT]
        end_B = offset_B + last_B if ends else None
        return Packing(ids_BT[inside_BT], place_T.expand_as(ids_BT)[inside_BT], read_M, rows, None, row_B, None, end_B)
    length_U = (prompt_UP >= 0).sum(1)
    prompts = _rows(length_U, longest)
    response_B = stop_B - start_B
    most = max(1, int(response_B.max()))
    responses = _rows(response_B, most)
    inside_BT = (place_T >= start_B[:, None]) & (place_T < stop_B[:, None])
    known_UP = prompt_UP >= 0
    ids_N = torch.cat((prompt_UP[known_UP], ids_BT[inside_BT]))
    position_N = torch.cat((place_T[:longest].expand_as(prompt_UP)[known_UP], place_T.expand_as(ids_BT)[inside_BT]))
    prompt_end_U = length_U.cumsum(0) - 1
    offset_B = len(prompts.place_n) + response_B.cumsum(0) - response_B
    first = place_T == start_B[:, None]
    read_BT = torch.where(first, prompt_end_U[of_B][:, None], offset_B[:, None] + place_T - 1 - start_B[:, None])
    place_R = torch.arange(most, device=device)
    seen = (place_T[:longest] < start_B[:, None])[:, None].expand(-1, most, -1)
    own = (place_R <= place_R[:, None]).expand(count, -1, -1)
    end_B = offset_B + last_B - start_B if ends else None
    return Packing(ids_N, position_N, read_BT[score_BT], prompts, responses, of_B, torch.cat((seen, own), 2), end_B)


def _rows(length_r: Tensor, width: int) -> Rows:
    """Rows of these lengths, left-aligned."""
    place = torch.arange(width, device=length_r.device)
    inside = place < length_r[:, None]
    return Rows((torch.arange(len(length_r), device=length_r.device)[:, None] * width + place)[inside], len(length_r), width)
