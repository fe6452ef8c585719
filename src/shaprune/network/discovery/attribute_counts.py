"""Attributes that count heads or channels: which of them shrink with the players of a group, found by trials.

Attention reshapes into heads by a number that stands beside its layers under any name (``num_heads``, ``h``), or in a
configuration that all layers share; code splits its channels by such numbers. Where removal fails with the names of
`surgery`, the numbers around the layers of a group that equal its count or a width, and that change what the dense
network gives, are divided in every combination, those nearest to the known names first; the first that the proof
accepts is stored in `Layer.numbers` or `Layer.sizes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Literal

from torch import nn

from shaprune.network.batches import Inputs
from shaprune.network.discovery.attribute_numbers import AttributeNumber, matters, numbers_in
from shaprune.network.discovery.proof import ALL_GONE, disagreement
from shaprune.network.discovery.tied_players import some_of
from shaprune.network.discovery.verification import Totals, candidates_as_players
from shaprune.network.removal.kept_numbers import Entry
from shaprune.network.removal.surgery import COUNTS, WIDTHS
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer

_Sort = tuple[str, str, Entry]


@dataclass
class NumberSearch:
    """Trials of candidates with numbers around them.

    Attributes:
        copy: a private copy, in eval mode.
        inputs: example inputs.
        layers: the costs of all layers; those of candidates that agreed have their numbers.
        costs: of the whole network.
        trials: how many are left.
        reason: why the last candidate was refused, before any number was tried.
    """

    copy: nn.Module
    inputs: Inputs
    layers: dict[str, Layer]
    costs: Totals
    trials: int = 0
    reason: str = ""
    _sorts: frozenset[_Sort] = frozenset()  # of the last numbers that were found
    _known: dict[str, bool] = field(default_factory=dict)  # by path, whether a number matters

    def first_of(self, ways: Iterable[Candidate]) -> Candidate | None:
        """The first of several candidates that agrees, with numbers or without."""
        return next((found for way in ways if (found := self.agreeing(way)) is not None), None)

    def agreeing(self, candidate: Candidate, *, plain: bool = True) -> Candidate | None:
        """A candidate that agrees (``plain``: without numbers, too); less its first player where all cannot leave."""
        self.reason = ""
        if candidates_as_players([candidate], self.layers, self.costs).needed():
            return None
        for chosen in self._choices(candidate, plain=plain):
            if not self.trials:
                break
            layers = self.layers | (_with(candidate, self.layers, chosen) if chosen else {})
            found, reason = candidate, self._disagreement(candidate, layers)
            self.reason = self.reason or reason or ""
            if reason is not None and reason.startswith(ALL_GONE):
                found, self.reason = some_of(candidate, range(1, len(candidate.members[0].channels))), reason
                reason = self._disagreement(found, layers)
            if reason is None:
                self.layers, self._sorts = layers, frozenset(n.sort for n in chosen)
                return found
        return None

    def in_the_way(self, candidate: Candidate) -> str:
        """What to add to a reason: a number of the whole network that is read, too."""
        counts = _sizes(candidate) - {int(m.widths.sum()) for m in candidate.members}  # widths are often met by chance
        steps = _places(candidate)[1].split(".")
        outer = [".".join(steps[:i]) for i in range(len(steps))]
        above = [n for n in numbers_in(self.copy, outer, counts, own=True) if self._matters(n)]
        return f"; {above[0].path} = {above[0].value} is read, too, one number for all layers" if above else ""

    def _choices(self, candidate: Candidate, *, plain: bool) -> Iterable[list[AttributeNumber]]:
        """Numbers to try together; they are looked for only after nothing, where that is tried."""
        if plain:
            yield []
        sizes = _sizes(candidate)
        full = {self.layers[m.module].n_out for m in candidate.members if m.role == "out"}  # of which these are a part
        numbers = numbers_in(self.copy, _around(self.copy, candidate), sizes | full) if sizes else []
        used = {path for layer in self.layers.values() for path in (*(layer.numbers or ()), *dict(layer.sizes))}
        numbers = [n for n in numbers if n.path not in used]
        named = [n for n in numbers if _is_known(n, candidate)]
        numbers = [n for n in numbers if n in named or self._matters(n)]
        yield from _combinations(numbers, named, self._sorts)

    def _disagreement(self, candidate: Candidate, layers: dict[str, Layer]) -> str | None:
        self.trials -= 1
        return disagreement(self.copy, self.inputs, candidates_as_players([candidate], layers, self.costs))

    def _matters(self, number: AttributeNumber) -> bool:
        if number.path not in self._known:
            self._known[number.path] = matters(self.copy, self.inputs, number)
        return self._known[number.path]


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
            beside = copy.get_submodule(parent).named_children()
            plain = [key for key, m in beside if next(m.parameters(), None) is None]
            names += [parent, *(f"{parent}.{key}" if parent else key for key in plain)]
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
