"""Batches of any shape: a tensor, a tuple, a dict of tensors; the first dimension of each tensor is the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from shaprune.errors import InputError

Inputs = Any  # Tensor | tuple[Tensor, ...] | dict[str, Tensor], nested
Forward = Callable[[nn.Module, Inputs], Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Run ``model`` on inputs: a dict as keywords, a tuple as positional arguments, a tensor as the one argument."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of a nested structure, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [t for value in tree.values() for t in tensors(value)]
    if isinstance(tree, (tuple, list)):
        return [t for value in tree for t in tensors(value)]
    return []


def transform(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: transform(value, function) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(transform(value, function) for value in tree)
    return tree


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device; the way from the CPU to a GPU leads through pinned memory, so that nobody waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def concatenate(trees: Sequence[Any]) -> Any:
    """One structure whose tensors are those of ``trees`` one after the other along the batch."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    if isinstance(first, dict):
        return {key: concatenate([t[key] for t in trees]) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(concatenate([t[i] for t in trees]) for i in range(len(first)))
    return first


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


def main_output(outputs: Any) -> Tensor:
    """The tensor that worths look at: the output itself, ``.logits`` of an object or dict, or the first of a tuple.

    Raises:
        InputError: none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict) and isinstance(outputs.get("logits"), Tensor):
        return cast(Tensor, outputs["logits"])
    if isinstance(getattr(outputs, "logits", None), Tensor):
        return cast(Tensor, outputs.logits)
    found = tensors(outputs)
    if found:
        return found[0]
    raise InputError(
        f"the model returned a {type(outputs).__name__} without a tensor; give forward=... that returns one"
    )


def split_batch(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Split a batch into inputs and targets.

    A batch is ``(inputs, targets)``, a dict with ``labels`` (or ``label``, ``targets``, ``target``), or a bare tensor
    of inputs without labels.

    Raises:
        InputError: anything else.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        if tensors(inputs) and (targets is None or isinstance(targets, Tensor)):
            return inputs, targets
    if isinstance(batch, dict) and tensors(batch):
        for key in ("labels", "label", "targets", "target"):
            if key in batch:
                if not isinstance(batch[key], Tensor):
                    raise InputError(f"{key!r} of a batch is a {type(batch[key]).__name__}; it must be a tensor")
                return {k: v for k, v in batch.items() if k != key}, batch[key]
        return batch, None
    shape = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    raise InputError(
        f"a batch is {shape}; each batch must be (inputs, targets), a dict of tensors, or a tensor of inputs"
    )
