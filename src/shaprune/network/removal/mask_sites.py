"""Every place where the players of a game are masked, whatever kind of players they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shaprune.network.removal.masks import MaskSite, reader_masks
from shaprune.network.removal.norms import norm_masks
from shaprune.network.removal.player_kinds import kind_of_part
from shaprune.network.removal.recurrent import RecurrentMask
from shaprune.players.players import Group, Players, check_channels


def channel_masks(players: Players, groups: Sequence[Group], device: torch.device) -> list[MaskSite]:
    """The sites of the game over the players of ``groups``, which are channels.

    Raises:
        InputError: players that are no channels.
    """
    check_channels(groups, "a mask at the inputs of layers")
    return mask_sites(players, groups, device)


def mask_sites(players: Players, groups: Sequence[Group], device: torch.device) -> list[MaskSite]:
    """The sites of the game over the players of ``groups``, in that order."""
    n = sum(len(g) for g in groups)
    sites: list[MaskSite] = [*reader_masks(players, groups, device), *norm_masks(players, groups, device)]
    offset = 0
    for group in groups:
        for member in group.members:
            kind, layer = kind_of_part(member.part), players.layers[member.module]
            inside = layer.kind == "recurrent" and member.role == "out"
            if kind is None and not inside:
                continue
            owners = torch.from_numpy(member.owners(layer.n_out, offset, n)).to(device)
            site = RecurrentMask(member.module, n, owners) if kind is None else kind.site(member, group, n, owners)
            sites.append(site)
        offset += len(group)
    return sites
