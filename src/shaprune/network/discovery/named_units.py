"""Named units: players that own all channels that a name stands for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from shaprune.errors import InputError, nearest
from shaprune.players.players import Group, Member, Players, Skipped
from shaprune.players.roles import Role

NAMED_GROUP = "named"
Globs = Mapping[str, str | Sequence[str]]  # name of a unit -> globs over names of players and groups


def named_units(players: Players, units: Globs) -> Players:
    """One group whose players are the units: each owns all that the players whose names it matches own.

    A glob is matched against the names of players (``conv2[17]``) and of groups (``conv2``, all its players); only
    ``*`` and ``?`` are special.

    Raises:
        InputError: no unit, a glob that matches nothing, a player in two units, or a unit without which a layer would
            be empty.
    """
    if not units:
        raise InputError("unit is an empty mapping; name at least one unit, such as {'mine': 'conv2[1?]'}")
    owned = {name: _matched(players, name, globs) for name, globs in units.items()}
    owner: dict[int, str] = {}
    for name, indices in owned.items():
        for i in indices:
            if i in owner:
                raise InputError(f"player {players.names[i]} is in units {owner[i]!r} and {name!r}; name it once")
            owner[i] = name
    united = replace(
        players, groups=(unite(players, NAMED_GROUP, owned),), skipped=(*players.skipped, *_rest(players, owner))
    )
    for i, name in enumerate(owned):
        alone = np.arange(len(owned)) != i
        for layer, (left, least) in united.too_narrow(alone).items():
            raise InputError(
                f"without unit {name!r} layer {layer!r} would have {left} channels, and it needs {least}; "
                "leave some of its players out of the unit"
            )
    return united


def unite(players: Players, name: str, owned: Mapping[str, Sequence[int]]) -> Group:
    """A group with one player per entry of ``owned``, the players whose channels it owns."""
    unit_of = {i: unit for unit, indices in enumerate(owned.values()) for i in indices}
    channels: dict[tuple[str, Role], list[set[int]]] = {}
    for group in players.groups:
        for member in group.members:
            for i, own in zip(group.indices.tolist(), member.channels, strict=True):
                if i in unit_of and own:
                    sets = channels.setdefault((member.module, member.role), [set() for _ in owned])
                    sets[unit_of[i]].update(own)
    members = [Member(module, role, tuple(tuple(sorted(s)) for s in sets)) for (module, role), sets in channels.items()]
    return Group(name, np.arange(len(owned)), tuple(members), tuple(owned))


def _matched(players: Players, name: str, globs: str | Sequence[str]) -> list[int]:
    """The players of a unit."""
    given = [globs] if isinstance(globs, str) else list(globs)
    if not given or not all(isinstance(glob, str) and glob for glob in (name, *given)):
        raise InputError(f"unit {name!r} is {globs!r}; give a name and a glob, or several, over names of players")
    found: set[int] = set()
    for glob in given:
        pattern = re.compile(re.escape(glob).replace(r"\*", ".*").replace(r"\?", "."))
        ours = {i for i, player in enumerate(players.names) if pattern.fullmatch(player)}
        ours |= {int(i) for group in players.groups if pattern.fullmatch(group.name) for i in group.indices}
        if not ours:
            known = [*(g.name for g in players.groups), *players.names]
            raise InputError(f"unit {name!r}: {glob!r} matches no player and no group{nearest(glob, known)}")
        found |= ours
    return sorted(found)


def _rest(players: Players, owner: Mapping[int, str]) -> list[Skipped]:
    """Channels of players that no unit names."""
    left: Counter[str] = Counter()
    for group in players.groups:
        for member in group.members:
            if member.makes(players.layers[member.module]):
                left[member.module] += sum(
                    len(own) for i, own in zip(group.indices, member.channels, strict=True) if int(i) not in owner
                )
    return [Skipped(name, channels, "no unit names them") for name, channels in left.items() if channels]
