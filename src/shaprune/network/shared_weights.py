"""Copies of a model that share its parameters' memory, for work that replaces weights and never writes to them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.borrow import copied
from shaprune.network.dispatch_mode import DispatchMode

SharedParameters = list[tuple[nn.Parameter, list[tuple[str, str]]]]  # modules, and what it is called there


class _Writes(Exception):
    """A network writes to its own parameters."""


def private(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy that can be run on ``inputs`` and cut without changing ``model``.

    It shares the parameters' memory, unless the network writes to them in eval mode: then it is a deep copy.

    Raises:
        InputError: if the model cannot be copied.
    """
    other = sharing(model).eval()
    try:
        with torch.no_grad(), NoWrites(other):
            call(other, transform(inputs, torch.clone))
    except _Writes:
        return copied(model)
    except Exception:  # whether the model runs at all is asked later, with the reasons
        return other
    return other


def sharing(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own that lie in the same memory; buffers and all else are copied.

    Raises:
        InputError: if the model cannot be copied.
    """
    return copied(model, {id(p): _alias(p) for p in model.parameters() if type(p) is nn.Parameter})


def convert(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the parameters and buffers of ``model`` as `in_type` does, in place."""
    model._apply(lambda tensor: in_type(tensor, dtype))
    return model


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of real numbers in a floating-point type, one of complex numbers in two of them; others as they are."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def release(model: nn.Module) -> None:
    """Free the memory of a copy's parameters now: a module may live on in cycles."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    other = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    other.__dict__.update(parameter.__dict__)
    return other


def shared_parameters(model: nn.Module) -> SharedParameters:
    """Parameters that stand in several modules: each with the modules' names and what it is called there."""
    holders: dict[nn.Parameter, list[tuple[str, str]]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            holders[parameter].append((name, key))
    return [(parameter, places) for parameter, places in holders.items() if len(places) > 1]


class NoWrites(DispatchMode):
    """A context that stops operations, by an exception, before they write to the memory of a parameter of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.places = {p.untyped_storage().data_ptr() for p in model.parameters() if p.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(argument.name)
                if any(self._is_parameter(t) for t in tensors(given)):
                    raise _Writes
        return func(*args, **kwargs)

    def _is_parameter(self, tensor: Tensor) -> bool:
        return tensor.device.type != "meta" and tensor.untyped_storage().data_ptr() in self.places
