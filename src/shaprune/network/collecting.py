"""Examples from any loader: read once, batch by batch, checked, and joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, length, split_batch
from shaprune.network.spill import joined


def collect(data: Iterable[Any], max_bytes: int | None = None) -> tuple[Inputs, Tensor | None]:
    """Read all batches and join them in order.

    Args:
        data: batches, see `shaprune.network.batches.split_batch`; read once.
        max_bytes: that are kept in memory, the rest goes to a temporary file, see `joined`; None = all.

    Raises:
        InputError: no batch, a batch of another form, inputs and targets of different lengths, or batches that do not
            fit together.
    """
    if isinstance(data, (Tensor, str, bytes)):
        raise InputError(f"data is a {type(data).__name__}; it must be an iterable of batches (inputs, targets)")
    batches = _checked(data)
    first = next(batches, None)
    if first is None:
        raise InputError("the data holds no example; check the loader (an iterator can be read only once)")
    inputs, targets = joined(chain([first], batches), max_bytes)
    return inputs, targets


def _checked(data: Iterable[Any]) -> Iterator[tuple[Inputs, Tensor | None]]:
    """The batches that hold examples, as (inputs, targets)."""
    labelled: bool | None = None
    for inputs, targets in _read(data):
        examples = length(inputs)
        if not examples:
            continue
        if targets is not None and targets.shape[:1] != (examples,):
            given = len(targets) if targets.ndim else "0-dimensional"
            raise InputError(f"a batch has {examples} inputs and {given} targets; they must agree")
        if labelled is not None and labelled != (targets is not None):
            raise InputError("some batches have targets and some have none; give targets in all of them or in none")
        labelled = targets is not None
        yield inputs, targets


def _read(data: Iterable[Any]) -> Iterator[tuple[Inputs, Tensor | None]]:
    try:
        for batch in data:
            yield split_batch(batch)
    except TypeError as error:
        raise InputError(f"data cannot be read as batches: {error}; give an iterable of (inputs, targets)") from error
