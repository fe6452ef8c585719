"""Batch sizes of rows: as many as fit in memory, side by side where possible, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from shaprune.network.disk_buffer import is_out_of_memory
from shaprune.network.forward.batch_threads import MAX_BATCH_THREADS, n_parallel_batches, run_in_threads

T = TypeVar("T")
BATCH_BYTES = 1 << 23  # bytes of one batch of rows on a CPU, where the bound allows more; larger ones leave the caches
CALLED_BATCH_BYTES = 1 << 27  # the same where a model's own code is called, which costs about a millisecond each time
WALK_BATCH_BYTES = 1 << 24  # the same for walks, whose steps are small operations over all walks of a batch
MASKS = 20  # bytes that a row's mask takes per player, with what it is made from and what the layers read of it
MIN_BATCH_ROWS = 32  # rows of a batch below which operations are too short to be worth their calls


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Rows that were run together.

    Attributes:
        outputs: (B, ...) the network's outputs.
        examples: (B,) the example of each row.
        into: which part of what was asked the rows belong to: rows of `Rows.pairs`; walks of `Rows.walks`, the rows
            being (steps + 1) x walks; coalitions of `Rows.everyone`, the rows being examples x coalitions.
        mask_of: the coalition (n,) of a row, for messages.
    """

    outputs: Tensor
    examples: Tensor
    into: slice
    mask_of: Callable[[int], Tensor]


class RowBatches:
    """Splits rows into batches and runs these.

    Args:
        max_memory: bytes that the rows of a batch may take.
        device: on which they run.
        n_players: n.
        divisible: says whether batches can run side by side now.

    Attributes:
        called: whether a model's own code is called for every batch.
    """

    def __init__(self, max_memory: int, device: torch.device, n_players: int, divisible: Callable[[], bool]) -> None:
        self.max_memory, self.device, self.divisible = max_memory, device, divisible
        self._mask_bytes = MASKS * n_players
        self.called = False
        self._room = max_memory  # bytes that the device is known to have at most for a batch

    def largest(self, bytes_per_row: int, working_set: int | None = None) -> int:
        """How many rows are run at once; other devices than the CPU take as many as the bound allows."""
        most = min(self.max_memory // 2, self._room)
        if working_set is None:
            working_set = CALLED_BATCH_BYTES if self.called else BATCH_BYTES
        size = (min(most, working_set) if self.device.type == "cpu" else most) // bytes_per_row
        return max(1, min(size, most // 2 // self._mask_bytes))

    def split(self, rows: int, bytes_per_row: int, working_set: int | None = None) -> list[slice]:
        """Rows in parts of equal size, none larger than a batch; some smaller ones where they can run side by side."""
        batch = self.largest(bytes_per_row, working_set)
        parts = -(-rows // batch)
        if self.divisible():
            parts = max(parts, min(MAX_BATCH_THREADS, rows // max(MIN_BATCH_ROWS, batch // MAX_BATCH_THREADS)))
            even = (
                1 << (parts - 1).bit_length() if 0 < parts < MAX_BATCH_THREADS else parts
            )  # 2, 4 or 8 share it evenly
            parts = min(even, rows)
        ends = [rows * i // parts for i in range(parts + 1)] if parts else []
        return [slice(*ends) for ends in pairwise(ends)]

    def spread(
        self, run: Callable[[slice], T], parts: Sequence[slice], bytes_each: int, most: int = MAX_BATCH_THREADS
    ) -> Iterator[T]:
        """``run`` on all parts, in order; at most ``most`` at a time, as there are threads, and memory, for them."""
        largest = max((part.stop - part.start for part in parts), default=1) * max(bytes_each, self._mask_bytes)
        room = max(1, self.max_memory // 2 // largest)
        threads = n_parallel_batches(min(len(parts), room, most)) if self.divisible() else 1
        for part, result in run_in_threads(run, parts, threads):
            yield from self.halving(run, part, bytes_each, begun=result)

    def halving(
        self,
        run: Callable[[slice], T],
        part: slice,
        bytes_each: int,
        fewer: Callable[[slice], Iterator[T]] | None = None,
        begun: Callable[[], T] | None = None,
    ) -> Iterator[T]:
        """``run(part)``; where the device has no memory for it, its halves, and later batches are as small.

        Where one row, walk or coalition is too much, ``fewer`` runs it on fewer examples; without it, torch's own error
        stays. Batches of other sizes may differ in the last bits. ``begun`` gives ``run(part)`` where that has begun.
        """
        size = part.stop - part.start
        done = None
        known_too_large = self._room < self.max_memory and size > 1 and size * bytes_each > self._room
        if not known_too_large:
            try:
                done = run(part) if begun is None else begun()
            except RuntimeError as error:
                if (size < 2 and fewer is None) or not is_out_of_memory(error):
                    raise
        if done is not None:  # outside of the blocks above nothing holds what has been computed
            yield done
            return
        self._room = min(self._room, max(1, size * bytes_each // 2))
        if size < 2 and fewer is not None:
            yield from fewer(part)
            return
        middle = (part.start + part.stop) // 2
        for half in (slice(part.start, middle), slice(middle, part.stop)):
            yield from self.halving(run, half, bytes_each, fewer)


def cyclic_row(block: Tensor, row: int) -> Tensor:
    """The coalition of a row, where a block of coalitions is repeated."""
    return block[row % len(block)]
