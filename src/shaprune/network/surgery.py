"""Surgery: a new, plain module without the removed players. torch-pruning cuts the layers.

All removals are applied at once, from indices of the dense network, so that layers which belong to several groups
(concatenations, chains) need no bookkeeping of shifted indices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch_pruning as tp
from numpy.typing import NDArray
from torch import nn

from shaprune.errors import InputError, SurgeryError
from shaprune.network.players import Group, Players, Role

_CUTTERS = {
    ("conv", "out"): tp.prune_conv_out_channels,
    ("conv", "in"): tp.prune_conv_in_channels,
    ("depthwise", "both"): tp.prune_depthwise_conv_out_channels,
    ("linear", "out"): tp.prune_linear_out_channels,
    ("linear", "in"): tp.prune_linear_in_channels,
    ("prelu", "both"): tp.prune_prelu_out_channels,
}
_NORM_CUTTERS = {
    nn.modules.batchnorm._BatchNorm: tp.prune_batchnorm_out_channels,
    nn.modules.instancenorm._InstanceNorm: tp.prune_instancenorm_out_channels,
}

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
    modules = dict(model.named_modules())
    for name, layer in players.layers.items():
        if name not in modules:
            raise InputError(f"this plan belongs to another model: layer {name!r} is missing here; find_players again")
        width = width_of(modules[name])
        if width is not None and width != (layer.n_in, layer.n_out):
            raise InputError(
                f"this plan belongs to another model: layer {name!r} has {width[0]} inputs and {width[1]} outputs, "
                f"in the plan {layer.n_in} and {layer.n_out}; find_players again"
            )


def cut(model: nn.Module, players: Players, removed: Sequence[Removal]) -> nn.Module:
    """Remove channels from ``model`` in place and return it; ``requires_grad`` flags and training flags stay.

    Raises:
        SurgeryError: naming the layer.
    """
    for name, role, channels in removed:
        module = model.get_submodule(name)
        frozen = {key: not p.requires_grad for key, p in module.named_parameters(recurse=False)}
        try:
            _cutter(module, players.layers[name].kind, role)(module, channels)
        except Exception as error:
            raise SurgeryError(f"layer {name!r} could not be cut: {error}; exclude its group") from error
        for key, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(not frozen.get(key, False))
    return model


def _cutter(module: nn.Module, kind: str, role: Role):  # type: ignore[no-untyped-def]
    if kind == "norm":
        return next(cutter for base, cutter in _NORM_CUTTERS.items() if isinstance(module, base))
    return _CUTTERS[kind, role]


def width_of(module: nn.Module) -> tuple[int, int] | None:
    """Channels in and out of a layer as it is now; None for kinds that cannot be told."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels, module.out_channels
    features = getattr(module, "num_features", None)
    return None if features is None else (features, features)
