"""Worths: what one row of outputs is worth. Higher is better.

A worth is a function ``(outputs (R, ...), reference (R, ...)) -> (R,)``; the reference is the targets of the rows, or,
for
``fidelity``, the dense network's own outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaprune.errors import GameError, InputError, check_choice

RowWorth = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Worth:
    """A worth per row and what it compares the outputs with."""

    name: str
    function: RowWorth
    reference: Literal["targets", "dense"]


@dataclass(frozen=True)
class Evaluate:
    """A worth of the whole model: wraps ``evaluate(model) -> float``, called under masks, once per coalition.

    Use it where the worth is no mean over examples, or where the evaluation loop is given. Higher is better.
    """

    function: Callable[[nn.Module], float]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output is the target's, else 0 (Adamczewski et al. 2024)."""
    return (outputs.argmax(1) == targets).to(torch.float32)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the cross-entropy of logits (Ancona et al. 2020)."""
    return -F.cross_entropy(outputs, targets, reduction="none")


def fidelity(outputs: Tensor, dense: Tensor) -> Tensor:
    """Minus the squared distance to the dense network's outputs; needs no labels."""
    return -(outputs - dense).float().square().flatten(1).sum(1)


WORTHS = {
    "accuracy": Worth("accuracy", accuracy, "targets"),
    "cross_entropy": Worth("cross_entropy", cross_entropy, "targets"),
    "fidelity": Worth("fidelity", fidelity, "dense"),
}


def worth_of(worth: str | RowWorth | Worth) -> Worth:
    """The worth of a name, or around a callable ``(outputs, targets) -> one number per row``.

    Raises:
        InputError: unknown name, with the nearest; or something that is neither.
    """
    if isinstance(worth, Worth):
        return worth
    if isinstance(worth, str):
        check_choice("worth", worth, WORTHS)
        return WORTHS[worth]
    if callable(worth):
        return Worth(getattr(worth, "__name__", type(worth).__name__), worth, "targets")
    raise InputError(
        f"worth is a {type(worth).__name__}; give a name, a callable (outputs, targets), or sp.Evaluate(fn)"
    )


def check_targets(worth: Worth, targets: Tensor | None, outputs: Tensor) -> None:
    """Check that the built-in classification worths can use the targets.

    Raises:
        InputError: no targets, targets that are no class indices, or classes that the outputs do not have.
    """
    if worth.reference == "dense":
        return
    if targets is None:
        raise InputError(
            f"worth {worth.name!r} needs targets and the batches have none; use worth='fidelity' without labels"
        )
    if worth.name not in WORTHS:
        return
    if outputs.ndim != 2:
        raise InputError(
            f"worth {worth.name!r} needs outputs of shape (batch, classes), the model's are {tuple(outputs.shape)}; "
            "give a callable worth, or worth='fidelity'"
        )
    if targets.ndim != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
        raise InputError(
            f"worth {worth.name!r} needs one class index per example, the targets are {targets.dtype} of shape "
            f"{tuple(targets.shape)}; give a callable worth, or worth='fidelity'"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise InputError(
            f"labels run from {low} to {high} and the model has {outputs.shape[1]} outputs; "
            f"labels must lie in 0..{outputs.shape[1] - 1}"
        )


def rows_worth(worth: Worth, outputs: Tensor, reference: Tensor) -> Tensor:
    """Apply a worth and check its shape.

    Raises:
        GameError: the function did not return one number per row.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # puts the mode back where the function changed it
        result = worth.function(outputs, reference)
    if not isinstance(result, Tensor) or result.shape != (len(outputs),):
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise GameError(
            f"worth {worth.name!r} returned {shape} for {len(outputs)} rows; it must return shape ({len(outputs)},)"
        )
    return result
