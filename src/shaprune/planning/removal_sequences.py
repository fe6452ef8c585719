"""Removal sequences: the order in which players leave each group, with all limits met after every step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations, pairwise, product
from math import floor

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, nearest
from shaprune.planning.limits import Limits, _of_others, check_hf_uniform
from shaprune.players.layer_costs import WHOLE, Layer
from shaprune.players.players import Group, Players

_MAX_KINDS_COMBINED = 12  # kinds of players in a group up to which pairs and triples of kinds are tried
RemovalStep = NDArray[np.int64]  # players of one group that leave together, counted among all players


def removal_sequences(players: Players, value: NDArray[np.float64], limits: Limits) -> list[list[RemovalStep]]:
    """For each group, who leaves one after the other: after each step, all limits are met.

    Groups that must lose the same number of players (`Limits.hf_uniform`) go down together: a step takes players of all
    of them, stands in the removal sequence of the first, and those of the others are empty.

    Args:
        players: the players of the dense network.
        value: (n,) the less, the sooner a player leaves.
        limits: what must stay.

    Raises:
        InputError: a glob that matches no group; ``hf_uniform`` where no group can leave that way.
    """
    names = [group.name for group in players.groups]
    for option, globs in (("keep", limits.spared), ("max_removed", limits.shares)):
        for glob in globs:
            if glob != "*" and not any(fnmatchcase(name, glob) for name in names):
                raise InputError(f"{option}={glob!r} matches no group of players{nearest(glob, names)}")
    owners = Counter(name for group in players.groups for name in _channels_taken(players, group))
    found = [list(_group_sequence(players, group, value, limits, owners)) for group in players.groups]
    return _joint_sequences(players, found) if limits.hf_uniform else found


def _joint_sequences(players: Players, found: Sequence[list[RemovalStep]]) -> list[list[RemovalStep]]:
    """Ladders in which the groups that one field of config.json counts go down together, as far as all of them can."""
    by_name = {group.name: steps for group, steps in zip(players.groups, found, strict=True)}
    joined: dict[str, list[RemovalStep]] = {}
    for tied in check_hf_uniform(players).fields:
        dense = len(players.group(tied.groups[0]))
        sequences_of = [by_name[name] for name in tied.groups]
        reached = [np.cumsum([0, *map(len, sequence)]).tolist() for sequence in sequences_of]
        common = set.intersection(*map(set, reached))
        counts = sorted(n for n in common if not n or tied.allows(dense - n))
        leaving = [np.concatenate([np.empty(0, dtype=np.int64), *sequence]) for sequence in sequences_of]
        joined[tied.groups[0]] = [
            np.concatenate([order[low:high] for order in leaving]) for low, high in pairwise(counts)
        ]
    return [joined.get(group.name, []) for group in players.groups]


def _channels_taken(players: Players, group: Group) -> dict[str, NDArray[np.int64]]:
    """The layers whose filters (or lists whose experts) a group takes, and how many each of its players owns there."""
    made = [m for m in group.members if m.makes(players.layers[m.module])]
    return {member.module: member.widths for member in made}


@dataclass(frozen=True)
class _LayerWidth:
    """A layer's width, and what may be left of it.

    Attributes:
        dense: channels of the dense layer.
        least: channels that stay.
        round_to: what the width is a multiple of, once some have left.
        each: per kind of players, the channels that one of them owns.
    """

    dense: int
    least: int
    round_to: int
    each: tuple[int, ...]

    def allows(self, gone: Sequence[int]) -> bool:
        """Whether ``gone`` players per kind may leave."""
        lost = sum(a * b for a, b in zip(self.each, gone, strict=True))
        return not lost or (self.dense - lost >= self.least and (self.dense - lost) % self.round_to == 0)


def _group_sequence(
    players: Players, group: Group, value: NDArray[np.float64], limits: Limits, owners: Mapping[str, int]
) -> Iterator[RemovalStep]:
    """Steps of one group: each takes the fewest kinds of players and, of these, the least valuable."""
    share = limits.share(group)
    must = max([x.least for m in group.members if (x := players.layers[m.module]).kind in WHOLE], default=0)
    most = min(floor(share * len(group) + 1e-9), len(group) - max(limits.min_players, must))
    made = _channels_taken(players, group)
    read = [m for m in group.consumers if 0 < np.count_nonzero(m.widths) < len(group)]  # others leave by number
    kinds: dict[tuple[int, ...], list[int]] = defaultdict(list)  # channels per layer -> players, the worst first
    for i in np.argsort(value[group.indices], kind="stable").tolist():
        owned_by = (*(int(widths[i]) for widths in made.values()), *(int(member.widths[i]) for member in read))
        kinds[owned_by].append(int(group.indices[i]))
    ranked = list(kinds.values())
    widths = {
        _layer_width(
            players.layers[name], int(owned.sum()), tuple(kind[i] for kind in kinds), share, limits, owners[name]
        )
        for i, (name, owned) in enumerate(made.items())
    }
    for i, member in enumerate(read, len(made)):
        layer, each = players.layers[member.module], tuple(kind[i] for kind in kinds)
        widths.add(_LayerWidth(layer.n_in, layer.least + _of_others(players, member), 1, each))
    gone = [0] * len(ranked)

    def leaving(step: dict[int, int]) -> list[int]:
        return [p for kind, n in step.items() for p in ranked[kind][gone[kind] : gone[kind] + n]]

    def allowed(step: dict[int, int]) -> bool:
        after = [n + step.get(kind, 0) for kind, n in enumerate(gone)]
        enough = sum(after) <= most and all(n <= len(r) for n, r in zip(after, ranked, strict=True))
        return enough and all(width.allows(after) for width in widths)

    while step := _next_step(len(ranked), limits.round_to, allowed, lambda step: float(value[leaving(step)].mean())):
        yield np.array(leaving(step))
        for kind, n in step.items():
            gone[kind] += n


def _layer_width(
    layer: Layer, owned: int, each: tuple[int, ...], share: float, limits: Limits, owners: int
) -> _LayerWidth:
    """The width of a layer of which a group owns some channels; ``owners`` groups own channels of it."""
    if layer.kind in WHOLE:
        return _LayerWidth(layer.n_out, layer.least, 1, each)
    others = layer.n_out - owned if owners == 1 else 0  # channels that stay whatever this group does
    stay = max(min(owned, max(limits.min_width, layer.least) - others), owned - floor(share * owned + 1e-9), 0)
    whole = owners > 1 and layer.n_out % limits.round_to  # several groups cannot settle who brings it to a multiple
    return _LayerWidth(layer.n_out, layer.n_out if whole else layer.n_out - owned + stay, limits.round_to, each)


def _next_step(
    n_kinds: int,
    round_to: int,
    allowed: Callable[[dict[int, int]], bool],
    worth: Callable[[dict[int, int]], float],
) -> dict[int, int]:
    """Return {kind: number of players to remove next}; empty if no further removal is allowed."""
    sizes = range(1, min(3, n_kinds) + 1) if round_to > 1 and n_kinds <= _MAX_KINDS_COMBINED else [1]
    for size in sizes:
        counts = sorted(product(range(1, round_to + 1), repeat=size), key=sum)
        steps = ([dict(zip(kinds, n, strict=True)) for n in counts] for kinds in combinations(range(n_kinds), size))
        found = [step for smallest_first in steps if (step := next(filter(allowed, smallest_first), None))]
        if found:
            return found[0] if len(found) == 1 else min(found, key=worth)
    return {}
