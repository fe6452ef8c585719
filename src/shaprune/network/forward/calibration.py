"""The dense network together with the examples it is judged on; what all games on it share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import GameError, InputError, ShapruneWarning
from shaprune.network.batches import (
    Forward,
    apart,
    call,
    length,
    listed,
    main_output,
    named_leaves,
    tensor_bytes,
    tensors,
    transform,
)
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.collect_batches import collect_batches
from shaprune.network.disk_buffer import DEFAULT_MAX_MEMORY, MEMORY_PARTS, join_batches
from shaprune.network.forward.batch_order import MOST_EXAMPLES, BatchOrder, batch_order
from shaprune.network.forward.cached_state import CachedState, as_environment, gather_rows
from shaprune.network.forward.fast_path_proof import PROOF_TOLERANCE, ProofQuestion, chosen_examples, proof_question
from shaprune.network.forward.replay.module_calls import DivergedError
from shaprune.network.forward.replay.replay_runner import ReplayRunner
from shaprune.network.forward.runner import Runner
from shaprune.network.forward.suffix import OneByOneRunner, SuffixRunner, WholeRunner
from shaprune.network.forward.trace import Trace, UntraceableError, trace_model
from shaprune.network.removal.masks import ConsumerInputMask, MaskSite
from shaprune.network.tolerance import relative_difference, tolerance_for

FORWARD_BATCH = 256  # examples per plain forward pass
_WHAT: dict[type, str] = {
    SuffixRunner: "the part behind the mask",
    ReplayRunner: "the model with recorded calls before the mask",
    WholeRunner: "the whole model with masks of their own for the rows of a batch",
}
CUSTOM_FORWARD = "forward=... is given"  # why a model is run whole
LISTED = (
    "the data hold lists of tensors, such as the images of a detector, whose rows cannot be separated; use a worth "
    "of the whole model, worth=shaprune.worths.Evaluate(lambda model: ...)"
)


class Calibration:
    """A model, its examples, the dense outputs, and the trace.

    Args:
        model: the dense network.
        data: an iterable of batches, read once.
        forward: how the model is called, where it is not simply called.
        max_memory: bytes; examples beyond a `MEMORY_PARTS`-th of them lie in a temporary file, and so do dense outputs.

    Attributes:
        inputs: all inputs, batch first, on the device unless they are too many; targets: (N,) or None.
        outputs: (N, ...) what the dense network answers.
        n_examples: N.
        output_names: what the network answers, see `named_leaves`; `main_output` chooses one of these.
        device: of the model.
        known: values at the last cut that was computed for all examples, where they are small enough to be kept.
        untraced_because: why torch.fx does not take the model apart, or None where it does.
        order: how the network treats the rows of a batch. Where examples meet, coalitions are asked on the same batches
            as the dense network, and there are no worths of single examples.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        forward: Forward | None = None,
        *,
        max_memory: int = DEFAULT_MAX_MEMORY,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
        self.model = model
        self.forward: Forward = forward or call
        self.device = device_of(model)
        self.max_bytes = max_memory // MEMORY_PARTS
        self.inputs, targets = collect_batches(data, self.max_bytes)
        self.n_examples = length(self.inputs)
        self._parts: WeakValueDictionary[bytes, Calibration] = WeakValueDictionary()
        with borrowed(self.model), torch.no_grad():
            answered = (self._dense(rows) for rows in torch.arange(self.n_examples).split(FORWARD_BATCH))
            self._keep(self.inputs, targets, join_batches(answered, self.max_bytes, self.n_examples))
            self.trace, self.untraced_because = self._traced()
            self.order = self._batch_order()
        self.known: CachedState | None = None
        self._tried: Tensor | None = None  # examples on which fast ways are compared with the plain one
        self._said: set[str] = set()
        if self.forward is not call:
            self.say_whole(CUSTOM_FORWARD)

    def keep_known(self, state: CachedState) -> None:
        """Keep values at a cut, so that a cut behind it need not start from the inputs."""
        self.known = state if 2 * tensor_bytes([*as_environment(state).values()]) <= self.max_bytes else None

    def say_whole(self, reason: str) -> None:
        """Warn, once for each reason, that the whole model is run for every coalition."""
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(
                f"the whole model is run for every coalition, not only the part behind the mask: {reason}",
                ShapruneWarning,
                stacklevel=4,
            )

    def rows(self, rows: Tensor) -> Any:
        """The inputs of some examples."""
        return gather_rows(self.inputs, rows.to(self.device))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) class of each example where the targets are one whole number per example; else None."""
        t = self.targets
        if t is None or t.ndim != 1 or t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            return None
        return t.cpu().numpy().astype(np.int64)

    def state(self) -> dict[str, Any]:
        """All but the model and its trace, to be sent elsewhere; see `received`."""
        kept = (
            "inputs",
            "targets",
            "outputs",
            "output_names",
            "n_examples",
            "max_bytes",
            "device",
            "forward",
            "untraced_because",
            "order",
        )
        return {name: getattr(self, name) for name in kept}

    @staticmethod
    def of(
        model: nn.Module,
        data: Iterable[Any] | Calibration,
        forward: Forward | None = None,
        *,
        max_memory: int = DEFAULT_MAX_MEMORY,
    ) -> Calibration:
        """Return data that are a calibration already as they are, and one of any other data."""
        return data if isinstance(data, Calibration) else Calibration(model, data, forward, max_memory=max_memory)

    @staticmethod
    def received(model: nn.Module, state: dict[str, Any]) -> Calibration:
        """The calibration of an equal model elsewhere, with this `state`; the dense outputs are not computed again."""
        calibration = Calibration.__new__(Calibration)
        vars(calibration).update(state)
        calibration.model = model
        calibration._parts = WeakValueDictionary()
        calibration.trace, calibration.known, calibration._tried, calibration._said = None, None, None, set()
        if calibration.untraced_because is None:
            with borrowed(calibration.model), torch.no_grad():
                calibration.trace, calibration.untraced_because = calibration._traced()
        return calibration

    @property
    def meet(self) -> bool:
        """Whether the examples of a batch meet: one of them alone has another output."""
        return self.order.meet

    def part(self, rows: NDArray[np.int64]) -> Calibration:
        """The same model on some of the examples, in this order; nothing is run again.

        As long as a part is in use, asking for the same rows gives the same part.
        """
        key = np.ascontiguousarray(rows, dtype=np.int64).tobytes()
        part = self._parts.get(key)
        if part is None:
            picked = torch.from_numpy(np.array(rows, dtype=np.int64))
            part = copy.copy(self)
            part.known = part._tried = None
            part._keep(
                *join_batches((self._all(some.to(self.device)) for some in picked.split(FORWARD_BATCH)), self.max_bytes)
            )
            part.n_examples = len(rows)
            part._parts = WeakValueDictionary()
            self._parts[key] = part
        return part

    def check_apart(self, what: str) -> None:
        """Check that every example has an output of its own.

        Raises:
            InputError: the examples of a batch meet; ``what`` needs them apart.
        """
        if self.meet:
            raise InputError(
                f"{what} looks at single examples, and in this model the examples of a batch meet: one of them alone "
                "has another output; take worths over all examples (method='permutation', ...)"
            )

    def question(self, sites: Sequence[MaskSite]) -> ProofQuestion | None:
        """Rows of a game with these sites that the plain masked network has answered, see `fast_path_proof`."""
        if self._tried is None:
            self._tried = chosen_examples(self.n_examples, self.rows).to(self.device)
        plain = WholeRunner(self.model, sites, self.forward)
        return proof_question(plain, sites, self._tried, self.outputs, self.rows)

    def runner(self, sites: Sequence[MaskSite], asked: ProofQuestion | None) -> tuple[Runner, CachedState]:
        """Find the fastest runner of rows under masks at ``sites`` whose answers to ``asked`` are the plain ones.

        Returns:
            The runner; where that is the whole model, its ``because`` says why. And what it needs of the examples of
            ``asked``, None where nothing was asked.
        """
        if self.meet:
            because = "the examples of a batch meet, so that all of them are run under one coalition"
            self.say_whole(because)
            return WholeRunner(self.model, sites, self.forward, because), None
        reasons = ["rows of a batch change places on the way"] if self.order.moved else []
        for make in (self._cut, self._replay) if self.forward is call and not reasons else ():
            runner = make(sites)
            if isinstance(runner, str):
                reasons.append(runner)
                continue
            state = self._proven(runner, asked)
            if not isinstance(state, str):
                return runner, state
            reasons.append(state)
        return self.whole(sites, asked, "; ".join(reasons) or CUSTOM_FORWARD)

    def whole(
        self, sites: Sequence[MaskSite], asked: ProofQuestion | None, because: str
    ) -> tuple[WholeRunner, CachedState]:
        """As `runner`, where nothing but the whole model can be run, and why; it warns."""
        whole = WholeRunner(self.model, sites, self.forward, because)
        odd = next((s.module for s in sites if s.module in self.order.uneven | self.order.moved), None)
        state = self._proven(whole, asked) if odd is None else f"those of layer {odd!r} are not one example each"
        if isinstance(state, str):
            because += f"; and one coalition at a time, because rows of a batch cannot be masked apart: {state}"
            return self.one_by_one(sites, asked, because)
        self.say_whole(because)
        return whole, state

    def one_by_one(
        self, sites: Sequence[MaskSite], asked: ProofQuestion | None, because: str
    ) -> tuple[OneByOneRunner, CachedState]:
        """As `runner`, for one coalition at a time; it warns."""
        self.say_whole(because)
        state = None if asked is None else self.rows(asked.examples)
        return OneByOneRunner(self.model, sites, self.forward, because), state

    def _proven(self, runner: Runner, asked: ProofQuestion | None) -> CachedState | str:
        """What a runner needs of the examples of a question; why it is not to be used where it answers otherwise."""
        if asked is None:
            return "the plain masked network gives no outputs to compare with"
        try:
            run = runner.replayed if isinstance(runner, ReplayRunner) else runner.run
            examples, place = asked.examples.unique(return_inverse=True)
            state = gather_rows(self.prepared(runner, examples), place)  # nothing may hang on the order of rows
            again = torch.arange(len(place), device=self.device)
            outputs = run(gather_rows(state, again), asked.masks)  # which may write to it
        except DivergedError as error:
            return str(error)
        except Exception as error:
            return f"{_WHAT[type(runner)]} fails ({type(error).__name__}: {error})"
        if isinstance(runner, SuffixRunner) and runner.several_rows:
            return "at the mask an example is several rows of the batch (windows)"
        why = asked.refuted(outputs)
        return state if why is None else f"{_WHAT[type(runner)]} does not answer as the plain masked network: {why}"

    def prepared(self, runner: Runner, rows: Tensor, known: CachedState | None = None) -> CachedState:
        """What ``runner`` needs of some examples, from values at an earlier cut where they are ``known``."""
        if known is not None and isinstance(runner, SuffixRunner):
            return runner.prepare(self.rows(rows), gather_rows(known, rows))
        return runner.prepare(rows if isinstance(runner, ReplayRunner) else self.rows(rows))

    def known_for(self, runner: Runner, some: Tensor) -> CachedState | None:
        """Values at the cut of another game on the same examples, where they lead to the same values at this one.

        They do not where an operation in place, which this game runs again, has written to them. ``some`` examples are
        compared.
        """
        if self.known is None or not isinstance(runner, SuffixRunner):
            return None
        states = (self.prepared(runner, some, known) for known in (None, self.known))
        pairs = zip(*(tensors([*as_environment(state).values()]) for state in states), strict=True)
        alike = all(relative_difference(a, b) <= tolerance_for(a.dtype, PROOF_TOLERANCE) for a, b in pairs)
        return self.known if alike else None

    def ready(self, runner: Runner, rows: Tensor) -> tuple[Runner, CachedState]:
        """As `prepared`, with the runner to use: the whole model where it cannot be replayed on these examples."""
        try:
            return runner, self.prepared(runner, rows)
        except DivergedError as error:
            assert isinstance(runner, ReplayRunner)
            whole, _ = self.whole(runner.sites, self.question(runner.sites), str(error))
            return whole, self.prepared(whole, rows)

    def _cut(self, sites: Sequence[MaskSite]) -> SuffixRunner | str:
        """The part of the trace behind the masks, or why it cannot be had."""
        input_masks = [site for site in sites if isinstance(site, ConsumerInputMask)]
        if len(input_masks) < len(sites):
            return "its masks do not all stand at the inputs of layers"
        if self.trace is None:
            assert self.untraced_because is not None
            return self.untraced_because
        try:
            return SuffixRunner(self.trace, input_masks)
        except UntraceableError as reason:
            return str(reason)

    def _replay(self, sites: Sequence[MaskSite]) -> ReplayRunner | str:
        """The model itself, with what comes before the masks recorded, or why that cannot be had."""
        rows = torch.linspace(0, self.n_examples - 1, min(4, self.n_examples), device=self.device).long()
        try:
            return ReplayRunner(self.model, sites, self.rows, rows)
        except DivergedError as error:
            return str(error)
        except Exception as error:
            return f"its modules cannot be called one by one ({type(error).__name__}: {error})"

    def _batch_order(self) -> BatchOrder:
        rows = torch.linspace(0, self.n_examples - 1, min(self.n_examples, MOST_EXAMPLES)).long()
        return batch_order(self.model, self.forward, rows, self.outputs[rows.to(self.device)], self.rows)

    def _keep(self, inputs: Any, targets: Tensor | None, outputs: Tensor) -> None:
        """Take these as the examples; inputs that are too many for the device's memory stay where they are."""
        fits = tensor_bytes(inputs) <= self.max_bytes
        self.inputs = transform(inputs, lambda t: t.to(self.device)) if fits else inputs
        self.targets = None if targets is None else targets.to(self.device)
        self.outputs = outputs.to(self.device)

    def _all(self, rows: Tensor) -> tuple[Any, Tensor | None, Tensor]:
        targets = None if self.targets is None else self.targets.index_select(0, rows)
        return self.rows(rows), targets, self.outputs.index_select(0, rows)

    def _dense(self, rows: Tensor) -> Tensor:
        """What the dense network answers on some examples."""
        outputs = self._run(rows)
        finite = torch.isfinite(outputs).reshape(len(rows), -1).all(1)
        if not finite.all():
            row = int(rows[torch.nonzero(~finite)[0]])
            raise GameError(
                f"the dense network's output is NaN or infinite on example {row}; check the weights and the data"
            )
        return outputs

    def _run(self, rows: Tensor) -> Tensor:
        try:
            answer = self.forward(self.model, self.rows(rows))
            self.output_names = tuple(named_leaves(answer))
            outputs = main_output(answer)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            way = "see forward=..." if listed(self.inputs) is None else LISTED
            raise InputError(f"the model does not run on a batch of the data: {error}; {way}") from error
        if apart(self.inputs, answer):
            raise InputError(LISTED)
        if isinstance(answer, (tuple, list)) and len(answer) == len(rows) > 1 and outputs.shape[:1] != rows.shape:
            raise InputError(
                f"the model returns a {type(answer).__name__} with one entry for each of {len(rows)} examples; give "
                f"forward=lambda model, inputs: torch.stack([entry{_way_to(answer[0])} for entry in model(inputs)])"
            )
        if outputs.ndim == 0 or len(outputs) != len(rows):
            raise InputError(
                f"the model returned shape {tuple(outputs.shape)} for {len(rows)} examples; "
                "the first dimension must be the batch"
            )
        return outputs

    def _traced(self) -> tuple[Trace | None, str | None]:
        if self.forward is not call:
            return None, CUSTOM_FORWARD
        try:
            return trace_model(self.model, self.rows(torch.arange(min(2, self.n_examples)))), None
        except UntraceableError as reason:
            return None, str(reason)


def _way_to(answer: Any) -> str:
    """How the tensor that worths look at is reached in an answer: ``['scores']``."""
    looked_at = main_output(answer)
    return "" if answer is looked_at else next(way for way, leaf in named_leaves(answer).items() if leaf is looked_at)
