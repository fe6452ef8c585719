"""Layers with one weight: their channels leave together, where all of them can lose the same of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import nn

from shaprune.network.layers.kinds import parameter_sides
from shaprune.network.shared_weights import SharedParameters
from shaprune.players.layer_costs import Layer
from shaprune.players.roles import Role

Node = tuple[str, Role, int]  # a layer, its side, and a channel


def with_tied(shared: SharedParameters, layers: dict[str, Layer]) -> dict[str, Layer]:
    """The layers, of which only the first with a shared weight counts it."""
    held = [{name for name, key in places if key == "weight"} for _, places in shared]
    found = dict(layers)
    for names in held:
        for name in [name for name in layers if name in names][1:]:
            found[name] = replace(layers[name], tied=True)
    return found


def tied_channels(copy: nn.Module, shared: SharedParameters, layers: dict[str, Layer]) -> Iterator[tuple[Node, Node]]:
    """Pairs of channels that stand on the same entries of a shared parameter."""
    for _, places in shared:
        places = [(name, key) for name, key in places if not _is_silent_table(copy, layers, name)]
        sides = [_sides(copy, layers, name, key) for name, key in places]
        if not sides:
            continue
        for axis in set.intersection(*(set(side) for side in sides)):
            (first, role), *others = [(name, side[axis]) for (name, _), side in zip(places, sides, strict=True)]
            width = layers[first].n_out if role == "out" else layers[first].n_in
            for name, other in others:
                yield from (((first, role, k), (name, other, k)) for k in range(width))


def tied_otherwise(
    copy: nn.Module, shared: SharedParameters, layers: dict[str, Layer], name: str, role: Role
) -> str | None:
    """A layer that shares a parameter with ``name`` and cannot lose the channels that this one loses; None: none."""
    for _, places in shared:
        for key in [key for holder, key in places if holder == name]:
            axis = next((a for a, own in _sides(copy, layers, name, key).items() if own == role), None)
            others = [(h, own) for h, own in places if h != name and not _is_silent_table(copy, layers, h)]
            without = [holder for holder, own in others if axis not in _sides(copy, layers, holder, own)]
            if role != "both" and axis is not None and without:
                return without[0]
    return None


def tied_to_input(
    shared: SharedParameters, sides: Collection[tuple[str, Role]], of_input: Collection[Node]
) -> str | None:
    """Why a group stays of which a layer with a shared weight reads the network's input; None where none does."""
    reading = {name for name, role, _ in of_input if role == "in"}
    for _, places in shared:
        names = [name for name, key in places if key == "weight"]
        for name in (name for name in names if (name, "in") in sides and name in reading):
            other = next((n for n in names if n != name), None)
            if other is not None:
                return f"{name} shares its weight with {other}, and reads the network's input, which stays"
    return None


def _is_silent_table(copy: nn.Module, layers: Mapping[str, Layer], name: str) -> bool:
    """Whether a module is a table that is not called, and only shares its weight with one that is."""
    return name not in layers and isinstance(copy.get_submodule(name), nn.Embedding)


def _sides(copy: nn.Module, layers: dict[str, Layer], name: str, key: str) -> dict[int, Role]:
    layer = layers.get(name)
    return {} if layer is None else parameter_sides(copy.get_submodule(name), layer, key)
