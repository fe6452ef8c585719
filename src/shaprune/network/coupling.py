"""Which channels are coupled: the adapter around torch-pruning's `DependencyGraph`, shielding its traps.

It works on a private copy of the model, with autograd on and every parameter trainable, because torch-pruning finds
nothing otherwise. Indices that torch-pruning merges are followed per channel, and channels that share a member (or a
slot of a grouped convolution) become one player.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, call, length, tensors
from shaprune.network.layers import Kind, Layer
from shaprune.network.players import Member, Role, Skipped

_CONV = nn.modules.conv._ConvNd
_ROOTS = (_CONV, nn.Linear)
_Key = tuple[str, Role]


@dataclass(frozen=True)
class Candidate:
    """A coupled group as found, not yet verified; ``producers`` names the layers whose filters it would remove."""

    name: str
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[str, ...]:
        return tuple(m.module for m in self.members if m.role != "in")


class _Refused(Exception):
    """Why a group cannot be pruned."""


def candidates(copy: nn.Module, inputs: Inputs) -> tuple[list[Candidate], list[Skipped], dict[str, Layer]]:
    """Find coupled groups in a private copy of a model.

    Args:
        copy: a private copy, in eval mode; it is changed.
        inputs: example inputs for one forward pass.

    Returns:
        Candidates in order of execution; every convolution and linear layer that is in none of them, with the reason;
        and the costs of all layers that ran.
    """
    copy.requires_grad_(True)
    names = {module: name for name, module in copy.named_modules()}
    layers = _measure(copy, inputs, names)
    graph = _trace(copy, inputs)
    shared = _shared_parameters(copy)
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    covered: set[str] = set()
    for name in [n for n in layers if isinstance(copy.get_submodule(n), _ROOTS)]:
        if name in covered:
            continue
        module = copy.get_submodule(name)
        if module not in graph.module2node:
            skipped.append(
                Skipped(name, layers[name].n_out, "its output does not reach the network's output in the trace")
            )
            continue
        producers = [name]
        try:
            group = _group(graph, module, range(layers[name].n_out))
            producers = [n for n in _out_layers(graph, group, names) if n in layers and n not in covered] or [name]
            found.append(Candidate(name, _members(graph, module, group, names, layers, shared)))
            covered.update(found[-1].producers)
        except _Refused as reason:
            skipped += [
                Skipped(n, layers[n].n_out, str(reason)) for n in producers if layers[n].kind not in ("norm", "prelu")
            ]
            covered.update(producers)
    for name, module in copy.named_modules():
        if isinstance(module, _ROOTS) and name not in layers:
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            skipped.append(Skipped(name, width, "it did not run on the example inputs"))
    return found, skipped, layers


def _trace(copy: nn.Module, inputs: Inputs) -> tp.DependencyGraph:
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                copy, example_inputs=inputs, forward_fn=lambda model, x: _all_outputs(call(model, x)), verbose=False
            )
    except RecursionError as error:
        raise InputError("torch-pruning cannot follow this model: its graph is too deep to trace") from error
    except Exception as error:
        raise InputError(f"torch-pruning cannot trace this model: {type(error).__name__}: {error}") from error


def _all_outputs(outputs: Any) -> Any:
    return [t for t in tensors(outputs) if t.grad_fn is not None] or outputs


def _measure(copy: nn.Module, inputs: Inputs, names: dict[nn.Module, str]) -> dict[str, Layer]:
    """Run once and record the cost of every layer, in order of execution."""
    positions: dict[str, float] = defaultdict(float)
    rows = length(inputs)

    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        width = (
            module.out_features if isinstance(module, nn.Linear) else getattr(module, "out_channels", output.shape[1])
        )
        counted = output.numel() / width
        if getattr(module, "transposed", False):
            counted = args[0].numel() / module.in_channels
        positions[names[module]] += counted / rows

    handles = [m.register_forward_hook(hook) for m in copy.modules() if _kind(m) is not None]
    try:
        with torch.no_grad():
            call(copy, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _layer(copy.get_submodule(name), n) for name, n in positions.items()}


def _kind(module: nn.Module) -> Kind | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _CONV):
        alone = module.groups == module.out_channels == module.in_channels and module.groups > 1
        return "depthwise" if alone else "conv"
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        return "norm"
    if isinstance(module, nn.PReLU):
        return "prelu"
    return None


def _layer(module: nn.Module, positions: float) -> Layer:
    kind = _kind(module)
    assert kind is not None
    if isinstance(module, nn.Linear):
        return Layer(kind, module.in_features, module.out_features, 1, 1, module.bias is not None, positions)
    if isinstance(module, _CONV):
        kernel = 1
        for size in module.kernel_size:
            kernel *= size
        bias = module.bias is not None
        return Layer(kind, module.in_channels, module.out_channels, module.groups, kernel, bias, positions)
    if isinstance(module, nn.PReLU):
        width = module.num_parameters
        return Layer(kind, width, width, 1, 1 if width > 1 else 0, False, positions)
    width = int(module.num_features)  # type: ignore[arg-type]
    return Layer(kind, width, width, 1, 2 if module.affine else 0, False, positions)


def _group(graph: tp.DependencyGraph, module: nn.Module, channels: Any) -> Any:
    pruner = graph.get_pruner_of_module(module)
    return graph.get_pruning_group(module, pruner.prune_out_channels, list(channels))


def _role(graph: tp.DependencyGraph, handler: Any) -> Role:
    is_in, is_out = graph.is_in_channel_pruning_fn(handler), graph.is_out_channel_pruning_fn(handler)
    return "both" if is_in and is_out else "in" if is_in else "out"


def _out_layers(graph: tp.DependencyGraph, group: Any, names: dict[nn.Module, str]) -> list[str]:
    roles = [(names.get(dep.target.module), _role(graph, dep.handler)) for dep, _ in group]
    return list(dict.fromkeys(name for name, role in roles if name is not None and role != "in"))


def _members(
    graph: tp.DependencyGraph,
    root: nn.Module,
    group: Any,
    names: dict[nn.Module, str],
    layers: dict[str, Layer],
    shared: dict[str, str],
) -> tuple[Member, ...]:
    """Turn a torch-pruning group into members with channels per player.

    Raises:
        _Refused: with the reason.
    """
    n = layers[names[root]].n_out
    owned = _owned(graph, group, names)
    if any(sorted(roots) != list(range(n)) or len({len(c) for c in roots.values()}) > 1 for roots in owned.values()):
        owned = _owned_per_channel(graph, root, n, names)  # torch-pruning attributes a merged channel to one root only
    for module, role in owned:
        if module not in layers:
            raise _Refused(f"{module} is no layer that can be cut")
        width = layers[module].n_in if role == "in" else layers[module].n_out
        if any(channel >= width for channels in owned[module, role].values() for channel in channels):
            raise _Refused(f"torch-pruning finds more channels than the {width} of {module}")
        if (module in shared) and role != "both":
            raise _Refused(f"{module} shares its weight with {shared[module]}")
    if not any(role == "in" for _, role in owned):
        raise _Refused("it feeds the network's output")
    parts = _partition(owned, layers, n)
    if len(parts) < 2:
        raise _Refused("all its channels can only leave together" if n > 1 else "it has one channel")
    first: _Key = next(key for key in owned if key[1] != "in")
    ordered = [first, *sorted((k for k in owned if k != first), key=lambda k: list(layers).index(k[0]))]
    return tuple(
        Member(
            module,
            role,
            tuple(tuple(sorted({c for r in part for c in owned[module, role].get(r, ())})) for part in parts),
        )
        for module, role in ordered
    )


def _owned(graph: tp.DependencyGraph, group: Any, names: dict[nn.Module, str]) -> dict[_Key, dict[int, list[int]]]:
    """Channels that each root channel owns in each layer of a torch-pruning group.

    Raises:
        _Refused: the group reaches something that cannot be cut.
    """
    owned: dict[_Key, dict[int, list[int]]] = {}
    for item in group:
        module = item.dep.target.module
        if isinstance(module, tp.ops._OutputOp):
            raise _Refused("it feeds the network's output")
        if isinstance(module, nn.Parameter):
            raise _Refused(f"it meets a parameter outside layers, of shape {tuple(module.shape)}")
        if module not in names:
            continue  # an operation without weights
        if _kind(module) is None:
            mixing = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm))
            what = (
                "mixes channels, so a mask is not a removal" if mixing else "is a kind of layer that cannot be cut yet"
            )
            raise _Refused(f"{names[module]} ({type(module).__name__}) {what}")
        roots = owned.setdefault((names[module], _role(graph, item.dep.handler)), {})
        for root, channel in zip(item.root_idxs, item.idxs, strict=True):
            if root is None:
                raise _Refused(f"torch-pruning loses track of channels at {names[module]}")
            roots.setdefault(root, []).append(channel)
    return owned


def _owned_per_channel(
    graph: tp.DependencyGraph, root: nn.Module, n: int, names: dict[nn.Module, str]
) -> dict[_Key, dict[int, list[int]]]:
    """The same, asked for one root channel at a time: slower, and nothing is merged away."""
    owned: dict[_Key, dict[int, list[int]]] = {}
    for channel in range(n):
        for key, roots in _owned(graph, _group(graph, root, [channel]), names).items():
            owned.setdefault(key, {})[channel] = [c for channels in roots.values() for c in channels]
    return owned


def _partition(owned: dict[_Key, dict[int, list[int]]], layers: dict[str, Layer], n: int) -> list[list[int]]:
    """Root channels that can only leave together: they share a channel, or a slot of a grouped convolution."""
    leader = list(range(n))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for (module, role), roots in owned.items():
        layer = layers[module]
        slots = (layer.n_in if role == "in" else layer.n_out) // layer.groups
        holder: dict[int, int] = {}
        for root, channels in roots.items():
            for channel in channels:
                slot = channel % slots if layer.kind == "conv" and layer.groups > 1 else channel
                a, b = find(root), find(holder.setdefault(slot, root))
                leader[max(a, b)] = min(a, b)
    parts: dict[int, list[int]] = defaultdict(list)
    for root in range(n):
        parts[find(root)].append(root)
    return [parts[key] for key in sorted(parts)]


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    """Layers that share a parameter with another layer: name -> the other's name."""
    holders: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].append(name)
    return {
        name: other
        for names in holders.values()
        if len(names) > 1
        for name, other in zip(names, names[::-1], strict=True)
    }
