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
from shaprune.network.batches import Forward, call, collect, length, main_output, transform
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.cut import Cut, Whole
from shaprune.network.masks import Edge, Site
from shaprune.network.trace import Trace, UntraceableError, traced

BATCH = 256  # examples per plain forward pass
NEAR = 1e-4  # relative, float32: how well the part behind a mask must reproduce the outputs


class Subject:
    """A model, its examples on the model's device, the dense outputs, and the trace.

    Attributes:
        inputs: all inputs, batch first; targets: (N,) or None.
        outputs: (N, ...) what the dense network answers.
        n_examples: N.
        whole_because: why the model is run whole, or None where only the part behind a mask is run.
    """

    def __init__(self, model: nn.Module, data: Iterable[Any], forward: Forward | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
        self.model = model
        self.forward: Forward = forward or call
        device = device_of(model)
        inputs, targets = collect(data)
        self.inputs = transform(inputs, lambda t: t.to(device))
        self.targets = None if targets is None else targets.to(device)
        self.n_examples = length(self.inputs)
        self._parts: WeakValueDictionary[bytes, Subject] = WeakValueDictionary()
        with borrowed(model), torch.no_grad():
            self.outputs = torch.cat([self._run(rows) for rows in torch.arange(self.n_examples).split(BATCH)])
            self.trace, self.whole_because = self._traced(forward)
        if not torch.isfinite(self.outputs).all():
            row = int(torch.nonzero(~torch.isfinite(self.outputs).flatten(1).all(1))[0])
            raise GameError(
                f"the dense network's output is NaN or infinite on example {row}; check the weights and the data"
            )
        if self.whole_because is not None:
            self._say_whole(self.whole_because)

    def _say_whole(self, reason: str) -> None:
        warnings.warn(
            f"the whole model is run for every coalition, not only the part behind the mask: {reason}",
            ShapruneWarning,
            stacklevel=4,
        )

    def rows(self, rows: Tensor) -> Any:
        """The inputs of some examples."""
        return transform(self.inputs, lambda t: t.index_select(0, rows.to(t.device)) if t.ndim else t)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) class of each example where the targets are one whole number per example; else None."""
        t = self.targets
        if t is None or t.ndim != 1 or t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            return None
        return t.cpu().numpy().astype(np.int64)

    def state(self) -> dict[str, Any]:
        """All but the model and its trace, to be sent elsewhere; see `received`."""
        kept = ("inputs", "targets", "outputs", "n_examples", "forward", "whole_because")
        return {name: getattr(self, name) for name in kept}

    @staticmethod
    def received(model: nn.Module, state: dict[str, Any]) -> Subject:
        """The subject of an equal model elsewhere, with this `state`; the dense outputs are not computed again."""
        subject = Subject.__new__(Subject)
        subject.model = model
        vars(subject).update(state)
        subject._parts = WeakValueDictionary()
        subject.trace = None
        if subject.whole_because is None:
            with borrowed(model), torch.no_grad():
                subject.trace, subject.whole_because = subject._traced(None)
        return subject

    def part(self, rows: NDArray[np.int64]) -> Subject:
        """The same model on some of the examples, in this order; nothing is run again.

        As long as a part is in use, asking for the same rows gives the same part.
        """
        key = np.ascontiguousarray(rows, dtype=np.int64).tobytes()
        part = self._parts.get(key)
        if part is None:
            picked = torch.from_numpy(np.array(rows, dtype=np.int64)).to(self.outputs.device)
            part = copy.copy(self)
            part.inputs, part.outputs = self.rows(picked), self.outputs[picked]
            part.targets = None if self.targets is None else self.targets[picked]
            part.n_examples = len(rows)
            part._parts = WeakValueDictionary()
            self._parts[key] = part
        return part

    def runner(self, sites: Sequence[Site]) -> Cut | Whole:
        """What runs rows under masks at ``sites``; where that is the whole model, its ``because`` says why."""
        edges = [site for site in sites if isinstance(site, Edge)]
        if len(edges) < len(sites):
            return Whole(self.model, sites, self.forward, "its players are no channels")
        if self.trace is not None:
            cut = Cut(self.trace, edges)
            rows = torch.arange(min(4, self.n_examples), device=self.outputs.device)
            everyone = torch.ones(len(rows), edges[0].n_players, device=self.outputs.device)
            outputs = cut.run(cut.prepare(self.rows(rows)), everyone)
            if cut.several_rows:
                because = "at the mask an example is several rows of the batch (windows)"
                self._say_whole(because)
                return Whole(self.model, edges, self.forward, because)
            if relative_difference(outputs, self.outputs[rows]) <= limit_for(outputs.dtype, NEAR):
                return cut
            because = "the part behind the mask does not reproduce the outputs (it writes in place)"
            self._say_whole(because)
            return Whole(self.model, edges, self.forward, because)
        return Whole(self.model, edges, self.forward, self.whole_because)

    def _run(self, rows: Tensor) -> Tensor:
        try:
            outputs = main_output(self.forward(self.model, self.rows(rows)))
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

    def _traced(self, forward: Forward | None) -> tuple[Trace | None, str | None]:
        if forward is not None:
            return None, "forward=... is given"
        try:
            return traced(self.model, self.rows(torch.arange(min(2, self.n_examples)))), None
        except UntraceableError as reason:
            return None, str(reason)
