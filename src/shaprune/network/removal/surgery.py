"""Surgery: a new, plain module without the removed players. torch-pruning cuts the layers that it knows.

All removals are applied at once, from indices of the dense network, so that layers which belong to several groups
(concatenations, chains) need no bookkeeping of shifted indices. Modules that count their heads or split by a width are
given them. Blocks are replaced by what passes their input, experts leave their list, single weights become 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch_pruning as tp
from numpy.typing import NDArray
from torch import nn

from shaprune.errors import InputError, SurgeryError
from shaprune.network.layers.kinds import is_transposed_linear, widths_of
from shaprune.network.layers.open_attention import can_open
from shaprune.network.model_turns import turn
from shaprune.network.removal.entries import keep_entries
from shaprune.network.removal.kept_numbers import divide_number
from shaprune.network.removal.norms import hold_norm, slice_norm
from shaprune.network.removal.player_kinds import KINDS, kind_of_part
from shaprune.network.removal.recurrent import cut_features, cut_units
from shaprune.network.shared_weights import SharedParameters, shared_parameters
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Group, Players
from shaprune.players.roles import PARTS, Role

_CUTTERS = {
    ("conv", "out"): tp.prune_conv_out_channels,
    ("conv", "in"): tp.prune_conv_in_channels,
    ("depthwise", "both"): tp.prune_depthwise_conv_out_channels,
    ("linear", "out"): tp.prune_linear_out_channels,
    ("linear", "in"): tp.prune_linear_in_channels,
    ("prelu", "both"): tp.prune_prelu_out_channels,
    ("embedding", "out"): tp.prune_embedding_out_channels,
    ("recurrent", "out"): cut_units,
    ("recurrent", "in"): cut_features,
}
# What modules that reshape into heads call their numbers: all are divided as the heads are.
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_key_value_heads", "num_kv_heads")
WIDTHS = ("all_head_size", "attn_dim", "inner_dim", "split_size")

Removal = tuple[str, Role, list[int]]  # module, side, channels of the dense layer


def removals(groups: Iterable[Group], kept: NDArray[np.bool_]) -> list[Removal]:
    """What leaves each layer when the players ``kept`` (n,) stay."""
    gone: dict[tuple[str, Role], set[int]] = defaultdict(set)
    for group in groups:
        for member in group.members:
            for player, channels in zip(group.indices, member.channels, strict=True):
                if not kept[player]:
                    gone[member.module, member.role].update(channels)
    return [(module, role, sorted(channels)) for (module, role), channels in gone.items() if channels]


def check_fits(model: nn.Module, players: Players) -> None:
    """Check that ``players`` were found on a model like this one.

    Raises:
        InputError: naming the first layer that is missing or has another width.
    """
    with turn(model):
        modules = dict(model.named_modules())
        for name, layer in players.layers.items():
            if layer.kind == "parameter":
                _check_parameter(model, name, layer)
                continue
            if name not in modules:
                closed = can_open(modules.get(name.rpartition(".")[0], model))
                way = "model = shaprune.builtin.open_attention(model), as before" if closed else "find_players again"
                raise InputError(f"this plan belongs to another model: layer {name!r} is missing here; {way}")
            width = width_as_is(modules[name], layer)
            if width is not None and width != (layer.n_in, layer.n_out):
                raise InputError(
                    f"this plan belongs to another model: layer {name!r} has {width[0]} inputs and {width[1]} outputs, "
                    f"in the plan {layer.n_in} and {layer.n_out}; find_players again"
                )


def width_as_is(module: nn.Module, layer: Layer) -> tuple[int, int] | None:
    """What the width of a layer would have to be in `Players.widths`, from the module itself; None = unknown."""
    kind = KINDS.get(layer.kind)
    return widths_of(module) if kind is None else kind.width(module, layer)


def _check_parameter(model: nn.Module, name: str, layer: Layer) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    tensor = tensors.get(name.partition("@")[0])
    if tensor is None or tensor.ndim <= layer.axis or tensor.shape[layer.axis] != layer.n_out:
        raise InputError(
            f"this plan belongs to another model: parameter {name!r} with {layer.n_out} entries is missing here; "
            "find_players again"
        )


def remove_players(model: nn.Module, players: Players, kept: NDArray[np.bool_]) -> nn.Module:
    """Remove from ``model``, in place, all players but ``kept`` (n,); ``requires_grad`` and training flags stay.

    Raises:
        SurgeryError: naming the layer that cannot be cut, or of which too little would be left.
    """
    for name, (left, least) in players.too_narrow(kept).items():
        what = next((part.plural for part in PARTS.values() if part.unit == players.layers[name].kind), "channels")
        raise SurgeryError(
            f"layer {name!r} would be left with {left} {what}, and it needs at least {least}; keep more of its players"
        )
    shared = shared_parameters(model)
    for name, role, channels in removals(players.groups, kept):
        layer = players.layers[name]
        try:
            if layer.kind == "parameter":
                _cut_parameter(model, name, layer.axis, channels)
                continue
            if layer.held:
                hold_norm(model, name, layer, channels)
                continue
            module = model.get_submodule(name)
            kind = kind_of_part(PARTS[role])
            if kind is not None:
                kind.remove(model, name, layer, channels)
                continue
            frozen = {key: not p.requires_grad for key, p in module.named_parameters(recurse=False)}
            _cutter(module, layer, role)(module, channels)
        except Exception as error:
            raise SurgeryError(f"layer {name!r} could not be cut: {error}; exclude its group") from error
        for key, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(not frozen.get(key, False))
    _tie(model, shared)
    _update_head_counts(model, players, kept)
    return model


def _tie(model: nn.Module, shared: SharedParameters) -> None:
    """Make layers that shared a parameter share it again; all have lost the same of it, or are not called."""
    for dense, places in shared:
        held = {name: getattr(model.get_submodule(name), key) for name, key in places}
        cut = {name: parameter for name, parameter in held.items() if parameter is not dense}
        if not cut:
            continue
        first = next(iter(cut))
        for name, key in places:
            module = model.get_submodule(name)
            if cut.get(name, cut[first]).shape != cut[first].shape:
                raise SurgeryError(f"{name!r} shares its {key} with {first!r}, which has lost other channels of it")
            setattr(module, key, cut[first])
            if name not in cut and isinstance(module, nn.Embedding):
                module.embedding_dim = cut[first].shape[1]


def _update_head_counts(model: nn.Module, players: Players, kept: NDArray[np.bool_]) -> None:
    """Update the numbers that the modules around attention keep of their heads and widths."""
    left = players.widths(kept)
    read = {layer.n_in for layer in players.layers.values() if layer.heads == "in"}
    shares = {  # the layers that make heads stand side by side, and all lose the same share
        name.rpartition(".")[0]: (left[name][1], layer.n_out)
        for name, layer in players.layers.items()
        if layer.heads == "out" and layer.numbers is None
    }
    for owner, (width, dense) in shares.items():
        module = model.get_submodule(owner)
        for name in (*COUNTS, *WIDTHS):
            value = getattr(module, name, None)
            if not isinstance(value, int) or _is_read_only(module, name):
                continue
            if value * width % dense == 0 and (name in COUNTS or value in read):
                setattr(module, name, value * width // dense)
    for name, layer in players.layers.items():
        n_in, n_out = left[name]
        for path in layer.numbers or ():
            divide_number(model, path, *((n_out, layer.n_out) if layer.divided == "out" else (n_in, layer.n_in)))
    gone: dict[str, set[int]] = defaultdict(set)
    for name, role, channels in removals(players.groups, kept):
        gone[name].update(channels if PARTS[role].takes_out else ())
    for name, layer in players.layers.items():
        for path, counted in layer.sizes:
            divide_number(model, path, len(set(counted) - gone[name]), len(counted))


def _is_read_only(module: nn.Module, name: str) -> bool:
    """Whether a number is computed from others, which are those to change."""
    found = getattr(type(module), name, None)
    return isinstance(found, property) and found.fset is None


def _cutter(module: nn.Module, layer: Layer, role: Role) -> Callable[[Any, list[int]], Any]:
    if is_transposed_linear(module):
        return _cut_transposed_out if role == "out" else _cut_transposed_in
    if layer.kind == "norm" and isinstance(module, nn.GroupNorm):
        return _cut_group_norm
    if isinstance(module, nn.Unflatten):
        return _cut_unflatten
    if layer.kind == "stream_norm":
        return partial(slice_norm, width=layer.n_out)
    if layer.kind == "norm":
        return _cut_norm
    if layer.kind == "conv" and layer.by_group:
        return _cut_groups_out if role == "out" else _cut_groups_in
    if getattr(module, "transposed", False) and layer.kind == "depthwise":
        return _cut_transposed_depthwise
    if getattr(module, "transposed", False) and layer.groups > 1:
        return _cut_transposed_conv_out if role == "out" else _cut_transposed_conv_in
    cutter: Callable[[Any, list[int]], Any] = _CUTTERS[layer.kind, role]
    return cutter


def _cut_norm(module: Any, channels: Sequence[int]) -> None:
    """Channels of a batch or instance norm leave, with their running statistics."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        keep_entries(module, name, 0, channels)
    module.num_features -= len(channels)


def _cut_groups_out(module: Any, channels: Sequence[int]) -> None:
    """Whole groups of a convolution leave; `_cut_groups_in` takes their inputs."""
    if not module.transposed:
        keep_entries(module, "weight", 0, channels)
    keep_entries(module, "bias", 0, channels)
    left = module.out_channels - len(channels)
    module.groups = module.groups * left // module.out_channels
    module.out_channels = left


def _cut_groups_in(module: Any, channels: Sequence[int]) -> None:
    if module.transposed:
        keep_entries(module, "weight", 0, channels)
    module.in_channels -= len(channels)


def _cut_transposed_depthwise(module: Any, channels: Sequence[int]) -> None:
    """Channels leave with their filters: the weight is (channels, 1, ...)."""
    _cut_groups_out(module, channels)
    _cut_groups_in(module, channels)


def _cut_transposed_conv_out(module: Any, channels: Sequence[int]) -> None:
    """One slot of every group leaves: the weight is (inputs, slots, ...)."""
    slots = module.out_channels // module.groups
    keep_entries(module, "weight", 1, sorted({channel % slots for channel in channels}))
    keep_entries(module, "bias", 0, channels)
    module.out_channels -= len(channels)


def _cut_transposed_conv_in(module: Any, channels: Sequence[int]) -> None:
    keep_entries(module, "weight", 0, channels)
    module.in_channels -= len(channels)


def _cut_group_norm(module: nn.GroupNorm, channels: Sequence[int]) -> None:
    """Whole groups of a group norm leave."""
    size = module.num_channels // module.num_groups
    keep_entries(module, "weight", 0, channels)
    keep_entries(module, "bias", 0, channels)
    module.num_channels -= len(channels)
    module.num_groups = module.num_channels // size


def _cut_unflatten(module: Any, channels: Sequence[int]) -> None:
    """Whole slices of the unflattened shape leave."""
    size = module.unflattened_size
    left = np.unravel_index(np.setdiff1d(np.arange(prod(size)), np.asarray(channels, dtype=np.int64)), size)
    module.unflattened_size = tuple(len(np.unique(axis)) for axis in left)


def _cut_transposed_out(module: Any, channels: Sequence[int]) -> None:
    keep_entries(module, "weight", 1, channels)
    keep_entries(module, "bias", 0, channels)
    module.nf = module.weight.shape[1]


def _cut_transposed_in(module: Any, channels: Sequence[int]) -> None:
    keep_entries(module, "weight", 0, channels)
    module.nx = module.weight.shape[0]


def _cut_parameter(model: nn.Module, name: str, axis: int, channels: Sequence[int]) -> None:
    owner, _, attribute = name.partition("@")[0].rpartition(".")
    keep_entries(model.get_submodule(owner), attribute, axis, channels)
