"""Every place where the players of a game are masked, whatever kind of players they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shaprune.network.removal.blocks import BlockMask
from shaprune.network.removal.experts import RouterMask, mixture_name
from shaprune.network.removal.masks import MaskSite, consumer_input_masks
from shaprune.network.removal.single_weights import WeightMask
from shaprune.players.players import Group, Players


def mask_sites(players: Players, groups: Sequence[Group], device: torch.device) -> list[MaskSite]:
    """The sites of the game over the players of ``groups``, in that order."""
    if all(m.role in ("in", "out", "both") for group in groups for m in group.members):
        return list(consumer_input_masks(players, groups, device))
    n = sum(len(g) for g in groups)
    sites: list[MaskSite] = []
    offset = 0
    for group in groups:
        for member in group.members:
            owners = torch.from_numpy(member.owners(players.layers[member.module].n_out, offset, n)).to(device)
            if member.role == "skip":
                sites.append(BlockMask(member.module, n, owners))
            elif member.role == "weight":
                sites.append(WeightMask(member.module, n, owners))
            elif member.role == "expert":
                router = next(m.module for m in group.members if m.role == "out")
                sites.append(RouterMask(router, n, owners, mixture_name(member.module)))
        offset += len(group)
    return sites
