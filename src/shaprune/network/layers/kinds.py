"""Kinds of layers: where their channels stand, and what they cost."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, examples_in, run
from shaprune.network.hooks import hooked
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.recurrent import directions_of, gates_of, is_recurrent, parts_of, states_of, units_of
from shaprune.network.state_dicts import distinct, tensors_of
from shaprune.players.layer_costs import Kind, Layer
from shaprune.players.roles import Role

_CONV = nn.modules.conv._ConvNd
WEIGHTED: tuple[type[nn.Module], ...] = (  # torch's layers of one weight, by which channels of one side read the other
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_BATCH = nn.modules.batchnorm._BatchNorm
_INSTANCE = nn.modules.instancenorm._InstanceNorm
PRODUCERS: tuple[Kind, ...] = ("conv", "linear", "embedding", "recurrent")  # they make channels of their own
_STORED = {  # what safetensors calls types, in the order in which it writes them
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHANNEL_KINDS: tuple[Kind, ...] = (*PRODUCERS, "depthwise")  # all their channels are accounted for: players, or skipped
CONSUMERS: tuple[Kind, ...] = ("conv", "linear", "recurrent")  # at their inputs stand the masks


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
        return "prelu" if module.num_parameters > 1 else None  # one for all channels is no channel's
    if is_recurrent(module):
        return "recurrent"
    if isinstance(module, nn.Unflatten):
        return "unflatten" if widths_of(module) is not None else None
    return "embedding" if isinstance(module, nn.Embedding) else None


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is ``Conv1D`` of transformers: a linear layer with a weight (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def channel_axis(module: nn.Module, ndim: int) -> int:
    """The axis of the channels in inputs and outputs of a layer, for tensors of ``ndim`` axes."""
    if isinstance(module, _CONV):
        return ndim - len(module.kernel_size) - 1
    if isinstance(module, nn.Unflatten):
        return int(module.dim) % ndim
    last = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.RNNCellBase)
    return ndim - 1 if isinstance(module, last) or is_transposed_linear(module) else 1


def parameter_sides(module: nn.Module, layer: Layer, key: str) -> dict[int, Role]:
    """Which side of a layer each axis of its parameter ``key`` belongs to; nothing where that is not known."""
    if key not in ("weight", "bias") or layer.groups > 1:
        return {}
    if key == "bias":
        return {0: "out"}
    if layer.kind == "embedding":
        return {1: "out"}
    if layer.kind not in ("linear", "conv") or getattr(module, "transposed", False):
        return {}
    return {0: "in", 1: "out"} if is_transposed_linear(module) else {0: "out", 1: "in"}


def widths_of(module: nn.Module) -> tuple[int, int] | None:
    """Channels in and out of a layer as it is now; None for other kinds."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_transposed_linear(module):
        n_in, n_out = module.weight.shape  # type: ignore[misc]
        return int(n_in), int(n_out)
    if isinstance(module, _CONV):
        return module.in_channels, module.out_channels
    if is_recurrent(module):
        return module.input_size, units_of(module) * directions_of(module)
    if isinstance(module, nn.Unflatten):
        size = module.unflattened_size
        known = all(isinstance(n, int) and n > 0 for n in size)
        return (prod(size), prod(size)) if known else None
    for name in ("num_features", "num_channels", "num_parameters", "embedding_dim"):
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name), getattr(module, name)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return module.normalized_shape[-1], module.normalized_shape[-1]
    return None


def layer_of(module: nn.Module, positions: float, activation: float = 0.0) -> Layer:
    """The costs of a layer whose weights are used at ``positions`` positions per example, see `Layer`."""
    layer = _layer_of(module, positions)
    parameter = next(module.parameters(recurse=False), None)
    itemsize = layer.itemsize if parameter is None else parameter.element_size()
    own = [b for n, b in module.named_buffers(recurse=False) if n not in module._non_persistent_buffers_set]
    buffers = sum(b.element_size() for b in own if b.shape == (layer.n_out,))
    return replace(layer, itemsize=itemsize, buffers=buffers, activation=activation)


def _layer_of(module: nn.Module, positions: float) -> Layer:
    kind, widths = kind_of(module), widths_of(module)
    assert kind is not None
    assert widths is not None
    n_in, n_out = widths
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, _CONV):
        return Layer(kind, n_in, n_out, module.groups, prod(module.kernel_size), bias, positions)
    if is_recurrent(module):
        both, cells = directions_of(module), module.hidden_size
        depth, cells = len(parts_of(module)) // both, cells if cells != units_of(module) else 0
        return Layer(kind, n_in, n_out, both, gates_of(module), module.bias, positions, depth=depth, cells=cells)
    if kind == "linear":
        return Layer(kind, n_in, n_out, 1, 1, bias, positions)
    if kind == "embedding":
        return Layer(kind, n_in, n_out, 1, module.num_embeddings, False, positions)  # type: ignore[arg-type]
    if kind == "prelu":
        return Layer(kind, n_in, n_out, 1, 1, False, positions)
    vectors = [p for p in module.parameters(recurse=False) if p.shape == (n_out,)]
    return Layer(kind, n_in, n_out, 1, len(vectors), False, positions)


def measure_layers(model: nn.Module, inputs: Inputs) -> dict[str, Layer]:
    """Run once and record the cost of every layer, in order of execution."""
    return measured(model, inputs)[0]


def measured(model: nn.Module, inputs: Inputs) -> tuple[dict[str, Layer], dict[str, str]]:
    """Run once and record the cost of every layer, in order of execution.

    Returns:
        The layers; and why others that ran are none: what they take or give is not one tensor of their width.
    """
    names = {module: name for name, module in model.named_modules()}
    positions: dict[str, float] = defaultdict(float)
    activations: dict[str, float] = defaultdict(float)
    odd: dict[str, str] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        widths = widths_of(module)
        assert widths is not None
        x = input_of(args, kwargs)
        output = states_of(module, output) if is_recurrent(module) else output
        why = _odd(module, "takes", x, widths[0]) or _odd(module, "gives", output, widths[1])
        if why is not None:
            odd.setdefault(names[module], why)
            return
        assert x is not None
        counted = output.numel() / widths[1]
        if not isinstance(module, nn.Unflatten):  # a view
            activations[names[module]] += counted * output.element_size()
        if getattr(module, "transposed", False):
            counted = x.numel() / widths[0]
        positions[names[module]] += counted

    layers = [module for module in model.modules() if kind_of(module) is not None]
    with hooked(module.register_forward_hook(hook, with_kwargs=True) for module in layers), torch.no_grad():
        rows = examples_in(inputs, run(model, inputs))
    found = {n: layer_of(model.get_submodule(n), all_ / rows, activations[n] / rows) for n, all_ in positions.items()}
    return {name: layer for name, layer in found.items() if name not in odd}, odd


def _odd(module: nn.Module, verb: str, given: Any, width: int) -> str | None:
    """Why what a layer takes or gives has no axis of its channels; None where it has."""
    kind = type(module).__name__
    if not isinstance(given, Tensor):
        return f"it is a {kind} that {verb} a {type(given).__name__}, not one tensor"
    if given.is_nested:
        return f"it is a {kind} that {verb} a nested tensor, whose rows have lengths of their own; pad them"
    if isinstance(module, nn.Unflatten) or (isinstance(module, nn.Embedding) and verb == "takes"):
        return None
    axis = channel_axis(module, given.ndim)
    if not 0 <= axis < given.ndim or given.shape[axis] != width:
        return f"it is a {kind} that {verb} a tensor of shape {tuple(given.shape)}, with no axis of {width} channels"
    return None


def stored_tensors(model: nn.Module) -> int:
    """Bytes of the parameters and buffers that a state dict holds."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model).values())


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers as a safetensors file, its header included; shared tensors count once."""
    header: dict[str, Any] = {}
    end = 0
    ranks = {dtype: rank for rank, dtype in enumerate(_STORED)}
    kept, _ = distinct(tensors_of(model))
    for name, tensor in sorted(kept.items(), key=lambda item: (ranks.get(item[1].dtype, 2), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _STORED.get(tensor.dtype, "F32"),
            "shape": [*tensor.shape],
            "data_offsets": [start, end],
        }
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + 8 * ceil(length / 8) + end
