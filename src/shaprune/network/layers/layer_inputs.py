"""Inputs of a layer, given by position or by keyword under any name."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional, by keyword


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor that a layer is given, the data of a packed sequence among them; None where it is given none."""
    given = _first(args, kwargs)
    return given.data if isinstance(given, PackedSequence) else given


def is_packed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the first tensor that a layer is given is a packed sequence, whose rows are no examples."""
    return isinstance(_first(args, kwargs), PackedSequence)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | PackedSequence | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, (Tensor, PackedSequence))), None)


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Arguments:
    """The same arguments with ``x`` in the place of the first tensor."""
    for i, value in enumerate(args):
        if isinstance(value, (Tensor, PackedSequence)):
            return (*args[:i], with_data(value, x), *args[i + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, (Tensor, PackedSequence)):
            return args, {**kwargs, name: with_data(value, x)}
    return args, kwargs


def with_data(like: Any, x: Tensor) -> Any:
    """``x``, packed as ``like`` is."""
    return PackedSequence(x, *like[1:]) if isinstance(like, PackedSequence) else x
