"""Roles of layers in a group (what leaves with a player, one row each) and kinds of players. Pure data, no torch.

A kind of players is a unit of `shaprune.find_players`. Most players are coupled channels, which have three roles; every
other kind has a role of its own here, and is found, masked and removed by its row in
`shaprune.network.removal.player_kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["out", "in", "both", "norm", "skip", "expert", "weight"]


@dataclass(frozen=True)
class Part:
    """What a player owns of a layer.

    Attributes:
        takes_in: whether the layer has fewer inputs when the player leaves.
        takes_out: whether it has fewer outputs.
        made: whether the channels (experts) are made here, so that limits on widths and numbers count them here.
        unit: the unit of `shaprune.find_players` whose players alone have this role; empty for coupled channels.
        plural: what such players are called.
        stays_zero: whether what leaves stays in its place as zeros.
    """

    takes_in: bool
    takes_out: bool
    made: bool = False
    unit: str = ""
    plural: str = "channels"
    stays_zero: bool = False


PARTS: dict[Role, Part] = {
    "out": Part(takes_in=False, takes_out=True, made=True),
    "in": Part(takes_in=True, takes_out=False),
    "both": Part(takes_in=True, takes_out=True),
    "norm": Part(takes_in=True, takes_out=True),
    "skip": Part(takes_in=False, takes_out=True, unit="block", plural="blocks"),
    "expert": Part(takes_in=False, takes_out=True, made=True, unit="expert", plural="experts"),
    "weight": Part(takes_in=False, takes_out=False, unit="weight", plural="single weights", stays_zero=True),
}
NORMS = ("slice", "compensated")  # what norms over a stream do without channels that left
CHANNEL_UNITS = ("channel", "neuron", "ffn", "head", "hidden", "recurrent")  # units of coupled channels: go together
SPECIAL_UNITS = tuple(part.unit for part in PARTS.values() if part.unit)  # units that go with no other
