"""Re-estimate batch-norm statistics on unlabelled batches, after channels have left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shaprune.errors import InputError
from shaprune.network.batches import Forward, Inputs, call, copied_inputs


def recalibrate(model: nn.Module, batches: Sequence[Inputs], *, forward: Forward | None = None) -> None:
    """Replace the running mean and variance of every batch-norm by those of ``batches``, in place.

    Only batch-norms are put in training mode (dropout stays off); flags and momenta are put back.
    `torch.optim.swa_utils.update_bn` does the same for tensor inputs only, and switches dropout on.

    Raises:
        InputError: no batch.
    """
    if not batches:
        raise InputError("batch-norm recalibration needs at least one batch of inputs; the data holds none")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(m.training, m.momentum) for m in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        with torch.no_grad():
            for inputs in batches:
                (forward or call)(model, copied_inputs(inputs))
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.training, norm.momentum = training, momentum
