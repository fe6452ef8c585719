"""Derivatives of worths by the masks: a pass forward and one back through what lies behind them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from shaprune.errors import GameError, InputError
from shaprune.network.batches import to_device
from shaprune.network.borrow import borrowed
from shaprune.network.disk_buffer import is_out_of_memory
from shaprune.network.forward.cached_state import CachedState, gather_rows
from shaprune.network.forward.fast_path_proof import ProofQuestion
from shaprune.network.forward.row_batches import RowBlock
from shaprune.network.forward.suffix import OneByOneRunner, SuffixRunner
from shaprune.network.game.evaluation import Inspect, WorthEvaluator, check_finite_once, or_one_by_one
from shaprune.network.game.fingerprint import few_digits
from shaprune.network.game.worth_differences import HIDDEN, WorthDifferences
from shaprune.network.game.worths import is_built_in, is_smooth
from shaprune.network.precision import in_memory_layout
from shaprune.network.removal.masks import ConsumerInputMask
from shaprune.network.removal.norms import NormMask
from shaprune.values.games.arrays import Coalitions, Examples, Worths

_NEAR, _NEAR_LOW = 1e-3, 0.3  # how far apart derivatives may lie, relative; in lower precision
UNREACHED = (
    "autograd does not reach what reads them (no_grad, inference_mode, .detach(), torch.utils.checkpoint with "
    "use_reentrant=True), or some examples take a way past it (experts); use method='permutation'"
)
WITHOUT_DERIVATIVES = "use a worth that has them, such as 'fidelity' or 'cross_entropy', or method='permutation'"


class MaskDerivatives:
    """Derivatives of the worth of one game, in batches that fit in memory.

    Args:
        evaluator: of a row worth; it runs the rows.

    Raises:
        InputError: the worth has no derivatives by these masks, or one row takes more than the memory with all that a
            pass forward keeps for the pass back.
    """

    def __init__(self, evaluator: WorthEvaluator) -> None:
        self.evaluator, self.rows = evaluator, evaluator.rows
        self.row_bytes = self.rows.row_bytes
        self._recordings = self.rows.new_recordings()
        self._plain: OneByOneRunner | None = None  # runs the rows where what runs them else has other derivatives
        with borrowed(self.rows.calibration.model), torch.no_grad():
            self.row_bytes = self._kept_bytes()
            self._prove()
        if self.row_bytes > self.rows.max_memory:
            raise InputError(
                f"max_memory is {self.rows.max_memory:,} bytes and one row with its derivatives takes "
                f"{self.row_bytes:,}; give at least that, or use method='permutation'"
            )

    def of(self, coalitions: Coalitions, examples: Examples | None) -> Worths:
        """Worths of coalitions (R, n) and their derivatives, as `Game.derivatives`: (R, n + 1).

        Raises:
            GameError: see `WorthEvaluator`.
        """
        rows = self.rows
        with borrowed(rows.calibration.model), torch.no_grad():
            masks = to_device(torch.from_numpy(coalitions), rows.device).float()
            which = None if examples is None else to_device(torch.from_numpy(examples.astype(np.int64)), rows.device)
            answers = partial(check_finite_once, partial(self._answers, masks, which))
            return or_one_by_one(rows, answers).cpu().numpy()

    def _answers(self, masks: Tensor, examples: Tensor | None, look: Inspect) -> Tensor:
        """(R, n + 1) float64 on the device."""
        found = masks.new_zeros((len(masks), self.rows.n_players + 1), dtype=torch.float64)
        if examples is not None:
            for part, answer in self._blocks(masks, examples, look):
                found[part] = answer
            return found
        every = torch.arange(self.rows.n_examples, device=self.rows.device)
        for row, mask in zip(found, masks, strict=True):
            for _, answer in self._blocks(mask.expand(len(every), -1), every, look):
                row += answer.sum(0, dtype=torch.float64)
        return found / self.rows.n_examples

    def _blocks(self, masks: Tensor, examples: Tensor, look: Inspect) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the rows with their answers, (B, n + 1)."""

        def run(part: slice) -> tuple[slice, Tensor]:
            return part, self._differentiated(self._state(examples[part]), masks[part], examples[part], look)

        as_many = (
            self.rows.batches.largest(self.rows.row_bytes) * self.row_bytes
        )  # as without derivatives, where there is room
        yield from self.rows.batches.spread(
            run, self.rows.batches.split(len(masks), self.row_bytes, as_many), self.row_bytes
        )

    def _state(self, examples: Tensor) -> CachedState:
        return self.rows.state(examples) if self._plain is None else self.rows.calibration.rows(examples)

    def _differentiated(self, state: CachedState, masks: Tensor, examples: Tensor, look: Inspect) -> Tensor:
        given = state, masks, examples
        try:
            if is_built_in(self.evaluator.worth) and self._plain is None:
                found = self._recordings.run(self._there_and_back, given, "", len(masks) * self.row_bytes)
            else:
                found = self._there_and_back(*given)
        except RuntimeError as error:
            if isinstance(error, GameError) or is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise InputError(
                f"what lies behind the masks of {self.evaluator.of} has no derivatives ({reason}); "
                "use method='permutation'"
            ) from error
        outputs, worths, slopes = found
        look(self.evaluator, RowBlock(outputs, examples, slice(0, len(masks)), masks.__getitem__), worths)
        return torch.cat([worths[:, None], slopes], 1)

    def _there_and_back(self, state: CachedState, masks: Tensor, examples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of rows, their worths, and how these change with the masks (B, n)."""
        run = partial(self.rows.run_in_precision, self.rows.runner.run) if self._plain is None else self._plain.run
        with torch.enable_grad():
            leaf = masks.clone().requires_grad_()
            outputs = run(state, leaf)
            block = RowBlock(outputs, examples, slice(0, len(masks)), masks.__getitem__)
            worths = self.evaluator.each(block, shared=False)
            slopes = None
            if worths.requires_grad:
                (slopes,) = torch.autograd.grad(worths.sum(), leaf, allow_unused=True)
        if slopes is None:
            worth = self.evaluator.worth
            multiplied = all(isinstance(site, (ConsumerInputMask, NormMask)) for site in self.rows.sites)
            instead = UNREACHED if multiplied and is_smooth(worth) else WITHOUT_DERIVATIVES
            raise InputError(f"worth {worth.name!r} has no derivatives by the masks of {self.evaluator.of}; {instead}")
        return outputs.detach(), worths.detach(), slopes

    def _prove(self) -> None:
        """Compare the derivatives of one row, with players removed, with those of the plain masked network.

        Where they differ, they are taken through the plain one. Either must be what differences of worths are.

        Raises:
            InputError: neither is, or there are none.
        """
        rows, asked = self.rows, self.rows.asked
        if asked is None:
            return
        asked = asked.only(self._row)
        ours = self._slopes_of(rows.asked_state(1, self._row), asked)
        exact = None if few_digits(rows.calibration.model) else self._differences(asked)
        near = _NEAR if rows.precision == "float32" else _NEAR_LOW
        if type(rows.runner) is not OneByOneRunner:
            plain = self._through_plain(asked)
            error = 0.0 if plain is None else float((ours - plain).norm())
            if plain is not None and error > near * float(plain.norm()):
                off = exact.deviation(plain[0]) if exact is not None else None
                if off is None:
                    rows.refuse(
                        "derivatives are taken through the whole model",
                        "through the part behind the mask they are "
                        f"{error / max(float(plain.norm()), 1e-30):.2g} of their size apart",
                    )
                    self.row_bytes = self._kept_bytes()
                    return
            self._plain = None
        off = exact.deviation(ours[0], near) if exact is not None else None
        if off is not None:
            raise InputError(
                f"the worth has no derivatives by the masks of {self.evaluator.of}: {HIDDEN.format(off)}; "
                "use method='permutation'"
            )

    @cached_property
    def _row(self) -> int:
        """The row of the question on which derivatives are compared.

        A norm over few channels bends so much that no step is short enough: where norms are masked, it is the row with
        most players.
        """
        asked = self.rows.asked
        normed = asked is not None and any(isinstance(site, NormMask) for site in self.rows.sites)
        return int(asked.masks.sum(1).argmax()) if normed and asked is not None else 0

    def _slopes_of(self, state: CachedState, asked: ProofQuestion) -> Tensor:
        return self._differentiated(state, asked.masks, asked.examples, WorthEvaluator.check)[:, 1:]

    def _through_plain(self, asked: ProofQuestion) -> Tensor | None:
        """Derivatives of rows through the plain masked network, which runs them from here on; None: it has none."""
        calibration = self.rows.calibration
        self._plain = OneByOneRunner(calibration.model, self.rows.sites, calibration.forward)
        try:
            return self._slopes_of(calibration.rows(asked.examples), asked)
        except InputError:  # parts that are run once more for the pass back, when the masks are gone
            return None

    def _differences(self, asked: ProofQuestion) -> WorthDifferences:
        """Differences of worths around the mask of one row."""
        rows, state = self.rows, self.rows.asked_state(1, self._row)

        def worths_of(masks: Tensor) -> Tensor:
            again = torch.zeros(len(masks), dtype=torch.int64, device=rows.device)
            given = gather_rows(state, again), masks
            suffix = isinstance(rows.runner, SuffixRunner)
            outputs = rows.runner.run(*(in_memory_layout(given, rows.precision) if suffix else given))
            block = RowBlock(outputs, asked.examples[again], slice(0, len(masks)), masks.__getitem__)
            return self.evaluator.each(block, shared=False)

        return WorthDifferences(worths_of, asked.masks[0], asked.dense)

    def _kept_bytes(self) -> int:
        """Memory per row with all that a pass forward keeps for the pass back."""
        found: dict[int, int] = {}
        rows, examples = self.rows, self.rows.some
        state = (
            rows.calibration.prepared(rows.runner, examples) if self._plain is None else rows.calibration.rows(examples)
        )

        def note(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            every = torch.ones(len(examples), rows.n_players, device=rows.device)
            self._differentiated(state, every, examples, WorthEvaluator.check)
        model = rows.calibration.model
        for weight in (*model.parameters(), *model.buffers()):
            found.pop(weight.untyped_storage().data_ptr(), None)
        return rows.row_bytes + sum(found.values()) // len(examples)
