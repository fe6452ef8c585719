"""Masks of a question, built for a block of its rows at a time, so that memory is bounded.

`Listed` are coalitions that were given; `Walked` are those met along walks, of which only the orders are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from shaprune.network.forward.coalition_grid import CoalitionGrid, find_grid


class Masks(Protocol):
    """Masks of rows, 1.0 = kept."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, part: slice) -> Tensor:
        """Return the masks of some rows, (B, n) float32."""

    def part(self, part: slice) -> Masks:
        """Return some of the rows, not made yet."""

    def grid(self, most: int) -> CoalitionGrid | None:
        """Return the grid that the rows are, see `find_grid`."""


@dataclass(frozen=True, eq=False)
class Listed:
    """Coalitions (R, n) bool, on the device."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Tensor:
        return self.rows[part].float()

    def part(self, part: slice) -> Listed:
        return Listed(self.rows[part])

    def grid(self, most: int) -> CoalitionGrid | None:
        return find_grid(self.rows, most)


@dataclass(frozen=True, eq=False)
class Walked:
    """The coalitions met along walks, walk by walk, before anyone leaves, after the first, ..., after all m.

    Attributes:
        places: (W, n) int32, the step at which each player leaves; m = never.
        steps: m + 1.
        start: (n,) bool, where the walks leave from; None = all players.
        rows: which of the W x (m + 1) rows.
    """

    places: Tensor
    steps: int
    start: Tensor | None
    rows: range

    @staticmethod
    def of(orders: Tensor, n_players: int, start: Tensor | None) -> Walked:
        """Of (W, m) int64 orders."""
        walks, length = orders.shape
        places = torch.full((walks, n_players), length, dtype=torch.int32, device=orders.device)
        places.scatter_(1, orders, torch.arange(length, dtype=torch.int32, device=orders.device).expand(walks, -1))
        return Walked(places, length + 1, start, range(walks * (length + 1)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Tensor:
        some = self.rows[part]
        row = torch.arange(some.start, some.stop, device=self.places.device)
        kept = self.places[row // self.steps] >= (row % self.steps)[:, None]
        return (kept if self.start is None else kept & self.start).float()

    def part(self, part: slice) -> Walked:
        return replace(self, rows=self.rows[part])

    def grid(self, most: int) -> CoalitionGrid | None:
        return None
