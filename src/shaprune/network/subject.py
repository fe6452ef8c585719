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
from shaprune.network.cut import Cut, Whole
from shaprune.network.masks import Edge, Site
from shaprune.network.replay import Replay
from shaprune.network.spill import MAX_MEMORY, PARTS, joined
from shaprune.network.state import State, gather, unfix
from shaprune.network.trace import Trace, UntraceableError, live_bytes, traced

BATCH = 256  # examples per plain forward pass
NEAR = 1e-4  # relative, float32: how well the part behind a mask must reproduce the outputs
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

    def runner(self, sites: Sequence[Site]) -> Cut | Replay | Whole:
        """What runs rows under masks at ``sites``; where that is the whole model, its ``because`` says why."""
        if self.forward is not call:
            return Whole(self.model, sites, self.forward, OWN)
        cut = self._cut(sites)
        if isinstance(cut, Cut):
            return cut
        try:
            rows = torch.linspace(0, self.n_examples - 1, min(4, self.n_examples), device=self.device).long()
            return Replay(self.model, sites, self.rows, rows, NEAR)
        except DivergedError as error:
            because = f"{cut}; {error}"
        except Exception as error:
            because = f"{cut}; its modules cannot be called one by one ({type(error).__name__}: {error})"
        self.say_whole(because)
        return Whole(self.model, sites, self.forward, because)

    def prepared(self, runner: Cut | Replay | Whole, rows: Tensor) -> State:
        """What ``runner`` needs of some examples."""
        return runner.prepare(rows if isinstance(runner, Replay) else self.rows(rows))

    def ready(self, runner: Cut | Replay | Whole, rows: Tensor) -> tuple[Cut | Replay | Whole, State]:
        """As `prepared`, with the runner to use: the whole model where it cannot be replayed on these examples."""
        try:
            return runner, self.prepared(runner, rows)
        except DivergedError as error:
            assert isinstance(runner, Replay)
            self.say_whole(str(error))
            whole = Whole(self.model, runner.sites, self.forward, str(error))
            return whole, self.prepared(whole, rows)

    def _cut(self, sites: Sequence[Site]) -> Cut | str:
        """The part of the trace behind the masks, or why it cannot be had."""
        edges = [site for site in sites if isinstance(site, Edge)]
        if len(edges) < len(sites):
            return "its players are no channels"
        if self.trace is None:
            assert self.untraced_because is not None
            return self.untraced_because
        cut = Cut(self.trace, edges)
        rows = torch.arange(min(4, self.n_examples), device=self.device)
        everyone = torch.ones(len(rows), edges[0].n_players, device=self.device)
        outputs = cut.run(cut.prepare(self.rows(rows)), everyone)
        if cut.several_rows:
            return "at the mask an example is several rows of the batch (windows)"
        if relative_difference(outputs, self.outputs[rows]) > limit_for(outputs.dtype, NEAR):
            return "the part behind the mask does not reproduce the outputs (it writes in place)"
        return cut

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
