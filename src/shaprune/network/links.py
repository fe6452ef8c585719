"""From marked runs to links: which channel of a source reaches which input channel of a reader.

All sources are marked at once with the bits of their channels' numbers, then with the bits of their own numbers: a
reader's channel that sees each bit in one polarity only is reached by one channel of one source, and both can be read
off. Where several sources meet (shortcuts), they are asked one by one; where the numbers differ, too (padded
shortcuts), each is marked alone with its channels' bits; and where one channel of a reader is reached by several of one
source (normalisation, attention), runs of neighbouring channels are marked. So a network of P layers with at most n
channels takes some 2 log2(P n) runs, plus a few per layer whose outputs are added or mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shaprune.network.marks import OUTPUT, Channels, Marking

_BLOCKS = 64  # runs of neighbouring channels that are tried first where channels are mixed
Position = tuple[str, int]  # a reader and one of its input channels


@dataclass
class Links:
    """What reaches what.

    Attributes:
        pairs: (source, channels (m,), reader, reader's channels (m,)): one to one.
        mixed: (source, sets of its channels, the positions that each set reaches): several channels reach one position.
        to_output: sources that reach the network's output.
        spread: layers whose every channel reaches all positions of some reader; axes of parameters, of all readers.
    """

    pairs: list[tuple[int, NDArray[np.int64], str, NDArray[np.int64]]] = field(default_factory=list)
    mixed: list[tuple[int, list[NDArray[np.int64]], list[set[Position]]]] = field(default_factory=list)
    to_output: set[int] = field(default_factory=set)
    spread: set[int] = field(default_factory=set)


def links_of(marking: Marking) -> Links:
    """Follow every source of ``marking`` to its readers."""
    links = Links()
    together = [i for i, s in enumerate(marking.sources) if s.alone]
    apart = [i for i, s in enumerate(marking.sources) if not s.alone]
    channel = _decode(marking, {i: np.arange(marking.sources[i].width) for i in together})
    source = _decode(marking, {i: np.full(marking.sources[i].width, i) for i in together})
    open_positions: dict[str, tuple[Channels, Channels]] = {}  # several sources; several numbers of channels
    for reader in source:
        number, which = channel[reader], source[reader]
        if reader == OUTPUT:
            links.to_output.update(int(i) for i in which.value[which.unique])
        else:
            sure = which.unique & number.unique
            for i in np.unique(which.value[sure]):
                at = np.flatnonzero(sure & (which.value == i))
                links.pairs.append((int(i), number.value[at], reader, at))
        several, mixed = which.ambiguous, number.ambiguous & (which.unique | which.ambiguous)
        open_positions[reader] = several, mixed & (reader != OUTPUT)
    asked = [i for i in together if any(_reaches(source[r], i, a | b).any() for r, (a, b) in open_positions.items())]
    reach = {i: marking.run({i: np.ones(marking.sources[i].width, dtype=bool)}) for i in (*asked, *apart)}
    unsure: dict[int, dict[str, Channels]] = {}
    for i in asked:
        for reader, (several, mixed) in open_positions.items():
            here = reach[i].get(reader)
            if here is None:
                continue
            if reader == OUTPUT:
                links.to_output.update({i} if here.any() else ())
                continue
            at = np.flatnonzero(here & several & ~mixed)
            if len(at):
                links.pairs.append((i, channel[reader].value[at], reader, at))
            if (here & mixed).any():
                unsure.setdefault(i, {})[reader] = here & mixed
    for i in apart:
        unsure[i] = {reader: here for reader, here in reach[i].items() if reader != OUTPUT and here.any()}
    _ask_alone(marking, {i: where for i, where in unsure.items() if where}, links)
    return links


@dataclass(frozen=True)
class _Code:
    """Per channel of a reader: the number that was read off; whether it is one, or several met."""

    ones: NDArray[np.bool_]  # (bits, channels): reached by a mark whose bit is set
    zeros: NDArray[np.bool_]

    @property
    def value(self) -> NDArray[np.int64]:
        return np.asarray((self.ones * (1 << np.arange(len(self.ones)))[:, None]).sum(0), dtype=np.int64)

    @property
    def unique(self) -> Channels:
        return np.asarray((self.ones ^ self.zeros).all(0))

    @property
    def ambiguous(self) -> Channels:
        return np.asarray((self.ones & self.zeros).any(0))


def _reaches(code: _Code, number: int, where: Channels) -> Channels:
    """Positions of ``where`` that a mark of this number may have reached."""
    seen = [(code.ones if number >> bit & 1 else code.zeros)[bit] for bit in range(len(code.ones))]
    return np.asarray(np.logical_and.reduce([*seen, where]))


def _decode(marking: Marking, numbers: dict[int, NDArray[np.int64]]) -> dict[str, _Code]:
    """Mark the channels whose number has a bit set, and those where it has not, for every bit."""
    bits = max([int(n.max()).bit_length() for n in numbers.values()] + [1])
    seen = [
        [marking.run({i: (n >> bit & 1) == polarity for i, n in numbers.items()}) for bit in range(bits)]
        for polarity in (0, 1)
    ]
    return {
        reader: _Code(*(np.array([run[reader] for run in seen[polarity]]) for polarity in (1, 0)))
        for reader in seen[0][0]
    }


def _ask_alone(marking: Marking, unsure: dict[int, dict[str, Channels]], links: Links) -> None:
    """Number the channels of single sources; sources that share no reader are marked in the same runs."""
    mixing: dict[int, dict[str, Channels]] = {}
    for together in _apart(unsure):
        _ask_whether_spread(marking, together, unsure, links)
    rest = {i: where for i, where in unsure.items() if i not in links.spread}
    for together in _apart(rest):
        codes = _decode(marking, {i: np.arange(marking.sources[i].width) for i in together})
        for i in together:
            for reader, where in unsure[i].items():
                code = codes[reader]
                at = np.flatnonzero(where & code.unique)
                if len(at):
                    links.pairs.append((i, code.value[at], reader, at))
                if (where & code.ambiguous).any():
                    mixing.setdefault(i, {})[reader] = where & code.ambiguous
    for together in _apart(mixing):
        _ask_blocks(marking, together, mixing, links)


def _apart(unsure: dict[int, dict[str, Channels]]) -> Iterator[list[int]]:
    """Partition sources so that no two of a part reach the same reader."""
    parts: list[tuple[set[str], list[int]]] = []
    for i, where in unsure.items():
        for readers, members in parts:
            if not readers & set(where):
                readers.update(where)
                members.append(i)
                break
        else:
            parts.append((set(where), [i]))
    yield from (members for _, members in parts)


def _ask_blocks(
    marking: Marking, together: Sequence[int], mixing: dict[int, dict[str, Channels]], links: Links
) -> None:
    """Find which neighbouring channels reach the same positions.

    Blocks are halved until they separate anything; channels of one block count as one, which can only couple too much,
    never too little.
    """
    width = {i: marking.sources[i].width for i in together}
    _ask_whether_spread(marking, together, mixing, links)
    rest = [i for i in together if i not in links.spread]
    size = {i: _block(width[i]) for i in rest}
    while rest:
        sets = {i: np.split(np.arange(width[i]), range(size[i], width[i], size[i])) for i in rest}
        seen: dict[int, list[set[Position]]] = {i: [] for i in rest}
        for block in range(max(len(s) for s in sets.values())):
            marked = {i: np.isin(np.arange(width[i]), sets[i][block]) for i in rest if block < len(sets[i])}
            run = marking.run(marked)
            for i in marked:
                seen[i].append(_positions(run, mixing[i]))
        for i in list(rest):
            if size[i] == 1 or _separated(seen[i]):
                links.mixed.append((i, sets[i], seen[i]))
                rest.remove(i)
            else:
                size[i] //= 2


def _ask_whether_spread(
    marking: Marking, together: Sequence[int], unsure: dict[int, dict[str, Channels]], links: Links
) -> None:
    """Find layers whose first channel, and whose last, reaches all positions of some reader (behind a LayerNorm, say).

    Then all channels hang together there, and where they go beside it does not matter. An axis of a parameter must do
    so in all readers: it is then no channel axis. Of a table that is longer than the example, the first and the last
    entry that are read are asked.
    """
    everywhere = {i: set(unsure[i]) for i in together}  # readers that every channel asked so far reaches as a whole
    for last in (False, True):
        asked = {i: unsure[i] for i, readers in everywhere.items() if readers}
        for i, run in _end(marking, asked, last=last).items():
            left = {r for r in everywhere[i] if (run[r] | ~unsure[i][r]).all()}
            everywhere[i] = left if marking.sources[i].is_layer or left == set(unsure[i]) else set()
    for i in (i for i, readers in everywhere.items() if readers):
        links.spread.add(i)
        links.mixed.append((i, [np.arange(marking.sources[i].width)], [_positions(unsure[i], unsure[i])]))


def _end(
    marking: Marking, unsure: Mapping[int, Mapping[str, Channels]], *, last: bool
) -> dict[int, dict[str, Channels]]:
    """What the first channel of each source reaches, or the ``last``: of those that reach anything at all.

    Where the very first reaches nothing, halves of the others are asked, all sources in the same runs.
    """
    width = {i: marking.sources[i].width for i in unsure}

    def ask(ranges: Mapping[int, tuple[int, int]]) -> dict[int, dict[str, Channels]]:
        numbers = {i: np.arange(width[i])[:: -1 if last else 1] for i in ranges}
        run = marking.run({i: (numbers[i] >= low) & (numbers[i] <= high) for i, (low, high) in ranges.items()})
        return dict.fromkeys(ranges, run)

    def reaches(i: int, run: Mapping[str, Channels]) -> bool:
        return any((run[reader] & where).any() for reader, where in unsure[i].items())

    found = ask(dict.fromkeys(unsure, (0, 0))) if unsure else {}
    between = {i: (1, width[i] - 1) for i, run in found.items() if not reaches(i, run)}
    late = list(between)
    while halves := {i: (low, (low + high) // 2) for i, (low, high) in between.items() if low < high}:
        for i, run in ask(halves).items():
            middle, high = halves[i][1], between[i][1]
            between[i] = (between[i][0], middle) if reaches(i, run) else (middle + 1, high)
    return found | (ask({i: between[i] for i in late}) if late else {})


def _positions(run: dict[str, Channels], where: dict[str, Channels]) -> set[Position]:
    return {(reader, int(c)) for reader, mask in where.items() for c in np.flatnonzero(run[reader] & mask)}


def _block(width: int) -> int:
    """The largest power of two that divides the width into at least `_BLOCKS` blocks."""
    size = 1
    while width % (2 * size) == 0 and width // (2 * size) >= _BLOCKS:
        size *= 2
    return size


def _separated(reached: Iterable[set[Position]]) -> bool:
    """Whether some of the sets have nothing to do with the others."""
    parts: list[set[Position]] = []
    for positions in reached:
        if not positions:
            continue
        merged = set(positions)
        apart = []
        for part in parts:
            if part & merged:
                merged |= part
            else:
                apart.append(part)
        parts = [*apart, merged]
    return len(parts) > 1
