"""Examples from any loader: read once, batch by batch, checked, and joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from shaprune.errors import InputError
from shaprune.network.batches import WHOLE, Inputs, length, named_leaves, split_batch, tensors
from shaprune.network.disk_buffer import join_batches


def collect_batches(data: Iterable[Any], max_bytes: int | None = None) -> tuple[Inputs, Tensor | None]:
    """Read all batches and join them in order.

    Args:
        data: batches, see `shaprune.network.batches.split_batch`; read once.
        max_bytes: that are kept in memory, the rest goes to a temporary file, see `join_batches`; None = all.

    Raises:
        InputError: no batch, a batch of another form, inputs and targets of different lengths, or batches that do not
            fit together.
    """
    check_data(data)
    batches = _checked(data)
    first = next(batches, None)
    if first is None:
        raise InputError("the data holds no example; check the loader (an iterator can be read only once)")
    inputs, targets = join_batches(chain([first], batches), max_bytes)
    return inputs, targets


def check_data(data: Any, name: str = "data") -> None:
    """Refuse one batch where batches are wanted: a tensor, a mapping, ``(inputs, targets)``.

    Args:
        data: anything.
        name: what the caller knows it by, for messages.

    Raises:
        InputError: it is no collection of batches; the next step is in the message.
    """
    kind = type(data).__name__
    if isinstance(data, (Tensor, Mapping)):
        raise InputError(f"{name} is a {kind}, which would be one batch; put it in a list, [batch]")
    if isinstance(data, (str, bytes)):
        raise InputError(f"{name} is a {kind}; it must be an iterable of batches (inputs, targets)")
    if type(data) is tuple and len(data) == 2 and tensors(data[0]) and (data[1] is None or _is_tensor(data[1])):
        raise InputError(
            f"{name} is a tuple of two, as one batch (inputs, targets) is; put it in a list, [(inputs, targets)], or, "
            "if these are two batches without targets, [one, two]"
        )


def _is_tensor(thing: Any) -> bool:
    return isinstance(thing, Tensor)


def _checked(data: Iterable[Any]) -> Iterator[tuple[Inputs, Tensor | None]]:
    """The batches that hold examples, as (inputs, targets)."""
    labelled: bool | None = None
    first: Inputs = None
    for number, (inputs, targets) in enumerate(_read(data)):
        examples = length(inputs)
        if not examples:
            continue
        if targets is not None and targets.shape[:1] != (examples,):
            given = len(targets) if targets.ndim else "0-dimensional"
            raise InputError(f"a batch has {examples} inputs and {given} targets; they must agree")
        if labelled is not None and labelled != (targets is not None):
            raise InputError("some batches have targets and some have none; give targets in all of them or in none")
        labelled = targets is not None
        first = inputs if first is None else first
        _check_like(first, inputs, number)
        yield inputs, targets


def _read(data: Iterable[Any]) -> Iterator[tuple[Inputs, Tensor | None]]:
    try:
        for batch in data:
            yield split_batch(batch)
    except TypeError as error:
        raise InputError(f"data cannot be read as batches: {error}; give an iterable of (inputs, targets)") from error


def _check_like(first: Inputs, inputs: Inputs, number: int) -> None:
    """Refuse a batch that cannot be joined with the first: other inputs, other values or sizes of these."""
    ours, theirs = named_leaves(inputs), named_leaves(first)
    for name in (*theirs, *ours):
        if name not in ours or name not in theirs:
            have, lacks = (1, number + 1) if name in theirs else (number + 1, 1)
            raise InputError(
                f"the batches do not fit together: batch {have} has an input {name} and batch {lacks} has not; give "
                "the same inputs in all of them"
            )
    for name, value in ours.items():
        before = theirs[name]
        if isinstance(value, Tensor) and isinstance(before, Tensor):
            _check_sizes(name, before, value, number)
        elif isinstance(value, Tensor) or isinstance(before, Tensor) or not _same(before, value):
            raise InputError(
                f"input {name} is {_told(before)} in the first batch and {_told(value)} in batch {number + 1}; what is "
                "no tensor must be the same in all batches: give it as a tensor with one entry per example, or score "
                "such batches one by one"
            )


def _check_sizes(name: str, before: Tensor, tensor: Tensor, number: int) -> None:
    if tensor.shape[1:] == before.shape[1:]:
        return
    sizes = f"{tuple(before.shape)} in the first batch and {tuple(tensor.shape)} in batch {number + 1}"
    if tensor.ndim != before.ndim:
        hint = "; if these two are inputs and targets, give [(inputs, targets)]" if name == WHOLE else ""
        raise InputError(f"the batches do not fit together: {name} has shape {sizes}{hint}")
    longest = max(before.shape[1], tensor.shape[1])
    if tensor.is_floating_point():
        hint = "bring all examples to one size (resize, crop or pad)"
    else:
        hint = f"pad all to one length, by tokenizer(..., padding='max_length', max_length={longest}), or more"
    raise InputError(f"the batches do not fit together: {name} has shape {sizes}; {hint}")


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(np.all(a == b))
    except (TypeError, ValueError, RuntimeError):
        return False


def _told(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
