"""NaN marking: run the network with marked channels to find the channels that they reach.

A NaN survives every operation that an activation passes on its way, at exactly the positions that depend on it, through
shortcuts, concatenations, splits, shuffles, paddings and reshapes alike. Layers that make channels of their own
(convolutions, linear layers, embeddings) are not run: each returns its output of one clean run, with some of its
channels marked, so that a mark ends at the next such layer. Who reads marks is noted at the input of every layer.
"""

from __future__ import annotations

import copy as copying
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.buffers import kept_buffers
from shaprune.network.error_location import container_of, error_location
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import PRODUCERS, channel_axis, kind_of
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.recurrent import is_recurrent, mark, marked_states
from shaprune.network.layers.replaced_calls import replace_forwards
from shaprune.players.layer_costs import Layer

OUTPUT = ""  # the reader that stands for the network's output
Channels = NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """Channels that may be marked: of a layer's output, or of one axis of a parameter or buffer outside layers."""

    name: str
    width: int
    axis: int | None = None  # of a parameter; None for a layer
    alone: bool = True  # no other axis of the same parameter is a source

    @property
    def is_layer(self) -> bool:
        """Whether these are the outputs of a layer."""
        return self.axis is None


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
        self.sources += [source for source in _outside(copy, self._norms) if self.inside(source.name) is None]
        self._clean = self._record([*makers, *self.whole], max_memory)
        self._index = {name: i for i, name in enumerate(makers)}
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
        if time.monotonic() - self.started > self.max_seconds:
            raise InputError(
                f"following the channels of this model takes more than {self.max_seconds:.0f} seconds; give smaller "
                "example_inputs, or raise max_seconds"
            )
        seen: dict[str, Channels] = {}
        self._called.clear()
        plain = replace_forwards(("scaled_dot_product_attention",), lambda *_: _plain_attention)
        kept = kept_buffers(self.model)  # a mark that the network writes into one is not there in the next run
        with torch.no_grad(), plain, kept, self._patched(marked), self._watched(seen):
            try:
                outputs = tensors(call(self.model, transform(self.inputs, _all_marked if inputs else torch.clone)))
            except Exception as error:
                raise Lost(container_of(error, self.model), error_location(error)) from error
        seen[OUTPUT] = np.array([any(bool(torch.isnan(t).any()) for t in outputs if _can_be_marked(t))])
        layers = {self.sources[i].name for i, channels in marked.items() if self.sources[i].is_layer and channels.any()}
        self._missed |= layers - self._called
        return {**self._silent, **seen}

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
        return layer in self._index and not self._clean[layer]

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

    def _record(self, makers: list[str], max_memory: int) -> dict[str, list[Any]]:
        clean: dict[str, list[Any]] = {name: [] for name in makers}
        room = max_memory

        def hook_of(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                nonlocal room
                room -= sum(t.numel() * t.element_size() for t in tensors(output))
                if room < 0:
                    raise MemoryError
                clean[name].append(transform(output, lambda t: t.detach().clone()))

            return hook

        hooks = (self.model.get_submodule(name).register_forward_hook(hook_of(name)) for name in makers)
        try:
            with hooked(hooks), torch.no_grad():
                call(self.model, transform(self.inputs, torch.clone))
        except MemoryError as error:
            raise InputError(
                f"the activations of this model take more than {max_memory:,} bytes; give smaller "
                "example_inputs, or raise max_memory"
            ) from error
        return clean

    @contextmanager
    def _patched(self, marked: Mapping[int, Channels]) -> Iterator[None]:
        """Layers return their clean outputs with marks; parameters carry theirs."""
        patched: list[tuple[nn.Module, Any]] = []
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for name in (*self._clean, *self._norms):
                module = self.model.get_submodule(name)
                patched.append((module, vars(module).get("forward")))
                followed = name in self._clean
                channels = marked.get(self._index.get(name, -1))
                module.forward = self._answer(module, name, channels) if followed else _pass_each_channel
            for i, channels in marked.items():
                source = self.sources[i]
                if source.axis is not None and channels.any():
                    tensor = _tensor(self.model, source.name)
                    kept.append((tensor, tensor.data))
                    tensor.data = _with_marks(tensor.data, source.axis, channels)
            yield
        finally:
            for module, own in patched:
                if own is None:
                    del module.forward
                else:
                    module.forward = own
            for tensor, data in reversed(kept):
                tensor.data = data

    def _answer(self, module: nn.Module, name: str, channels: Channels | None) -> Any:
        outputs = iter(self._clean[name])
        run = module.forward if name in self.passed else None

        def forward(*args: Any, **kwargs: Any) -> Any:
            x = input_of(args, kwargs)
            if x is None or x.numel():  # experts without tokens carry no marks
                self._called.add(name)
            output: Any = next(outputs, None) if run is None else run(*args, **kwargs)
            if name in self.whole:
                return transform(output, _all_marked if _marked_share((args, kwargs)) else torch.clone)
            if is_recurrent(module):
                which = marked_states(module, args, kwargs)
                return mark(module, output, which if channels is None else which | torch.from_numpy(channels))
            if x is not None and (output is None or (x.ndim == output.ndim > 1 and len(x) != len(output))):
                output = type(module).forward(module, torch.zeros_like(x))  # marked routers share tokens out otherwise
            if channels is None or not channels.any():
                return output.clone()
            return _with_marks(output, channel_axis(module, output.ndim), channels)

        return forward

    @contextmanager
    def _watched(self, seen: dict[str, Channels]) -> Iterator[None]:
        def hook_of(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = input_of(args, kwargs)
                assert x is not None
                layer = self.layers[name]
                axis = layer.axis % x.ndim if layer.kind == "stream_norm" else channel_axis(module, x.ndim)
                others = [d for d in range(x.ndim) if d != axis]
                sums = x.sum(others, dtype=torch.promote_types(x.dtype, torch.float32)) if others else x  # keeps a NaN
                found = torch.isnan(sums).cpu().numpy()
                if len(found) != layer.n_in:
                    raise ValueError(f"layer {name!r} is given {len(found)} channels")
                seen[name] = seen[name] | found if name in seen else found

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


def _can_be_marked(tensor: Tensor) -> bool:
    """Whether entries of a tensor can be NaN."""
    return tensor.is_floating_point() or tensor.is_complex()


def _marked_share(values: Any) -> float:
    found = [t for t in tensors(values) if _can_be_marked(t)]
    return sum(int(torch.isnan(t).sum()) for t in found) / max(1, sum(t.numel() for t in found))


def _all_marked(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, float("nan")) if _can_be_marked(tensor) else tensor.clone()


def _with_marks(tensor: Tensor, axis: int, channels: Channels) -> Tensor:
    which = torch.from_numpy(np.flatnonzero(channels)).to(tensor.device)
    return tensor.clone().index_fill_(axis, which, float("nan"))


def _outside(model: nn.Module, norms: Collection[str]) -> Iterator[Source]:
    """The axes of floating-point parameters and buffers that no known layer owns."""
    for prefix, module in model.named_modules():
        if is_recurrent(module) or prefix in norms:  # their own weights; of the former whether or not it runs
            continue
        own = set() if kind_of(module) is None else {"weight", "bias", "running_mean", "running_var"}
        tensors_here = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors_here:
            if name in own or not tensor.is_floating_point():
                continue
            axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
            for axis in axes:
                full = f"{prefix}.{name}" if prefix else name
                yield Source(full, tensor.shape[axis], axis, alone=len(axes) == 1)


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), attribute)
    assert isinstance(tensor, Tensor)
    return tensor
