"""Runner of (coalition, example) rows of a network: found, measured, proved way by way; values at the cut are kept.

Every way but the plain one is proved once, see `shaprune.network.forward.fast_path_proof`, and not used where it
answers otherwise.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.batches import tensor_bytes
from shaprune.network.borrow import borrowed
from shaprune.network.disk_buffer import MEMORY_PARTS, join_batches
from shaprune.network.forward.batch_threads import run_in_threads
from shaprune.network.forward.cached_state import CachedState, gather_rows
from shaprune.network.forward.calibration import FORWARD_BATCH, Calibration
from shaprune.network.forward.cuda_graphs import Recordings, recorder_for
from shaprune.network.forward.fast_path_proof import PROOF_TOLERANCE, ProofQuestion
from shaprune.network.forward.incremental_linear import (
    IncrementalLinear,
    sums_along_walks,
    with_empty,
)
from shaprune.network.forward.replay.module_calls import DivergedError
from shaprune.network.forward.replay.replay_runner import ReplayRunner
from shaprune.network.forward.row_batches import RowBatches
from shaprune.network.forward.suffix import SuffixRunner, WholeRunner
from shaprune.network.precision import RowPrecision, check_precision, in_memory_layout, in_precision
from shaprune.network.removal.masks import MaskSite
from shaprune.network.tolerance import HALF_TOLERANCE

_FEW = 3  # rows of a question on which ways are tried that run rows as they are


class RowRunner:
    """What runs the rows of one calibration under the masks of one game; without gradients, in a borrowed model.

    Args:
        calibration: the model and its examples.
        sites: where the players' masks stand.
        max_memory: bytes that the rows of a batch and the cached activations may take.
        precision: of what lies behind the mask, see `shaprune.network.precision`.
    """

    def __init__(
        self, calibration: Calibration, sites: Sequence[MaskSite], max_memory: int, precision: RowPrecision = "float32"
    ) -> None:
        self.calibration, self.sites, self.max_memory, self.precision = calibration, sites, max_memory, precision
        check_precision(calibration.model, precision)
        self.n_players, self.n_examples = sites[0].n_players, calibration.n_examples
        self.device = calibration.outputs.device
        self._cache: CachedState | None = None
        here = weakref.proxy(self)  # a reference back would keep the cached values until Python looks for cycles
        self.batches = RowBatches(max_memory, self.device, self.n_players, lambda: here._divisible())
        self._side_by_side = True
        self.refuted: list[tuple[str, str]] = []  # fast ways that are not used, and why
        with borrowed(calibration.model), torch.no_grad():
            self.asked = None if calibration.meet else calibration.question(sites)
            self._begin()
            if self.asked is not None and precision != "float32":
                self._prove_precision(self.asked.first(_FEW))
            if self.asked is not None and isinstance(self.runner, SuffixRunner):
                self._prove_ways(self.runner, self.asked.first(_FEW))

    def _begin(self) -> None:
        """Find what runs the rows, and what a row takes."""
        self.runner, self._known_state = self.calibration.runner(self.sites, self.asked)
        if self.precision != "float32" and isinstance(self.runner, SuffixRunner):
            self.runner.fold()
        try:
            self._measure()
        except DivergedError as error:
            self._run_whole(error)

    def _measure(self) -> None:
        """Find what a row takes, and its values at the cut."""
        self._recordings = self.new_recordings()
        self.batches.called = isinstance(self.runner, ReplayRunner)
        rows = len(self.some) if self.asked is None else len(self.asked.masks[:_FEW])
        probe = self.asked_state(rows) if self.asked is not None else self.calibration.prepared(self.runner, self.some)
        self.row_bytes = self.runner.row_bytes(probe, torch.ones(rows, self.n_players, device=self.device))
        first = self.runner.incremental_linear
        self.part_bytes = tensor_bytes(first.contributions(probe)) // rows if first is not None else 0
        self.state_bytes = max(1, tensor_bytes(probe) // rows) if isinstance(probe, dict) else 1
        if self.row_bytes > self.max_memory:
            raise InputError(
                f"max_memory is {self.max_memory:,} bytes and one row of the network takes {self.row_bytes:,}; give at "
                "least that, better a thousand times as much"
            )

    @property
    def some(self) -> Tensor:
        """A few examples, on which things are tried; a whole batch where examples meet."""
        most = FORWARD_BATCH if self.calibration.meet else 4
        return torch.arange(min(most, self.n_examples), device=self.device)

    def new_recordings(self) -> Recordings:
        """A place for recordings of what runs on batches of these rows; it stays empty where more than torch runs."""
        plain = isinstance(self.runner, SuffixRunner) and not self.runner.has_user_hooks
        model = self.calibration.model
        weights = [t.detach() for t in (*model.parameters(), *model.buffers())]
        return Recordings(recorder_for(self.device) if plain else None, self.max_memory // MEMORY_PARTS, weights)

    def _divisible(self) -> bool:
        """Whether batches can run side by side: on a CPU, where nothing but torch's operations and layers runs."""
        plain = self.device.type == "cpu" and isinstance(self.runner, SuffixRunner) and not self.runner.has_user_hooks
        return plain and self._side_by_side

    # -- what is proved once ---------------------------------------------------------------------------------------

    def asked_state(self, rows: int, first: int = 0) -> CachedState:
        """A copy of the values at the cut for some rows of the question."""
        return gather_rows(self._known_state, torch.arange(first, first + rows, device=self.device))

    def refuse(self, what: str, why: str) -> None:
        """Note, and warn, that a fast way is not used."""
        self.refuted.append((what, why))
        warnings.warn(f"{what}: {why}", ShapruneWarning, stacklevel=2)

    def _prove_precision(self, asked: ProofQuestion) -> None:
        why = self._differs(
            asked, lambda: self.run_in_precision(self.runner.run, self.asked_state(len(asked.masks)), asked.masks)
        )
        if why is not None:
            self.refuse(f"precision {self.precision!r} is not used, rows are run in float32", why)
            self.precision = "float32"
            self._begin()

    def _prove_ways(self, runner: SuffixRunner, asked: ProofQuestion) -> None:
        first = runner.incremental_linear
        if first is not None:
            why = self._differs(asked, lambda: self._added(first, asked)) or self._differs(
                asked.first(1), lambda: self._walked(first, asked.masks[0])
            )
            if why is not None:
                self.refuse("players are not added one by one, the layer behind the mask is run again", why)
                runner.incremental_linear = None
        why = self._differs(asked, lambda: self._beside(runner, asked)) if self._divisible() else None
        if why is not None:
            self.refuse("batches are not run side by side", why)
            self._side_by_side = False

    def _differs(self, asked: ProofQuestion, ask: Callable[[], Tensor]) -> str | None:
        """How a fast way answers otherwise than the plain network, None where it does not."""
        try:
            outputs = ask()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return asked.refuted(outputs, PROOF_TOLERANCE if self.precision == "float32" else HALF_TOLERANCE)

    def _added(self, first: IncrementalLinear, asked: ProofQuestion) -> Tensor:
        """Outputs of the question's rows, from contributions to the first linear layer."""
        state = self.asked_state(len(asked.masks))
        parts = first.contributions(state)
        sums = torch.matmul(with_empty(asked.masks)[:, None].to(parts), parts.flatten(2))
        return self.run_in_precision(first.finish, first.leftover(state), sums.view(len(sums), *parts.shape[2:]))

    def _walked(self, first: IncrementalLinear, mask: Tensor) -> Tensor:
        """Outputs of the first row of the question, as the end of a walk on which those who have left it leave."""
        return self._along(first, self.asked_state(1), torch.nonzero(mask == 0).T, torch.ones_like(mask))[-1:]

    def _beside(self, runner: SuffixRunner, asked: ProofQuestion) -> Tensor:
        """Outputs of the question's rows, each in a thread of its own.

        Raises:
            RuntimeError: a layer keeps something of what it is given, which another thread would find.
        """
        before = runner.kept()

        def run(rows: Tensor) -> Tensor:
            return self.run_in_precision(runner.run, gather_rows(self._known_state, rows), asked.masks[rows])

        parts = torch.arange(len(asked.masks), device=self.device).split(1)
        found = [result() for _, result in run_in_threads(run, parts, threads=2)]
        for (name, key), value in runner.kept().items():
            if value is not before.get((name, key), self):
                raise RuntimeError(f"layer {name!r} keeps something of what it is given in its {key}")
        return torch.cat(found)

    # -- how rows are run, and values at the cut -------------------------------------------------------------------

    def _along(self, first: IncrementalLinear, state: CachedState, orders: Tensor, start: Tensor | None) -> Tensor:
        """Outputs (steps + 1, walks), flat, along walks; see `sums_along_walks`."""
        sums = sums_along_walks(first.contributions(state), orders, start)
        rows = torch.arange(len(orders), device=self.device).repeat(len(sums))
        return self._run(first.finish, gather_rows(first.leftover(state), rows), sums.flatten(0, 1))

    def first_nonfinite_layer(self, example: Tensor, mask: Tensor) -> str | None:
        """The first layer whose output is not finite for an example (1,) under a mask (n,)."""
        if self.calibration.meet:  # it is run with those that it meets
            first = int(example) // FORWARD_BATCH * FORWARD_BATCH
            example = torch.arange(first, min(first + FORWARD_BATCH, self.n_examples), device=self.device)
        return self.runner.first_nonfinite_layer(self.state(example), mask[None])

    def run_in_precision(self, run: Callable[..., Tensor], *given: Any) -> Tensor:
        """Outputs of a run in the precision of these rows, in float32 where that is lower."""
        if isinstance(self.runner, SuffixRunner):
            given = in_memory_layout(given, self.precision)
        outputs: Tensor = in_precision(run, self.device, self.precision)(*given)
        return outputs

    def _run(self, run: Callable[..., Tensor], state: CachedState, masks_or_sums: Tensor) -> Tensor:
        """As `run_in_precision`; by a recording, where these operations have one."""
        given, bytes_ = (state, masks_or_sums), len(masks_or_sums) * self.row_bytes
        outputs: Tensor = self._recordings.run(partial(self.run_in_precision, run), given, run.__name__, bytes_)
        return outputs

    def state(self, examples: Tensor) -> CachedState:
        """Values at the cut for some examples, see `fill`."""
        self.fill()
        return self.calibration.rows(examples) if self._cache is None else gather_rows(self._cache, examples)

    def fill(self) -> None:
        """Compute the values at the cut of all examples, once, and keep them, see `join_batches`.

        A model that cannot be replayed on all of them is run whole from here on, in batches that fit it.
        """
        if self._cache is not None or isinstance(self.runner, WholeRunner):
            return
        known = self.calibration.known_for(self.runner, self.some)
        blocks = torch.arange(self.n_examples, device=self.device).split(FORWARD_BATCH)
        try:
            states = (self.calibration.prepared(self.runner, rows, known) for rows in blocks)
            self._cache = join_batches(states, self.max_memory // MEMORY_PARTS, self.n_examples)
        except DivergedError as error:
            self._run_whole(error)
        if isinstance(self.runner, SuffixRunner):
            self.calibration.keep_known(self._cache)

    def _run_whole(self, error: DivergedError) -> None:
        self.runner, self._known_state = self.calibration.whole(self.sites, self.asked, str(error))
        self._measure()

    def run_one_by_one(self, why: str) -> None:
        """Run one coalition at a time from here on; nothing where that is so already."""
        if self.runner.rows_apart:
            because = f"one coalition at a time, because rows of a batch cannot be masked apart: {why}"
            self.runner, self._known_state = self.calibration.one_by_one(self.sites, self.asked, because)
            self._cache = None
            self._measure()
