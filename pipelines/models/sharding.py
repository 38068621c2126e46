"""Weights spread over the processes of `torchrun` (FSDP2): each keeps its share of weights, gradients and optimiser state.

Hooks gather a layer's weights when it runs and free them after, so what runs pieces of a module by itself goes through `within`.
Gradients of the processes are summed, not averaged: a rank's loss is its share of the loss of all rows.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

_WHOLE = StateDictOptions(full_state_dict=True, strict=False)
_WHOLE_ON_FIRST = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Whole tensors in the memory of the first process' CPU, one by one as they are gathered; nothing on the others."""


def is_sharded(module: Any) -> bool:
    """Whether `shard` has been here."""
    return isinstance(module, FSDPModule)


def within(module: Any, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """`function(module, ...)` as if it were the module's forward pass: with its weights gathered where they are sharded."""
    return module.call_within(function, *arguments, **named) if is_sharded(module) else function(module, *arguments, **named)


def shard(model: Any) -> None:
    """Spread `model` over all processes, in place: each decoder layer a unit, the rest another. Needs torch.distributed."""
    mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
    for module in (*model.base_model.layers, model):
        fully_shard(module, mesh=mesh)
        module.call_within = types.MethodType(_call, module)
        register_fsdp_forward_method(module, "call_within")
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    model.is_gathered = False


def _call(module: Any, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(module, *arguments, **named)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Whole weights on every process meanwhile, without gradient: any number of forward passes, which need not be the same on each.

    Every process must come here. Inside it does nothing, so there they need not.
    """
    if not is_sharded(model) or model.is_gathered:
        yield
        return
    for unit in _units(model):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    model.is_gathered = True
    try:
        yield
    finally:
        model.is_gathered = False
        for unit in _units(model):
            unit.set_reshard_after_forward(unit is not model, recurse=False)
        spread(model)


def spread(model: Any) -> None:
    """Free whole weights that a pass without gradient left behind: parameters are the shards again."""
    for unit in _units(model):
        unit.reshard()


def _units(model: Any) -> list[Any]:
    return [module for module in model.modules() if is_sharded(module)]


def weights(model: Any) -> dict[str, Tensor]:
    """The state dict, of whole tensors. Every process must ask."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()}


def weights_on_first(model: Any) -> dict[str, Tensor]:
    """`weights` for the first process alone, on its CPU where they are sharded; empty on the others. Every process must ask."""
    state: dict[str, Any] = get_model_state_dict(model, options=_WHOLE_ON_FIRST) if is_sharded(model) else model.state_dict()
    return state


def load_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Whole tensors into a model that may be sharded, which keeps its own where `state` has none."""
    if is_sharded(model):
        set_model_state_dict(model, dict(state), options=_WHOLE)
    else:
        model.load_state_dict(state, strict=False)


def optimiser_state(model: Any, optimiser: torch.optim.Optimizer) -> Any:
    """The optimiser's state dict, of whole tensors, likewise for the first process alone. Every process must ask."""
    return get_optimizer_state_dict(model, optimiser, options=_WHOLE_ON_FIRST) if is_sharded(model) else optimiser.state_dict()


def load_optimiser(model: Any, optimiser: torch.optim.Optimizer, state: Any) -> bool:
    """Load what `optimiser_state` gave; its rates, decays and the like stay those that the optimiser was made with.

    False, and nothing is loaded, where it is the state of another kind of optimiser, or of one of other weights.
    """
    if [_kind(group) for group in state["param_groups"]] != [_kind(group) for group in optimiser.param_groups]:
        return False
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimiser.param_groups]
    if is_sharded(model):
        set_optimizer_state_dict(model, optimiser, state, options=_WHOLE)
    else:
        optimiser.load_state_dict(state)
    for group, settings in zip(optimiser.param_groups, own, strict=True):
        group.update(settings)
    return True


def _kind(group: Mapping[str, Any]) -> tuple[int, bool]:
    return len(group["params"]), bool(group.get("muon"))
