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
from shaprune.network.agreement import limit_for, relative_difference
from shaprune.network.batches import Forward, call, length, main_output, named_leaves, transform
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.calls import DivergedError
from shaprune.network.collecting import collect
from shaprune.network.cut import Cut, OneByOne, Whole
from shaprune.network.masks import Edge, Site
from shaprune.network.proof import NEAR, Question, question
from shaprune.network.replay import Replay
from shaprune.network.spill import MAX_MEMORY, PARTS, joined
from shaprune.network.state import State, gather, unfix
from shaprune.network.trace import Trace, UntraceableError, live_bytes, traced

BATCH = 256  # examples per plain forward pass
_WHAT: dict[type, str] = {
    Cut: "the part behind the mask",
    Replay: "the model with recorded calls before the mask",
    Whole: "the whole model with masks of their own for the rows of a batch",
}
OWN = "forward=... is given"  # why a model is run whole


class Subject:
    """A model, its examples, the dense outputs, and the trace.

    Args:
        model: the dense network.
        data: an iterable of batches, read once.
        forward: how the model is called, where it is not simply called.
        max_memory: bytes; examples beyond a `PARTS`-th of them lie in a temporary file, and so do dense outputs.

    Attributes:
        inputs: all inputs, batch first, on the device unless they are too many; targets: (N,) or None.
        outputs: (N, ...) what the dense network answers.
        n_examples: N.
        output_names: what the network answers, see `named_leaves`; `main_output` chooses one of these.
        device: of the model.
        known: values at the last cut that was computed for all examples, where they are small enough to be kept.
        untraced_because: why torch.fx does not take the model apart, or None where it does.
        meet: whether the examples of a batch meet: one of them alone has another output. Coalitions are then asked on
            the same batches as the dense network, and there are no worths of single examples.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        forward: Forward | None = None,
        *,
        max_memory: int = MAX_MEMORY,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
        self.model = model
        self.forward: Forward = forward or call
        self.device = device_of(model)
        self.max_bytes = max_memory // PARTS
        self.inputs, targets = collect(data, self.max_bytes)
        self.n_examples = length(self.inputs)
        self._parts: WeakValueDictionary[bytes, Subject] = WeakValueDictionary()
        with borrowed(model), torch.no_grad():
            answered = (self._dense(rows) for rows in torch.arange(self.n_examples).split(BATCH))
            self._keep(self.inputs, targets, joined(answered, self.max_bytes, self.n_examples))
            self.trace, self.untraced_because = self._traced()
            self.meet = self._examples_meet()
        self.known: State | None = None
        self._said: set[str] = set()
        if self.forward is not call:
            self.say_whole(OWN)

    def keep_known(self, state: State) -> None:
        """Keep values at a cut, so that a cut behind it need not start from the inputs."""
        self.known = state if 2 * live_bytes([*unfix(state).values()]) <= self.max_bytes else None

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
        return gather(self.inputs, rows.to(self.device))

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
            "meet",
        )
        return {name: getattr(self, name) for name in kept}

    @staticmethod
    def received(model: nn.Module, state: dict[str, Any]) -> Subject:
        """The subject of an equal model elsewhere, with this `state`; the dense outputs are not computed again."""
        subject = Subject.__new__(Subject)
        subject.model = model
        vars(subject).update(state)
        subject._parts = WeakValueDictionary()
        subject.trace, subject.known, subject._said = None, None, set()
        if subject.untraced_because is None:
            with borrowed(model), torch.no_grad():
                subject.trace, subject.untraced_because = subject._traced()
        return subject

    def part(self, rows: NDArray[np.int64]) -> Subject:
        """The same model on some of the examples, in this order; nothing is run again.

        As long as a part is in use, asking for the same rows gives the same part.
        """
        key = np.ascontiguousarray(rows, dtype=np.int64).tobytes()
        part = self._parts.get(key)
        if part is None:
            picked = torch.from_numpy(np.array(rows, dtype=np.int64))
            part = copy.copy(self)
            part.known = None
            part._keep(*joined((self._all(some.to(self.device)) for some in picked.split(BATCH)), self.max_bytes))
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

    def question(self, sites: Sequence[Site]) -> Question | None:
        """Rows of a game with these sites that the plain masked network has answered, see `shaprune.network.proof`."""
        return question(Whole(self.model, sites, self.forward), sites, self.outputs, self.rows)

    def runner(self, sites: Sequence[Site], asked: Question | None) -> tuple[Cut | Replay | Whole, State]:
        """Find the fastest runner of rows under masks at ``sites`` whose answers to ``asked`` are the plain ones.

        Returns:
            The runner; where that is the whole model, its ``because`` says why. And what it needs of the examples of
            ``asked``, None where nothing was asked.
        """
        if self.meet:
            because = "the examples of a batch meet, so that all of them are run under one coalition"
            self.say_whole(because)
            return Whole(self.model, sites, self.forward, because), None
        reasons: list[str] = []
        for make in (self._cut, self._replay) if self.forward is call else ():
            runner = make(sites)
            if isinstance(runner, str):
                reasons.append(runner)
                continue
            state = self._proven(runner, asked)
            if not isinstance(state, str):
                return runner, state
            reasons.append(state)
        return self.whole(sites, asked, "; ".join(reasons) or OWN)

    def whole(self, sites: Sequence[Site], asked: Question | None, because: str) -> tuple[Whole, State]:
        """As `runner`, where nothing but the whole model can be run, and why; it warns."""
        whole = Whole(self.model, sites, self.forward, because)
        state = self._proven(whole, asked)
        if isinstance(state, str):
            because += f"; and one coalition at a time, because rows of a batch cannot be masked apart: {state}"
            whole = OneByOne(self.model, sites, self.forward, because)
            state = None if asked is None else self.rows(asked.examples)
        self.say_whole(because)
        return whole, state

    def _proven(self, runner: Cut | Replay | Whole, asked: Question | None) -> State | str:
        """What a runner needs of the examples of a question; why it is not to be used where it answers otherwise."""
        if asked is None:
            return "the plain masked network gives no outputs to compare with"
        try:
            run = runner.replayed if isinstance(runner, Replay) else runner.run
            back = torch.arange(len(asked.examples), device=self.device).flip(0)
            state = gather(self.prepared(runner, asked.examples.flip(0)), back)  # nothing may hang on the order of rows
            outputs = run(gather(state, back.flip(0)), asked.masks)
        except DivergedError as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if isinstance(runner, Cut) and runner.several_rows:
            return "at the mask an example is several rows of the batch (windows)"
        why = asked.refuted(outputs)
        return state if why is None else f"{_WHAT[type(runner)]} does not answer as the plain masked network: {why}"

    def prepared(self, runner: Cut | Replay | Whole, rows: Tensor) -> State:
        """What ``runner`` needs of some examples."""
        return runner.prepare(rows if isinstance(runner, Replay) else self.rows(rows))

    def ready(self, runner: Cut | Replay | Whole, rows: Tensor) -> tuple[Cut | Replay | Whole, State]:
        """As `prepared`, with the runner to use: the whole model where it cannot be replayed on these examples."""
        try:
            return runner, self.prepared(runner, rows)
        except DivergedError as error:
            assert isinstance(runner, Replay)
            whole, _ = self.whole(runner.sites, self.question(runner.sites), str(error))
            return whole, self.prepared(whole, rows)

    def _cut(self, sites: Sequence[Site]) -> Cut | str:
        """The part of the trace behind the masks, or why it cannot be had."""
        edges = [site for site in sites if isinstance(site, Edge)]
        if len(edges) < len(sites):
            return "its players are no channels"
        if self.trace is None:
            assert self.untraced_because is not None
            return self.untraced_because
        try:
            return Cut(self.trace, edges)
        except UntraceableError as reason:
            return str(reason)

    def _replay(self, sites: Sequence[Site]) -> Replay | str:
        """The model itself, with what comes before the masks recorded, or why that cannot be had."""
        rows = torch.linspace(0, self.n_examples - 1, min(4, self.n_examples), device=self.device).long()
        try:
            return Replay(self.model, sites, self.rows, rows)
        except DivergedError as error:
            return str(error)
        except Exception as error:
            return f"its modules cannot be called one by one ({type(error).__name__}: {error})"

    def _examples_meet(self) -> bool:
        """Whether the first and the last example of a batch have other outputs when they are run alone."""
        last = min(self.n_examples, BATCH) - 1
        for row in {0, last} if last else ():
            try:
                alone = main_output(self.forward(self.model, self.rows(torch.tensor([row]))))
            except Exception:  # a network that runs on batches only
                return True
            if relative_difference(alone, self.outputs[row : row + 1]) > limit_for(alone.dtype, NEAR):
                return True
        return False

    def _keep(self, inputs: Any, targets: Tensor | None, outputs: Tensor) -> None:
        """Take these as the examples; inputs that are too many for the device's memory stay where they are."""
        fits = live_bytes(inputs) <= self.max_bytes
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
            raise InputError(f"the model does not run on a batch of the data: {error}; see forward=...") from error
        if outputs.ndim == 0 or len(outputs) != len(rows):
            raise InputError(
                f"the model returned shape {tuple(outputs.shape)} for {len(rows)} examples; "
                "the first dimension must be the batch"
            )
        return outputs

    def _traced(self) -> tuple[Trace | None, str | None]:
        if self.forward is not call:
            return None, OWN
        try:
            return traced(self.model, self.rows(torch.arange(min(2, self.n_examples)))), None
        except UntraceableError as reason:
            return None, str(reason)
