"""What one step of the loop knows, from which the inputs of a recipe are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelines.config.learning import LearningStage
from pipelines.models.precision import autocast
from pipelines.models.scoring import Score, token_scores
from pipelines.models.value_head import ValueHead
from pipelines.records import Problem, Trajectory
from pipelines.rl.batch import Batch
from pipelines.rl.history import History


@dataclass
class Actor:
    """The models of a run. frozen: by role: `ref`, `sft`, `dpo`, `guide` never change; `prev`, `lagged` and `teacher` follow the policy; `teachers`
    and `stored` are what rl/teachers.py has under these names; `critic` is a policy with a value head that were trained before. warming: only the
    value head learns, and what it sees has no gradient."""

    policy: Any
    tokenizer: Any
    frozen: dict[str, Any] = field(default_factory=dict)
    value_head: ValueHead | None = None
    warming: bool = False


def scored(settings: LearningStage, model: Any, ids_BT: Tensor, score_BT: Tensor, wanted: Mapping[str, Score], **more: Any) -> dict[str, Tensor]:
    """`token_scores` in the stage's precision. Whatever the stage asks a policy about given tokens goes through here, before the update as in it:
    ratios of two precisions would not be of two policies."""
    with autocast(ids_BT.device, settings.precision):
        return token_scores(model, ids_BT, score_BT, wanted, **more)


@dataclass
class Step:
    """Rollouts of one step as tensors, row by row, with what they came from. history: of the steps until this one."""

    number: int
    actor: Actor
    settings: LearningStage
    seed: tuple[object, ...]
    problems: Sequence[Problem]
    rollouts: Sequence[Trajectory]
    ids_BT: Tensor
    score_BT: Tensor
    batch: Batch
    history: History

    def tensor(self, values: Sequence[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        """One value a row."""
        return torch.tensor(list(values), dtype=dtype, device=self.ids_BT.device)

    def tokens(self, values: Sequence[Sequence[int]], fill: int) -> Tensor:
        """One integer a response token (B, T)."""
        flat = torch.tensor([value for row in values for value in row], dtype=torch.long, device=self.ids_BT.device)
        return torch.full_like(self.ids_BT, fill).masked_scatter(self.score_BT, flat)
