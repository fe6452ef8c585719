"""Inputs of a layer, given by position or by keyword under any name."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional, by keyword


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a layer reads, the data of a packed sequence among them; None where it is given none.

    That is ``input``, as torch's layers call it, where it is given by keyword; else the first one.
    """
    given = _first(args, kwargs)
    return given.data if isinstance(given, PackedSequence) else given


def is_packed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether what a layer reads is a packed sequence, whose rows are no examples."""
    return isinstance(_first(args, kwargs), PackedSequence)


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Arguments:
    """The same arguments with ``x`` in the place of what the layer reads."""
    place = _place(args, kwargs)
    if isinstance(place, int):
        return (*args[:place], with_data(args[place], x), *args[place + 1 :]), kwargs
    return args, kwargs if place is None else {**kwargs, place: with_data(kwargs[place], x)}


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | PackedSequence | None:
    place = _place(args, kwargs)
    if place is None:
        return None
    found: Tensor | PackedSequence = args[place] if isinstance(place, int) else kwargs[place]
    return found


def _place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
    """Where what a layer reads stands: the number of an argument, or a keyword."""
    for i, value in enumerate(args):
        if isinstance(value, (Tensor, PackedSequence)):
            return i
    return next((name for name in ("input", *kwargs) if isinstance(kwargs.get(name), (Tensor, PackedSequence))), None)


def with_data(like: Any, x: Tensor) -> Any:
    """``x``, packed as ``like`` is."""
    return PackedSequence(x, *like[1:]) if isinstance(like, PackedSequence) else x
