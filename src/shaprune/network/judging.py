"""From outputs to worths: the same rows, run once, judged by one worth or by several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from shaprune.errors import GameError
from shaprune.network.batches import to_device
from shaprune.network.borrow import borrowed
from shaprune.network.coalitions import Listed, Masks, Walked
from shaprune.network.cut import Cut
from shaprune.network.row_batches import Block
from shaprune.network.rows import Rows
from shaprune.network.subject import BATCH
from shaprune.network.trace import live_bytes
from shaprune.network.worths import SetWorth, Worth, built_in, rows_worth, set_worth
from shaprune.values.game import Coalitions, Examples, Orders, Start, Worths, describe

T = TypeVar("T")
Blocks = Generator[Block, None, None]
Look = Callable[..., None]  # (judge, block, worths=None)
Put = Callable[[Tensor, Tensor, slice], None]  # enters the worths of a block's rows into a result


@dataclass(frozen=True, eq=False)
class Judge:
    """A worth at work on the rows of one game.

    Attributes:
        rows: runs them.
        worth: per row, or of all examples together.
        reference: (N, ...) targets or dense outputs.
        of: names of the groups that play, for messages.
        factor: of a row worth, see `reference_for`.
        types: in which the worth of rows has been computed.
    """

    rows: Rows
    worth: Worth | SetWorth
    reference: Tensor
    of: str
    factor: float = 1.0
    types: set[torch.dtype] = field(default_factory=set)

    def each(self, block: Block, shared: bool) -> Tensor:
        """Worth of each row of a block, (B,), by a row worth; whether it is finite is for `inspected` to see."""
        assert isinstance(self.worth, Worth)
        outputs = block.outputs.clone() if shared and not built_in(self.worth) else block.outputs
        worths = rows_worth(self.worth, outputs, self.reference.index_select(0, block.examples))
        self.types.add(worths.dtype)
        return worths if self.factor == 1.0 else worths * self.factor

    def kept(self, block: Block) -> Tensor:
        """What a set worth keeps of each row of a block, (B, ...)."""
        assert isinstance(self.worth, SetWorth)
        if self.worth.keep is None:
            return block.outputs
        outputs = block.outputs if built_in(self.worth) else block.outputs.clone()
        return self.worth.keep(outputs, self.reference.index_select(0, block.examples))

    def total(self, kept: Tensor, mask: Tensor) -> float:
        """The set worth of one coalition (n,), from what was kept of all examples, (N, ...).

        Raises:
            GameError: it is no number, or not finite.
        """
        assert isinstance(self.worth, SetWorth)
        given = kept, self.reference
        if not built_in(self.worth):  # whatever it writes into them is seen by nobody else
            given = kept.clone(), self.reference.clone()
        value = set_worth(self.worth, *given)
        if not np.isfinite(value):
            raise GameError(
                f"worth {self.worth.name!r} is {value} for {describe(mask.bool().cpu().numpy())} of {self.of}; "
                "wrap it in sp.SetWorth(name, function) that says what such a coalition is worth"
            )
        return value

    def check_dense(self) -> None:
        """Ask a set worth about the dense network, whose outputs are known.

        Raises:
            InputError: a metric that cannot use the outputs or the targets.
            GameError: it is no number, or not finite.
        """
        assert isinstance(self.worth, SetWorth)
        outputs, keep = self.rows.subject.outputs, self.worth.keep
        if keep is None:
            kept = outputs
        else:
            pairs = zip(outputs.split(BATCH), self.reference.split(BATCH), strict=True)
            kept = torch.cat([keep(some.clone(), reference) for some, reference in pairs])
        self.total(kept, torch.ones(self.rows.n_players))

    def rounding(self, worth: float) -> float:
        """Rounding error of a row worth of this size: of its own type, and of the outputs that it is computed from."""
        if not isinstance(self.worth, Worth):
            return 0.0
        outputs, reference = (t[:BATCH] for t in (self.rows.subject.outputs, self.reference))
        found = max((torch.finfo(t).eps / 2 * abs(worth) for t in self.types if t.is_floating_point), default=0.0)
        smooth = built_in(self.worth) and self.worth.name != "accuracy"
        if not smooth or outputs.dtype not in (torch.float32, torch.float64):
            return found
        if self.worth.reference == "dense":  # the dense network's own worth is 0, whatever the outputs are
            reference = reference.roll(1, 0)
        with torch.no_grad():
            up = torch.arange(outputs.numel(), device=outputs.device).view_as(outputs) % 2 == 0
            near = torch.nextafter(outputs, torch.where(up, torch.inf, -torch.inf).to(outputs))
            gap = self.worth.function(near, reference) - self.worth.function(outputs, reference)
        return found + float(gap.double().abs().mean()) / 2

    def at_once(self, coalitions: int) -> int:
        """How many coalitions can be judged together; what is kept of all examples may take a quarter of the memory."""
        if isinstance(self.worth, Worth):
            return coalitions
        kept = self.rows.subject.outputs[:1]
        if self.worth.keep is not None:
            kept = self.worth.keep(kept.clone(), self.reference[:1])
        bytes_each = max(1, live_bytes(kept) * self.rows.n_examples)
        return max(1, min(coalitions, self.rows.max_memory // 4 // bytes_each))

    def check(self, block: Block, worths: Tensor | None = None) -> None:
        """Look at the outputs, and at the worths, of every row of a block.

        Raises:
            GameError: the first that is not finite, with the coalition and the layer.
        """
        bad = ~torch.isfinite(block.outputs).flatten(1).all(1)
        if worths is not None:
            bad |= ~torch.isfinite(worths)
        if not bad.any():
            return
        row = int(torch.nonzero(bad)[0])
        mask = block.mask_of(row)
        layer = self.rows.culprit(block.examples[row : row + 1], mask)
        where = f"the first layer with NaN or infinite output is {layer!r}" if layer else f"worth {self.worth.name!r}"
        raise GameError(
            f"the worth is not finite for {describe(mask.bool().cpu().numpy())} of {self.of} "
            f"on example {int(block.examples[row])}; {where}"
        )


def inspected(attempt: Callable[[Look], T]) -> T:
    """What ``attempt`` gives; it shows every block, with the worths of its rows, to the function that it is handed.

    Whether all of them are finite is asked once, at the end, so that a device need not wait after every block. Where
    they are not, ``attempt`` is made again, and every block is looked at.

    Raises:
        GameError: see `Judge.check`; also where a worth of the user's failed on what is not finite.
    """
    sums: list[Tensor] = []  # at most one: a number kept for every block would keep memory around it from being reused
    adding = Lock()  # some blocks are shown in threads

    def note(judge: Judge, block: Block, worths: Tensor | None = None) -> None:
        total = block.outputs.detach().sum() if worths is None else block.outputs.detach().sum() + worths.detach().sum()
        with adding:  # NaN and infinity survive a sum
            if sums:
                sums[0] += total.float()
            else:
                sums.append(total.float())

    def sound() -> bool:
        return not sums or bool(torch.isfinite(sums[0]))

    try:
        found = attempt(note)
    except Exception:  # raised again, unless what is not finite explains it
        if not sound():
            attempt(Judge.check)
        raise
    return found if sound() else attempt(Judge.check)


def answers(judges: Sequence[Judge], coalitions: Coalitions, examples: Examples | None = None) -> list[Worths]:
    """Worths of coalitions (R, n) on examples (R,), None = over all: (R,) for each judge of the same rows.

    Raises:
        GameError: see `Judge`.
    """
    rows = judges[0].rows
    with borrowed(rows.subject.model, draws=_draws(judges)), torch.no_grad():
        return _answers(judges, Listed(to_device(torch.from_numpy(coalitions), rows.device)), examples)


def walks(judges: Sequence[Judge], orders: Orders, examples: Examples | None, start: Start | None) -> list[Worths]:
    """Worths along walks (W, m), as `Game.walk`: (W, m + 1) for each judge of the same rows; raises as `answers`."""
    rows = judges[0].rows
    shape = (len(orders), orders.shape[1] + 1)
    first = rows.runner.first_linear
    with borrowed(rows.subject.model, draws=_draws(judges)), torch.no_grad():
        present = None if start is None else to_device(torch.from_numpy(start), rows.device)
        players = _indices(orders, rows.device)
        if first is None or examples is None or rows.walk_bytes(orders.shape[1]) > rows.max_memory // 2:
            who = None if examples is None else np.repeat(examples, shape[1])
            masks = Walked.of(players, rows.n_players, present)
            return [worths.reshape(shape) for worths in _answers(judges, masks, who)]
        given = players, _indices(examples, rows.device), None if present is None else present.float()
        blocks = partial(rows.walks, first, *given)
        return [worths.cpu().numpy() for worths in _judged(judges, blocks, shape, _put_walks)]


def _answers(judges: Sequence[Judge], masks: Masks, examples: Examples | None) -> list[Worths]:
    """As `answers`, in a model that is borrowed."""
    if examples is None:
        return _over_all(judges, masks)
    blocks = partial(judges[0].rows.pairs, masks, _indices(examples, judges[0].rows.device))
    return [worths.cpu().numpy() for worths in _judged(judges, blocks, (len(masks),), _put_rows)]


def _draws(judges: Sequence[Judge]) -> bool:
    """Whether code of the user's runs, which may draw random numbers."""
    runner = judges[0].rows.runner
    ours = isinstance(runner, Cut) and not runner.listened
    return not (ours and all(built_in(judge.worth) for judge in judges))


def _over_all(judges: Sequence[Judge], masks: Masks) -> list[Worths]:
    """Worths over all examples; judges that take as many coalitions at once share one run."""
    sizes = [judge.at_once(len(masks)) for judge in judges]
    result = [np.empty(len(masks)) for _ in judges]
    for size in dict.fromkeys(sizes):
        ours = [i for i, other in enumerate(sizes) if other == size]
        for start in range(0, len(masks), max(1, size)):
            worths = _one_run([judges[i] for i in ours], masks.part(slice(start, start + size)))
            for i, part in zip(ours, worths, strict=True):
                result[i][start : start + size] = part
    return result


def _one_run(judges: Sequence[Judge], masks: Masks) -> list[Worths]:
    """Worths over all examples of coalitions (R, n) that are run together: row worths first, then set worths."""
    rows = judges[0].rows
    means = [judge for judge in judges if isinstance(judge.worth, Worth)]
    stores: dict[object, _Store] = {}  # judges that keep the same share it
    for judge in judges:
        if isinstance(judge.worth, SetWorth):
            stores.setdefault(_what_is_kept(judge.worth), _Store(judge, len(masks)))
    sums = iter(_judged(means, partial(rows.everyone, masks), (len(masks),), _put_sums, stores.values()))
    result: list[Worths] = []
    for judge in judges:
        if isinstance(judge.worth, Worth):
            result.append((next(sums) / rows.n_examples).cpu().numpy())
            continue
        kept = stores[_what_is_kept(judge.worth)].kept
        each = (judge.total(kept[i], masks[i : i + 1][0]) for i in range(len(masks)))
        result.append(np.fromiter(each, np.float64, len(masks)))
    return result


class _Store:
    """What a set worth keeps of every example under every coalition, (R, N, ...)."""

    def __init__(self, judge: Judge, coalitions: int) -> None:
        self.judge, self.coalitions = judge, coalitions
        self.kept = torch.empty(0)

    def take(self, block: Block) -> None:
        kept = self.judge.kept(block)
        width = block.into.stop - block.into.start
        if not self.kept.numel():
            self.kept = kept.new_empty(self.coalitions, self.judge.rows.n_examples, *kept.shape[1:])
        self.kept[block.into, block.examples[::width]] = kept.unflatten(0, (-1, width)).transpose(0, 1)


def _what_is_kept(worth: SetWorth) -> object:
    return None if worth.keep is None else (worth.keep, worth.reference)


def _judged(
    judges: Sequence[Judge],
    blocks: Callable[[], Blocks],
    shape: tuple[int, ...],
    put: Put,
    stores: Collection[_Store] = (),
) -> list[Tensor]:
    """Worths of ``shape`` by each row worth; ``stores`` take every block, too."""

    def attempt(look: Look) -> list[Tensor]:
        results: list[Tensor] = []
        with closing(blocks()) as running:  # at once: torch's threads are theirs while they go on
            for block in running:
                for store in stores:
                    look(store.judge, block)
                    store.take(block)
                results = results or [block.outputs.new_zeros(shape, dtype=torch.float64) for _ in judges]
                for judge, result in zip(judges, results, strict=True):
                    worths = judge.each(block, shared=len(judges) > 1)
                    look(judge, block, worths)
                    put(result, worths, block.into)
        return results or [torch.zeros(shape, dtype=torch.float64) for _ in judges]

    return inspected(attempt)


def _put_rows(result: Tensor, worths: Tensor, into: slice) -> None:
    result[into] = worths


def _put_walks(result: Tensor, worths: Tensor, into: slice) -> None:
    result[into] = worths.view(result.shape[1], -1).T


def _put_sums(result: Tensor, worths: Tensor, into: slice) -> None:
    result[into] += worths.view(-1, into.stop - into.start).sum(0, dtype=torch.float64)


def _indices(numbers: Examples, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)), device)
