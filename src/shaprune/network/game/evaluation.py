"""Evaluation of outputs: the same rows, run once, judged by one worth or by several."""

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
from shaprune.network.batches import tensor_bytes, to_device
from shaprune.network.borrow import borrowed
from shaprune.network.forward.calibration import FORWARD_BATCH
from shaprune.network.forward.coalition_masks import Listed, Masks, Walked
from shaprune.network.forward.row_batches import RowBlock
from shaprune.network.forward.rows import Rows
from shaprune.network.forward.suffix import SuffixRunner
from shaprune.network.game.worths import SetWorth, Worth, apply_row_worth, apply_set_worth, is_built_in, is_smooth
from shaprune.network.removal.masks import UnevenRowsError
from shaprune.values.games.arrays import Coalitions, Examples, Orders, Start, Worths
from shaprune.values.games.checks import describe_coalition

T = TypeVar("T")
Blocks = Generator[RowBlock, None, None]
Inspect = Callable[..., None]  # (evaluator, block, worths=None)
WriteWorths = Callable[[Tensor, Tensor, slice], None]  # enters the worths of a block's rows into a result


@dataclass(frozen=True, eq=False)
class WorthEvaluator:
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

    def each(self, block: RowBlock, shared: bool) -> Tensor:
        """Worth of each row of a block, (B,), by a row worth; `check_finite_once` sees whether it is finite."""
        assert isinstance(self.worth, Worth)
        outputs = block.outputs.clone() if shared and not is_built_in(self.worth) else block.outputs
        worths = apply_row_worth(self.worth, outputs, self.reference.index_select(0, block.examples))
        self.types.add(worths.dtype)
        return worths if self.factor == 1.0 else worths * self.factor

    def kept(self, block: RowBlock) -> Tensor:
        """What a set worth keeps of each row of a block, (B, ...)."""
        assert isinstance(self.worth, SetWorth)
        if self.worth.keep is None:
            return block.outputs
        outputs = block.outputs if is_built_in(self.worth) else block.outputs.clone()
        return self.worth.keep(outputs, self.reference.index_select(0, block.examples))

    def total(self, kept: Tensor, mask: Tensor) -> float:
        """The set worth of one coalition (n,), from what was kept of all examples, (N, ...).

        Raises:
            GameError: it is no number, or not finite.
        """
        assert isinstance(self.worth, SetWorth)
        given = kept, self.reference
        if not is_built_in(self.worth):  # whatever it writes into them stays there
            given = kept.clone(), self.reference.clone()
        value = apply_set_worth(self.worth, *given)
        if not np.isfinite(value):
            raise GameError(
                f"worth {self.worth.name!r} is {value} for {describe_coalition(mask.bool().cpu().numpy())} of "
                f"{self.of}; wrap it in sp.worths.SetWorth(name, function) that says what such a coalition is worth"
            )
        return value

    def check_dense(self) -> None:
        """Ask a set worth about the dense network, whose outputs are known.

        Raises:
            InputError: a metric that cannot use the outputs or the targets.
            GameError: it is no number, or not finite.
        """
        assert isinstance(self.worth, SetWorth)
        outputs, keep = self.rows.calibration.outputs, self.worth.keep
        if keep is None:
            kept = outputs
        else:
            pairs = zip(outputs.split(FORWARD_BATCH), self.reference.split(FORWARD_BATCH), strict=True)
            kept = torch.cat([keep(some.clone(), reference) for some, reference in pairs])
        self.total(kept, torch.ones(self.rows.n_players))

    def rounding(self, worth: float) -> float:
        """Rounding error of a row worth of this size: of its own type, and of the outputs that it is computed from."""
        if not isinstance(self.worth, Worth):
            return 0.0
        outputs, reference = (t[:FORWARD_BATCH] for t in (self.rows.calibration.outputs, self.reference))
        found = max((torch.finfo(t).eps / 2 * abs(worth) for t in self.types if t.is_floating_point), default=0.0)
        if not is_smooth(self.worth) or outputs.dtype not in (torch.float32, torch.float64):
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
        kept = self.rows.calibration.outputs[:1]
        if self.worth.keep is not None:
            kept = self.worth.keep(kept.clone(), self.reference[:1])
        bytes_each = max(1, tensor_bytes(kept) * self.rows.n_examples)
        return max(1, min(coalitions, self.rows.max_memory // 4 // bytes_each))

    def check(self, block: RowBlock, worths: Tensor | None = None) -> None:
        """Look at the outputs, and at the worths, of every row of a block.

        Raises:
            GameError: the first that is not finite, with the coalition and the layer.
        """
        bad = ~torch.isfinite(block.outputs).reshape(len(block.outputs), -1).all(1)
        if worths is not None:
            bad |= ~torch.isfinite(worths)
        if not bad.any():
            return
        row = int(torch.nonzero(bad)[0])
        mask = block.mask_of(row)
        layer = self.rows.first_nonfinite_layer(block.examples[row : row + 1], mask)
        where = f"the first layer with NaN or infinite output is {layer!r}" if layer else f"worth {self.worth.name!r}"
        raise GameError(
            f"the worth is not finite for {describe_coalition(mask.bool().cpu().numpy())} of {self.of} "
            f"on example {int(block.examples[row])}; {where}"
        )


def check_finite_once(attempt: Callable[[Inspect], T]) -> T:
    """What ``attempt`` gives; it shows every block, with the worths of its rows, to the function that it is given.

    Whether all of them are finite is asked once, at the end, so that a device need not wait after every block. Where
    they are not, ``attempt`` is made again, and every block is looked at.

    Raises:
        GameError: see `WorthEvaluator.check`; also where a worth of the user's failed on what is not finite.
    """
    sums: list[Tensor] = []  # at most one: a number kept for every block would keep memory around it from being reused
    adding = Lock()  # some blocks are shown in threads

    def note(evaluator: WorthEvaluator, block: RowBlock, worths: Tensor | None = None) -> None:
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
            attempt(WorthEvaluator.check)
        raise
    return found if sound() else attempt(WorthEvaluator.check)


def evaluate_coalitions(
    evaluators: Sequence[WorthEvaluator], coalitions: Coalitions, examples: Examples | None = None
) -> list[Worths]:
    """Worths of coalitions (R, n) on examples (R,), None = over all: (R,) for each evaluator of the same rows.

    Raises:
        GameError: see `WorthEvaluator`.
    """
    rows = evaluators[0].rows
    with borrowed(rows.calibration.model, draws=_draws(evaluators)), torch.no_grad():
        masks = Listed(to_device(torch.from_numpy(coalitions), rows.device))
        return or_one_by_one(rows, lambda: _answers(evaluators, masks, examples))


def evaluate_walks(
    evaluators: Sequence[WorthEvaluator], orders: Orders, examples: Examples | None, start: Start | None
) -> list[Worths]:
    """Worths along walks (W, m), as `Game.walk`: (W, m + 1) for each evaluator.

    Raises:
        GameError: see `WorthEvaluator`.
    """
    rows = evaluators[0].rows
    with borrowed(rows.calibration.model, draws=_draws(evaluators)), torch.no_grad():
        return or_one_by_one(rows, lambda: _walked(evaluators, orders, examples, start))


def or_one_by_one(rows: Rows, ask: Callable[[], T]) -> T:
    """What ``ask`` gives; once more, one coalition at a time, where rows of a batch turn out not to be masked apart."""
    try:
        return ask()
    except UnevenRowsError as error:
        if not rows.runner.rows_apart:
            raise
        rows.run_one_by_one(str(error))
    return ask()


def _walked(
    evaluators: Sequence[WorthEvaluator], orders: Orders, examples: Examples | None, start: Start | None
) -> list[Worths]:
    """As `evaluate_walks`, in a model that is borrowed."""
    rows = evaluators[0].rows
    shape = (len(orders), orders.shape[1] + 1)
    first = rows.runner.incremental_linear
    present = None if start is None else to_device(torch.from_numpy(start), rows.device)
    players = _indices(orders, rows.device)
    if first is None or examples is None or rows.walk_bytes(orders.shape[1]) > rows.max_memory // 2:
        who = None if examples is None else np.repeat(examples, shape[1])
        masks = Walked.of(players, rows.n_players, present)
        return [worths.reshape(shape) for worths in _answers(evaluators, masks, who)]
    given = players, _indices(examples, rows.device), None if present is None else present.float()
    blocks = partial(rows.walks, first, *given)
    return [worths.cpu().numpy() for worths in _evaluate_blocks(evaluators, blocks, shape, _put_walks)]


def _answers(evaluators: Sequence[WorthEvaluator], masks: Masks, examples: Examples | None) -> list[Worths]:
    """As `evaluate_coalitions`, in a model that is borrowed."""
    if examples is None:
        return _over_all(evaluators, masks)
    blocks = partial(evaluators[0].rows.pairs, masks, _indices(examples, evaluators[0].rows.device))
    return [worths.cpu().numpy() for worths in _evaluate_blocks(evaluators, blocks, (len(masks),), _put_rows)]


def _draws(evaluators: Sequence[WorthEvaluator]) -> bool:
    """Whether code of the user's runs, which may draw random numbers."""
    runner = evaluators[0].rows.runner
    ours = isinstance(runner, SuffixRunner) and not runner.has_user_hooks
    return not (ours and all(is_built_in(evaluator.worth) for evaluator in evaluators))


def _over_all(evaluators: Sequence[WorthEvaluator], masks: Masks) -> list[Worths]:
    """Worths over all examples; evaluators that take as many coalitions at once share one run."""
    sizes = [evaluator.at_once(len(masks)) for evaluator in evaluators]
    result = [np.empty(len(masks)) for _ in evaluators]
    for size in dict.fromkeys(sizes):
        ours = [i for i, other in enumerate(sizes) if other == size]
        for start in range(0, len(masks), max(1, size)):
            worths = _one_run([evaluators[i] for i in ours], masks.part(slice(start, start + size)))
            for i, part in zip(ours, worths, strict=True):
                result[i][start : start + size] = part
    return result


def _one_run(evaluators: Sequence[WorthEvaluator], masks: Masks) -> list[Worths]:
    """Worths over all examples of coalitions (R, n) that are run together: row worths first, then set worths."""
    rows = evaluators[0].rows
    means = [evaluator for evaluator in evaluators if isinstance(evaluator.worth, Worth)]
    stores: dict[object, _KeptOutputs] = {}  # evaluators that keep the same share it
    for evaluator in evaluators:
        if isinstance(evaluator.worth, SetWorth):
            stores.setdefault(_what_is_kept(evaluator.worth), _KeptOutputs(evaluator, len(masks)))
    sums = iter(_evaluate_blocks(means, partial(rows.everyone, masks), (len(masks),), _put_sums, stores.values()))
    result: list[Worths] = []
    for evaluator in evaluators:
        if isinstance(evaluator.worth, Worth):
            result.append((next(sums) / rows.n_examples).cpu().numpy())
            continue
        kept = stores[_what_is_kept(evaluator.worth)].kept
        each = (evaluator.total(kept[i], masks[i : i + 1][0]) for i in range(len(masks)))
        result.append(np.fromiter(each, np.float64, len(masks)))
    return result


class _KeptOutputs:
    """What a set worth keeps of every example under every coalition, (R, N, ...)."""

    def __init__(self, evaluator: WorthEvaluator, coalitions: int) -> None:
        self.evaluator, self.coalitions = evaluator, coalitions
        self.kept = torch.empty(0)

    def take(self, block: RowBlock) -> None:
        kept = self.evaluator.kept(block)
        width = block.into.stop - block.into.start
        if not self.kept.numel():
            self.kept = kept.new_empty(self.coalitions, self.evaluator.rows.n_examples, *kept.shape[1:])
        self.kept[block.into, block.examples[::width]] = kept.unflatten(0, (-1, width)).transpose(0, 1)


def _what_is_kept(worth: SetWorth) -> object:
    return None if worth.keep is None else (worth.keep, worth.reference)


def _evaluate_blocks(
    evaluators: Sequence[WorthEvaluator],
    blocks: Callable[[], Blocks],
    shape: tuple[int, ...],
    put: WriteWorths,
    stores: Collection[_KeptOutputs] = (),
) -> list[Tensor]:
    """Worths of ``shape`` by each row worth; ``stores`` take every block, too."""

    def attempt(look: Inspect) -> list[Tensor]:
        results: list[Tensor] = []
        with closing(blocks()) as running:  # at once: torch's threads are theirs while they go on
            for block in running:
                for store in stores:
                    look(store.evaluator, block)
                    store.take(block)
                results = results or [block.outputs.new_zeros(shape, dtype=torch.float64) for _ in evaluators]
                for evaluator, result in zip(evaluators, results, strict=True):
                    worths = evaluator.each(block, shared=len(evaluators) > 1)
                    look(evaluator, block, worths)
                    put(result, worths, block.into)
        return results or [torch.zeros(shape, dtype=torch.float64) for _ in evaluators]

    return check_finite_once(attempt)


def _put_rows(result: Tensor, worths: Tensor, into: slice) -> None:
    result[into] = worths


def _put_walks(result: Tensor, worths: Tensor, into: slice) -> None:
    result[into] = worths.view(result.shape[1], -1).T


def _put_sums(result: Tensor, worths: Tensor, into: slice) -> None:
    result[into] += worths.view(-1, into.stop - into.start).sum(0, dtype=torch.float64)


def _indices(numbers: Examples, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)), device)
