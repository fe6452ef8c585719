"""Attributes that count heads or channels: which of them shrink with the players of a group, found by trials.

Attention reshapes into heads by a number that stands beside its layers under any name (``num_heads``, ``h``), or in a
configuration that all layers share; code splits its channels by such numbers. Where removal fails with the names of
`surgery`, the numbers around the layers of a group that equal its count or a width, and that change what the dense
network gives, are divided in every combination, those nearest to the known names first; the first that the proof
accepts is stored in `Layer.numbers` or `Layer.sizes`. Parts of a group that go different ways are tried apart, then
tied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Literal

from torch import nn

from shaprune.network.batches import Inputs
from shaprune.network.discovery.attribute_numbers import AttributeNumber, matters, numbers_in
from shaprune.network.discovery.verification import (
    ALL_GONE,
    Refused,
    Totals,
    candidates_as_players,
    disagreement,
    some_of,
    tied_parts,
    tied_shares,
)
from shaprune.network.removal.surgery import COUNTS, WIDTHS
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer

_TRIALS = 64  # of one group
_Sort = tuple[str, str, int | None]


@dataclass(frozen=True)
class Numbered:
    """What trying numbers has found.

    Attributes:
        layers: those that have numbers now.
        chosen: candidates to verify with these; parts that go different ways are tied where they must be.
        left: groups, or parts of groups, that no number serves, and why.
    """

    layers: dict[str, Layer]
    chosen: list[Candidate]
    left: list[Refused]


def numbered(
    copy: nn.Module,
    inputs: Inputs,
    chosen: Sequence[Candidate],
    refused: Sequence[Refused],
    layers: Mapping[str, Layer],
    costs: Totals,
) -> Numbered:
    """Find the numbers by which groups that were refused can be removed.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs.
        chosen: the groups.
        refused: those of them, or their parts, that were refused, and why.
        layers: the costs of all layers.
        costs: of the whole network.

    Returns:
        The numbers and the groups that they serve; the reasons of others name numbers of the whole network that stand
        in the way.
    """
    search = _Search(copy, inputs, dict(layers), costs)
    parts: dict[int, list[Refused]] = defaultdict(list)
    for part, reason in refused:
        parts[_origin(chosen, part)].append((part, reason))
    result = list(chosen)
    left: list[Refused] = []
    for k, of_one in parts.items():
        result[k], stay = search.settled(chosen[k], of_one)
        left += [(part, reason + search.in_the_way(part)) for part, reason in stay]
    found = {name: layer for name, layer in search.layers.items() if layer != layers[name]}
    return Numbered(found, [c for c in result if c.members], left)


def _origin(chosen: Sequence[Candidate], part: Candidate) -> int:
    """Which candidate a part is of."""
    first = part.members[0]
    channel = next(chain(*first.channels))
    for k, candidate in enumerate(chosen):
        for m in candidate.members:
            if (m.module, m.role) == (first.module, first.role) and channel in chain(*m.channels):
                return k
    raise LookupError(part.name)


@dataclass
class _Search:
    """Trials of numbers; ``layers`` have those that were found."""

    copy: nn.Module
    inputs: Inputs
    layers: dict[str, Layer]
    costs: Totals
    trials: int = 0
    sorts: frozenset[_Sort] = frozenset()  # of the last numbers that were found
    known: dict[str, bool] = field(default_factory=dict)  # by path, whether a number matters

    def settled(self, whole: Candidate, refused: Sequence[Refused]) -> tuple[Candidate, list[Refused]]:
        """What can leave of a group by numbers, all of it if possible, and what cannot."""
        self.trials, before = 0, dict(self.layers)
        stay = [(part, reason) for part, reason in refused if not self.serves(part)]
        if not stay:
            return whole, []
        apart, self.layers = self.layers, before
        shared = next((way for way in tied_shares(whole) if self.serves(way, plain=True)), None)
        if shared is not None:
            return shared, []
        self.layers = apart
        left, rest = [], whole
        for part, reason in stay:
            own = _players_of(rest, part)
            others = [i for i in range(len(rest.members[0].channels)) if i not in own]
            ways = tied_parts(rest, sorted(own))
            fits = (way for way in ways if self.serves(some_of(way, range(len(others), len(way.members[0].channels)))))
            tied = next(fits, None)
            left += [(part, reason)] if tied is None else []
            rest = tied or some_of(rest, others)
        return rest, left

    def serves(self, candidate: Candidate, *, plain: bool = False) -> bool:
        """Whether a candidate agrees with some numbers, or (``plain``) without any; they are noted."""
        if candidates_as_players([candidate], self.layers, self.costs).needed():
            return False
        sizes = _sizes(candidate)
        numbers = numbers_in(self.copy, _around(self.copy, candidate), sizes) if sizes else []
        named = [n for n in numbers if _is_known(n, candidate)]
        numbers = [n for n in numbers if n in named or self._matters(n)]
        none: list[list[AttributeNumber]] = [[]] if plain else []
        for chosen in none + _combinations(numbers, named, self.sorts):
            if self.trials == _TRIALS:
                break
            self.trials += 1
            layers = self.layers | (_with(candidate, self.layers, chosen) if chosen else {})
            reason = disagreement(self.copy, self.inputs, candidates_as_players([candidate], layers, self.costs))
            if reason is None or reason.startswith(ALL_GONE):
                self.layers, self.sorts = layers, frozenset(n.sort for n in chosen)
                return True
        return False

    def in_the_way(self, candidate: Candidate) -> str:
        """What to add to a reason: a number of the whole network that is read, too."""
        counts = _sizes(candidate) - {int(m.widths.sum()) for m in candidate.members}  # widths are often met by chance
        steps = _places(candidate)[1].split(".")
        outer = [".".join(steps[:i]) for i in range(len(steps))]
        above = [n for n in numbers_in(self.copy, outer, counts, own=True) if self._matters(n)]
        return f"; {above[0].path} = {above[0].value} is read, too, one number for all layers" if above else ""

    def _matters(self, number: AttributeNumber) -> bool:
        if number.path not in self.known:
            self.known[number.path] = matters(self.copy, self.inputs, number)
        return self.known[number.path]


def _players_of(whole: Candidate, part: Candidate) -> set[int]:
    """Numbers of the players of a group that own the channels of a part of it."""
    first = part.members[0]
    owned = set(chain(*first.channels))
    member = next(m for m in whole.members if (m.module, m.role) == (first.module, first.role))
    return {i for i, channels in enumerate(member.channels) if not owned.isdisjoint(channels)}


def _sizes(candidate: Candidate) -> set[int]:
    """The number of players, the widths they own, and how many heads these are; empty where players differ in size."""
    members = [m for m in candidate.members if m.role in ("out", "in")]
    if len(members) < len([m for m in candidate.members if m.role not in ("both", "norm")]):
        return set()
    if any(len(set(m.widths.tolist())) > 1 for m in members):
        return set()
    widths = {int(m.widths.sum()) for m in members}
    least = min(int(m.widths[0]) for m in members)
    return {len(members[0].channels), *widths, *(width // least for width in widths)} - {0, 1}


def _places(candidate: Candidate) -> tuple[list[str], str]:
    """The modules around the layers of a group; and the innermost that holds them all."""
    names = [m.module.partition("@")[0] for m in candidate.members if m.role in ("out", "in")]
    parents = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    together = []
    for steps in zip(*(parent.split(".") if parent else [] for parent in parents), strict=False):
        if len(set(steps)) > 1:
            break
        together.append(steps[0])
    return parents, ".".join(together)


def _around(copy: nn.Module, candidate: Candidate) -> list[str]:
    """Modules around a group's layers, up to the one that holds them all, and modules without weights inside."""
    parents, together = _places(candidate)
    names = list(dict.fromkeys([*parents, *([together] if together else [])]))
    for outer in list(names):
        inside = copy.get_submodule(outer).named_modules(prefix=outer)
        names += [name for name, m in inside if name and next(m.parameters(), None) is None]
    for parent in parents:
        while parent != together:
            parent = parent.rpartition(".")[0]
            names.append(parent)
    return list(dict.fromkeys(names))


def _is_known(number: AttributeNumber, candidate: Candidate) -> bool:
    """Whether `surgery` divides a number by its name."""
    read = {int(m.widths.sum()) for m in candidate.members if m.role == "in"}
    inside = isinstance(number.owner, nn.Module) and number.entry is None
    return inside and (number.name in COUNTS or (number.name in WIDTHS and number.value in read))


def _combinations(
    numbers: Sequence[AttributeNumber], known: Sequence[AttributeNumber], sorts: frozenset[_Sort]
) -> list[list[AttributeNumber]]:
    """Which numbers are tried together: those that served another layer, then those nearest to the known names.

    Where blocks have the same numbers, they go together.
    """
    base = set(known)
    alike: dict[_Sort, set[AttributeNumber]] = defaultdict(set)
    for number in numbers:
        alike[number.sort].add(number)
    units = [{n} for n in numbers] if len(numbers) < 7 else list(alike.values())
    few = units if len(units) < 12 else [base, set(numbers)]
    sets = [set[AttributeNumber]().union(*c) for k in range(1, len(few) + 1) for c in combinations(few, k)]
    sets.sort(key=lambda c: ({n.sort for n in c} != sorts or not sorts, len(c ^ base)))
    return [[n for n in numbers if n in chosen] for chosen in sets if chosen]


def _with(candidate: Candidate, layers: Mapping[str, Layer], chosen: Sequence[AttributeNumber]) -> dict[str, Layer]:
    """The layers of the group, of which one that it owns as a whole has the numbers; or its first, for its outputs."""
    sides = [m for m in candidate.members if m.role in ("out", "in")]
    widths = {"out": lambda layer: layer.n_out, "in": lambda layer: layer.n_in}
    found = {m.module: replace(layers[m.module], numbers=layers[m.module].numbers or ()) for m in sides}
    whole = next((m for m in sides if int(m.widths.sum()) == widths[m.role](layers[m.module])), None)
    paths = tuple(n.path for n in chosen)
    if whole is not None and not found[whole.module].numbers:
        side: Literal["out", "in"] = "out" if whole.role == "out" else "in"
        return found | {whole.module: replace(found[whole.module], numbers=paths, divided=side)}
    made = next(m for m in sides if m.role == "out")
    counted = tuple(sorted(chain(*made.channels)))
    sizes = (*found[made.module].sizes, *((path, counted) for path in paths))
    return found | {made.module: replace(found[made.module], sizes=sizes)}
