"""Entries of parameters and buffers that leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def keep_entries(module: nn.Module, name: str, axis: int, gone: Sequence[int]) -> None:
    """Drop the entries ``gone`` of a parameter or buffer along an axis; None stays None."""
    tensor = getattr(module, name)
    if tensor is None:
        return
    left = np.setdiff1d(np.arange(tensor.shape[axis]), np.asarray(gone, dtype=np.int64))
    rest: Tensor = tensor.detach().index_select(axis, torch.from_numpy(left).to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(rest, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, rest)
