"""LoRA (arXiv 2106.09685) through the library peft: low-rank updates are trained, the weights themselves stay."""

from __future__ import annotations

import copy
from typing import Any

from pipelines.config.training import LoraSettings
from pipelines.errors import UserError


def add_adapters(policy: Any, settings: LoraSettings) -> None:
    """Put adapters into `policy`, in place; only they require gradients. They start at no change.

    Raises:
        UserError: no module has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    try:
        inject_adapter_in_model(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets), policy)
    except ValueError as error:
        raise UserError(f"lora.targets {targets}: {str(error).splitlines()[0]}") from error
    for name, p in policy.named_parameters():
        p.requires_grad_("lora_" in name)


def merged(policy: Any) -> Any:
    """A copy of `policy` with its adapters added to the weights they belong to: a plain model. Without adapters, `policy` itself."""
    if not any("lora_" in name for name, _ in policy.named_parameters()):
        return policy
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(policy)
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(module, name, child.get_base_layer())
    return plain.requires_grad_(True)
