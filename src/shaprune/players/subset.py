"""The players of the network that is left once some have been removed. Pure data, no torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shaprune.players.layer_costs import Layer
from shaprune.players.players import Group, Member, Players, check_channels

Kept = NDArray[np.bool_]  # (n_players,), True = kept


def remaining_players(players: Players, kept: Kept) -> Players:
    """The players of the network in which only ``kept`` stay, with channels counted as there.

    Raises:
        InputError: players that are no channels.
    """
    check_channels(players.groups, "pruning in rounds")
    new = _new_places(players, kept)
    groups, start = [], 0
    for group in players.groups:
        stays = np.flatnonzero(kept[group.indices])
        if not stays.size:
            continue
        members = tuple(_renumbered(m, stays, new[m.module]) for m in group.members)
        labels = tuple(group.labels[i] for i in stays) if group.labels else ()
        groups.append(Group(group.name, np.arange(start, start + len(stays)), members, labels))
        start += len(stays)
    layers = {}
    staying = _staying(players, kept)
    left = players.widths(kept)
    for name, (n_in, n_out) in left.items():
        layer = players.layers[name]
        held = tuple(np.asarray(layer.held)[staying[name][0]].tolist()) if layer.held else ()
        layers[name] = replace(layer, n_in=n_in, n_out=n_out, groups=layer.groups_left(n_out), held=held)
    params, macs = players.cost(kept)
    known = bool(players.model_bytes)
    return replace(
        players,
        groups=tuple(groups),
        layers=layers,
        model_params=params,
        model_macs=macs,
        model_bytes=int(players.at_widths(players.model_bytes, Layer.bytes, left)) if known else 0,
        model_activations=players.at_widths(players.model_activations, Layer.activations, left) if known else 0.0,
    )


def _renumbered(
    member: Member, stays: NDArray[np.int64], places: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Member:
    """A member with the players ``stays`` only, at their new places."""
    new = places[not member.part.takes_out]
    return replace(member, channels=tuple(tuple(new[list(member.channels[i])].tolist()) for i in stays))


def _new_places(players: Players, kept: Kept) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per layer, the new place of each output channel, and of each input channel."""
    return {n: (np.cumsum(out) - 1, np.cumsum(inner) - 1) for n, (out, inner) in _staying(players, kept).items()}


def _staying(players: Players, kept: Kept) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Per layer, which output channels stay, and which input channels."""
    stays = {n: (np.ones(x.n_out, dtype=bool), np.ones(x.n_in, dtype=bool)) for n, x in players.layers.items()}
    for group in players.groups:
        for member in group.members:
            sides = (member.part.takes_out, member.part.takes_in)
            for i in np.flatnonzero(~kept[group.indices]):
                for side in np.flatnonzero(sides):
                    stays[member.module][side][list(member.channels[i])] = False
    return stays
