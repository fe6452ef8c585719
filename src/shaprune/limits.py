"""How far each group of players may shrink: which of its players may leave, in which order, and how many at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations, pairwise, product
from math import floor

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, nearest
from shaprune.network.config import Config
from shaprune.network.layers import Layer
from shaprune.network.players import Group, Member, Players

_JOINT = 12  # kinds of players in a group up to which pairs and triples of kinds are tried
Step = NDArray[np.int64]  # players of one group that leave together, counted among all players


@dataclass(frozen=True)
class Limits:
    """What a plan must leave in every group, whatever the budget.

    Attributes:
        min_players: players that stay in every group.
        min_width: channels that stay in every layer whose filters a group takes (convolutions, linear layers,
            embeddings); never below 1, because a layer without channels does not run. A narrower layer stays whole.
        round_to: such a layer is left whole or with a multiple of so many channels. Where a player owns several
            channels of a layer (heads, slots of a grouped convolution), only so many players leave together that every
            width fits; where no number does (a dense width of 10, two channels per player, multiples of 8 below it
            out of reach), the group stays whole.
        max_removed: the largest share of a group's players, and of their channels in each such layer, that leaves; or
            one per glob over group names, of which the smallest holds.
        exclude: globs over the names of groups whose players all stay.
        hf_uniform: only what the config.json of a Hugging Face model can say is left: the same number of players in all
            groups that one of its fields counts, and all players of groups that none counts.

    Raises:
        InputError: a number out of range.
    """

    min_players: int = 1
    min_width: int = 1
    round_to: int = 1
    max_removed: float | Mapping[str, float] = 1.0
    exclude: str | Sequence[str] = field(default=())
    hf_uniform: bool = False

    def __post_init__(self) -> None:
        for name, number, least in (
            ("min_players", self.min_players, 0),
            ("min_width", self.min_width, 1),
            ("round_to", self.round_to, 1),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise InputError(f"{name} is {number!r}; it must be a whole number, {least} or above")
        for glob, share in self.shares.items():
            if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
                raise InputError(f"max_removed is {share!r} for {glob!r}; it must be a share between 0 and 1")

    @property
    def shares(self) -> dict[str, float]:
        """`max_removed` per glob."""
        return dict(self.max_removed) if isinstance(self.max_removed, Mapping) else {"*": self.max_removed}

    @property
    def excluded(self) -> tuple[str, ...]:
        """The globs of `exclude`."""
        return (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude)

    def __str__(self) -> str:
        """The limits that hold, as options: what can be loosened where a budget cannot be met."""
        given = [f"min_players={self.min_players}", f"min_width={self.min_width}"]
        given += [f"round_to={self.round_to}"] if self.round_to > 1 else []
        given += [f"max_removed={self.max_removed}"] if min(self.shares.values(), default=1) < 1 else []
        given += [f"exclude={self.exclude!r}"] if self.excluded else []
        given += ["hf_uniform=True"] if self.hf_uniform else []
        return ", ".join(given)

    def share(self, group: Group) -> float:
        """The largest share of a group that may leave."""
        if any(fnmatchcase(group.name, glob) for glob in self.excluded):
            return 0.0
        return min([share for glob, share in self.shares.items() if fnmatchcase(group.name, glob)], default=1.0)


def ladders(players: Players, value: NDArray[np.float64], limits: Limits) -> list[list[Step]]:
    """For each group, who leaves one after the other: after each step, all limits are met.

    Groups that must lose the same number of players (`Limits.hf_uniform`) go down together: a step takes players of all
    of them, stands in the ladder of the first, and those of the others are empty.

    Args:
        players: the players of the dense network.
        value: (n,) the less, the sooner a player leaves.
        limits: what must stay.

    Raises:
        InputError: a glob that matches no group; ``hf_uniform`` where no group can leave that way.
    """
    names = [group.name for group in players.groups]
    for option, globs in (("exclude", limits.excluded), ("max_removed", limits.shares)):
        for glob in globs:
            if glob != "*" and not any(fnmatchcase(name, glob) for name in names):
                raise InputError(f"{option}={glob!r} matches no group of players{nearest(glob, names)}")
    owners = Counter(name for group in players.groups for name in _made(players, group))
    found = [list(_ladder(players, group, value, limits, owners)) for group in players.groups]
    return _together(players, found) if limits.hf_uniform else found


def check_uniform(players: Players) -> Config:
    """Check that a config.json can say that some of these players are gone.

    Raises:
        InputError: why it cannot, and what to do.
    """
    if players.config is None:
        raise InputError(
            "hf_uniform=True is for models of transformers (a config and save_pretrained), and these players are of "
            "another network, or were saved by an older shaprune; leave it out, and keep the pruned network by sp.save"
        )
    if not players.config.fields:
        raise InputError(
            "hf_uniform=True: config.json cannot say that any of these players is gone; find other players, or leave "
            f"it out and keep the pruned network by sp.save\n{players.config}"
        )
    return players.config


def _together(players: Players, found: Sequence[list[Step]]) -> list[list[Step]]:
    """Ladders in which the groups that one field of config.json counts go down together, as far as all of them can."""
    by_name = {group.name: steps for group, steps in zip(players.groups, found, strict=True)}
    joined: dict[str, list[Step]] = {}
    for tied in check_uniform(players).fields:
        dense = len(players.group(tied.groups[0]))
        ladders_of = [by_name[name] for name in tied.groups]
        reached = [np.cumsum([0, *map(len, ladder)]).tolist() for ladder in ladders_of]
        common = set.intersection(*map(set, reached))
        counts = sorted(n for n in common if not n or tied.allows(dense - n))
        leaving = [np.concatenate([np.empty(0, dtype=np.int64), *ladder]) for ladder in ladders_of]
        joined[tied.groups[0]] = [
            np.concatenate([order[low:high] for order in leaving]) for low, high in pairwise(counts)
        ]
    return [joined.get(group.name, []) for group in players.groups]


def _made(players: Players, group: Group) -> dict[str, NDArray[np.int64]]:
    """The layers whose filters (or lists whose experts) a group takes, and how many each of its players owns there."""
    made = [m for m in group.members if m.role in ("out", "expert") or players.layers[m.module].kind == "depthwise"]
    return {member.module: member.widths for member in made}


def _of_others(players: Players, member: Member) -> int:
    """How many channels that a layer reads are players of other groups, and may leave with these."""
    ours = int(member.widths.sum())
    theirs = [m for group in players.groups for m in group.consumers if m.module == member.module]
    return sum(int(m.widths.sum()) for m in theirs) - ours


@dataclass(frozen=True)
class _Width:
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


def _ladder(
    players: Players, group: Group, value: NDArray[np.float64], limits: Limits, owners: Mapping[str, int]
) -> Iterator[Step]:
    """Steps of one group: each takes the fewest kinds of players and, of these, the least valuable."""
    share = limits.share(group)
    must = max([players.layers[m.module].least for m in group.members if m.role == "expert"], default=0)
    most = min(floor(share * len(group) + 1e-9), len(group) - max(limits.min_players, must))
    made = _made(players, group)
    read = [m for m in group.consumers if 0 < np.count_nonzero(m.widths) < len(group)]  # others leave by number
    kinds: dict[tuple[int, ...], list[int]] = defaultdict(list)  # channels per layer -> players, the worst first
    for i in np.argsort(value[group.indices], kind="stable").tolist():
        owned_by = (*(int(widths[i]) for widths in made.values()), *(int(member.widths[i]) for member in read))
        kinds[owned_by].append(int(group.indices[i]))
    ranked = list(kinds.values())
    widths = {
        _width(players.layers[name], int(owned.sum()), tuple(kind[i] for kind in kinds), share, limits, owners[name])
        for i, (name, owned) in enumerate(made.items())
    }
    for i, member in enumerate(read, len(made)):
        layer, each = players.layers[member.module], tuple(kind[i] for kind in kinds)
        widths.add(_Width(layer.n_in, layer.least + _of_others(players, member), 1, each))
    gone = [0] * len(ranked)

    def leaving(step: dict[int, int]) -> list[int]:
        return [p for kind, n in step.items() for p in ranked[kind][gone[kind] : gone[kind] + n]]

    def allowed(step: dict[int, int]) -> bool:
        after = [n + step.get(kind, 0) for kind, n in enumerate(gone)]
        enough = sum(after) <= most and all(n <= len(r) for n, r in zip(after, ranked, strict=True))
        return enough and all(width.allows(after) for width in widths)

    while step := _next(len(ranked), limits.round_to, allowed, lambda step: float(value[leaving(step)].mean())):
        yield np.array(leaving(step))
        for kind, n in step.items():
            gone[kind] += n


def _width(layer: Layer, owned: int, each: tuple[int, ...], share: float, limits: Limits, owners: int) -> _Width:
    """The width of a layer of which a group owns some channels; ``owners`` groups own channels of it."""
    if layer.kind == "expert":
        return _Width(layer.n_out, layer.least, 1, each)
    others = layer.n_out - owned if owners == 1 else 0  # channels that stay whatever this group does
    stay = max(min(owned, max(limits.min_width, layer.least) - others), owned - floor(share * owned + 1e-9), 0)
    whole = owners > 1 and layer.n_out % limits.round_to  # several groups cannot settle who brings it to a multiple
    return _Width(layer.n_out, layer.n_out if whole else layer.n_out - owned + stay, limits.round_to, each)


def _next(
    n_kinds: int,
    round_to: int,
    allowed: Callable[[dict[int, int]], bool],
    worth: Callable[[dict[int, int]], float],
) -> dict[int, int]:
    """How many players of which kinds leave next; of nobody where none may."""
    sizes = range(1, min(3, n_kinds) + 1) if round_to > 1 and n_kinds <= _JOINT else [1]
    for size in sizes:
        counts = sorted(product(range(1, round_to + 1), repeat=size), key=sum)
        steps = ([dict(zip(kinds, n, strict=True)) for n in counts] for kinds in combinations(range(n_kinds), size))
        found = [step for smallest_first in steps if (step := next(filter(allowed, smallest_first), None))]
        if found:
            return found[0] if len(found) == 1 else min(found, key=worth)
    return {}
