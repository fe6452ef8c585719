"""(coalition, example) rows of a network, run in blocks that fit in memory.

Three ways to ask: pairs (each row its own coalition and example), everyone (every coalition on every example), walks
(players leave one by one). Where one linear layer reads the mask, the players' contributions to it are added instead of
running the layer again (see `shaprune.network.firstlinear`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.agreement import HALF, limit_for, relative_difference
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
from shaprune.network.proof import NEAR, Question
from shaprune.network.replay import Replay
from shaprune.network.row_batches import WALKS_SET, Block, RowBatches
from shaprune.network.spill import PARTS, joined
from shaprune.network.state import State, gather, unfix
from shaprune.network.subject import BATCH, Subject
from shaprune.network.threads import MOST, side_by_side
from shaprune.network.trace import live_bytes

SCANNED = 64  # outputs of the first linear layer up to which one cumulative sum beats a sum for every step


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
        self.batches = RowBatches(max_memory, self.device, self.n_players, self._divisible)
        self._side_by_side = True
        self.refuted: list[tuple[str, str]] = []  # fast ways that are not used, and why
        with borrowed(subject.model), torch.no_grad():
            self.asked = None if subject.meet else subject.question(sites)
            self._begin()
            if self.asked is not None and precision != "float32":
                self._prove_precision(self.asked)
            if self.asked is not None and isinstance(self.runner, Cut):
                self._prove_ways(self.runner, self.asked)

    def _begin(self) -> None:
        """Find what runs the rows, and what a row takes."""
        self.runner, self._known_state = self.subject.runner(self.sites, self.asked)
        if self.precision != "float32" and isinstance(self.runner, Cut):
            self.runner.fold()
        try:
            self._measure()
        except DivergedError as error:
            self._run_whole(error)

    # -- what is proved once: every way but the plain one, see `shaprune.network.proof` ------------------------------

    def asked_state(self) -> State:
        """A copy of the values at the cut for the rows of the question."""
        assert self.asked is not None
        return gather(self._known_state, torch.arange(len(self.asked.masks), device=self.device))

    def _prove_precision(self, asked: Question) -> None:
        why = self._differs(asked, lambda: self.lowered(self.runner.run, self.asked_state(), asked.masks))
        if why is not None:
            self.refuse(f"precision {self.precision!r} is not used, rows are run in float32", why)
            self.precision = "float32"
            self._begin()

    def _prove_ways(self, runner: Cut, asked: Question) -> None:
        first = runner.first_linear
        if first is not None:
            row = len(asked.masks[:2]) - 1
            walked = self._differs(asked, lambda: self._walked(first, asked.masks[row], row), slice(row, row + 1))
            why = self._differs(asked, lambda: self._added(first, asked)) or walked
            if why is not None:
                self.refuse("players are not added one by one, the layer behind the mask is run again", why)
                runner.first_linear = None
        why = self._differs(asked, lambda: self._beside(runner, asked)) if self._divisible() else None
        if why is not None:
            self.refuse("batches are not run side by side", why)
            self._side_by_side = False

    def _differs(self, asked: Question, ask: Callable[[], Tensor], rows: slice = slice(None)) -> str | None:
        """How a fast way answers otherwise than the plain network, None where it does not."""
        try:
            outputs = ask()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return asked.refuted(outputs, NEAR if self.precision == "float32" else HALF, rows)

    def refuse(self, what: str, why: str) -> None:
        """Note, and warn, that a fast way is not used."""
        self.refuted.append((what, why))
        warnings.warn(f"{what}: {why}", ShapruneWarning, stacklevel=2)

    def _added(self, first: FirstLinear, asked: Question) -> Tensor:
        """Outputs of the question's rows, from contributions to the first linear layer."""
        state = self.asked_state()
        parts = first.contributions(state)
        sums = torch.matmul(_with_base(asked.masks)[:, None].to(parts), parts.flatten(2))
        return self.lowered(first.finish, first.leftover(state), sums.view(len(sums), *parts.shape[2:]))

    def _walked(self, first: FirstLinear, mask: Tensor, row: int) -> Tensor:
        """Outputs of a row of the question, as the end of a walk on which those who have left it leave."""
        state = gather(self._known_state, torch.tensor([row], device=self.device))
        return self._along(first, state, torch.nonzero(mask == 0).T, torch.ones_like(mask))[-1:]

    def _beside(self, runner: Cut, asked: Question) -> Tensor:
        """Outputs of the question's rows, each in a thread of its own.

        Raises:
            RuntimeError: a layer keeps something of what it is given, which another thread would find.
        """
        before = runner.kept()

        def run(row: int) -> Tensor:
            rows = torch.tensor([row], device=self.device)
            return self.lowered(runner.run, gather(self._known_state, rows), asked.masks[rows])

        found = [result() for _, result in side_by_side(run, range(len(asked.masks)), threads=2)]
        for (name, key), value in runner.kept().items():
            if value is not before.get((name, key), self):
                raise RuntimeError(f"layer {name!r} keeps something of what it is given in its {key}")
        return torch.cat(found)

    def _measure(self) -> None:
        """Find what a row takes, and its values at the cut."""
        self._recordings = self.new_recordings()
        self.batches.called = isinstance(self.runner, Replay)
        rows = len(self.some) if self.asked is None else len(self.asked.masks)
        probe = self.asked_state() if self.asked is not None else self.subject.prepared(self.runner, self.some)
        self.row_bytes = self.runner.row_bytes(probe, torch.ones(rows, self.n_players, device=self.device))
        first = self.runner.first_linear
        self.part_bytes = live_bytes(first.contributions(probe)) // rows if first is not None else 0
        self.state_bytes = max(1, live_bytes(probe) // rows) if isinstance(probe, dict) else 1
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
        yield from self.batches.spread(run, self.batches.split(len(masks), self.row_bytes), self.row_bytes)

    def everyone(self, masks: Masks) -> Generator[Block, None, None]:
        """Every coalition, masks (R, n), on every example."""
        if not len(masks):
            return
        if self.subject.meet:
            yield from self._in_order(masks)
            return
        self.fill()
        first = self.runner.first_linear if len(masks) > 1 else None  # contributions pay off from the second on
        per_batch = self.batches.largest(self.row_bytes)
        grid = None if first is None else masks.grid(per_batch)
        unit = 1 if grid is None else len(grid.low)
        blocks = -(-len(masks) // max(per_batch, unit))
        width = -(-len(masks) // blocks // unit) * unit  # blocks of equal size, at most per_batch
        height = max(1, per_batch // width)
        parts = [slice(start, min(start + width, len(masks))) for start in range(0, len(masks), width)]
        for examples in torch.arange(self.n_examples, device=self.device).split(height):
            yield from self._over(masks, examples, first, grid, parts)

    def _in_order(self, masks: Masks) -> Iterator[Block]:
        """One coalition after the other, on the batches on which the dense network was run."""
        for i in range(len(masks)):
            for examples in torch.arange(self.n_examples, device=self.device).split(BATCH):
                outputs = self.lowered(self.runner.run, self.subject.rows(examples), masks[i : i + 1])
                yield Block(outputs, examples, slice(i, i + 1), partial(_cyclic, masks[i : i + 1]))

    def _over(
        self, masks: Masks, examples: Tensor, first: FirstLinear | None, grid: Grid | None, parts: Sequence[slice]
    ) -> Iterator[Block]:
        """Coalitions, part by part, on some examples."""
        state = self.state(examples)
        sums = None if first is None else self._sums_of(first.contributions(state), masks, grid)
        run = partial(self._crossed, masks, examples, state, sums)
        for part in parts:
            yield from self.batches.halving(
                run, part, self.row_bytes * len(examples), partial(self._fewer, masks, examples)
            )

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
        yield from self.batches.spread(
            run, self.batches.split(len(orders), cost, WALKS_SET), cost, most=1 if short else MOST
        )

    def _walks(
        self, first: FirstLinear, orders: Tensor, examples: Tensor, start: Tensor, somebody_stays: bool, part: slice
    ) -> Block:
        orders, examples = orders[part], examples[part]
        outputs = self._along(first, self.state(examples), orders, start if somebody_stays else None)
        rows = torch.arange(len(orders), device=self.device).repeat(orders.shape[1] + 1)
        return Block(outputs, examples[rows], part, partial(self._mask_of_step, orders, start))

    def _along(self, first: FirstLinear, state: State, orders: Tensor, start: Tensor | None) -> Tensor:
        """Outputs (steps + 1, walks), flat, along walks; see `_sums`."""
        sums = self._sums(first.contributions(state), orders, start)
        rows = torch.arange(len(orders), device=self.device).repeat(len(sums))
        return self._run(first.finish, gather(first.leftover(state), rows), sums.flatten(0, 1))

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

    def _divisible(self) -> bool:
        """Whether batches can run side by side: on a CPU, where nothing but torch's operations and layers runs."""
        plain = self.device.type == "cpu" and isinstance(self.runner, Cut) and not self.runner.listened
        return plain and self._side_by_side

    # -- values at the cut -----------------------------------------------------------------------------------------

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
        self.runner, self._known_state = self.subject.whole(self.sites, self.asked, str(error))
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
