"""Precision of rows: float32, or bfloat16 where that is faster and ranks players alike.

In bfloat16, the operations behind the mask run under torch's autocast: products of matrices and convolutions in 16
bits, the rest as torch decides; batch-norms are folded into the convolutions in front of them. With channels last, the
channels of a pixel lie side by side in memory, where narrow convolutions are faster and wide ones are not. What lies
before the mask, the players' contributions to the first linear layer behind it, the dense outputs and the worths stay
in float32. Values differ from those in float32 by rounding, and by a little from machine to machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, ParamSpec

import torch
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.batches import main_output, transform
from shaprune.network.borrow import device_of

P = ParamSpec("P")
Precision = Literal["float32", "bfloat16"]
RowPrecision = Literal["float32", "bfloat16", "bfloat16-channels-last"]
CHANNELS_LAST: RowPrecision = "bfloat16-channels-last"


def in_precision(run: Callable[P, Any], device: torch.device, precision: RowPrecision) -> Callable[P, Any]:
    """``run``, which runs a network or a part of it, in ``precision``; its main output is then in float32 again."""
    if precision == "float32":
        return run

    def run_in_precision(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return main_output(run(*args, **kwargs)).float()

    return run_in_precision


def in_memory_layout(tree: Any, precision: RowPrecision) -> Any:
    """The same tensors, those of images as the precision wants them in memory."""
    if precision != CHANNELS_LAST:
        return tree
    return transform(tree, lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)


def supports_bfloat16(model: nn.Module) -> bool:
    """Whether a network can run in bfloat16 by autocast: its weights are float32, on a device that knows it."""
    kinds = {p.dtype for p in model.parameters()}
    return kinds == {torch.float32} and torch.amp.is_autocast_available(device_of(model).type)


def check_precision(model: nn.Module, precision: RowPrecision) -> None:
    """Check that a network can run in this precision.

    Raises:
        InputError: bfloat16 for weights that are not float32, or on a device that does not know it.
    """
    if precision != "float32" and not supports_bfloat16(model):
        kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
        raise InputError(
            f"precision={precision!r} is for networks in float32; this one has {kinds or 'no'} weights on "
            f"{device_of(model).type}; drop precision"
        )
