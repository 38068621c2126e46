"""The value head: what it says of a state, and over which bins.

A head says a number, which learns by squared error (PPO), or the logits of K bins, which learn by cross-entropy; the value is then the mean of the
bins' centres under their softmax (Farebrother et al.: Stop Regressing, arXiv 2403.03950).
Or it says the logits of K classes of outcomes, and no value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError


class ValueHead(torch.nn.Linear):
    """One that starts at 0. edges (K + 1,): of its bins, whose mean starts in their middle; None: it says a number, or the logits of so many
    `classes`. projection: beside it stands a map to so many dimensions, which starts at random and always the same."""

    edges: Tensor | None
    projection: torch.nn.Linear | None

    def __init__(
        self, hidden_size: int, edges: Tensor | None = None, device: torch.device | None = None, classes: int = 1, projection: int = 0
    ) -> None:
        super().__init__(hidden_size, classes if edges is None else len(edges) - 1, device=device)
        self.register_buffer("edges", None if edges is None else edges.to(device), persistent=False)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.projection = torch.nn.Linear(hidden_size, projection, bias=False, device=device) if projection else None
        if self.projection is not None:
            drawn = torch.randn(projection, hidden_size, generator=torch.Generator().manual_seed(0)) / hidden_size**0.5
            with torch.no_grad():
                self.projection.weight.copy_(drawn)

    def said(self, hidden_NE: Tensor) -> Tensor:
        """Its output (N, K) on what the language-model head sees, float32."""
        with torch.autocast(hidden_NE.device.type, enabled=False):
            return self(hidden_NE.float())

    def value(self, said_NK: Tensor) -> Tensor:
        """The value (N,) that its output stands for."""
        return said_NK[:, 0] if self.edges is None else expected(said_NK, self.edges)


def add_value_head(policy: Any, edges: Tensor | None = None, classes: int = 1, projection: int = 0) -> None:
    """Give `policy` one, in place, which says the same of everything."""
    policy.value_head = ValueHead(policy.config.hidden_size, edges, policy.device, classes, projection)


def bin_edges(*, bins: int = 51, low: float = 0.0, high: float = 1.0, margin: float = 2.25) -> Tensor:
    """Edges (bins + 1,) of bins of one width, of which `margin` lie below `low` and as many above `high`: a Gaussian around a return at the border
    of the range would be cut, and its mean be another.

    Raises:
        UserError: no bin is left for the range.
    """
    if bins <= 2 * margin or low >= high:
        raise UserError(f"inputs.value_edges_K: {bins} bins with a margin of {margin:g} on each side leave none for returns from {low:g} to {high:g}")
    width = (high - low) / (bins - 2 * margin)
    return torch.linspace(low - margin * width, high + margin * width, bins + 1)


def expected(logits_NK: Tensor, edges_K: Tensor) -> Tensor:
    """The mean (N,) of the bins' centres under the softmax of their logits."""
    return logits_NK.softmax(-1) @ ((edges_K[1:] + edges_K[:-1]) / 2).to(logits_NK)


def histogram(value: Tensor, edges_K: Tensor, *, sigma: float) -> Tensor:
    """What a Gaussian around `value`, which is first brought between the outer edges, has in each bin (..., K), sum 1. sigma: its deviation in widths
    of a bin; 0 shares 1 between the two nearest centres (two-hot), so that the mean of the centres is the value."""
    width = edges_K[1] - edges_K[0]
    if sigma == 0:
        centre_K = (edges_K[1:] + edges_K[:-1]) / 2
        inside = value.clamp(float(centre_K[0]), float(centre_K[-1]))
        return (1 - (inside[..., None] - centre_K).abs() / width).clamp(min=0)
    inside = value.clamp(float(edges_K[0]), float(edges_K[-1]))
    below = torch.erf((edges_K - inside[..., None]) / (2**0.5 * sigma * width))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])
