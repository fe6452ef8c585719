"""A private copy to train, its batch-norms part of the convolutions in front of them, and the way back.

Frozen batch-norms are affine maps: ``s (W x + b - mean) + beta`` with ``s = gamma / sqrt(var + eps)`` is a convolution
with the weights ``s W``. The copy has an operation less to run and to derive per convolution (1.4 times the steps per
second in ResNet-56). What it learns is written back as ``W = W' / s`` and into ``beta``, so that the network keeps its
layers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shaprune.network.batches import Inputs, pick_rows, tensors
from shaprune.network.borrow import copied
from shaprune.network.forward.trace import Trace, UntraceableError, convolutions_to_fold, trace_model
from shaprune.network.tolerance import relative_difference, tolerance_for

_SMALL = 1e-3  # a channel whose scale is below this share of the largest gets another scale
_PROOF = 1e-4  # relative difference that folding may make
_FEW = 2  # examples that the proof takes


class TrainedCopy:
    """A copy of a network that is trained in its place.

    Args:
        model: in eval mode.
        inputs: examples, batch first; None = batch-norms stay layers of their own.

    Attributes:
        model: the copy, in eval mode, convolutions with their channels last.
        folded: convolution -> the batch-norm that is part of it.
    """

    def __init__(self, model: nn.Module, inputs: Inputs | None) -> None:
        self._original, self.model = model, copied(model)
        self.folded: dict[str, str] = {}
        if inputs is not None:
            self._fold(pick_rows(inputs, slice(_FEW)))
        if any(t.ndim == 4 for t in tensors(inputs)):
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs know tensors only

    def _fold(self, inputs: Inputs) -> None:
        try:
            trace = trace_model(self._original, inputs)
        except UntraceableError:
            return
        pairs = _pairs(trace)
        for name, norm in pairs.items():
            layer: Any = self._original.get_submodule(name)
            fused = fuse_conv_bn_eval(layer, cast(Any, self._original.get_submodule(norm)))
            self.model.set_submodule(name, fused.requires_grad_(True))
            self.model.set_submodule(norm, nn.Identity())
        with torch.no_grad():
            dense, ours = (tensors(m(inputs)) for m in (self._original, self.model))
        if any(relative_difference(a, b) > tolerance_for(a.dtype, _PROOF) for a, b in zip(dense, ours, strict=True)):
            self.model = copied(self._original)
        else:
            self.folded = pairs

    def write_back(self) -> None:
        """Give the original what the copy has learned."""
        with torch.no_grad():
            ours = dict(self.model.named_parameters())
            for name, parameter in self._original.named_parameters():
                layer = name.rpartition(".")[0]
                if layer not in self.folded and layer not in self.folded.values():
                    parameter.copy_(ours[name])
            for name, norm in self.folded.items():
                _unfold(
                    *(
                        m.get_submodule(n)
                        for m, n in ((self.model, name), (self._original, name), (self._original, norm))
                    )
                )


def _pairs(trace: Trace) -> dict[str, str]:
    """The convolutions to fold, each run once, trainable, and of weights that nothing else reads."""
    runs = Counter(trace.modules[str(n.target)] for n in trace.nodes if n.op == "call_module")
    read = [str(n.target) for n in trace.nodes if n.op == "get_attr"]
    owners = Counter(p for _, p in trace.model.named_parameters(remove_duplicate=False))
    found = {}
    for source, node in convolutions_to_fold(trace):
        names = str(source.target), str(node.target)
        layers: list[Any] = [trace.modules[name] for name in names]
        parameters = [p for layer in layers for p in layer.parameters()]
        alone = all(runs[layer] == 1 for layer in layers) and all(owners[p] == 1 for p in parameters)
        apart = not any(place.startswith(f"{name}.") for place in read for name in names)
        if alone and apart and layers[1].affine and all(p.requires_grad for p in parameters):
            found[names[0]] = names[1]
    return found


def _unfold(learned: Any, layer: Any, norm: Any) -> None:
    """Share what a folded convolution has learned between the convolution and its batch-norm.

    Channels that the batch-norm scales to next to nothing get the scale 1: their weights could not be divided.
    """
    deviation: Tensor = torch.sqrt(norm.running_var + norm.eps)
    scale = norm.weight / deviation
    small = scale.abs() <= _SMALL * scale.abs().max()
    scale = torch.where(small, torch.ones_like(scale), scale)
    norm.weight.copy_(torch.where(small, deviation, norm.weight))
    layer.weight.copy_(learned.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    norm.bias.copy_(learned.bias - scale * ((0 if layer.bias is None else layer.bias) - norm.running_mean))
