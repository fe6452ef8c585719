"""A group of players as found, not yet verified. Pure data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Skipped


@dataclass(frozen=True)
class Candidate:
    """A coupled group as found, not yet verified; ``producers`` names what it would take channels from.

    ``meets_input``: the network's input reaches the same channels, as it does where both are added.
    """

    name: str
    members: tuple[Member, ...]
    meets_input: bool = False

    @property
    def producers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.module for m in self.members if m.role != "in"))

    def skipped(self, layers: dict[str, Layer], reason: str) -> list[Skipped]:
        """What stays when the group is no group of players."""
        made = [m for m in self.members if m.makes(layers[m.module])]
        return [Skipped(m.module, int(m.widths.sum()), reason) for m in made]
