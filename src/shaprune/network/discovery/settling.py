"""Second look at groups that were refused: their parts apart, tied players, and numbers divided.

Of a group, players that take channels from the same layers are tried together: behind a padded shortcut those that run
through all of the network can leave, and those that the padding adds only with its size. Where code cuts a map into
parts that go different ways, as much must leave from each. Groups that a shuffle interleaves leave together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from shaprune.network.batches import Inputs
from shaprune.network.discovery.attribute_counts import NumberSearch
from shaprune.network.discovery.proof import disagreement
from shaprune.network.discovery.tied_players import (
    interleaved,
    kinds_of,
    shares_of,
    side_by_side,
    some_of,
    tied_parts,
    tied_shares,
    united_readers,
    without,
)
from shaprune.network.discovery.verification import BESIDE, Refused, Totals, because, candidates_as_players
from shaprune.network.layers.plain_layers import computing_layers
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer

_TRIALS = 64  # of one group


@dataclass(frozen=True)
class Settled:
    """What can leave of groups that were refused.

    Attributes:
        layers: those that have numbers now.
        chosen: candidates to verify together with those that were accepted.
        left: groups, or parts of groups, that stay, and why.
    """

    layers: dict[str, Layer]
    chosen: list[Candidate]
    left: list[Refused]


def settle(
    copy: nn.Module, inputs: Inputs, refused: Sequence[Refused], layers: Mapping[str, Layer], costs: Totals
) -> Settled:
    """Find what can leave of groups that were refused.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs.
        refused: the groups, and why.
        layers: the costs of all layers.
        costs: of the whole network.
    """
    search = _Search(NumberSearch(copy, inputs, dict(layers), costs))
    chosen: list[Candidate] = []
    whole: list[Candidate] = []  # nothing of these leaves
    left: list[Refused] = []
    for group, reason in refused:
        needed = candidates_as_players([group], search.numbers.layers, costs).needed()
        found, stay = ([], [(group, reason)]) if needed or BESIDE in reason else search.settled(group, reason)
        chosen += found
        left += stay
        whole += [group] if not (needed or found) else []
    for united in united_readers(whole):
        search.numbers.trials = _TRIALS
        tied = search.numbers.first_of((*shares_of(united), *shares_of(interleaved(united))))
        if tied is not None:
            chosen.append(tied)
            left = [(rest, reason) for part, reason in left if (rest := without(part, [tied])).members]
    anew = computing_layers(copy, inputs) if left else {}
    left = [(part, reason + (_anew(part, copy, anew) or search.numbers.in_the_way(part))) for part, reason in left]
    found_numbers = {name: layer for name, layer in search.numbers.layers.items() if layer != layers[name]}
    return Settled(found_numbers, chosen, left)


def _anew(part: Candidate, copy: nn.Module, computing: Collection[str]) -> str:
    """What to add to a reason: a layer of the group that computes its weight anew."""
    name = next((m.module for m in part.members if m.module in computing), None)
    if name is None:
        return ""
    kind = type(copy.get_submodule(name)).__name__
    return (
        f"; {name} ({kind}) computes its weight anew from all that it reads: shaprune.builtin.plain_layers(model, "
        "example_inputs) gives plain layers"
    )


@dataclass
class _Search:
    numbers: NumberSearch
    tied: set[tuple[int, int]] = field(default_factory=set)  # numbers of kinds and layers of groups that had to be

    def settled(self, group: Candidate, reason: str) -> tuple[list[Candidate], list[Refused]]:
        """What can leave of a group by itself, all of it if possible, and what cannot."""
        self.numbers.trials = _TRIALS
        kinds = [some_of(group, kind) for kind in kinds_of(group.members)]
        if len(kinds) > 1:
            found, why = self._of_kinds(group, kinds)
        else:
            alone = self.numbers.agreeing(group, plain=False)
            found, why = [alone] if alone is not None else [], [reason]
        if not found:
            tied = self.numbers.first_of(tied_parts(group))
            found = [tied] if tied is not None else []
        rest = [(without(kind, found), because(kind, reason)) for kind, reason in zip(kinds, why, strict=True)]
        return found, [(part, reason) for part, reason in rest if part.members]

    def _of_kinds(self, group: Candidate, kinds: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
        """What can leave of a group of several kinds; and of each kind why it does not leave as it is."""
        key, before = (len(kinds), len(group.members)), self.numbers.layers
        shared = self.numbers.first_of(tied_shares(group)) if key in self.tied else None
        if shared is not None:
            return [shared], [""] * len(kinds)
        found: list[Candidate | None] = []
        why: list[str] = []
        for kind in kinds:
            found.append(self.numbers.agreeing(kind))
            why.append(self.numbers.reason)
        if None in found:
            apart, self.numbers.layers = self.numbers.layers, before
            shared = self.numbers.first_of(tied_shares(group))
            if shared is not None:
                self.tied.add(key)
                return [shared], why
            self.numbers.layers = apart
        for k, kind in enumerate(kinds):
            if found[k] is None and (tied := self.numbers.first_of(tied_parts(kind))) is not None:
                found[k], why[k] = tied, self.numbers.reason  # of one that must stay
        return self._joined([part for part in found if part is not None]), why

    def _joined(self, parts: list[Candidate]) -> list[Candidate]:
        """Parts of a group as one, where they agree together; else one by one."""
        if len(parts) < 2:
            return parts
        whole = side_by_side(parts)
        players = candidates_as_players([whole], self.numbers.layers, self.numbers.costs)
        return [whole] if disagreement(self.numbers.copy, self.numbers.inputs, players) is None else parts
