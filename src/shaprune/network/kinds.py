"""What kind of layer a module is, where its channels stand, and what it costs."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, length
from shaprune.network.layers import Kind, Layer

_CONV = nn.modules.conv._ConvNd
_BATCH = nn.modules.batchnorm._BatchNorm
_INSTANCE = nn.modules.instancenorm._InstanceNorm
PRODUCERS: tuple[Kind, ...] = ("conv", "linear", "embedding")  # they make channels of their own
CONSUMERS: tuple[Kind, ...] = ("conv", "linear")  # at their inputs stand the masks


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a layer that can be cut; None for anything else."""
    if isinstance(module, nn.Linear) or is_transposed_linear(module):
        return "linear"
    if isinstance(module, _CONV):
        alone = module.groups == module.out_channels == module.in_channels and module.groups > 1
        return "depthwise" if alone else "conv"
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "norm" if len(module.normalized_shape) == 1 else None
    if isinstance(module, (_BATCH, _INSTANCE, nn.GroupNorm)):
        return "norm"
    if isinstance(module, nn.PReLU):
        return "prelu"
    return "embedding" if isinstance(module, nn.Embedding) else None


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is ``Conv1D`` of transformers: a linear layer with a weight (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def channel_axis(module: nn.Module, ndim: int) -> int:
    """The axis of the channels in inputs and outputs of a layer, for tensors of ``ndim`` axes."""
    if isinstance(module, _CONV):
        return ndim - len(module.kernel_size) - 1
    last = isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)) or is_transposed_linear(module)
    return ndim - 1 if last else 1


def widths_of(module: nn.Module) -> tuple[int, int] | None:
    """Channels in and out of a layer as it is now; None for kinds that cannot be told."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_transposed_linear(module):
        n_in, n_out = module.weight.shape  # type: ignore[misc]
        return int(n_in), int(n_out)
    if isinstance(module, _CONV):
        return module.in_channels, module.out_channels
    for name in ("num_features", "num_channels", "num_parameters", "embedding_dim"):
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name), getattr(module, name)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return module.normalized_shape[-1], module.normalized_shape[-1]
    return None


def layer_of(module: nn.Module, positions: float) -> Layer:
    """The costs of a layer whose weights are used at ``positions`` positions per example."""
    kind, widths = kind_of(module), widths_of(module)
    assert kind is not None
    assert widths is not None
    n_in, n_out = widths
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, _CONV):
        return Layer(kind, n_in, n_out, module.groups, prod(module.kernel_size), bias, positions)
    if kind == "linear":
        return Layer(kind, n_in, n_out, 1, 1, bias, positions)
    if kind == "embedding":
        return Layer(kind, n_in, n_out, 1, module.num_embeddings, False, positions)  # type: ignore[arg-type]
    if kind == "prelu":
        return Layer(kind, n_in, n_out, 1, 1 if n_out > 1 else 0, False, positions)
    vectors = [p for p in module.parameters(recurse=False) if p.shape == (n_out,)]
    return Layer(kind, n_in, n_out, 1, len(vectors), False, positions)


def measure(model: nn.Module, inputs: Inputs) -> dict[str, Layer]:
    """Run once and record the cost of every layer, in order of execution."""
    names = {module: name for name, module in model.named_modules()}
    positions: dict[str, float] = defaultdict(float)
    rows = length(inputs)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        widths = widths_of(module)
        assert widths is not None
        counted = output.numel() / widths[1]
        if getattr(module, "transposed", False):
            counted = args[0].numel() / widths[0]
        positions[names[module]] += counted / rows

    handles = [m.register_forward_hook(hook) for m in model.modules() if kind_of(m) is not None]
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: layer_of(model.get_submodule(name), n) for name, n in positions.items()}
