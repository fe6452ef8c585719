"""Order of a batch: whether its examples meet, and at which modules its rows are not one example each, in order.

Some examples are run in one batch and again in batches of 1, 1, 2, 4, ... of them. Where an output changes, examples
meet. Where what a module reads or gives is not the same rows in the same order (sorted by an activation and put back,
in chunks, padded to a multiple of eight), its rows cannot be masked apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shaprune.network.batches import Forward, main_output, tensors
from shaprune.network.hooks import hooked
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.tolerance import relative_difference, tolerance_for

MOST_EXAMPLES = 32
_NEAR = 1e-4  # relative: rounding, which depends on the size of a batch, stays below
_Seen = dict[str, list[Tensor]]  # of each module, a number for every row of every call


@dataclass(frozen=True)
class BatchOrder:
    """How a network treats the rows of a batch.

    Attributes:
        meet: an example alone has another output.
        uneven: names of modules whose rows are no whole number per example (some rows only, chunks, padding).
        moved: names of modules whose rows stand in another order than those of the batch.
    """

    meet: bool = False
    uneven: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()


def batch_order(
    model: nn.Module, forward: Forward, examples: Tensor, outputs: Tensor, inputs_of: Callable[[Tensor], Any]
) -> BatchOrder:
    """Compare examples in one batch with the same ones in small batches.

    Args:
        model: in eval mode.
        forward: how it is called.
        examples: (E,) numbers of examples, `MOST_EXAMPLES` at most.
        outputs: (E, ...) of the network on these, among all others.
        inputs_of: gives the inputs of examples.
    """
    apart: list[tuple[int, _Seen]] = []
    parts = [*_growing(examples)]
    for part, expected in zip(parts, outputs.split([len(part) for part in parts]), strict=True):
        seen = _watched(model, forward, inputs_of(part), expected)
        if seen is None:
            if not _gives(model, forward, inputs_of(part), expected):
                return BatchOrder(meet=True)
            return BatchOrder()  # hooks on all modules change what it does: what is not known here is proved later
        apart.append((len(part), seen))
    together = _watched(model, forward, inputs_of(examples), outputs)
    if together is None:
        return BatchOrder(meet=True)
    names = dict.fromkeys(name for _, seen in (*apart, (0, together)) for name in seen)
    found = {name: _order(name, together, apart, len(examples)) for name in names}
    uneven, moved = (frozenset(name for name in names if found[name] == kind) for kind in ("uneven", "moved"))
    return BatchOrder(False, uneven, moved)


def _growing(examples: Tensor) -> Iterator[Tensor]:
    """The examples in parts of 1, 1, 2, 4, ..."""
    start = 0
    while start < len(examples):
        yield examples[start : start + max(1, start)]
        start += max(1, start)


def _gives(model: nn.Module, forward: Forward, inputs: Any, expected: Tensor) -> bool:
    """Whether the network gives the expected output; not where it cannot be run, or answers NaN."""
    try:
        found = main_output(forward(model, inputs))
    except Exception:  # a network that runs on batches of some size only
        return False
    return relative_difference(found, expected) <= tolerance_for(found.dtype, _NEAR)


def _watched(model: nn.Module, forward: Forward, inputs: Any, expected: Tensor) -> _Seen | None:
    """What stands for the rows that every module reads and gives; None where `_gives` says no."""
    seen: _Seen = {}

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found = [t for t in (input_of(args, kwargs), *tensors(output)) if t is not None]
            seen.setdefault(name, []).extend(_digests(t) for t in found if t.ndim > 1 and not t.is_nested)

        return hook

    named = model.named_modules()
    with hooked(module.register_forward_hook(hook_of(name), with_kwargs=True) for name, module in named):
        return seen if _gives(model, forward, inputs, expected) else None


def _digests(tensor: Tensor) -> Tensor:
    """A number for every row that changes when an entry does, or moves."""
    flat = tensor.detach().reshape(len(tensor), -1) if tensor.numel() else tensor.new_zeros(len(tensor), 1)
    flat = torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat
    flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    weights = torch.arange(flat.shape[1], dtype=torch.float32, device=flat.device).cos_().to(flat.dtype)
    return flat @ weights


def _order(
    name: str, together: _Seen, apart: Sequence[tuple[int, _Seen]], rows: int
) -> Literal["even", "uneven", "moved"]:
    """Whether a module has as many rows per example in every batch, the same ones in the same order."""
    whole = together.get(name, [])
    if any(len(seen.get(name, [])) != len(whole) for _, seen in apart):
        return "uneven"
    for number, found in enumerate(whole):
        parts = [(n, seen[name][number]) for n, seen in apart]
        if all(len(part) == len(found) for _, part in parts):
            continue  # the same for all examples, or the batch is another axis
        each = len(found) // rows
        if len(found) != each * rows or any(len(part) != each * n for n, part in parts):
            return "uneven"
        joined = torch.cat([part for _, part in parts])
        if not torch.equal(joined.isfinite(), found.isfinite()):
            return "moved"
        difference = relative_difference(joined.nan_to_num(0, 0, 0), found.nan_to_num(0, 0, 0))
        if difference > tolerance_for(found.dtype, _NEAR):
            return "moved"
    return "even"
