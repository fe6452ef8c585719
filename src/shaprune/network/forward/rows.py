"""(coalition, example) rows of a network, run in blocks that fit in memory.

Three ways to ask: pairs (each row its own coalition and example), everyone (every coalition on every example), walks
(players leave one by one). Where one linear layer reads the mask, the players' contributions to it are added instead of
running the layer again (see `shaprune.network.forward.incremental_linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from shaprune.network.forward.batch_threads import MAX_BATCH_THREADS
from shaprune.network.forward.cached_state import CachedState, gather_rows
from shaprune.network.forward.calibration import FORWARD_BATCH
from shaprune.network.forward.coalition_grid import CoalitionGrid
from shaprune.network.forward.coalition_masks import Masks
from shaprune.network.forward.incremental_linear import (
    MAX_CUMSUM_OUTPUTS,
    IncrementalLinear,
    sums_of_coalitions,
)
from shaprune.network.forward.row_batches import WALK_BATCH_BYTES, RowBlock, cyclic_row
from shaprune.network.forward.row_runner import RowRunner


class Rows(RowRunner):
    """Asks for rows in three ways: pairs, everyone and walks."""

    def pairs(self, masks: Masks, examples: Tensor) -> Generator[RowBlock, None, None]:
        """Rows with their own coalition, masks (R, n), and their own example, (R,)."""

        def run(part: slice) -> RowBlock:
            outputs = self._run(self.runner.run, self.state(examples[part]), masks[part])
            return RowBlock(outputs, examples[part], part, partial(_one_of, masks, part.start))

        self.fill()
        yield from self.batches.spread(run, self.batches.split(len(masks), self.row_bytes), self.row_bytes)

    def everyone(self, masks: Masks) -> Generator[RowBlock, None, None]:
        """Every coalition, masks (R, n), on every example."""
        if not len(masks):
            return
        if self.calibration.meet:
            yield from self._in_order(masks)
            return
        self.fill()
        first = self.runner.incremental_linear if len(masks) > 1 else None  # contributions pay off from the second on
        per_batch = self.batches.largest(self.row_bytes)
        grid = None if first is None else masks.grid(per_batch)
        unit = 1 if grid is None else len(grid.low)
        blocks = -(-len(masks) // max(per_batch, unit))
        width = -(-len(masks) // blocks // unit) * unit  # blocks of equal size, at most per_batch
        height = max(1, per_batch // width)
        parts = [slice(start, min(start + width, len(masks))) for start in range(0, len(masks), width)]
        for examples in torch.arange(self.n_examples, device=self.device).split(height):
            yield from self._over(masks, examples, first, grid, parts)

    def _in_order(self, masks: Masks) -> Iterator[RowBlock]:
        """One coalition after the other, on the batches on which the dense network was run."""
        for i in range(len(masks)):
            for examples in torch.arange(self.n_examples, device=self.device).split(FORWARD_BATCH):
                outputs = self.run_in_precision(self.runner.run, self.calibration.rows(examples), masks[i : i + 1])
                yield RowBlock(outputs, examples, slice(i, i + 1), partial(cyclic_row, masks[i : i + 1]))

    def _over(
        self,
        masks: Masks,
        examples: Tensor,
        first: IncrementalLinear | None,
        grid: CoalitionGrid | None,
        parts: Sequence[slice],
    ) -> Iterator[RowBlock]:
        """Coalitions, part by part, on some examples."""
        state = self.state(examples)
        sums = None if first is None else sums_of_coalitions(first.contributions(state), masks, grid)
        run = partial(self._crossed, masks, examples, state, sums)
        for part in parts:
            yield from self.batches.halving(
                run, part, self.row_bytes * len(examples), partial(self._fewer, masks, examples)
            )

    def _fewer(self, masks: Masks, examples: Tensor, part: slice) -> Iterator[RowBlock]:
        """Coalitions on one half of the examples, and then on the other."""
        for half in examples.chunk(2):
            yield from self._over(masks, half, None, None, [part])

    def _crossed(
        self, masks: Masks, examples: Tensor, state: CachedState, sums: Callable[[slice], Tensor] | None, part: slice
    ) -> RowBlock:
        """Some of the coalitions on some examples; ``sums`` gives what the first linear layer answers."""
        block, first = masks[part], self.runner.incremental_linear
        rows = torch.arange(len(examples), device=self.device).repeat_interleave(len(block))
        if sums is not None and first is not None:
            outputs = self._run(first.finish, gather_rows(first.leftover(state), rows), sums(part))
        else:
            outputs = self._run(self.runner.run, gather_rows(state, rows), block.repeat(len(examples), 1))
        return RowBlock(outputs, examples[rows], part, partial(cyclic_row, block))

    def walks(
        self, first: IncrementalLinear, orders: Tensor, examples: Tensor, start: Tensor | None
    ) -> Generator[RowBlock, None, None]:
        """Players ``orders`` (W, m) leave ``start`` (n,) one by one: they are added to ``first`` from the end."""
        cost = self.walk_bytes(orders.shape[1])
        everyone = torch.ones(self.n_players, device=self.device) if start is None else start
        somebody_stays = orders.shape[1] < (self.n_players if start is None else int(start.sum()))
        run = partial(self._walks, first, orders, examples, everyone, somebody_stays)
        short = self.part_bytes <= 4 * MAX_CUMSUM_OUTPUTS * (
            self.n_players + 1
        )  # sums so small that threads wait for Python
        yield from self.batches.spread(
            run, self.batches.split(len(orders), cost, WALK_BATCH_BYTES), cost, most=1 if short else MAX_BATCH_THREADS
        )

    def _walks(
        self,
        first: IncrementalLinear,
        orders: Tensor,
        examples: Tensor,
        start: Tensor,
        somebody_stays: bool,
        part: slice,
    ) -> RowBlock:
        orders, examples = orders[part], examples[part]
        outputs = self._along(first, self.state(examples), orders, start if somebody_stays else None)
        rows = torch.arange(len(orders), device=self.device).repeat(orders.shape[1] + 1)
        return RowBlock(outputs, examples[rows], part, partial(self._mask_of_step, orders, start))

    def _mask_of_step(self, orders: Tensor, start: Tensor, row: int) -> Tensor:
        return start.index_fill(0, orders[row % len(orders), : row // len(orders)], 0.0)

    def walk_bytes(self, steps: int) -> int:
        """Bytes that one walk takes where contributions are added."""
        return self.row_bytes * (steps + 1) + self.part_bytes


def _one_of(masks: Masks, begin: int, row: int) -> Tensor:
    return masks[begin + row : begin + row + 1][0]
