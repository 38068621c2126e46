"""What trains beside a model's own weights. LoRA (arXiv 2106.09685) through the library peft: low-rank updates are trained, the weights themselves
stay. A value head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines import seeding
from pipelines.config.training import LoraSettings
from pipelines.errors import UserError
from pipelines.models.sharding import weights, weights_on_first

ADAPTER = "default"
"""The library's name for the only adapter there is."""
VALUE_HEAD = "value_head."
"""What the names of a value head's weights begin with: it trains with the policy, and is no part of the model."""


def add_adapters(policy: Any, settings: LoraSettings, *seed: object, whole: Sequence[str] = ()) -> None:
    """Put adapters into `policy`, in place; only they require gradients, and the modules `whole`, which get none. They start at no change, in
    directions that the seed draws.

    Raises:
        UserError: no module has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seeding.key("adapters", *seed))
            config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, exclude_modules=list(whole) or None)
            inject_adapter_in_model(config, policy)
    except ValueError as error:
        raise UserError(f"lora.targets {targets}: {str(error).splitlines()[0]}") from error
    for name, p in policy.named_parameters():
        p.requires_grad_("lora_" in name or name.startswith(tuple(f"{module}." for module in whole)))


def add_value_head(policy: Any) -> None:
    """Give `policy` one, in place, which says 0 of everything."""
    policy.value_head = torch.nn.Linear(policy.config.hidden_size, 1, device=policy.device)
    torch.nn.init.zeros_(policy.value_head.weight)
    torch.nn.init.zeros_(policy.value_head.bias)


def value_of(head: torch.nn.Linear, hidden_NE: Tensor) -> Tensor:
    """A value head's estimate (N,) of what the language-model head sees, float32."""
    with torch.autocast(hidden_NE.device.type, enabled=False):
        return head(hidden_NE.float())[:, 0]


def plain_weights(policy: Any, *, everywhere: bool = False) -> dict[str, Tensor]:
    """The state dict of the model itself: whole tensors, adapters added to the weights they belong to, no value head.

    Where `policy` is sharded every process must ask, and all but the first get an empty one unless they are wanted `everywhere`.
    """
    whole = weights(policy) if everywhere else weights_on_first(policy)
    if not whole:
        return {}
    state = {name: value.detach() for name, value in whole.items() if not name.startswith(VALUE_HEAD)}
    scales = {name: module.scaling[ADAPTER] for name, module in policy.named_modules() if hasattr(module, "lora_A")}
    for name, scale in scales.items():
        low, high = state.pop(f"{name}.lora_A.{ADAPTER}.weight"), state.pop(f"{name}.lora_B.{ADAPTER}.weight")
        state[f"{name}.weight"] = state.pop(f"{name}.base_layer.weight") + scale * high @ low
        if (bias := state.pop(f"{name}.base_layer.bias", None)) is not None:
            state[f"{name}.bias"] = bias
    return state
