"""Batches of any shape: a tensor, a tuple, a mapping, a dataclass; the first dimension of each tensor is the batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.buffers import kept_buffers

Inputs = Any  # Tensor | tuple[Tensor, ...] | dict[str, Tensor], nested
Forward = Callable[[nn.Module, Inputs], Any]
LABELS = ("labels", "label", "targets", "target")  # keys of the targets in a batch that is a mapping
WHOLE = "the input"  # the name of a structure that is one leaf
MAIN = ("logits", "out", "output")  # keys or attributes of the output that worths look at


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Run ``model`` on inputs: a mapping as keywords, a tuple as positional arguments, anything else as the one."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def run(model: nn.Module, inputs: Inputs, forward: Forward | None = None, device: torch.device | None = None) -> Any:
    """Run a network once on data that are the caller's: on a copy, as networks may write to what they are given.

    Buffers that it writes to (counters, observers) come back: results do not depend on the order of the batches.

    Args:
        model: in eval mode.
        inputs: see `call`.
        forward: how it is called, where it is not simply called.
        device: where the copy is made; None = where the inputs are.
    """
    with kept_buffers(model):
        return (forward or call)(model, copied_inputs(inputs, device))


def copied_inputs(inputs: Inputs, device: torch.device | None = None) -> Inputs:
    """The same structure with copies of all tensors, on a device where one is given."""
    return transform(inputs, lambda t: t.detach().to(device or t.device, copy=True))


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of a nested structure, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [t for value in tree for t in tensors(value)]
    return [t for value in entries(tree).values() for t in tensors(value)]


def all_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two lists hold equal tensors in the same order."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def transform(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor replaced; mappings that are no dict (`BatchEncoding`) become one."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return _row_like(tree, [transform(value, function) for value in tree])
    held = entries(tree)
    return _like(tree, {key: transform(value, function) for key, value in held.items()}) if held else tree


def pick_rows(inputs: Inputs, rows: Tensor | slice) -> Inputs:
    """The same structure with some rows of every tensor, each on its device; numbers stay as they are."""
    return transform(inputs, lambda t: t[rows if isinstance(rows, slice) else rows.to(t.device)] if t.ndim else t)


def entries(tree: Any) -> Mapping[Any, Any]:
    """What a dict, another mapping, a dataclass or an object with one of `MAIN` holds; empty for anything else."""
    if tree is None or isinstance(tree, (str, int, float, type)):
        return {}
    if isinstance(tree, Mapping):
        return tree
    if is_dataclass(tree):
        return {field.name: getattr(tree, field.name) for field in fields(tree) if hasattr(tree, field.name)}
    held = {} if isinstance(tree, nn.Module) else getattr(tree, "__dict__", {})
    return held if any(isinstance(held.get(name), Tensor) for name in MAIN) else {}


def _like(tree: Any, held: dict[Any, Any]) -> Any:
    """A structure like ``tree`` with other entries."""
    if isinstance(tree, Mapping):
        both = hasattr(type(tree), "__dataclass_fields__")  # outputs of transformers have fields and keys at once
        return type(tree)(**held) if both else held
    made = copy.copy(tree)
    for name, value in held.items():
        object.__setattr__(made, name, value)  # also where it is frozen
    return made


def _row_like(tree: Any, values: list[Any]) -> Any:
    """A tuple or list like ``tree``, or a named tuple, of other values."""
    return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device; the way from the CPU to a GPU leads through pinned memory, without waiting."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def concatenate(trees: Sequence[Any]) -> Any:
    """One structure whose tensors are those of ``trees`` one after the other along the batch."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if isinstance(first, (tuple, list)):
        return _row_like(first, [concatenate([t[i] for t in trees]) for i in range(len(first))])
    held = [entries(tree) for tree in trees]
    return _like(first, {key: concatenate([h[key] for h in held]) for key in held[0]}) if held[0] else first


def length(tree: Any) -> int:
    """Number of examples in a batch of inputs.

    Raises:
        InputError: no tensor inside, or tensors that disagree.
    """
    sizes = {len(t) for t in tensors(tree) if t.ndim}
    if len(sizes) != 1:
        raise InputError(
            f"the inputs of a batch hold tensors with first dimensions {sorted(sizes)}; "
            "each tensor's first dimension must be the batch"
        )
    return sizes.pop()


def listed(inputs: Inputs) -> int | None:
    """How many tensors a list among the arguments holds, such as the images that a detector takes; None without one."""
    arguments = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else ()
    return next((len(a) for a in arguments if type(a) is list and a and all(isinstance(t, Tensor) for t in a)), None)


def apart(inputs: Inputs, answer: Any) -> bool:
    """Whether the tensors of a list are examples of their own: one structure is returned for each of them."""
    alike = isinstance(answer, (tuple, list)) and len(answer) == listed(inputs)
    return alike and not any(isinstance(entry, Tensor) for entry in answer)


def examples_in(inputs: Inputs, answer: Any) -> int:
    """Number of examples: of a list that is answered entry by entry (`apart`), its length."""
    return len(answer) if apart(inputs, answer) else length(inputs)


def main_output(outputs: Any) -> Tensor:
    """The tensor that worths look at.

    It is the output itself; ``logits`` of an object, or else ``out`` or ``output``; or the first tensor in it.

    Raises:
        InputError: there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in MAIN:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    every = tensors(outputs)
    if every:
        return every[0]
    raise InputError(
        f"the model returned a {type(outputs).__name__} without a tensor; give forward=... that returns one"
    )


def named_leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """What a nested structure holds, tensors and other things, by the way to it: ``['mask']``, ``[0]``, ``.boxes``."""
    if isinstance(tree, (tuple, list)):
        ways = [f".{field}" for field in getattr(tree, "_fields", ())] or [f"[{i}]" for i in range(len(tree))]
        parts: Iterable[tuple[str, Any]] = zip(ways, tree, strict=True)
    else:
        held = {} if isinstance(tree, Tensor) else entries(tree)
        if not held:
            return {name or WHOLE: tree}
        way = "[{!r}]" if isinstance(tree, Mapping) else ".{}"
        parts = [(way.format(key), value) for key, value in held.items()]
    return {key: leaf for way, value in parts for key, leaf in named_leaves(value, name + way).items()}


def split_batch(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Split a batch into inputs and targets.

    A batch is ``(inputs, targets)``, a dict (or another mapping, such as `BatchEncoding`) with ``labels`` (or
    ``label``, ``targets``, ``target``), or a bare tensor of inputs without labels.

    Raises:
        InputError: anything else.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        if tensors(inputs) and (targets is None or isinstance(targets, Tensor)):
            return dict(inputs) if isinstance(inputs, Mapping) else inputs, targets
    if isinstance(batch, Mapping) and tensors(batch):
        for key in LABELS:
            if key in batch:
                if not isinstance(batch[key], Tensor):
                    raise InputError(f"{key!r} of a batch is a {type(batch[key]).__name__}; it must be a tensor")
                return {k: v for k, v in batch.items() if k != key}, batch[key]
        return dict(batch), None
    shape = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    raise InputError(
        f"a batch is {shape}; each batch must be (inputs, targets), a dict of tensors, or a tensor of inputs"
    )


def example_of(model: nn.Module, example_inputs: Any) -> tuple[Inputs, str | None]:
    """The example inputs as `call` takes them, and the name of the labels that were taken out, if any.

    A batch of a data set often holds labels, with which models of transformers compute a loss over the batch; they are
    taken out, as `split_batch` does, where the model runs without them.
    """
    inputs = tuple(example_inputs) if type(example_inputs) is list else example_inputs
    if not isinstance(inputs, Mapping):
        return inputs, None
    found = next((key for key in LABELS if key in inputs), None)
    rest = {key: value for key, value in inputs.items() if key != found}
    if found is None or not tensors(rest) or not _takes(model, rest):
        return dict(inputs), None
    return rest, found


def _takes(model: nn.Module, keywords: Mapping[str, Any]) -> bool:
    """Whether a model can be called with just these keywords, as far as its signature says."""
    try:
        inspect.signature(model.forward).bind(**keywords)
    except (TypeError, ValueError):
        return False
    return True


def tensor_bytes(values: Any) -> int:
    """Bytes of all tensors in a nested structure."""
    return sum(t.numel() * t.element_size() for t in tensors(values))
