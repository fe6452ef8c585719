"""Attributes that count heads or channels: which of them shrink with the players of a group, found by trials.

Attention reshapes into heads by a number that stands beside its layers under any name (``num_heads``, ``h``), or in a
configuration that all layers share. Where removal fails with the names of `surgery`, the numbers around the layers of a
group that equal its count or a width, and that change what the dense network gives, are divided in every combination,
those nearest to the known names first; the first that the proof accepts is stored in `Layer.numbers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, all_equal, call, tensors, transform
from shaprune.network.discovery.verification import Refused, Totals, candidates_as_players, disagreement
from shaprune.network.layers.kinds import kind_of
from shaprune.network.removal.surgery import COUNTS, WIDTHS
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer

_TRIALS = 64  # of one group
_NO_OBJECTS = (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType, torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class _Number:
    """An attribute of a module, or of a plain object (a configuration) that a module keeps."""

    path: str
    owner: Any

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def value(self) -> int:
        return int(getattr(self.owner, self.name))

    @property
    def sort(self) -> tuple[str, str]:
        """The same for the same number of another layer."""
        return type(self.owner).__name__, self.name

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Make it one larger for a while."""
        before = self.value
        setattr(self.owner, self.name, before + 1)
        try:
            yield
        finally:
            setattr(self.owner, self.name, before)


def numbered(
    copy: nn.Module, inputs: Inputs, refused: Sequence[Refused], layers: dict[str, Layer], costs: Totals
) -> tuple[dict[str, Layer], list[Refused]]:
    """Find the numbers by which groups that were refused can be removed.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs.
        refused: the groups, and why.
        layers: the costs of all layers.
        costs: of the whole network.

    Returns:
        Layers with their numbers, of the groups where such were found; and the other groups with their reasons, to
        which numbers of the whole network that stand in the way are added.
    """
    found: dict[str, Layer] = {}
    left: list[Refused] = []
    sorts: set[tuple[str, str]] = set()  # of the last numbers that were found
    for candidate, reason in refused:
        sizes = _sizes(candidate)
        numbers = _around(copy, candidate, sizes) if sizes else []
        known = [n for n in numbers if _is_known(n, candidate)]
        numbers = [n for n in numbers if n in known or _matters(copy, inputs, n)]
        for chosen in _combinations(numbers, known, sorts):
            tried = _with(candidate, layers, chosen)
            if disagreement(copy, inputs, candidates_as_players([candidate], layers | tried, costs)) is None:
                found |= tried
                sorts = {n.sort for n in chosen}
                break
        else:
            counts = sizes - {
                int(m.widths.sum()) for m in candidate.members
            }  # of heads; a width is often met by chance
            above = [n for n in _above(copy, candidate, counts) if _matters(copy, inputs, n)]
            more = f"; {above[0].path} = {above[0].value} is read, too, one number for all layers" if above else ""
            left.append((candidate, reason + more))
    return found, left


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
    paths = [parent.split(".") if parent else [] for parent in parents]
    together = []
    for steps in zip(*paths, strict=False):
        if len(set(steps)) > 1:
            break
        together.append(steps[0])
    return parents, ".".join(together)


def _around(copy: nn.Module, candidate: Candidate, sizes: set[int]) -> list[_Number]:
    """Numbers of the modules around a group's layers, of modules without weights inside, and of their plain objects."""
    parents, together = _places(candidate)
    names = list(dict.fromkeys([*parents, *([together] if together else [])]))
    for outer in list(names):
        inside = copy.get_submodule(outer).named_modules(prefix=outer)
        names += [name for name, m in inside if name and next(m.parameters(), None) is None]
    found = [number for name in dict.fromkeys(names) for number in _numbers(copy, name, sizes)]
    return list({(id(n.owner), n.name): n for n in reversed(found)}.values())[::-1]


def _above(copy: nn.Module, candidate: Candidate, sizes: set[int]) -> list[_Number]:
    """Numbers of the modules that hold the layers of several groups."""
    steps = _places(candidate)[1].split(".")
    outer = [".".join(steps[:i]) for i in range(len(steps))]
    return [n for name in outer for n in _numbers(copy, name, sizes) if n.owner is copy.get_submodule(name)]


def _numbers(copy: nn.Module, name: str, sizes: set[int]) -> list[_Number]:
    module = copy.get_submodule(name)
    if kind_of(module) is not None:
        return []
    objects = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    kept = {key: o for key, o in objects.items() if hasattr(o, "__dict__") and not isinstance(o, _NO_OBJECTS)}
    prefix = f"{name}." if name else ""
    places: list[tuple[str, Any]] = [(prefix, module), *((f"{prefix}{key}.", o) for key, o in kept.items())]
    return [
        _Number(f"{place}{key}", owner)
        for place, owner in places
        for key, value in vars(owner).items()
        if type(value) is int and value in sizes and not key.startswith("__")
    ]


def _is_known(number: _Number, candidate: Candidate) -> bool:
    """Whether `surgery` divides a number by its name."""
    read = {int(m.widths.sum()) for m in candidate.members if m.role == "in"}
    inside = isinstance(number.owner, nn.Module)
    return inside and (number.name in COUNTS or (number.name in WIDTHS and number.value in read))


def _matters(copy: nn.Module, inputs: Inputs, number: _Number) -> bool:
    """Whether the dense network breaks, or gives something else, with another number."""
    with torch.no_grad():
        before = tensors(call(copy, transform(inputs, torch.clone)))
        try:
            with number.changed():
                after = tensors(call(copy, transform(inputs, torch.clone)))
        except Exception:
            return True
    return not all_equal(before, after)


def _combinations(
    numbers: Sequence[_Number], known: Sequence[_Number], sorts: set[tuple[str, str]]
) -> list[list[_Number]]:
    """Which numbers are tried together: those that served another layer, then those nearest to the known names."""
    base = set(known)
    sets = (
        [set(c) for k in range(len(numbers) + 1) for c in combinations(numbers, k)]
        if len(numbers) < 12
        else [base, set(numbers)]
    )
    sets.sort(key=lambda c: ({n.sort for n in c} != sorts or not sorts, len(c ^ base)))
    return [[n for n in numbers if n in chosen] for chosen in sets if chosen][:_TRIALS]


def _with(candidate: Candidate, layers: dict[str, Layer], chosen: Sequence[_Number]) -> dict[str, Layer]:
    """The layers of the group, of which one that it owns as a whole has the numbers."""
    sides = [m for m in candidate.members if m.role in ("out", "in")]
    widths = {"out": lambda layer: layer.n_out, "in": lambda layer: layer.n_in}
    whole = next((m for m in sides if int(m.widths.sum()) == widths[m.role](layers[m.module])), sides[0])
    found = {m.module: replace(layers[m.module], numbers=()) for m in sides}
    side: Literal["out", "in"] = "out" if whole.role == "out" else "in"
    return found | {whole.module: replace(layers[whole.module], numbers=tuple(n.path for n in chosen), divided=side)}
