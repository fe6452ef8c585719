"""All coalitions of a layer, in order of their binary code: the first linear layer in two half sums.

The coalitions met in an enumeration are a grid: every pattern of the high players with every pattern of the low ones.
The output of the first linear layer is then the sum of one entry of each of two small tables, and no matrix product
per coalition is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CoalitionGrid:
    """Coalitions that are all pairs of H patterns of the high players and L patterns of the low ones, L fastest.

    Attributes:
        low: (L, k) patterns of the first k players.
        high: (H, n - k) patterns of the others.
    """

    low: Tensor
    high: Tensor

    def tables(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Half sums of contributions (E, n + 1, F), the last being what is there without any player.

        Returns:
            (E, L, F) with the base, and (E, H, F).
        """
        k, low, high = self.low.shape[1], self.low.to(parts), self.high.to(parts)
        return torch.matmul(low, parts[:, :k]) + parts[:, -1:], torch.matmul(high, parts[:, k:-1])

    def holds(self, part: slice) -> bool:
        """Whether some of the coalitions are whole multiples of L."""
        size = len(self.low)
        return bool(part.start % size == part.stop % size == 0)

    def sums(self, tables: tuple[Tensor, Tensor], start: int, stop: int) -> Tensor:
        """(E, stop - start, F) sums of the coalitions from ``start`` to ``stop``, both whole multiples of L."""
        low, high = tables
        size = len(self.low)
        return (high[:, start // size : stop // size, None] + low[:, None]).flatten(1, 2)


def find_grid(masks: Tensor, most: int) -> CoalitionGrid | None:
    """The grid that coalitions (R, n) are, or None; ``most`` is the largest L that is of use.

    It must be worth it: at least four patterns on either side.
    """
    rows, n = masks.shape
    k = min(n // 2, most.bit_length() - 1)
    size = 1 << k
    if size < 4 or rows % size or rows < 4 * size:
        return None
    table = masks.view(-1, size, n)
    low, high = table[0, :, :k], table[:, 0, k:]
    if not bool((table[:, :, :k] == low).all()) or not bool((table[:, :, k:] == high[:, None]).all()):
        return None
    return CoalitionGrid(low.contiguous(), high.contiguous())
