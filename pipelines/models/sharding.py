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
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

_WHOLE = StateDictOptions(full_state_dict=True)


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


def _call(module: Any, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(module, *arguments, **named)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Whole weights on every process meanwhile, without gradient: any number of forward passes, which need not be the same on each."""
    if not is_sharded(model):
        yield
        return
    for unit in _units(model):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
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


def load_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Whole tensors into a model that may be sharded."""
    if is_sharded(model):
        set_model_state_dict(model, dict(state), options=_WHOLE)
    else:
        model.load_state_dict(state)


def optimiser_state(model: Any, optimiser: torch.optim.Optimizer) -> Any:
    """The optimiser's state dict, of whole tensors. Every process must ask."""
    return get_optimizer_state_dict(model, optimiser, options=_WHOLE) if is_sharded(model) else optimiser.state_dict()


def load_optimiser(model: Any, optimiser: torch.optim.Optimizer, state: Any) -> None:
    """What `optimiser_state` gave."""
    if is_sharded(model):
        set_optimizer_state_dict(model, optimiser, state, options=_WHOLE)
    else:
        optimiser.load_state_dict(state)
