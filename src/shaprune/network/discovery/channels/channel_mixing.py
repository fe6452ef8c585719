"""Channels of one source that meet: which of them reach the same positions of a reader.

Where the first channel reaches all positions in question, and so does the last, something mixes all of them (a
LayerNorm, say), or they stand on another axis than the reader's channels (a linear layer over time) and pass it one by
one: then what the reader is given carries the two marks in different entries, and so does what it gives. Else runs of
neighbouring channels are marked, and halved until no set of them that meet can be divided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shaprune.network.discovery.channels.nan_marking import Channels, Marking

_BLOCKS = 64  # runs of neighbouring channels that are tried first, where the first channel does not say how many
Position = tuple[str, int]  # a reader and one of its input channels
Unsure = Mapping[int, Mapping[str, Channels]]  # per source the positions in question; no two have a reader in common
Block = NDArray[np.int64]  # neighbouring channels
Met = list[tuple[Block, set[Position]]]  # blocks of channels, and the positions that each reaches
Set = tuple[list[Block], set[Position]]  # blocks that may meet, and the positions that none but these reach


def spread_of(marking: Marking, unsure: Unsure) -> tuple[set[int], dict[int, set[str]]]:
    """Find sources whose first channel, and whose last, reaches all positions in question of some reader.

    An axis of a parameter must do so in all readers that it reaches: it is then no channel axis. Of a table that is
    longer than the example, the first and the last entry that are read are asked.

    Returns:
        Sources that are mixed there; and, per source, the readers that it passes channel by channel.
    """
    everywhere = {
        i: set(readers) for i, readers in unsure.items()
    }  # that every channel asked so far reaches as a whole
    ends: dict[int, list[int]] = defaultdict(list)
    for last in (False, True):
        for i, (channel, run) in _end(marking, {i: unsure[i] for i in unsure if everywhere[i]}, last=last).items():
            ends[i].append(channel)
            left = {r for r in everywhere[i] if (run[r] | ~unsure[i][r]).all()}
            none = {r for r in everywhere[i] if not (run[r] & unsure[i][r]).any()}  # of one position alone, say
            everywhere[i] = left if marking.sources[i].is_layer or left | none == everywhere[i] else set()
    whole = {i: readers for i, readers in everywhere.items() if readers}
    passed = _passed(marking, unsure, {i: ends[i] for i in whole if marking.sources[i].alone}, whole)
    return {i for i, readers in whole.items() if readers - passed.get(i, set())}, passed


def _passed(
    marking: Marking, unsure: Unsure, ends: Mapping[int, Sequence[int]], readers: Mapping[int, set[str]]
) -> dict[int, set[str]]:
    """Readers that are given the first channel and the last in different entries, and keep channels apart.

    Whether they do is seen in what they give for two neighbours: a convolution along the channels joins them.
    """
    found = {}
    for together in apart({i: unsure[i] for i in ends}):
        named = set().union(*(readers[i] for i in together))
        first, last = (marking.entries({i: _only(marking, i, ends[i][end]) for i in together}, named) for end in (0, 1))
        for i in together:
            one, other = ends[i]
            given_apart = {r for r in readers[i] if one != other and _differ(first[r], last[r])}
            if given_apart:
                past = marking.past(frozenset(filter(marking.is_maker, given_apart)))
                beside = one + (1 if one < other else -1)
                here, there = (past.entries({i: _only(marking, i, c)}, given_apart, behind=True) for c in (one, beside))
                found[i] = {r for r in given_apart if _differ(here[r], there[r])}
    return {i: passed for i, passed in found.items() if passed}


def _differ(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return not any((a & b).any() for a, b in zip(ours, theirs, strict=True))


def _only(marking: Marking, source: int, channel: int) -> Channels:
    return np.asarray(np.arange(marking.sources[source].width) == channel)


def _end(marking: Marking, unsure: Unsure, *, last: bool) -> dict[int, tuple[int, dict[str, Channels]]]:
    """The first channel of each source, or the ``last``, of those that reach anything; and what it reaches.

    Where the very first reaches nothing, halves of the others are asked, all sources in the same runs.
    """
    numbers = {i: np.arange(marking.sources[i].width)[:: -1 if last else 1] for i in unsure}  # from this end
    parts = apart(unsure)

    def ask(ranges: Mapping[int, tuple[int, int]]) -> dict[int, dict[str, Channels]]:
        marked = {i: (numbers[i] >= low) & (numbers[i] <= high) for i, (low, high) in ranges.items()}
        return ask_parts(marking, parts, marked)

    def reaches(i: int, run: Mapping[str, Channels]) -> bool:
        return any((run[reader] & where).any() for reader, where in unsure[i].items())

    found = ask(dict.fromkeys(unsure, (0, 0)))
    place = {i: (0, 0) if reaches(i, run) else (1, len(numbers[i]) - 1) for i, run in found.items()}
    late = {i for i, (low, _) in place.items() if low}
    while halves := {i: (low, (low + high) // 2) for i, (low, high) in place.items() if low < high}:
        for i, run in ask(halves).items():
            middle, high = halves[i][1], place[i][1]
            place[i] = (place[i][0], middle) if reaches(i, run) else (middle + 1, high)
    found |= ask({i: place[i] for i in late})
    return {i: (int(numbers[i].tolist().index(place[i][0])), run) for i, run in found.items()}


def met(marking: Marking, unsure: Unsure) -> dict[int, Met]:
    """Find which neighbouring channels reach the same positions.

    All sources, and all sets of blocks that do not meet, are asked in the same runs. Channels of one block count as
    one, which can only couple too much, never too little.
    """
    found: dict[int, Met] = {i: [] for i in unsure}
    every = {i: positions_of(unsure[i], unsure[i]) for i in unsure}
    shares = _shares(marking, unsure, every)
    sets = {i: [(shares.get(i) or _blocks(marking.sources[i].width), every[i])] for i in unsure}
    while sets:
        parts = {i: _parts(entries) for i, entries in _reached(marking, sets, unsure).items()}
        closed = _closed(marking, parts, unsure)
        sets = {}
        for i, of_source in parts.items():
            for k, part in enumerate(of_source):
                if k in closed[i]:
                    found[i] += (
                        part if _all_of(part) else [(one, set()) for b, _ in part for one in np.split(b, len(b))]
                    )
                else:
                    halves = [half for block, _ in part for half in np.array_split(block, 2) if len(half)]
                    sets.setdefault(i, []).append((halves, _all_of(part)))
    return found


def _reached(marking: Marking, sets: Mapping[int, list[Set]], unsure: Unsure) -> dict[int, Met]:
    """What every block reaches, of the positions of its set; blocks of different sets are marked together."""
    found: dict[int, Met] = {i: [] for i in sets}
    most = max(len(blocks) for of_source in sets.values() for blocks, _ in of_source)
    rounds = [{i: [(b[k], where) for b, where in s if k < len(b)] for i, s in sets.items()} for k in range(most)]
    marks = [{i: [block for block, _ in a] for i, a in asked.items() if a} for asked in rounds]
    for asked, positions in zip(rounds, _ask(marking, marks, unsure), strict=True):
        for i in positions:
            found[i] += [(block, where & positions[i]) for block, where in asked[i]]
    return found


def _ask(
    marking: Marking, rounds: Sequence[Mapping[int, Sequence[Block]]], unsure: Unsure
) -> list[dict[int, set[Position]]]:
    """The positions that blocks of each source reach, per round."""
    marks: list[dict[int, Channels]] = []
    for asked in rounds:
        marks.append({i: np.zeros(marking.sources[i].width, dtype=bool) for i in asked})
        for i, blocks in asked.items():
            marks[-1][i][np.concatenate(blocks)] = True
    together = apart(unsure)
    each = [[part for part in ([i for i in group if i in marked] for group in together) if part] for marked in marks]
    runs = iter(
        marking.runs([{i: marked[i] for i in p} for marked, parts in zip(marks, each, strict=True) for p in parts])
    )
    found = []
    for parts in each:
        reached = [(i, run) for part, run in zip(parts, runs, strict=False) for i in part]
        found.append({i: positions_of(run, unsure[i]) for i, run in reached})
    return found


def _parts(entries: Met) -> list[Met]:
    """Blocks that meet, directly or through others."""
    leader = list(range(len(entries)))

    def find(k: int) -> int:
        while leader[k] != k:
            leader[k] = leader[leader[k]]
            k = leader[k]
        return k

    owner: dict[Position, int] = {}
    for k, (_, positions) in enumerate(entries):
        for position in positions:
            leader[find(k)] = find(owner.setdefault(position, k))
    parts: dict[int, Met] = defaultdict(list)
    for k, entry in enumerate(entries):
        parts[find(k)].append(entry)
    return list(parts.values())


def _closed(marking: Marking, parts: Mapping[int, list[Met]], unsure: Unsure) -> dict[int, set[int]]:
    """Parts that cannot be divided: of single channels, or one of whose channels reaches all that the part reaches."""
    closed = {
        i: {k for k, part in enumerate(of) if all(len(b) == 1 or not p for b, p in part)} for i, of in parts.items()
    }
    firsts = {
        i: [max(part, key=lambda entry: len(entry[1]))[0][:1] for k, part in enumerate(of_source) if k not in closed[i]]
        for i, of_source in parts.items()
    }
    asked = {i: blocks for i, blocks in firsts.items() if blocks}
    for i, reached in _ask(marking, [asked], unsure)[0].items():
        closed[i] |= {k for k, part in enumerate(parts[i]) if _all_of(part) <= reached}
    return closed


def _all_of(part: Met) -> set[Position]:
    return set().union(*(positions for _, positions in part))


def positions_of(run: Mapping[str, Channels], where: Mapping[str, Channels]) -> set[Position]:
    """The positions among ``where`` that carry a mark in ``run``."""
    return {(reader, int(c)) for reader, mask in where.items() for c in np.flatnonzero(run[reader] & mask)}


def _shares(marking: Marking, unsure: Unsure, every: Mapping[int, set[Position]]) -> dict[int, list[Block]]:
    """Blocks as large as the share of positions that the first channel reaches, where such blocks do not meet.

    Whether they meet is asked of every other one together, and of those between them.
    """
    width = {i: marking.sources[i].width for i in unsure}
    first = _ask(marking, [{i: [np.arange(1)] for i in unsure}], unsure)[0]
    size = {i: width[i] * len(first[i]) // len(every[i]) for i in unsure}
    fits = [i for i in unsure if size[i] > 1 and size[i] * len(every[i]) == width[i] * len(first[i])]
    blocks = {i: np.split(np.arange(width[i]), width[i] // size[i]) for i in fits if width[i] % size[i] == 0}
    one, other = _ask(
        marking, [{i: of[start::2] for i, of in blocks.items() if len(of) > 1} for start in (0, 1)], unsure
    )
    return {i: blocks[i] for i in one if not one[i] & other[i]}


def _blocks(width: int) -> list[Block]:
    """At least `_BLOCKS` blocks of equal sizes that are powers of two; single channels where there are not as many."""
    size = 1
    while width % (2 * size) == 0 and width // (2 * size) >= _BLOCKS:
        size *= 2
    return np.split(np.arange(width), range(size, width, size))


def apart(unsure: Unsure) -> list[list[int]]:
    """Partition sources so that no two of a part reach the same reader: they may be marked in the same run."""
    parts: list[tuple[set[str], list[int]]] = []
    for i, where in unsure.items():
        for readers, members in parts:
            if not readers & set(where):
                readers.update(where)
                members.append(i)
                break
        else:
            parts.append((set(where), [i]))
    return [members for _, members in parts]


def ask_parts(
    marking: Marking, parts: Sequence[Sequence[int]], marked: Mapping[int, Channels]
) -> dict[int, dict[str, Channels]]:
    """The run, per source, in which those of its part are marked."""
    asked = [part for part in ([i for i in part if i in marked] for part in parts) if part]
    runs = marking.runs([{i: marked[i] for i in part} for part in asked])
    return {i: run for part, run in zip(asked, runs, strict=True) for i in part}
