"""A network as a game: players are units, the worth of a coalition is the quality with only these units kept.

Masks stand at the consumers' inputs (see `shaprune.network.masks`), so the worth of a coalition is the worth of the
network after surgery. Rows of a batch carry their own coalition and their own example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import GameError, InputError
from shaprune.network.batches import Forward
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.cut import Cut, Whole
from shaprune.network.firstlinear import FirstLinear
from shaprune.network.masks import edges_of, masked
from shaprune.network.players import Group, Players
from shaprune.network.state import State, gather, join
from shaprune.network.subject import Subject
from shaprune.network.surgery import check_fits
from shaprune.network.trace import live_bytes
from shaprune.network.worths import Evaluate, RowWorth, Worth, check_targets, rows_worth, worth_of
from shaprune.values.game import Coalitions, Examples, Game, Orders, Worths, describe

MAX_MEMORY = 1 << 30  # bytes
ROWS_SET = 1 << 23  # bytes of one batch of rows where the bound allows more; larger batches leave the caches
WALKS_SET = 1 << 24  # the same for walks, whose steps are small operations over all walks of a batch


class NetworkGame(Game):
    """The game of a trained network.

    Args:
        model: the dense network; scored in eval mode, it comes back untouched.
        players: from `find_players` on this model.
        data: an iterable of batches ``(inputs, targets)``, read once; or a `Subject` shared between games. Not used by
            `Evaluate`.
        worth: ``"accuracy"``, ``"cross_entropy"``, ``"fidelity"``, a callable ``(outputs, targets) -> (R,)``, or
            `Evaluate`.
        group: name(s) of the groups that play, the others stay whole; None = all players at once.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called; then the model is run whole.
        max_memory: bytes that the rows of a batch and the cached activations may take.

    Raises:
        InputError: unusable data, targets, worth or group.
        GameError: outputs or worths that are NaN or infinite: which layer, which coalition.
    """

    def __init__(
        self,
        model: nn.Module,
        players: Players,
        data: Iterable[Any] | Subject | None,
        worth: str | RowWorth | Worth | Evaluate = "accuracy",
        group: str | Sequence[str] | None = None,
        *,
        forward: Forward | None = None,
        max_memory: int = MAX_MEMORY,
    ) -> None:
        if max_memory < 1:
            raise InputError(f"max_memory is {max_memory}; give a number of bytes, such as 1 << 30")
        check_fits(model, players)
        wanted = [group] if isinstance(group, str) else group
        if wanted is not None and len(set(wanted)) != max(len(wanted), 1):
            raise InputError(f"group is {group!r}; name at least one group, and each only once")
        self.groups: Sequence[Group] = players.groups if wanted is None else [players.group(name) for name in wanted]
        self.model = model
        self.max_memory = max_memory
        self.n_players = sum(len(g) for g in self.groups)
        self.edges = edges_of(players, self.groups, device_of(model))
        self.whole_model = worth.function if isinstance(worth, Evaluate) else None
        if isinstance(worth, Evaluate):
            self.n_examples = 1
            return
        if data is None:
            raise InputError("data is None; give an iterable of batches (inputs, targets)")
        self.subject = data if isinstance(data, Subject) else Subject(model, data, forward)
        if self.subject.model is not model:
            raise InputError("the Subject given as data belongs to another model; make one of this model")
        self.worth = worth_of(worth)
        check_targets(self.worth, self.subject.targets, self.subject.outputs)
        targets = self.subject.outputs if self.worth.reference == "dense" else self.subject.targets
        assert targets is not None
        self.reference: Tensor = targets
        self.n_examples = self.subject.n_examples
        self.device = targets.device
        with borrowed(model), torch.no_grad():
            self.runner: Cut | Whole = self.subject.runner(self.edges)
            probe = self.runner.prepare(self.subject.rows(torch.arange(min(4, self.n_examples))))
            full = torch.ones(min(4, self.n_examples), self.n_players, device=self.device)
            self.row_bytes = self.runner.row_bytes(probe, full)
            first = self.runner.first_linear
            self.part_bytes = live_bytes(first.contributions(probe)) // len(full) if first is not None else 0
            self.state_bytes = max(1, live_bytes(probe) // len(full)) if isinstance(probe, dict) else 1
        self._cache: State | None = None

    def __call__(self, coalitions: Coalitions, examples: Examples | None = None) -> Worths:
        coalitions = np.asarray(coalitions, dtype=bool)
        if coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:
            raise InputError(f"coalitions have shape {coalitions.shape}; this game needs (R, {self.n_players})")
        if examples is not None and np.shape(examples) != (len(coalitions),):
            raise InputError(f"examples have shape {np.shape(examples)}; give one for each of {len(coalitions)} rows")
        if self.whole_model is not None:
            return np.array([self._evaluate(row) for row in coalitions], dtype=np.float64)
        with borrowed(self.model), torch.no_grad():
            masks = torch.from_numpy(coalitions).to(self.device, torch.float32)
            if not len(masks):
                return np.empty(0)
            if examples is None:
                return self._means(masks)
            worths = [self._rows(masks[part], rows) for part, rows in self._parts(examples, self.row_bytes)]
            return torch.cat(worths).double().cpu().numpy()

    def walk(self, orders: Orders, examples: Examples | None = None) -> Worths:
        first = None if self.whole_model is not None or examples is None else self.runner.first_linear
        if first is None or examples is None:
            return super().walk(orders, examples)
        steps = orders.shape[1]
        with borrowed(self.model), torch.no_grad():
            cost = self.row_bytes * (steps + 1) + self.part_bytes
            players = torch.from_numpy(np.ascontiguousarray(orders)).to(self.device)
            parts = [self._walk(first, players[part], rows) for part, rows in self._parts(examples, cost, WALKS_SET)]
            return torch.cat(parts).double().cpu().numpy()

    # -- rows -----------------------------------------------------------------------------------------------------

    def _rows(self, masks: Tensor, examples: Tensor) -> Tensor:
        """Worth of rows, each with its own coalition and example."""
        state = self._state(examples)
        return self._worth(self.runner.run(state, masks), examples, lambda row: masks[row])

    def _means(self, masks: Tensor) -> Worths:
        """Mean worth over all examples of each coalition (R, n)."""
        total = torch.zeros(len(masks), dtype=torch.float64, device=self.device)
        first = self.runner.first_linear
        per_batch = self._batch(self.row_bytes)
        width = -(-len(masks) // -(-len(masks) // per_batch))  # blocks of equal size, at most per_batch
        height = max(1, per_batch // width)
        for examples in torch.arange(self.n_examples, device=self.device).split(height):
            state = self._state(examples)
            parts = None if first is None else first.contributions(state)
            every = torch.arange(len(examples), device=self.device)
            for start in range(0, len(masks), width):
                block = masks[start : start + width]
                rows = every.repeat_interleave(len(block))
                if first is not None and parts is not None:
                    sums = torch.matmul(_with_base(block), parts.flatten(2)).view(len(rows), *parts.shape[2:])
                    outputs = first.finish(gather(first.leftover(state), rows), sums)
                else:
                    outputs = self.runner.run(gather(state, rows), block.repeat(len(examples), 1))
                worths = self._worth(outputs, examples[rows], partial(_cyclic, block))
                total[start : start + width] += worths.view(len(examples), -1).sum(0, dtype=torch.float64)
        return (total / self.n_examples).cpu().numpy()

    def _walk(self, first: FirstLinear, orders: Tensor, examples: Tensor) -> Tensor:
        """Worths along walks, (W, m) -> (W, m + 1): players are added to the first linear layer from the end."""
        state = self._state(examples)
        parts = first.contributions(state)
        walks, steps = orders.shape
        every = torch.arange(walks, device=self.device)
        sums = parts.new_empty((steps + 1, walks, *parts.shape[2:]))
        sums[steps] = parts[:, -1]
        if steps < self.n_players:
            staying = _with_base(torch.ones(walks, self.n_players, device=self.device).scatter_(1, orders, 0.0))
            sums[steps] = torch.matmul(staying[:, None], parts.flatten(2)).view(sums[steps].shape)
        for step in reversed(range(steps)):
            torch.add(sums[step + 1], parts[every, orders[:, step]], out=sums[step])
        del parts
        rows = every.repeat(steps + 1)
        outputs = first.finish(gather(first.leftover(state), rows), sums.flatten(0, 1))

        def kept(row: int) -> Tensor:
            order = orders[row % walks, : row // walks]
            return torch.ones(self.n_players, device=self.device).index_fill_(0, order, 0.0)

        return self._worth(outputs, examples[rows], kept).view(steps + 1, walks).T

    def _worth(self, outputs: Tensor, examples: Tensor, mask_of: Callable[[int], Tensor]) -> Tensor:
        """Worth of each row; one that is not finite is an error that names the coalition and the layer."""
        worths = rows_worth(self.worth, outputs, self.reference.index_select(0, examples))
        if torch.isfinite(worths.sum() + outputs.sum()):  # one pass: NaN and infinity survive a sum
            return worths
        bad = ~torch.isfinite(worths) | ~torch.isfinite(outputs).flatten(1).all(1)
        if not bad.any():
            return worths
        row = int(torch.nonzero(bad)[0])
        mask = mask_of(row)[None]
        layer = self.runner.culprit(self.runner.prepare(self.subject.rows(examples[row : row + 1])), mask)
        where = f"the first layer with NaN or infinite output is {layer!r}" if layer else f"worth {self.worth.name!r}"
        of = ", ".join(g.name for g in self.groups[:3])
        kept = mask[0].bool().cpu().numpy()
        raise GameError(
            f"the worth is not finite for {describe(kept)} of {of} on example {int(examples[row])}; {where}"
        )

    # -- memory ---------------------------------------------------------------------------------------------------

    def _batch(self, bytes_per_row: int, working_set: int = ROWS_SET) -> int:
        return max(1, min(self.max_memory // 2, working_set) // bytes_per_row)

    def _parts(
        self, examples: Examples, bytes_per_row: int, working_set: int = ROWS_SET
    ) -> Iterator[tuple[slice, Tensor]]:
        rows = torch.from_numpy(np.ascontiguousarray(examples, dtype=np.int64)).to(self.device)
        size = self._batch(bytes_per_row, working_set)
        for start in range(0, len(rows), size):
            yield slice(start, start + size), rows[start : start + size]

    def _state(self, examples: Tensor) -> State:
        """Values at the cut for some examples: from the cache of all where that fits in half of the memory bound."""
        if isinstance(self.runner, Whole):
            return self.subject.rows(examples)
        if self.state_bytes * self.n_examples > self.max_memory // 2:
            unique, back = torch.unique(examples, return_inverse=True)
            return gather(self.runner.prepare(self.subject.rows(unique)), back)
        if self._cache is None:
            blocks = torch.arange(self.n_examples, device=self.device).split(256)
            self._cache = join([self.runner.prepare(self.subject.rows(rows)) for rows in blocks])
        return gather(self._cache, examples)

    def _evaluate(self, kept: NDArray[np.bool_]) -> float:
        assert self.whole_model is not None
        mask = torch.from_numpy(kept[None]).to(device_of(self.model), torch.float32)
        with borrowed(self.model), masked(self.model, self.edges, mask):
            worth = float(self.whole_model(self.model))
        if not np.isfinite(worth):
            raise GameError(f"evaluate(model) returned {worth} for {describe(kept)}")
        return worth


def _cyclic(block: Tensor, row: int) -> Tensor:
    return block[row % len(block)]


def _with_base(masks: Tensor) -> Tensor:
    """(..., n) -> (..., n + 1): what is there without any player always counts."""
    return F.pad(masks, (0, 1), value=1.0)
