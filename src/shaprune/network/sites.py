"""Every place where the players of a game are masked, whatever kind of players they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shaprune.network.blocks import Bypass
from shaprune.network.experts import Routing, mixture_of
from shaprune.network.masks import Site, edges_of
from shaprune.network.players import Group, Players
from shaprune.network.weights import Weighted


def sites_of(players: Players, groups: Sequence[Group], device: torch.device) -> list[Site]:
    """The sites of the game over the players of ``groups``, in that order."""
    if all(m.role in ("in", "out", "both") for group in groups for m in group.members):
        return list(edges_of(players, groups, device))
    n = sum(len(g) for g in groups)
    sites: list[Site] = []
    offset = 0
    for group in groups:
        for member in group.members:
            owners = torch.from_numpy(member.owners(players.layers[member.module].n_out, offset, n)).to(device)
            if member.role == "skip":
                sites.append(Bypass(member.module, n, owners))
            elif member.role == "weight":
                sites.append(Weighted(member.module, n, owners))
            elif member.role == "expert":
                router = next(m.module for m in group.members if m.role == "out")
                sites.append(Routing(router, n, owners, mixture_of(member.module)))
        offset += len(group)
    return sites
