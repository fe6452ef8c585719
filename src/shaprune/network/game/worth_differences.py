"""Derivatives compared with differences of worths: what autograd does not see has none, and says so nowhere.

A part of a network that runs in `torch.utils.checkpoint` with ``use_reentrant=True``, behind ``.detach()``, or in a
`torch.autograd.Function` of its own may lose the derivatives by masks that stand inside, with zeros in their place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_NEAR = 0.05  # relative to the length of the derivatives: kinks and curvature between two worths stay below
_STEPS = (1e-2, 1e-3, 1e-1)  # of the masks; the first suits most networks, kinks want a shorter one, steps a longer
_WAYS = 3  # in which all masks are moved, up and down at random
_EPS = 4 * torch.finfo(torch.float32).eps  # relative, of what a worth is computed from
HIDDEN = (
    "autograd gives derivatives that differ from the differences of worths by {:.2g} of their size, so that a part of "
    "the network hides from it (torch.utils.checkpoint with use_reentrant=True, .detach(), .data, a rounding, a "
    "torch.autograd.Function)"
)


class WorthDifferences:
    """Differences of worths around one mask, taken as they are needed.

    Args:
        worths_of: worths (R,) of masks (R, n), computed in float32.
        mask: (n,) where derivatives are taken.
        outputs: (..., ) of the network, from which worths are computed.
    """

    def __init__(self, worths_of: Callable[[Tensor], Tensor], mask: Tensor, outputs: Tensor) -> None:
        self.worths_of, self.mask = worths_of, mask
        self.scale = float(outputs.abs().max())
        draw = torch.Generator().manual_seed(len(mask))
        self.ways = (2.0 * torch.randint(0, 2, (_WAYS, len(mask)), generator=draw) - 1).to(mask)
        self._found: dict[float, tuple[Tensor, float]] = {}

    def deviation(self, slopes: Tensor, near: float = 0.0) -> float | None:
        """How far derivatives (n,) lie from the differences, relative to their length; None where they agree."""
        slopes, near = slopes.detach().double(), max(near, _NEAR)
        told, size, least = self.ways.double() @ slopes, float(slopes.norm()), float("inf")
        for step in _STEPS:
            found, worth = self._along(step)
            noise = _EPS * (self.scale + worth + float(slopes.abs().sum())) / step
            error = float((found - told).abs().max())
            if error <= near * size + noise:
                return None
            least = min(least, error / max(size, float(found.abs().max())))
        return least

    def _along(self, step: float) -> tuple[Tensor, float]:
        """(ways,) float64, change of the worth by a unit of the mask along each way; the size of the worths."""
        if step not in self._found:
            up, down = self.mask + step * self.ways, self.mask - step * self.ways
            with torch.no_grad():
                worths = self.worths_of(torch.cat([up, down])).double()
            self._found[step] = (worths[:_WAYS] - worths[_WAYS:]) / (2 * step), float(worths.abs().max())
        return self._found[step]
