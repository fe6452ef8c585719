"""(coalition, example) rows of a network, run in blocks that fit in memory.

Three ways to ask: pairs (each row its own coalition and example), everyone (every coalition on every example), walks
(players leave one by one). Where one linear layer reads the mask, the players' contributions to it are added instead of
running the layer again (see `shaprune.network.firstlinear`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from shaprune.errors import InputError
from shaprune.network.agreement import limit_for, relative_difference
from shaprune.network.batches import tensors
from shaprune.network.borrow import borrowed
from shaprune.network.calls import DivergedError
from shaprune.network.coalitions import Masks
from shaprune.network.cut import Cut, Whole
from shaprune.network.firstlinear import FirstLinear
from shaprune.network.graphs import Recordings, recorder_for
from shaprune.network.grid import Grid
from shaprune.network.masks import Site
from shaprune.network.precision import RowPrecision, check_runs, in_precision, laid_out
from shaprune.network.replay import Replay
from shaprune.network.spill import PARTS, joined, out_of_memory
from shaprune.network.state import State, gather, unfix
from shaprune.network.subject import BATCH, NEAR, Subject
from shaprune.network.threads import MOST, at_once, side_by_side
from shaprune.network.trace import live_bytes

T = TypeVar("T")
ROWS_SET = 1 << 23  # bytes of one batch of rows on a CPU, where the bound allows more; larger ones leave the caches
CALLED_SET = 1 << 27  # the same where a model's own code is called, which costs about a millisecond each time
WALKS_SET = 1 << 24  # the same for walks, whose steps are small operations over all walks of a batch
MASKS = 20  # bytes that a row's mask takes per player, with what it is made from and what the layers read of it
SMALL = 32  # rows of a batch below which operations are too short to be worth their calls
SCANNED = 64  # outputs of the first linear layer up to which one cumulative sum beats a sum for every step


@dataclass(frozen=True, eq=False)
class Block:
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


class Rows:
    """Runs rows of one subject under the masks of one game; all of it without gradients, in a borrowed model.

    Args:
        subject: the model and its examples.
        sites: where the players' masks stand.
        max_memory: bytes that the rows of a batch and the cached activations may take.
        precision: of what lies behind the mask, see `shaprune.network.precision`.
    """

    def __init__(
        self, subject: Subject, sites: Sequence[Site], max_memory: int, precision: RowPrecision = "float32"
    ) -> None:
        self.subject, self.sites, self.max_memory, self.precision = subject, sites, max_memory, precision
        check_runs(subject.model, precision)
        self.n_players, self.n_examples = sites[0].n_players, subject.n_examples
        self.device = subject.outputs.device
        self._cache: State | None = None
        self._room = max_memory  # bytes that the device is known to have at most for a batch
        with borrowed(subject.model), torch.no_grad():
            self.runner: Cut | Replay | Whole = subject.runner(sites)
            if precision != "float32" and isinstance(self.runner, Cut):
                self.runner.fold()
            try:
                self._measure()
            except DivergedError as error:
                self._run_whole(error)

    def _measure(self) -> None:
        """Find what a row takes, and its values at the cut."""
        self._recordings = self.new_recordings()
        some = self.some
        probe = self.subject.prepared(self.runner, some)
        self.row_bytes = self.runner.row_bytes(probe, torch.ones(len(some), self.n_players, device=self.device))
        first = self.runner.first_linear
        self.part_bytes = live_bytes(first.contributions(probe)) // len(some) if first is not None else 0
        self.state_bytes = max(1, live_bytes(probe) // len(some)) if isinstance(probe, dict) else 1
        if self.row_bytes > self.max_memory:
            raise InputError(
                f"max_memory is {self.max_memory:,} bytes and one row of the network takes {self.row_bytes:,}; give at "
                "least that, better a thousand times as much"
            )

    def new_recordings(self) -> Recordings:
        """A place for recordings of what runs on batches of these rows; it stays empty where more than torch runs."""
        plain = isinstance(self.runner, Cut) and not self.runner.listened
        model = self.subject.model
        weights = [t.detach() for t in (*model.parameters(), *model.buffers())]
        return Recordings(recorder_for(self.device) if plain else None, self.max_memory // PARTS, weights)

    @property
    def some(self) -> Tensor:
        """A few examples, on which things are tried."""
        return torch.arange(min(4, self.n_examples), device=self.device)

    def pairs(self, masks: Masks, examples: Tensor) -> Generator[Block, None, None]:
        """Rows with their own coalition, masks (R, n), and their own example, (R,)."""

        def run(part: slice) -> Block:
            outputs = self._run(self.runner.run, self.state(examples[part]), masks[part])
            return Block(outputs, examples[part], part, partial(_one_of, masks, part.start))

        self.fill()
        yield from self.spread(run, self.split(len(masks), self.row_bytes), self.row_bytes)

    def everyone(self, masks: Masks) -> Generator[Block, None, None]:
        """Every coalition, masks (R, n), on every example."""
        if not len(masks):
            return
        self.fill()
        first = self.runner.first_linear if len(masks) > 1 else None  # contributions pay off from the second on
        per_batch = self.batch(self.row_bytes)
        grid = None if first is None else masks.grid(per_batch)
        unit = 1 if grid is None else len(grid.low)
        blocks = -(-len(masks) // max(per_batch, unit))
        width = -(-len(masks) // blocks // unit) * unit  # blocks of equal size, at most per_batch
        height = max(1, per_batch // width)
        parts = [slice(start, min(start + width, len(masks))) for start in range(0, len(masks), width)]
        for examples in torch.arange(self.n_examples, device=self.device).split(height):
            yield from self._over(masks, examples, first, grid, parts)

    def _over(
        self, masks: Masks, examples: Tensor, first: FirstLinear | None, grid: Grid | None, parts: Sequence[slice]
    ) -> Iterator[Block]:
        """Coalitions, part by part, on some examples."""
        state = self.state(examples)
        sums = None if first is None else self._sums_of(first.contributions(state), masks, grid)
        run = partial(self._crossed, masks, examples, state, sums)
        for part in parts:
            yield from self.halving(run, part, self.row_bytes * len(examples), partial(self._fewer, masks, examples))

    def _fewer(self, masks: Masks, examples: Tensor, part: slice) -> Iterator[Block]:
        """Coalitions on one half of the examples, and then on the other."""
        for half in examples.chunk(2):
            yield from self._over(masks, half, None, None, [part])

    def _crossed(
        self, masks: Masks, examples: Tensor, state: State, sums: Callable[[slice], Tensor] | None, part: slice
    ) -> Block:
        """Some of the coalitions on some examples; ``sums`` gives what the first linear layer answers."""
        block, first = masks[part], self.runner.first_linear
        rows = torch.arange(len(examples), device=self.device).repeat_interleave(len(block))
        if sums is not None and first is not None:
            outputs = self._run(first.finish, gather(first.leftover(state), rows), sums(part))
        else:
            outputs = self._run(self.runner.run, gather(state, rows), block.repeat(len(examples), 1))
        return Block(outputs, examples[rows], part, partial(_cyclic, block))

    def _sums_of(self, parts: Tensor, masks: Masks, grid: Grid | None) -> Callable[[slice], Tensor]:
        """What the first linear layer answers to some of the coalitions, from contributions (E, n + 1, ...)."""
        flat = parts.flatten(2)
        tables = None if grid is None else grid.tables(flat)

        def sums(part: slice) -> Tensor:
            if grid is not None and tables is not None and grid.holds(part):
                found = grid.sums(tables, part.start, part.stop)
            else:
                found = torch.matmul(_with_base(masks[part]).to(flat), flat)
            return found.reshape(-1, *parts.shape[2:])

        return sums

    def walks(
        self, first: FirstLinear, orders: Tensor, examples: Tensor, start: Tensor | None
    ) -> Generator[Block, None, None]:
        """Players ``orders`` (W, m) leave ``start`` (n,) one by one: they are added to ``first`` from the end."""
        cost = self.walk_bytes(orders.shape[1])
        everyone = torch.ones(self.n_players, device=self.device) if start is None else start
        somebody_stays = orders.shape[1] < (self.n_players if start is None else int(start.sum()))
        run = partial(self._walks, first, orders, examples, everyone, somebody_stays)
        short = self.part_bytes <= 4 * SCANNED * (self.n_players + 1)  # sums so small that threads wait for Python
        yield from self.spread(run, self.split(len(orders), cost, WALKS_SET), cost, most=1 if short else MOST)

    def _walks(
        self, first: FirstLinear, orders: Tensor, examples: Tensor, start: Tensor, somebody_stays: bool, part: slice
    ) -> Block:
        orders, examples = orders[part], examples[part]
        state = self.state(examples)
        sums = self._sums(first.contributions(state), orders, start if somebody_stays else None)
        rows = torch.arange(len(orders), device=self.device).repeat(len(sums))
        outputs = self._run(first.finish, gather(first.leftover(state), rows), sums.flatten(0, 1))
        return Block(outputs, examples[rows], part, partial(self._mask_of_step, orders, start))

    def culprit(self, example: Tensor, mask: Tensor) -> str | None:
        """The first layer whose output is not finite for an example (1,) under a mask (n,)."""
        state = self.state(example)
        return self.runner.culprit(state, mask[None])

    def lowered(self, run: Callable[..., Tensor], *given: Any) -> Tensor:
        """Outputs of a run in the precision of these rows, in float32 where that is lower."""
        if isinstance(self.runner, Cut):
            given = laid_out(given, self.precision)
        outputs: Tensor = in_precision(run, self.device, self.precision)(*given)
        return outputs

    def _run(self, run: Callable[..., Tensor], state: State, masks_or_sums: Tensor) -> Tensor:
        """As `lowered`; by a recording, where these operations have one."""
        given, bytes_ = (state, masks_or_sums), len(masks_or_sums) * self.row_bytes
        outputs: Tensor = self._recordings.run(partial(self.lowered, run), given, run.__name__, bytes_)
        return outputs

    def _sums(self, parts: Tensor, orders: Tensor, start: Tensor | None) -> Tensor:
        """Outputs of the first linear layer along walks: parts (W, n + 1, ...) -> (m + 1, W, ...).

        ``start`` (n,) is where they leave from; None = nobody of it stays.
        """
        walks, steps = orders.shape
        nobody = parts[:, -1]  # of those who leave
        if start is not None:
            staying = _with_base(start.repeat(walks, 1).scatter_(1, orders, 0.0))
            nobody = torch.matmul(staying[:, None].to(parts), parts.flatten(2)).view(nobody.shape)
        every = torch.arange(walks, device=self.device)
        if nobody[0].numel() <= SCANNED:
            return torch.cat([nobody[None], parts[every, orders.T.flip(0)]]).cumsum_(0).flip(0)
        sums = parts.new_empty((steps + 1, *nobody.shape))
        sums[steps] = nobody
        for step in reversed(range(steps)):
            torch.add(sums[step + 1], parts[every, orders[:, step]], out=sums[step])
        return sums

    def _mask_of_step(self, orders: Tensor, start: Tensor, row: int) -> Tensor:
        return start.index_fill(0, orders[row % len(orders), : row // len(orders)], 0.0)

    def walk_bytes(self, steps: int) -> int:
        """Bytes that one walk takes where contributions are added."""
        return self.row_bytes * (steps + 1) + self.part_bytes

    # -- memory ---------------------------------------------------------------------------------------------------

    def batch(self, bytes_per_row: int, working_set: int | None = None) -> int:
        """How many rows are run at once; other devices than the CPU take as many as the bound allows."""
        most = min(self.max_memory // 2, self._room)
        if working_set is None:
            working_set = CALLED_SET if isinstance(self.runner, Replay) else ROWS_SET
        size = (min(most, working_set) if self.device.type == "cpu" else most) // bytes_per_row
        return max(1, min(size, most // 2 // (MASKS * self.n_players)))

    def split(self, rows: int, bytes_per_row: int, working_set: int | None = None) -> list[slice]:
        """Rows in parts of equal size, none larger than a batch; some smaller ones where they can run side by side."""
        batch = self.batch(bytes_per_row, working_set)
        parts = -(-rows // batch)
        if self._divisible:
            parts = max(parts, min(MOST, rows // max(SMALL, batch // MOST)))
            even = 1 << (parts - 1).bit_length() if 0 < parts < MOST else parts  # 2, 4 or 8 share it evenly
            parts = min(even, rows)
        ends = [rows * i // parts for i in range(parts + 1)] if parts else []
        return [slice(*ends) for ends in pairwise(ends)]

    @property
    def _divisible(self) -> bool:
        """Whether batches can run side by side: on a CPU, where nothing but torch's operations runs."""
        return self.device.type == "cpu" and isinstance(self.runner, Cut) and not self.runner.listened

    def spread(
        self, run: Callable[[slice], T], parts: Sequence[slice], bytes_each: int, most: int = MOST
    ) -> Iterator[T]:
        """``run`` on all parts, in order; at most ``most`` at a time, as there are threads, and memory, for them."""
        largest = max((part.stop - part.start for part in parts), default=1) * max(bytes_each, MASKS * self.n_players)
        room = max(1, self.max_memory // 2 // largest)
        threads = at_once(min(len(parts), room, most)) if self._divisible else 1
        for part, result in side_by_side(run, parts, threads):
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
                single = size < 2 and (fewer is None or bytes_each <= self.row_bytes)
                if single or not out_of_memory(error):
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

    def state(self, examples: Tensor) -> State:
        """Values at the cut for some examples, see `fill`."""
        self.fill()
        return self.subject.rows(examples) if self._cache is None else gather(self._cache, examples)

    def fill(self) -> None:
        """Compute the values at the cut of all examples, once, and keep them, see `joined`.

        A model that cannot be replayed on all of them is run whole from here on, in batches that fit it.
        """
        if self._cache is not None or isinstance(self.runner, Whole):
            return
        known = self._known()
        blocks = torch.arange(self.n_examples, device=self.device).split(BATCH)
        try:
            states = (self._prepared(rows, known) for rows in blocks)
            self._cache = joined(states, self.max_memory // PARTS, self.n_examples)
        except DivergedError as error:
            self._run_whole(error)
        if isinstance(self.runner, Cut):
            self.subject.keep_known(self._cache)

    def _run_whole(self, error: DivergedError) -> None:
        self.runner = Whole(self.subject.model, self.sites, self.subject.forward, str(error))
        self.subject.say_whole(str(error))
        self._measure()

    def _known(self) -> State | None:
        """Values at the cut of another game on the same examples, where they lead to the same values at this one.

        They do not where an operation in place, which this game runs again, has written to them.
        """
        known = self.subject.known
        if known is None or not isinstance(self.runner, Cut):
            return None
        pairs = zip(*(tensors([*unfix(self._prepared(self.some, k)).values()]) for k in (None, known)), strict=True)
        return known if all(relative_difference(a, b) <= limit_for(a.dtype, NEAR) for a, b in pairs) else None

    def _prepared(self, examples: Tensor, known: State | None) -> State:
        if known is None or not isinstance(self.runner, Cut):
            return self.subject.prepared(self.runner, examples)
        return self.runner.prepare(self.subject.rows(examples), gather(known, examples))


def _one_of(masks: Masks, begin: int, row: int) -> Tensor:
    return masks[begin + row : begin + row + 1][0]


def _cyclic(block: Tensor, row: int) -> Tensor:
    return block[row % len(block)]


def _with_base(masks: Tensor) -> Tensor:
    """(..., n) -> (..., n + 1): what is there without any player always counts."""
    return F.pad(masks, (0, 1), value=1.0)
