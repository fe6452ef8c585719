"""The kinds of players that are no coupled channels: each found, masked, proved and removed by one row.

A new kind is a file of its own beside this one, a row here and a row of `shaprune.players.roles.PARTS`; what its
players cost follows from their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from shaprune.network.batches import Inputs
from shaprune.network.removal.block_proof import verify_blocks
from shaprune.network.removal.blocks import BlockMask, PassThrough, find_blocks, outermost, replace_by_pass_through
from shaprune.network.removal.experts import Listed, RouterMask, find_experts, mixture_name, remove_experts
from shaprune.network.removal.masks import MaskSite
from shaprune.network.removal.single_weights import WeightMask, enumerate_weights, find_weights, zero_weights
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Group, Member, Skipped
from shaprune.players.roles import PARTS, Part

Layers = Mapping[str, Layer]
Settled = tuple[list[Candidate], list[tuple[Candidate, str]]]  # those that may leave, and the others with the reason


@dataclass(frozen=True)
class PlayerKind:
    """Players that are no coupled channels.

    Attributes:
        find: ``(private copy, inputs, layers that ran)`` -> candidates, what is none, and the candidates' layers.
        settle: ``(copy, inputs, candidates that were asked for, layers, whether by name)`` -> which of them may leave.
        site: ``(member, group, players of the game, owners)`` -> the mask of a member, see `MaskSite`.
        remove: ``(model, layer's name, layer, its channels)`` -> cuts in place.
        width: ``(module, layer)`` -> its width as it is now, as `Players.widths` counts it.
        nothing: why a network has none.
        fixed: why no number of a config.json counts these players.
        one_group: name of the group that all make; what stands inside a player leaves with it. Empty: groups as found.
    """

    find: Callable[[nn.Module, Inputs, Layers], tuple[list[Candidate], list[Skipped], dict[str, Layer]]]
    site: Callable[[Member, Group, int, Tensor], MaskSite]
    remove: Callable[[nn.Module, str, Layer, list[int]], None]
    width: Callable[[nn.Module, Layer], tuple[int, int]]
    settle: Callable[[nn.Module, Inputs, Sequence[Candidate], Layers, bool], Settled] = lambda *given: (
        list(given[2]),
        [],
    )
    nothing: str = "it has no convolution or linear layer"
    fixed: str = "its players are no channels, which no number of config.json counts"
    one_group: str = ""


def _weight_width(module: nn.Module, layer: Layer) -> tuple[int, int]:
    weight = getattr(module, "weight", None)
    return layer.n_in, weight.numel() if isinstance(weight, Tensor) else 0


def _router_mask(member: Member, group: Group, n: int, owners: Tensor) -> MaskSite:
    return RouterMask(group.producers[0].module, n, owners, mixture_name(member.module))


KINDS: dict[str, PlayerKind] = {  # by unit, which is also the kind of their layers
    "block": PlayerKind(
        find=find_blocks,
        settle=lambda copy, inputs, found, layers, named: verify_blocks(copy, inputs, outermost(found), layers),
        site=lambda member, group, n, owners: BlockMask(member.module, n, owners),
        remove=lambda model, name, layer, gone: replace_by_pass_through(model, name, layer),
        width=lambda module, layer: (1, 0 if isinstance(module, PassThrough) else 1),
        nothing="it has no nn.Sequential or nn.ModuleList whose parts have weights",
        fixed="config.json counts layers from the first one on, and a block that leaves makes a gap",
        one_group="blocks",
    ),
    "expert": PlayerKind(
        find=find_experts,
        site=_router_mask,
        remove=lambda model, name, layer, gone: remove_experts(model, name, gone),
        width=lambda module, layer: (layer.n_in, len(module) if isinstance(module, Listed) else 0),
        nothing="it has no nn.ModuleList or nn.ModuleDict of experts beside an nn.Linear router",
    ),
    "weight": PlayerKind(
        find=find_weights,
        settle=lambda copy, inputs, found, layers, named: (enumerate_weights(found, layers, named=named), []),
        site=lambda member, group, n, owners: WeightMask(member.module, n, owners),
        remove=lambda model, name, layer, gone: zero_weights(model.get_submodule(name), gone),
        width=_weight_width,
    ),
}


def kind_of_part(part: Part) -> PlayerKind | None:
    """The kind of players with this part in a layer; None for coupled channels."""
    return KINDS[part.unit] if part.unit else None


def kind_of_group(group: Group) -> PlayerKind | None:
    """The kind of a group's players; None for coupled channels."""
    return next((KINDS[unit] for m in group.members if (unit := PARTS[m.role].unit)), None)
