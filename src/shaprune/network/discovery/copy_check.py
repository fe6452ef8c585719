"""Refusal of models whose copy is none: Python copies no closures, so a function that holds a layer keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType
from typing import Any

from torch import nn

from shaprune.errors import InputError
from shaprune.network.batches import Inputs
from shaprune.network.layers.used_parameters import parameters_used


def check_copy(model: nn.Module, copy: nn.Module, inputs: Inputs) -> None:
    """Run a copy and refuse the model if that computes with parameters of the original.

    Args:
        model: the original.
        copy: of it, with parameters of its own.
        inputs: example inputs.

    Raises:
        InputError: naming the parameter, and the attributes that keep functions which hold modules.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    used = parameters_used(copy, inputs)
    stray = next((name for key, name in names.items() if key in used), None)
    if stray is None:
        return
    holders = list(dict.fromkeys(_holders(model)))
    which = f" ({', '.join(holders[:3])})" if holders else ""
    raise InputError(
        f"a copy of the model still computes with {stray!r} of the original, so that nothing can be cut in it: a "
        f"function that the model keeps holds the original's modules{which}, and copies of functions hold what they "
        "held; replace it by a method, a functools.partial of a bound method, or a module"
    )


def _holders(model: nn.Module) -> Iterator[str]:
    """Attributes in which modules keep functions that hold modules: lambdas, closures, hooks."""
    for name, module in model.named_modules():
        of = f" of {name}" if name else ""
        for key, value in vars(module).items():
            if any(_holds_module(found) for found in _flat(value)):
                yield f"{key.lstrip('_')}{of}"


def _flat(value: Any, depth: int = 3) -> Iterator[Any]:
    """What an attribute holds, also in lists and dicts."""
    if isinstance(value, dict) and depth:
        value = list(value.values())
    if isinstance(value, (list, tuple, set)) and depth:
        for inner in value:
            yield from _flat(inner, depth - 1)
    else:
        yield value


def _holds_module(value: Any) -> bool:
    """Whether a function holds a module in its closure or its defaults."""
    if isinstance(value, partial):
        return _holds_module(value.func)
    if not isinstance(value, FunctionType):
        return False
    held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    for cell in value.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    return any(isinstance(found, nn.Module) or _holds_module(found) for found in held)
