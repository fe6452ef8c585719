"""In which precision rows are computed: float32, or bfloat16 where that is faster and ranks players alike.

In bfloat16, the operations behind the mask run under torch's autocast: products of matrices and convolutions in 16
bits, the rest as torch decides. What lies before the mask, the players' contributions to the first linear layer behind
it, the dense outputs and the worths stay in float32. Values differ from those in float32 by rounding, and by a little
from machine to machine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.batches import Forward, Inputs, main_output
from shaprune.network.borrow import device_of

Precision = Literal["float32", "bfloat16"]


def in_precision(forward: Forward, device: torch.device, precision: Precision) -> Forward:
    """``forward`` run in ``precision``; its main output, in float32 where that is lower."""
    if precision == "float32":
        return forward

    def run(model: nn.Module, inputs: Inputs) -> Tensor:
        with lowered(device, precision):
            return main_output(forward(model, inputs)).float()

    return run


def lowered(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which a network's operations run in ``precision``."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


def lowerable(model: nn.Module) -> bool:
    """Whether a network can run in bfloat16 by autocast: its weights are float32, on a device that knows it."""
    kinds = {p.dtype for p in model.parameters()}
    return kinds == {torch.float32} and torch.amp.is_autocast_available(device_of(model).type)


def check_runs(model: nn.Module, precision: Precision) -> None:
    """Check that a network can run in this precision.

    Raises:
        InputError: bfloat16 for weights that are not float32, or on a device that does not know it.
    """
    if precision == "bfloat16" and not lowerable(model):
        kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
        raise InputError(
            f"precision='bfloat16' is for networks in float32; this one has {kinds or 'no'} weights on "
            f"{device_of(model).type}; drop precision"
        )
