"""Parameters that are zero from the start, which hide what stands behind them from every comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def zeros_filled(copy: nn.Module) -> Iterator[None]:
    """Give parameters that are zero everywhere other values for a while.

    A residual block whose last gain is zero at first (skip-init, zero gamma, an adapter that has not learnt yet) gives
    nothing, whatever leaves inside; once trained, it does.

    Args:
        copy: a private copy, which may share its parameters' memory; that is not written to.
    """
    random = torch.Generator().manual_seed(0)
    kept = [
        (p, p.data) for p in copy.parameters() if p.is_floating_point() and p.numel() and not _first(p) and not p.any()
    ]
    try:
        for parameter, zeros in kept:
            parameter.data = (0.1 * torch.randn(zeros.shape, generator=random)).to(zeros.device, zeros.dtype)
        yield
    finally:
        for parameter, zeros in kept:
            parameter.data = zeros


def _first(parameter: nn.Parameter) -> float:
    """An entry, by which most parameters are seen not to be zero."""
    return float(parameter.detach()[(0,) * parameter.ndim])
