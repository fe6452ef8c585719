"""Whether outputs and targets are of the kind that a worth needs, said before any evaluation.

Each check is ``(name of the worth, targets (N, ...), outputs (N, ...) of the dense network) -> None``, and raises
`InputError`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shaprune.errors import InputError

_INSTEAD = "give a callable worth, or worth='fidelity'"


def check_logits(name: str, outputs: Tensor) -> None:
    """Outputs must be logits over two classes or more."""
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise InputError(
            f"worth {name!r} needs outputs of shape (batch, ..., classes) with two classes at least, the model's are "
            f"{tuple(outputs.shape)}; {_INSTEAD}"
        )


def check_classes(name: str, targets: Tensor, outputs: Tensor) -> None:
    """Targets must be one class index per example or token, of classes that the outputs have."""
    tokens = outputs.ndim == 3 and targets.ndim == 2
    if outputs.ndim != 2 and not tokens:
        raise InputError(
            f"worth {name!r} needs outputs of shape (batch, classes), the model's are {tuple(outputs.shape)} "
            f"(or (batch, tokens, classes) with targets (batch, tokens), yours are {tuple(targets.shape)}); {_INSTEAD}"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool or targets.ndim != 1 + tokens:
        raise InputError(
            f"worth {name!r} needs one class index per {'token' if tokens else 'example'}, the targets are "
            f"{targets.dtype} of shape {tuple(targets.shape)}; {_INSTEAD}"
        )
    if targets.shape != outputs.shape[:-1]:
        raise InputError(
            f"worth {name!r} needs outputs of shape (batch, tokens, classes) for targets of shape "
            f"{tuple(targets.shape)}, the model's are {tuple(outputs.shape)}; {_INSTEAD}"
        )
    classes = outputs.shape[-1]
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"labels run from {low} to {high} and the model has {classes} outputs; labels must lie in 0..{classes - 1}"
        )
    if name == "margin" and classes < 2:
        raise InputError(f"worth 'margin' needs two classes at least, the model has one output; {_INSTEAD}")


def check_numbers(name: str, targets: Tensor, outputs: Tensor) -> None:
    """Targets must be finite numbers, one per output."""
    if targets.dtype == torch.bool or targets.is_complex():
        raise InputError(f"worth {name!r} needs real numbers as targets, yours are {targets.dtype}; convert them")
    single = targets.ndim == 1 and outputs.shape == (len(targets), 1)
    if targets.shape != outputs.shape and not single:
        raise InputError(
            f"worth {name!r} needs targets of the outputs' shape {tuple(outputs.shape)} "
            f"(or one number per example where there is one output), yours are {tuple(targets.shape)}; {_INSTEAD}"
        )
    finite = torch.isfinite(targets).reshape(len(targets), -1).all(1)
    if not finite.all():
        row = int(torch.nonzero(~finite)[0])
        raise InputError(f"the target of example {row} is NaN or infinite; drop the example or mend its target")
