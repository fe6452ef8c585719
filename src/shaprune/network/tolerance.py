"""Tolerances: how far two computations of the same outputs may differ."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDE = (torch.float32, torch.float64, torch.complex64, torch.complex128)
HALF_TOLERANCE = 5e-2  # relative, for types of 16 bits


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference over the largest absolute entry; inf where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    if not a.is_floating_point() and not a.is_complex():  # truths have no difference, whole numbers may wrap
        a, b = a.double(), b.double()
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-30) if a.numel() else 1.0
    return float((a - b).abs().max()) / scale if a.numel() else 0.0


def tolerance_for(dtype: torch.dtype, limit: float) -> float:
    """``limit`` for float32 and wider types, `HALF_TOLERANCE` for narrower ones."""
    return limit if dtype in _WIDE else HALF_TOLERANCE
