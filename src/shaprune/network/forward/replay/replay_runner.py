"""Replay of models that torch.fx cannot trace: modules before the mask return their recorded outputs.

A call of a module that is over before the first masked module is entered cannot depend on the mask. Dense runs show
which calls these are (see `shaprune.network.forward.replay.module_calls`); later the modules' ``forward`` gives way to
one that returns what was computed once per example, so that only what lies behind the mask is run, and small
operations between modules. Of these outputs, and of the inputs, those are kept that the network's answer is computed
from (see `shaprune.network.forward.replay.dependence`); NaN of the same shape stands in for the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.errors import ShapruneWarning
from shaprune.network.batches import Inputs, call, main_output, tensor_bytes, tensors, transform
from shaprune.network.borrow import device_of
from shaprune.network.disk_buffer import is_out_of_memory
from shaprune.network.forward.cached_state import CachedState
from shaprune.network.forward.replay.dependence import DependenceTracker
from shaprune.network.forward.replay.module_calls import (
    DivergedError,
    RecordedOutput,
    TensorSlot,
    on_mask_entered,
    plan_replay,
)
from shaprune.network.forward.suffix import WholeRunner, hook_all_modules
from shaprune.network.layers.replaced_calls import Callee, Forward, replace_forwards
from shaprune.network.removal.masks import MaskSite, masked

AnswerCall = Callable[[RecordedOutput, Callable[[], Any]], Any]  # what is returned, and what computes the call


class ReplayRunner:
    """As `SuffixRunner`, for models that can only be called: what comes before the masks is computed once per example.

    Args:
        model: in eval mode, called as `shaprune.network.batches.call` does.
        sites: where the masks stand.
        fetch: gives the inputs of examples.
        examples: numbers of some, on which its calls are recorded.

    Raises:
        DivergedError: the model cannot be run so, and why.
    """

    incremental_linear = None
    rows_apart = True
    because: str | None = None

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[MaskSite],
        fetch: Callable[[Tensor], Inputs],
        examples: Tensor,
    ) -> None:
        self.model, self.sites, self.fetch = model, sites, fetch
        self.whole = WholeRunner(model, sites, call)
        self._said = False  # that rows were run whole
        self._same: dict[int, Tensor] = {}  # what is the same for all examples
        self._unread: dict[int, Tensor] = {}  # NaN for what the answer does not depend on
        self.device = device_of(model)
        three = examples[torch.arange(3, device=examples.device) % len(examples)]
        self.plan, self.given = plan_replay(model, sites, fetch(three[:1]), fetch(three))
        self._unread = self._not_needed(self.prepare(three))
        self._same = {key: tensor for key, tensor in self._same.items() if key not in self._unread}

    def prepare(self, examples: Tensor) -> CachedState:
        """What is needed of the inputs, and what modules return for them; ``examples`` (rows,) are numbers.

        Raises:
            DivergedError: on these examples the model calls its modules otherwise.
        """
        values: dict[int, Tensor] = {}
        rows = len(examples)

        def kept(handed: RecordedOutput, output: Any) -> Any:
            for slot, tensor in zip(handed.slots, tensors(output), strict=True):
                if slot.key not in self._unread:
                    self._keep(slot, tensor, rows, values)
            return output

        def keep(handed: RecordedOutput, compute: Callable[[], Any]) -> Any:
            output = compute()
            if not handed.fits(output):
                raise DivergedError("its modules give other things for other examples")
            return kept(handed, output)

        inputs = kept(self.given, self.fetch(examples))
        with self._answering(keep):
            call(self.model, transform(inputs, torch.clone))
        return {"examples": examples, "values": values}

    def run(self, state: CachedState, mask: Tensor) -> Tensor:
        """Outputs of the rows ``state``, which the model may write to, under ``mask`` (rows, n).

        Where the model goes another way than it was recorded on, or fails, it is run whole for these rows.
        """
        try:
            return self.replayed(state, mask)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            failure = f"{type(error).__name__}: {error}"
        outputs = self.whole.run(self.fetch(state["examples"]), mask)
        if not self._said:
            self._said = True
            warnings.warn(
                f"the whole model is run for some rows, not only the part behind the mask: {failure}",
                ShapruneWarning,
                stacklevel=2,
            )
        return outputs

    def row_bytes(self, state: CachedState, mask: Tensor) -> int:
        """Memory per row: the state, and as `WholeRunner.row_bytes` the outputs of the layers that run."""
        total = 0

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal total
            if module not in self.plan and next(module.children(), None) is None:
                total = max(total, 4 * tensor_bytes((args, output)))

        with hook_all_modules(self.model, hook):
            self.run(state, mask)
        return max(1, (total + tensor_bytes(state)) // len(mask))

    def first_nonfinite_layer(self, state: CachedState, mask: Tensor) -> str | None:
        """The first layer whose output is not finite."""
        return self.whole.first_nonfinite_layer(self.fetch(state["examples"]), mask)

    # -- how it is run ----------------------------------------------------------------------------------------------

    def replayed(self, state: CachedState, mask: Tensor) -> Tensor:
        """As `run`; raises where the model goes another way."""
        rows = len(mask)

        def hand(handed: RecordedOutput, compute: Callable[[], Any]) -> Any:
            return handed.filled(self._given(slot, state["values"], rows) for slot in handed.slots)

        with masked(self.model, self.sites, mask), self._answering(hand):
            return main_output(call(self.model, hand(self.given, lambda: None)))

    def _keep(self, slot: TensorSlot, tensor: Tensor, rows: int, values: dict[int, Tensor]) -> None:
        if tensor.shape != slot.shape(rows) or tensor.dtype != slot.dtype:
            raise DivergedError("its modules give results of other shapes for other examples")
        if slot.moving:
            values[slot.key] = slot.packed(tensor, rows)
        elif not torch.equal(self._same.setdefault(slot.key, tensor.detach().clone()), tensor):
            raise DivergedError("a module before the mask gives one result for all examples of a batch")

    def _given(self, slot: TensorSlot, values: dict[int, Tensor], rows: int) -> Tensor:
        if slot.key in self._unread:
            return self._unread[slot.key].expand(slot.shape(rows))
        return slot.unpacked(values[slot.key]) if slot.moving else self._same[slot.key].clone()  # it may be written to

    @contextmanager
    def _answering(self, answer: AnswerCall) -> Iterator[None]:
        """Planned calls give what ``answer`` says, until a masked module is entered.

        Raises:
            DivergedError: up to then a module is called more or less often than planned.
        """
        made = dict.fromkeys(self.plan, 0)
        answering = entered = False

        def enter() -> None:
            nonlocal entered
            if not entered and any(made[who] != len(calls) for who, calls in self.plan.items()):
                raise DivergedError("its modules are not called as often as before")
            entered = True

        def of(who: Callee, forward: Forward) -> Forward:
            calls = self.plan[who]

            def answered(*args: Any, **kwargs: Any) -> Any:
                nonlocal answering
                if entered or answering:  # within a call that is computed to be kept
                    return forward(*args, **kwargs)
                made[who] += 1
                if made[who] > len(calls):
                    raise DivergedError("its modules are called more often than before")
                handed = calls[made[who] - 1]
                if handed is None:
                    return forward(*args, **kwargs)
                answering = True
                try:
                    return answer(handed, lambda: forward(*args, **kwargs))
                finally:
                    answering = False

            return answered

        with replace_forwards(self.plan, of), on_mask_entered(self.model, self.sites, enter):
            yield
        if not entered:
            raise DivergedError("none of the masked modules is called")

    # -- what is verified once --------------------------------------------------------------------------------------

    def _not_needed(self, state: CachedState) -> dict[int, Tensor]:
        """NaN for every floating-point tensor, of a state that holds all, that the answer does not depend on."""
        reading = DependenceTracker()
        floating: dict[int, torch.dtype] = {}

        def hand(handed: RecordedOutput, compute: Callable[[], Any]) -> Any:
            given = [self._given(slot, state["values"], 3) for slot in handed.slots]
            for slot, tensor in zip(handed.slots, given, strict=True):
                reading.follow(tensor, slot.key)
                floating.update({slot.key: slot.dtype} if slot.dtype.is_floating_point else {})
            return handed.filled(given)

        inputs = hand(self.given, lambda: None)
        before = [t._version for t in tensors(inputs)]
        with reading, self._answering(hand):
            output = main_output(call(self.model, inputs))
        if [t._version for t in tensors(inputs)] != before:
            raise DivergedError("it writes to its inputs")
        unread = floating.keys() - reading.needed(output)
        return {key: torch.tensor(float("nan"), dtype=floating[key], device=self.device) for key in unread}
