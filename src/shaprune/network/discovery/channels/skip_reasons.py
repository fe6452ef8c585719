"""Reasons for the layers and parameters that are in no group of players."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from shaprune.network.discovery.channels.nan_marking import Marking
from shaprune.network.discovery.channels.unread_reasons import UNREAD
from shaprune.network.layers.kinds import CHANNEL_KINDS, kind_of, widths_of
from shaprune.network.layers.open_attention import can_open
from shaprune.network.layers.used_parameters import modules_used
from shaprune.network.removal.experts import fused_experts
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Skipped
from shaprune.players.roles import Role

_LISTED = (nn.RNNBase, nn.MultiheadAttention, ParametrizationList)  # whose own parameters are skipped by other names


def why_not_grouped(
    name: str, layer: Layer, owned: int, to_output: Collection[str], of_input: Collection[tuple[str, Role, int]]
) -> str:
    """Why a layer (``owned`` = 0), or the rest of one, is in no group."""
    if layer.kind == "depthwise" and any((name, "both", channel) in of_input for channel in range(layer.n_in)):
        return "its channels are those of the network's input, which stay"
    if owned:
        return "they reach no other layer"
    if name in to_output:
        return "it feeds the network's output"
    return "it has one channel" if layer.n_out == 1 else UNREAD


def functional(copy: nn.Module, grouped: set[str]) -> list[Skipped]:
    """Matrices and kernels of modules that are no layers, where no axis goes with the channels of a layer."""
    found = []
    for prefix, module in copy.named_modules():
        if kind_of(module) is not None or prefix in grouped or isinstance(module, _LISTED):
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.ndim > 1 and grouped.isdisjoint({name, *(f"{name}@{axis}" for axis in range(parameter.ndim))}):
                reason = "a parameter that code uses without a layer, whose outputs are unknown"
                found.append(Skipped(name, 0, fused_experts(prefix, module) or reason))
    return found


def not_followed(
    copy: nn.Module, marking: Marking, layers: Mapping[str, Layer], odd: Mapping[str, str]
) -> list[Skipped]:
    """Units of layers that no channel was followed through, with the reason.

    Args:
        copy: the network.
        marking: what followed the channels.
        layers: the layers that channels were followed through.
        odd: layers that take or give no tensor of their width, with the reason.
    """
    used = modules_used(copy, marking.inputs)
    found = []
    for name, module in copy.named_modules():
        if name in layers:
            continue
        if isinstance(module, nn.RNNBase) and kind_of(module) is None:
            units = module.hidden_size * module.num_layers * (1 + module.bidirectional)
            found.append(
                Skipped(name, units, f"{type(module).__name__} is a recurrent layer with a forward of its own")
            )
        widths = widths_of(module) if kind_of(module) in CHANNEL_KINDS else None
        if widths is not None:
            parent = copy.get_submodule(name.rpartition(".")[0])
            reason = odd.get(name) or marking.inside(name) or _uncalled(parent, name in used)
            found.append(Skipped(name, widths[1], reason))
    return found


def _uncalled(parent: nn.Module, used: bool) -> str:
    """Why a layer was not called, though its weight may be ``used``."""
    if isinstance(parent, nn.MultiheadAttention):
        way = "; shaprune.builtin.open_attention(model) gives a network whose heads can leave"
        return f"nn.MultiheadAttention uses its weight without calling it{way if can_open(parent) else ''}"
    if used:
        return "its weight is used without calling it, so that no mask can stand at its input; call it in forward"
    return "it did not run on the example inputs"
