"""NaN marking: run the network with marked channels to find the channels that they reach.

A NaN survives every operation that an activation passes on its way, at exactly the positions that depend on it, through
shortcuts, concatenations, splits, shuffles, paddings and reshapes alike. Layers that make channels of their own
(convolutions, linear layers, embeddings) are not run: each returns its output of one clean run, with some of its
channels marked, so that a mark ends at the next such layer. Who reads marks is noted at the input of every layer.
"""

from __future__ import annotations

import copy as copying
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.buffers import kept_buffers
from shaprune.network.discovery.channels.choices import Choices
from shaprune.network.discovery.channels.clean_run import (
    ATTENTION,
    UnevenCopies,
    by_copy,
    can_be_marked,
    copied,
    record,
    with_marks,
)
from shaprune.network.discovery.channels.sources import Source, outside_layers, tensor_of
from shaprune.network.error_location import container_of, error_location
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import PRODUCERS, channel_axis, kind_of
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.recurrent import is_recurrent, mark, marked_states
from shaprune.network.layers.replaced_calls import replace_forwards
from shaprune.players.layer_costs import Layer

OUTPUT = ""  # the reader that stands for the network's output
Channels = NDArray[np.bool_]


class Lost(Exception):
    """Marks broke the run.

    Attributes:
        module: name of the innermost module around the break that holds others; empty for the network itself.
    """

    def __init__(self, module: str, place: str) -> None:
        super().__init__(place)
        self.module = module


class Marking:
    """Runs a model with marks.

    Args:
        copy: a private copy in eval mode; between runs it is as it was.
        inputs: few example inputs.
        layers: the layers that run, by name.
        max_seconds: when to give up.
        max_memory: bytes that the clean outputs may take.
        whole: modules that are not looked into: with a mark anywhere they give marks everywhere.

    Attributes:
        layers: those of ``layers`` that are followed.
        sources: what can be marked.
        passed: layers that are run, so that marks pass them.

    Raises:
        InputError: the bounds are passed.
    """

    def __init__(
        self,
        copy: nn.Module,
        inputs: Inputs,
        layers: Mapping[str, Layer],
        max_seconds: float,
        max_memory: int,
        whole: Sequence[str] = (),
    ) -> None:
        self.model, self.max_seconds, self.started = copy, max_seconds, time.monotonic()
        self.inputs, self.whole = inputs, tuple(whole)
        layers = self.layers = {name: layer for name, layer in layers.items() if self.inside(name) is None}
        self.readers = {name: copy.get_submodule(name) for name, x in layers.items() if x.kind != "embedding"}
        self._silent = {name: np.zeros(layers[name].n_in, dtype=bool) for name in self.readers}  # of experts, say
        makers = [name for name, layer in layers.items() if layer.kind in PRODUCERS]
        self.sources = [Source(name, layers[name].n_out) for name in makers]
        self._norms = [name for name, layer in layers.items() if layer.kind == "stream_norm"]
        self.sources += [source for source in outside_layers(copy, self._norms) if self.inside(source.name) is None]
        self._index = {name: i for i, name in enumerate(makers)}
        self._clean = record(copy, inputs, [*makers, *self.whole], layers, max_memory)
        self._calls: Counter[str] = Counter()  # of each layer, in this run
        self._rows: dict[str, int] = {}  # copies that the last call of a layer was given
        self.passed: frozenset[str] = frozenset()
        self._called: set[str] = set()
        self._missed: set[str] = set()  # layers that were to be marked in a run which went past them

    def run(self, marked: Mapping[int, Channels], *, inputs: bool = False) -> dict[str, Channels]:
        """Which input channels of each layer are reached from marked channels.

        Args:
            marked: per source (its position in `sources`), which of its channels (width,) carry a mark.
            inputs: whether all of the network's inputs carry one.

        Returns:
            Per layer (n_in,) bool; and for `OUTPUT` (1,) bool.
        """
        try:
            return self._run([marked], inputs)[0]
        except InputError:
            raise
        except Exception as error:
            raise Lost(container_of(error, self.model), error_location(error)) from error

    def runs(self, marks: Sequence[Mapping[int, Channels]]) -> list[dict[str, Channels]]:
        """What `run` answers to each of ``marks``: copies of the example, with marks of their own, run side by side.

        Parameters and positions are the same for all copies, and are marked in runs of their own: what two sets of
        marks reach is what both reach together.
        """
        if len(marks) < 3 or self._most() == 1:
            return [self.run(marked) for marked in marks]
        layers = [{i: c for i, c in marked.items() if self._is_copied(i)} for marked in marks]
        others = [{i: c for i, c in marked.items() if not self._is_copied(i) and c.any()} for marked in marks]
        found: list[dict[str, Channels]] = []
        while len(found) < len(marks):
            now = layers[len(found) :][: self._most()]
            found += self._side_by_side(now) or [self.run(marked) for marked in now]
        for k, marked in enumerate(others):
            if marked:
                found[k] = {reader: which | found[k][reader] for reader, which in self.run(marked).items()}
        return found

    def _side_by_side(self, marks: Sequence[Mapping[int, Channels]]) -> list[dict[str, Channels]] | None:
        """`run` for several marks at once; None, from now on, where copies do not run side by side."""
        try:
            return self._run(marks) if len(marks) > 1 else None
        except InputError:
            raise
        except Exception:  # one after the other is always right
            self._clean.most = 1
            return None

    def _is_copied(self, source: int) -> bool:
        """Whether copies of the example may carry other marks of a source."""
        return self.sources[source].is_layer and self.sources[source].name not in self._clean.shared

    def _most(self) -> int:
        """How many copies of the example may run side by side: 1 where one reaches another."""
        if not self._clean.most:
            one_by_one = self.whole or any(map(is_recurrent, self.readers.values()))
            self._clean.most = 1 if one_by_one else max(1, self._clean.room)
            if self._clean.most > 1 and self._side_by_side([{}] * 3):
                every = {i: np.ones(s.width, dtype=bool) for i, s in enumerate(self.sources) if self._is_copied(i)}
                alone, copies = self.run(every), self._side_by_side([every, {}, {}])
                same = copies and all(np.array_equal(alone[reader], copies[0][reader]) for reader in alone)
                if not copies or not same or any(which.any() for c in copies[1:] for which in c.values()):
                    self._clean.most = 1
        return self._clean.most

    def _run(self, marks: Sequence[Mapping[int, Channels]], inputs: bool = False) -> list[dict[str, Channels]]:
        if time.monotonic() - self.started > self.max_seconds:
            raise InputError(
                f"following the channels of this model takes more than {self.max_seconds:.0f} seconds; give smaller "
                "example_inputs, or raise max_seconds"
            )
        copies = len(marks)
        sources = {i for marked in marks for i, channels in marked.items() if channels.any()}
        none = {i: np.zeros(self.sources[i].width, dtype=bool) for i in sources}
        marked = {i: np.array([m.get(i, none[i]) for m in marks]) for i in sources}
        seen: dict[str, Channels] = {}
        self._called.clear()
        self._calls.clear()
        self._rows.clear()
        plain = replace_forwards(ATTENTION, lambda *_: _plain_attention) if self._clean.attends else nullcontext()
        kept = kept_buffers(self.model) if self._clean.writes else nullcontext()  # a mark in one would stay there
        chosen = nullcontext() if self._clean.choices is None else Choices(self._clean.choices)
        given = transform(self.inputs, _all_marked if inputs else partial(copied, copies=copies))
        with torch.no_grad(), plain, kept, self._patched(marked, copies), self._watched(seen, copies), chosen:
            outputs = [t for t in tensors(call(self.model, given)) if can_be_marked(t)]
        if copies > 1:
            self._clean.check_calls(self._calls)
        reached = [self._clean.marked_copies(t, i, copies) for i, t in enumerate(outputs)]
        seen[OUTPUT] = np.logical_or.reduce([np.zeros((copies, 1), dtype=bool), *reached])
        layers = {self.sources[i].name for i in sources if self.sources[i].is_layer}
        self._missed |= layers - self._called
        return [{**self._silent, **{reader: found[k] for reader, found in seen.items()}} for k in range(copies)]

    def missed(self, layer: str) -> bool:
        """Whether a layer that runs on the clean example was left out of a marked run (marks may choose experts)."""
        return layer in self._missed and not self.is_silent(layer)

    def inside(self, name: str) -> str | None:
        """Why a layer or parameter is not looked at: it is in a module that is not looked into."""
        around = next((module for module in self.whole if name.startswith(f"{module}.")), None)
        if around is None:
            return None
        kind = type(self.model.get_submodule(around)).__name__
        return f"{around} ({kind}) goes another way where channels are missing, so that they cannot be followed inside"

    def is_silent(self, layer: str) -> bool:
        """Whether a layer that makes channels is not called on the example that is followed."""
        return layer in self._index and not self._clean.outputs[layer]

    def past(self, layers: frozenset[str]) -> Marking:
        """The same, with marks that pass these layers."""
        other = copying.copy(self)
        other.passed = layers
        return other

    def is_maker(self, layer: str) -> bool:
        """Whether marks end at this layer, where it is not passed."""
        return layer in self._index

    def entries(
        self, marked: Mapping[int, Channels], readers: Collection[str], *, behind: bool = False
    ) -> dict[str, list[Tensor]]:
        """Which entries of each layer's input, or of its output (``behind``), are reached: a tensor per call."""
        found: dict[str, list[Tensor]] = {name: [] for name in readers}

        def hook_of(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Tensor) -> None:
                x = output[0] if output else input_of(args, kwargs)
                found[name] += [torch.isnan(x)] if x is not None else []

            return hook

        modules = {name: self.readers[name] for name in readers}
        hooks = (
            m.register_forward_hook(hook_of(name), with_kwargs=True)
            if behind
            else m.register_forward_pre_hook(hook_of(name), with_kwargs=True)
            for name, m in modules.items()
        )
        with hooked(hooks):
            self.run(marked)
        return found

    def mixer(self, source: int) -> str | None:
        """The innermost module that spreads a channel's mark over others; None where the network's own code does.

        The first channel is asked, the last, and one between: halves of a layer's channels may go different ways.
        """
        names = {module: name for name, module in self.model.named_modules()}
        found: list[str] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before, after = _marked_share((args, kwargs)), _marked_share(output)
            if before and after > 1.5 * before and not found:
                found.append(f"{names[module]} ({type(module).__name__})")

        inner = [m for m, name in names.items() if name and kind_of(m) not in PRODUCERS]
        width = self.sources[source].width
        with hooked(m.register_forward_hook(hook, with_kwargs=True) for m in inner):
            for channel in dict.fromkeys((0, width - 1, width // 2)):
                self.run({source: np.arange(width) == channel})
                if found:
                    break
        return found[0] if found else None

    @contextmanager
    def _patched(self, marked: Mapping[int, Channels], copies: int) -> Iterator[None]:
        """Layers return their clean outputs with marks (copies, width); parameters carry those of the only copy."""
        patched: list[tuple[nn.Module, Any]] = []
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for name in (*self._clean.outputs, *self._norms):
                module = self.model.get_submodule(name)
                own = vars(module)  # as `nn.Module` would set it, without its search for parameters
                patched.append((module, own.get("forward")))
                followed = name in self._clean.outputs
                channels = marked.get(self._index.get(name, -1))
                own["forward"] = self._answer(module, name, channels, copies) if followed else _pass_each_channel
            for i, channels in marked.items():
                source = self.sources[i]
                if source.axis is not None:
                    tensor = tensor_of(self.model, source.name)
                    kept.append((tensor, tensor.data))
                    tensor.data = with_marks(tensor.data, source.axis, channels)
            yield
        finally:
            for module, before in patched:
                if before is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = before
            for tensor, data in reversed(kept):
                tensor.data = data

    def _answer(self, module: nn.Module, name: str, channels: Channels | None, copies: int) -> Any:
        outputs = iter(self._clean.outputs[name])
        run = module.forward if name in self.passed else None

        def forward(*args: Any, **kwargs: Any) -> Any:
            x = input_of(args, kwargs)
            if x is None or x.numel():  # experts without tokens carry no marks
                self._called.add(name)
            if name not in self.readers and x is not None:
                self._note_call(name, x, copies)
            rows = self._rows.get(name, copies)
            if run is not None:
                output = run(*args, **kwargs)
            else:
                clean: Any = next(outputs, None)
                output = copied(clean, rows) if rows > 1 else clean
            if name in self.whole:
                return transform(output, _all_marked if _marked_share((args, kwargs)) else torch.clone)
            if is_recurrent(module):
                which = marked_states(module, args, kwargs)
                return mark(module, output, which if channels is None else which | torch.from_numpy(channels[0]))
            uneven = x is not None and x.ndim == getattr(output, "ndim", 0) > 1 and len(x) != len(output)
            if copies == 1 and x is not None and (output is None or uneven):
                output = type(module).forward(module, torch.zeros_like(x))  # marked routers share tokens out otherwise
            if channels is None:
                return output if rows > 1 else output.clone()
            return with_marks(output, channel_axis(module, output.ndim), channels, copies=copies)

        return forward

    def _note_call(self, layer: str, x: Tensor, copies: int) -> None:
        self._rows[layer] = self._clean.check_call(layer, self._calls[layer], x, copies) if copies > 1 else 1
        self._calls[layer] += 1

    @contextmanager
    def _watched(self, seen: dict[str, Channels], copies: int) -> Iterator[None]:
        """Note which channels (copies, n_in) of each layer's input are marked."""

        def hook_of(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = input_of(args, kwargs)
                assert x is not None
                self._note_call(name, x, copies)
                layer = self.layers[name]
                axis = layer.axis % x.ndim if layer.kind == "stream_norm" else channel_axis(module, x.ndim)
                others = [d + 1 for d in range(x.ndim) if d != axis % x.ndim]
                each = by_copy(x, self._rows[name])
                kind = torch.promote_types(x.dtype, torch.float32)
                found = torch.isnan(each.sum(others, dtype=kind) if others else each).cpu().numpy()  # keeps a NaN
                if found.shape[1] != layer.n_in:
                    raise ValueError(f"layer {name!r} is given {found.shape[1]} channels")
                if len(found) < copies and found.any():
                    raise UnevenCopies(name)
                seen[name] = seen[name] | found if name in seen else np.broadcast_to(found, (copies, layer.n_in))

            return hook

        readers = self.readers.items()
        with hooked(module.register_forward_pre_hook(hook_of(name), with_kwargs=True) for name, module in readers):
            yield


def _pass_each_channel(*args: Any, **kwargs: Any) -> Tensor:
    """In the place of a norm over a stream, whose mask is its removal: channel k reaches channel k."""
    x = input_of(args, kwargs)
    assert x is not None
    return x.clone()


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """What fused attention computes, step by step: fused, it takes maxima that lose a NaN.

    `torch.nn.attention.sdpa_kernel` would choose this for all threads of the process.
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    given = query, key, value, attn_mask, dropout_p, is_causal
    answer: Tensor = torch._scaled_dot_product_attention_math(*given, **options)[0]
    return answer


def _marked_share(values: Any) -> float:
    found = [t for t in tensors(values) if can_be_marked(t)]
    return sum(int(torch.isnan(t).sum()) for t in found) / max(1, sum(t.numel() for t in found))


def _all_marked(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, float("nan")) if can_be_marked(tensor) else tensor.clone()
