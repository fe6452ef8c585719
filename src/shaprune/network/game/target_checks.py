"""Checks of targets against the outputs of a network, for worths and for measured accuracy alike.

Class targets come in many shapes; here they become one class index per prediction. With C classes these are

- outputs (N, C): indices (N,) or (N, 1), or one-hot rows (N, C) of whole numbers, booleans or floats;
- outputs (N, T, C), tokens: indices (N, T) or (N, T, 1), or one-hot (N, T, C);
- outputs (N, C, H, W), class maps: indices (N, H, W) or (N, 1, H, W), or one-hot (N, C, H, W); any number of places;
- outputs with one number per prediction, (N,), (N, 1), (N, 1, H, W), binary logits: 0 and 1 or booleans, of any type.

Entries that are -100 do not count. Where outputs of three axes fit both ways, the last axis holds the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shaprune.errors import InputError

IGNORED = -100  # as in torch's cross_entropy and the collators of transformers
PROBABILITIES = (
    "takes one output per prediction for a logit, and all of them lie between 0 and 1, as probabilities do; return "
    "logits (leave the sigmoid out, or wrap the model in torch.logit)"
)
INSTEAD = "give a callable worth, or worth='fidelity'"


def class_targets(name: str, targets: Tensor, outputs: Tensor, instead: str = "", *, none: bool = False) -> Tensor:
    """The class index of every prediction, int64, `IGNORED` where none counts; see `class_last` for its shape.

    Args:
        name: who needs it, for messages: ``worth 'accuracy'``.
        targets: (N, ...), see above.
        outputs: (N, ...) of the network.
        instead: another next step, for messages.
        none: whether it may be that no target counts.

    Raises:
        InputError: targets that mean no classes of these outputs.
    """
    or_else = f"; {instead}" if instead else ""
    found = _indices(targets, outputs)
    if found is None:
        raise InputError(f"{name} {_mismatch(targets, outputs)}{or_else}")
    classes = 2 if _is_binary(found, outputs) else class_last(outputs[:1], found[:1]).shape[-1]
    if found.dtype == torch.bool and classes != 2:
        raise InputError(
            f"{name} needs class indices below {classes}, and the targets are torch.bool; give indices "
            f"(targets.long(), if these are classes 0 and 1){or_else}"
        )
    if found.is_complex() or (found.is_floating_point() and not (classes == 2 and _zeros_and_ones(found))):
        each = "token" if found.ndim > 1 else "example"
        raise InputError(
            f"{name} needs one class index per {each}, the targets are {targets.dtype} of shape "
            f"{tuple(targets.shape)}; give whole numbers (targets.long()){or_else}"
        )
    found = found.long()
    used = found[counted(found)]
    if not len(used):
        if none:
            return found
        raise InputError(f"{name} has no target that counts: all are {IGNORED}")
    low, high = int(used.min()), int(used.max())
    if low < 0 or high >= classes:
        what = f"{classes} outputs" if outputs.numel() != len(outputs) else "one output, a binary logit"
        raise InputError(
            f"labels run from {low} to {high} and the model has {what}; labels must lie in 0..{classes - 1} "
            f"(and {IGNORED} where none counts)"
        )
    return found


def looks_like_probabilities(targets: Tensor, outputs: Tensor) -> bool:
    """Whether outputs, one number per prediction, all lie between 0 and 1: no sign would say the class then."""
    return _is_binary(targets, outputs) and bool(((outputs >= 0) & (outputs <= 1)).all())


def class_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs as logits (R, ..., classes) for class indices (R, ...); a binary logit z is (0, z)."""
    axis = _class_axis(outputs, targets.shape)
    if axis is not None:
        return outputs if axis == outputs.ndim - 1 else outputs.movedim(axis, -1)
    single = outputs.reshape(targets.shape)
    return torch.stack([torch.zeros_like(single), single], -1)


def counted(targets: Tensor) -> Tensor:
    """Where a target counts, of the same shape."""
    return targets != IGNORED


def _indices(targets: Tensor, outputs: Tensor) -> Tensor | None:
    """Targets as one number per prediction; None where they do not fit the outputs."""
    for axis in (None, *(i for i in range(1, targets.ndim) if targets.shape[i] == 1)):
        found = targets if axis is None else targets.squeeze(axis)
        if _class_axis(outputs, found.shape) is not None or _is_binary(found, outputs):
            if axis is None and found.shape == outputs.shape and outputs.ndim > 1:
                continue  # one-hot, or a binary logit with its axis
            return found
    if targets.shape != outputs.shape:
        return None
    for axis in _axes(outputs):
        if outputs.shape[axis] > 1 and _zeros_and_ones(targets) and bool((targets.sum(axis) == 1).all()):
            return targets.long().argmax(axis)
    return targets if _is_binary(targets, outputs) else None


def _axes(outputs: Tensor) -> tuple[int, ...]:
    """Axes that may hold the classes, the likeliest first."""
    last = outputs.ndim - 1
    return () if last < 1 else (1,) if last == 1 else (2, 1) if last == 2 else (1, last)


def _class_axis(outputs: Tensor, shape: torch.Size) -> int | None:
    """The axis of two classes or more without which outputs have this shape, but for the number of rows."""
    for axis in _axes(outputs):
        rest = (*outputs.shape[1:axis], *outputs.shape[axis + 1 :])
        if outputs.shape[axis] > 1 and rest == tuple(shape[1:]) and len(shape):
            return axis
    return None


def _is_binary(targets: Tensor, outputs: Tensor) -> bool:
    """Whether outputs are one number per target."""
    if _class_axis(outputs, targets.shape) is not None or targets.ndim == 0:
        return False
    ones = [axis for axis in _axes(outputs) if outputs.shape[axis] == 1]
    shapes = [(*outputs.shape[:axis], *outputs.shape[axis + 1 :]) for axis in ones]
    flat = outputs.ndim != 2 and not ones  # (N, C) with (N, C) is several labels at once
    return tuple(targets.shape) in shapes or (flat and targets.shape == outputs.shape)


def _zeros_and_ones(targets: Tensor) -> bool:
    return targets.dtype == torch.bool or bool(((targets == 0) | (targets == 1) | (targets == IGNORED)).all())


def _mismatch(targets: Tensor, outputs: Tensor) -> str:
    """Why targets are not those of the outputs."""
    have = f"the targets are {targets.dtype} of shape {tuple(targets.shape)}"
    if targets.shape == outputs.shape and _zeros_and_ones(targets):
        return f"needs one class per example, and in some rows of the targets several classes are set, or none: {have}"
    fitting = "(batch,)" if outputs.ndim <= 2 else "(batch, places), with outputs (batch, places, classes)"
    return f"needs one class index per prediction, {fitting}: {have}, the model's outputs {tuple(outputs.shape)}"


def check_logits(name: str, outputs: Tensor) -> None:
    """Outputs must be logits over two classes or more."""
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise InputError(
            f"worth {name!r} needs outputs of shape (batch, ..., classes) with two classes at least, the model's are "
            f"{tuple(outputs.shape)}; {INSTEAD}"
        )


def number_targets(name: str, targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets of a regression, (N, ...) of the outputs' shape, but for axes of length one.

    Raises:
        InputError: no finite numbers, or not one per output.
    """
    if targets.dtype == torch.bool or targets.is_complex():
        raise InputError(f"worth {name!r} needs real numbers as targets, yours are {targets.dtype}; convert them")
    ours, theirs = ([n for n in tensor.shape[1:] if n != 1] for tensor in (targets, outputs))
    if ours != theirs or len(targets) != len(outputs):
        raise InputError(
            f"worth {name!r} needs targets of the outputs' shape {tuple(outputs.shape)} "
            f"(or one number per example where there is one output), yours are {tuple(targets.shape)}; {INSTEAD}"
        )
    finite = torch.isfinite(targets).reshape(len(targets), -1).all(1)
    if not finite.all():
        row = int(torch.nonzero(~finite)[0])
        raise InputError(f"the target of example {row} is NaN or infinite; drop the example or mend its target")
    return targets.reshape(outputs.shape)
