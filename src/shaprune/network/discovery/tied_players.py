"""Players that can leave only together, because code splits or shuffles their channels by counting them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from math import gcd

import numpy as np
from numpy.typing import NDArray

from shaprune.players.candidate import Candidate
from shaprune.players.players import Member
from shaprune.players.roles import Role


def kinds_of(members: Sequence[Member]) -> list[list[int]]:
    """Numbers of the players that have as many channels in the same members."""
    if all((m.widths == m.widths[0]).all() for m in members):
        return [list(range(len(members[0].channels)))]
    kinds: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for player, widths in enumerate(zip(*(m.widths.tolist() for m in members), strict=True)):
        kinds[widths].append(player)
    return list(kinds.values())


def tied_shares(candidate: Candidate, number: int = 0) -> list[Candidate]:
    """The candidate, if any, in whose players several are tied: a share of every kind.

    Kinds of 8, 4 and 4 players make four new ones, each of two, one and one; or another ``number`` of new ones, and
    players are left over.
    """
    kinds = kinds_of(candidate.members)
    number = number or gcd(*map(len, kinds))
    whole = [kind[: len(kind) // number * number] for kind in kinds if len(kind) >= number]
    tied = zip(*(np.split(np.array(kind), number) for kind in whole), strict=True)
    return [_tied(candidate, [np.concatenate(share) for share in tied])] if min(len(kinds), number) > 1 else []


def shares_of(candidate: Candidate) -> Iterator[Candidate]:
    """Candidates with shares of every kind, the finest first, of which none is left over; then such as leave some."""
    yield from tied_shares(candidate)
    for number in sorted({len(kind) for kind in kinds_of(candidate.members)}, reverse=True):
        yield from tied_shares(candidate, number)


def tied_parts(candidate: Candidate) -> Iterator[Candidate]:
    """Candidates in which players are tied: the k-th of each of some equal parts."""
    n = len(candidate.members[0].channels)
    for parts in (2, 3, 4):
        if n % parts == 0 and n > parts:
            yield _tied(candidate, list(np.arange(n).reshape(parts, -1).T))


def _tied(candidate: Candidate, players: Sequence[NDArray[np.int64]]) -> Candidate:
    return _owning(candidate, [_united(m, [p.tolist() for p in players]) for m in candidate.members])


def united_readers(found: Sequence[Candidate]) -> Iterator[Candidate]:
    """Candidates of several that share readers, each as one with the players of all.

    A shuffle of channels interleaves two layers, of which neither can leave alone.
    """
    waiting = list(found)
    while waiting:
        these, sides = [waiting.pop(0)], set[tuple[str, Role]]()
        for last in these:
            sides |= {(m.module, m.role) for m in last.members}
            more = [c for c in waiting if any((m.module, m.role) in sides for m in c.members)][:1]
            these += more
            waiting = [c for c in waiting if c not in more]
        if len(these) > 1:
            yield side_by_side(these)


def side_by_side(these: Sequence[Candidate]) -> Candidate:
    """One candidate with the players of several."""
    sizes = [len(c.members[0].channels) for c in these]
    owned: dict[tuple[str, Role], list[tuple[int, ...]]] = {}
    for c, start, size in zip(these, np.cumsum([0, *sizes]), sizes, strict=False):
        for m in c.members:
            owned.setdefault((m.module, m.role), [()] * sum(sizes))[start : start + size] = m.channels
    members = tuple(Member(name, role, tuple(channels)) for (name, role), channels in owned.items())
    return Candidate(these[0].name, members, any(c.meets_input for c in these))


def without(part: Candidate, taken: Sequence[Candidate]) -> Candidate:
    """The players of a part that own no channel of other candidates."""
    owned: dict[tuple[str, Role], set[int]] = defaultdict(set)
    for m in (m for c in taken for m in c.members):
        owned[m.module, m.role].update(chain(*m.channels))
    free = [
        i
        for i in range(len(part.members[0].channels))
        if all(owned[m.module, m.role].isdisjoint(m.channels[i]) for m in part.members)
    ]
    return some_of(part, free)


def interleaved(candidate: Candidate) -> Candidate:
    """The candidate in which players are tied whose channels stand side by side in a reader, two and two."""
    leader = list(range(len(candidate.members[0].channels)))

    def find(player: int) -> int:
        while leader[player] != player:
            player = leader[player]
        return player

    for member in candidate.members:
        owner = {c: i for i, own in enumerate(member.channels) for c in own} if member.role == "in" else {}
        for channel in (c for c in owner if c % 2 == 0 and c + 1 in owner):
            first, second = sorted((find(owner[channel]), find(owner[channel + 1])))
            leader[second] = first
    together: dict[int, list[int]] = defaultdict(list)
    for player in range(len(leader)):
        together[find(player)].append(player)
    return _tied(candidate, [np.array(players) for players in together.values()])


def _united(member: Member, players: Sequence[Sequence[int]]) -> Member:
    """A member of new players, each of which owns what several did."""
    owned = [sorted({c for player in several for c in member.channels[player]}) for several in players]
    return replace(member, channels=tuple(map(tuple, owned)))


def some_of(candidate: Candidate, players: Sequence[int]) -> Candidate:
    """Some of a candidate's players, with the members in which they have channels."""
    if len(players) == len(candidate.members[0].channels):
        return candidate
    return _owning(
        candidate,
        [Member(m.module, m.role, tuple(m.channels[p] for p in players)) for m in candidate.members],
    )


def _owning(candidate: Candidate, members: Sequence[Member]) -> Candidate:
    """A candidate with those of its new members that own anything, one that makes channels in front."""
    owning = [m for m in members if m.widths.any()]
    first = next((m for m in owning if m.role == candidate.members[0].role), None)
    if first is None:
        return replace(candidate, members=tuple(owning))
    name = first.module if first.role == "out" else candidate.name
    return replace(candidate, name=name, members=(first, *(m for m in owning if m is not first)))
