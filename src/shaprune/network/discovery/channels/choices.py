"""Choices by value (boxes, places, an order) as the clean run made them, given again while marks are followed.

Marks in scores and boxes would leave no region to look at, or none with a place. Regions are no part of what channels
flow through: in a marked run every comparison, order and index, and the boxes that regions are pooled from, are those
of the clean run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shaprune.network.batches import tensors

_REGIONS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")  # (features, boxes, ...)
_QUESTIONS = ("isnan", "isfinite", "isinf")  # of marks themselves


class Choices(TorchFunctionMode):
    """Notes what is chosen in one run, or gives what was ``noted`` in another.

    Attributes:
        noted: whole numbers and truth values computed from floating-point ones, and boxes of regions, in order.
        selects: whether regions are pooled or boxes suppressed, without which nothing needs to be given again.
    """

    def __init__(self, noted: list[Tensor] | None = None) -> None:
        super().__init__()
        self.noted: list[Tensor] = []
        self.selects = False
        self._left = None if noted is None else iter(noted)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").rpartition(".")[2]
        self.selects = self.selects or name == "nms" or name in _REGIONS
        if name in _REGIONS:
            args = (args[0], self._same(args[1]), *args[2:])
        output = func(*args, **(kwargs or {}))
        if name in _QUESTIONS or not any(t.is_floating_point() for t in tensors((args, kwargs))):
            return output
        if isinstance(output, Tensor):
            return output if output.is_floating_point() or output.is_complex() else self._same(output)
        if isinstance(output, tuple) and any(t.dtype == torch.int64 for t in tensors(output)):
            same = [self._same(t) if isinstance(t, Tensor) and not t.is_floating_point() else t for t in output]
            return type(output)(same) if hasattr(output, "n_fields") else tuple(same)
        return output

    def _same(self, chosen: Tensor) -> Tensor:
        if self._left is None:
            self.noted.append(chosen.detach().clone())
            return chosen
        noted = next(self._left, chosen)
        return noted.clone() if noted.shape[1:] == chosen.shape[1:] and noted.dtype == chosen.dtype else chosen
