"""Layers of which no call was seen, or whose calls are not those of a layer: why their channels are no players."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.kinds import UNITS, kind_of, widths_of
from shaprune.network.layers import Layer
from shaprune.network.players import Skipped

_QUESTIONS = (
    "shape",
    "size",
    "ndim",
    "dim",
    "numel",
    "stride",
    "dtype",
    "device",
    "requires_grad",
    "is_floating_point",
)


def uncalled(copy: nn.Module, inputs: Inputs, layers: Mapping[str, Layer]) -> list[Skipped]:
    """Units of layers that are none of ``layers``, and of recurrent ones, with the reason."""
    modules = dict(copy.named_modules())
    rest = {name: module for name, module in modules.items() if name not in layers}
    odd = {name: module for name, module in rest.items() if kind_of(module) in UNITS}
    known = {id(p) for name in layers if name in modules for p in modules[name].parameters(recurse=False)}
    returned, used = _watched(copy, inputs, odd, known) if odd else ({}, set())
    found = []
    for name, module in rest.items():
        if isinstance(module, nn.RNNBase):
            units = module.hidden_size * module.num_layers * (1 + module.bidirectional)
            found.append(Skipped(name, units, f"the hidden units of nn.{type(module).__name__} cannot be cut"))
            continue
        widths = widths_of(module) if name in odd else None
        if widths is None:
            continue
        if isinstance(copy.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            reason = "nn.MultiheadAttention uses its weight without calling it, and cannot run with fewer heads"
        elif name in returned:
            reason = f"it returns a {returned[name]}, and a layer returns one tensor"
        elif name in used:
            reason = "its weight is used without calling it, so what its channels become cannot be followed"
        else:
            reason = "it did not run on the example inputs"
        found.append(Skipped(name, widths[1], reason))
    return found


def fused_experts(name: str, module: nn.Module) -> str | None:
    """Why experts stay whose weights are one tensor (experts, rows, columns); None where there is none."""
    if "expert" not in f"{name.rpartition('.')[2]} {type(module).__name__}".lower():
        return None
    shapes = [tuple(p.shape) for p in module.parameters(recurse=False) if p.ndim == 3]
    if not shapes:
        return None
    size = " x ".join(str(n) for n in shapes[0])
    return f"its experts are fused parameters ({size}), one tensor for all; only experts that are modules can leave"


def _watched(
    copy: nn.Module, inputs: Inputs, odd: Mapping[str, nn.Module], known: set[int]
) -> tuple[dict[str, str], set[str]]:
    """Of some modules: the type of what those that are called return, and those whose parameters are used.

    Parameters whose ids are ``known`` are used by layers that run.
    """
    returned: dict[str, str] = {}
    names = {module: name for name, module in odd.items()}

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        returned[names[module]] = type(output).__name__

    owners = {
        id(p): name for name, module in odd.items() for p in module.parameters(recurse=False) if id(p) not in known
    }
    handles = [module.register_forward_hook(hook) for module in odd.values()]
    try:
        with torch.no_grad(), _uses(owners) as used:
            call(copy, transform(inputs, torch.clone))
    finally:
        for handle in handles:
            handle.remove()
    return returned, used


@contextmanager
def _uses(owners: Mapping[int, str]) -> Iterator[set[str]]:
    """The owners of parameters (by id) that torch's functions are given."""
    used: set[str] = set()

    class Noting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given: list[Tensor] = tensors([*args, *(kwargs or {}).values()])
            used.update(owners[id(t)] for t in given if id(t) in owners and not _is_question(func))
            return func(*args, **(kwargs or {}))

    with Noting():
        yield used


def _is_question(func: Any) -> bool:
    """Whether this only reads a type, a shape or a device."""
    name = getattr(func, "__name__", "")
    if name == "__get__":  # of an attribute
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name in _QUESTIONS or name.startswith("new_")
