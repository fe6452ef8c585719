"""Inputs of a layer, given by position or by keyword under any name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional, by keyword


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor that a layer is given; None where it is given none."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Arguments:
    """The same arguments with ``x`` in the place of the first tensor."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:i], x, *args[i + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, {**kwargs, name: x}
    return args, kwargs
