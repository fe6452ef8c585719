"""Links read from marked runs: which channel of a source reaches which input channel of a reader.

All sources are marked at once with the bits of their channels' numbers, then with the bits of their own numbers: a
reader's channel that sees each bit in one polarity only is reached by one channel of one source, and both can be read
off. Where several sources meet (shortcuts), they are asked one by one; where the numbers differ, too (padded
shortcuts), and where marks lead past a layer (to another expert), each is marked alone with its channels' bits; and
where one channel of a reader is reached by several of one source (normalisation, attention), runs of neighbouring
channels are marked. So a network of P layers with at most n channels takes some 2 log2(P n) runs, plus a few per layer
whose outputs are added or mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shaprune.network.discovery.channels.channel_mixing import Position, apart, ask_parts, met, positions_of, spread_of
from shaprune.network.discovery.channels.nan_marking import OUTPUT, Channels, Marking

Mixed = tuple[int, list[NDArray[np.int64]], list[set[Position]]]


@dataclass
class Links:
    """What reaches what.

    Attributes:
        pairs: (source, channels (m,), reader, reader's channels (m,)): one to one.
        mixed: (source, sets of its channels, the positions that each set reaches): several channels reach one position.
        to_output: sources that reach the network's output.
        passed: layers that sources pass channel by channel, on another axis than the layer's own.
        spread: layers whose every channel reaches all positions of some reader; axes of parameters, of all readers.
    """

    pairs: list[tuple[int, NDArray[np.int64], str, NDArray[np.int64]]] = field(default_factory=list)
    mixed: list[Mixed] = field(default_factory=list)
    to_output: set[int] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    spread: set[int] = field(default_factory=set)


def links_of(marking: Marking) -> Links:
    """Follow every source of ``marking`` to its readers.

    Sources that pass a layer channel by channel, on another axis than the layer's own, are followed again, past it.
    """
    links = Links()
    waiting = {frozenset[str](): list(range(len(marking.sources)))} if marking.sources else {}
    while waiting:
        past = min(waiting, key=lambda layers: min(waiting[layers]))  # in order of execution, then parameters
        sources = _that_may_pass(marking, past, waiting.pop(past), links)
        for i, layers in (_follow(marking.past(past), sources, links) if sources else {}).items():
            waiting.setdefault(past | layers, []).append(i)
    for k, (i, _, _) in enumerate(links.mixed):
        if marking.sources[i].name in links.passed:
            links.mixed[k] = _whole(marking, i)
    return links


def _that_may_pass(marking: Marking, past: frozenset[str], sources: Sequence[int], links: Links) -> list[int]:
    """Those sources that may pass these layers; others hang together.

    Of two axes, the channels of one can leave: those of the layer that runs first. A layer that they pass stays where
    it passes them, and a parameter passes what some layer passes.
    """
    named = {i: marking.sources[i].name for i in sources if marking.sources[i].is_layer}
    layers = {i for i, name in named.items() if not past or name not in links.passed}
    links.passed |= past if layers else frozenset()
    chosen = [i for i in sources if i in layers or (i not in named and past <= links.passed)]
    for i in set(sources).difference(chosen):
        links.spread.add(i)
        links.mixed.append(_whole(marking, i))
    return chosen


def _whole(marking: Marking, source: int, where: set[Position] | None = None) -> Mixed:
    """All channels of a source hang together, and with these positions."""
    return source, [np.arange(marking.sources[source].width)], [where or set()]


def _follow(marking: Marking, sources: Sequence[int], links: Links) -> dict[int, frozenset[str]]:
    """Follow some sources; return the layers that single ones of them pass channel by channel."""
    together = [i for i in sources if marking.sources[i].alone]
    widths = {i: marking.sources[i].width for i in together}
    numbered = {i: np.arange(width) for i, width in widths.items()}, {i: np.full(w, i) for i, w in widths.items()}
    channel, source = _decode(marking, numbered)
    others = [i for i in sources if not marking.sources[i].alone or marking.missed(marking.sources[i].name)]
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
    open_to: dict[int, dict[str, Channels]] = {}  # where each source may be one of several
    for i in together:
        may = {r: _reaches(source[r], i, several | mixed) for r, (several, mixed) in open_positions.items()}
        open_to |= (
            {i: {r: where for r, where in may.items() if where.any()}} if any(w.any() for w in may.values()) else {}
        )
    parts = [*apart(open_to), *([i] for i in others)]
    every = {i: np.ones(marking.sources[i].width, dtype=bool) for part in parts for i in part}
    runs = marking.runs([{i: every[i] for i in part} for part in parts])
    reach = {i: run for part, run in zip(parts, runs, strict=True) for i in part}
    unsure: dict[int, dict[str, Channels]] = {}
    for i, may in open_to.items():
        for reader, where in may.items():
            several, mixed = open_positions[reader]
            here = reach[i][reader] & where
            if reader == OUTPUT:
                links.to_output.update({i} if here.any() else ())
                continue
            at = np.flatnonzero(here & several & ~mixed)
            if len(at):
                links.pairs.append((i, channel[reader].value[at], reader, at))
            if (here & mixed).any():
                unsure.setdefault(i, {})[reader] = here & mixed
    for i in others:
        unsure[i] = {reader: here for reader, here in reach[i].items() if reader != OUTPUT and here.any()}
        if marking.sources[i].is_layer and reach[i][OUTPUT].any():
            links.to_output.add(i)
    wide = {i: where for i, where in unsure.items() if where and marking.sources[i].width > 1}
    return _ask_alone(marking, wide, links)


@dataclass(frozen=True)
class _DecodedChannels:
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


def _reaches(code: _DecodedChannels, number: int, where: Channels) -> Channels:
    """Positions of ``where`` that a mark of this number may have reached."""
    seen = [(code.ones if number >> bit & 1 else code.zeros)[bit] for bit in range(len(code.ones))]
    return np.asarray(np.logical_and.reduce([*seen, where]))


def _decode(marking: Marking, numbered: Sequence[dict[int, NDArray[np.int64]]]) -> list[dict[str, _DecodedChannels]]:
    """Mark the channels whose number has a bit set, and those where it has not, for every bit of every numbering."""
    bits = [max([int(n.max()).bit_length() for n in numbers.values()] + [1]) for numbers in numbered]
    marks = [
        {i: (n >> bit & 1) == polarity for i, n in numbers.items()}
        for numbers, many in zip(numbered, bits, strict=True)
        for polarity in (0, 1)
        for bit in range(many)
    ]
    runs = iter(marking.runs(marks))
    found = []
    for many in bits:
        zeros, ones = ([next(runs) for _ in range(many)] for _ in (0, 1))
        found.append(
            {r: _DecodedChannels(*(np.array([run[r] for run in seen]) for seen in (ones, zeros))) for r in zeros[0]}
        )
    return found


def _ask_alone(marking: Marking, unsure: dict[int, dict[str, Channels]], links: Links) -> dict[int, frozenset[str]]:
    """Number the channels of single sources; sources that share no reader are marked in the same runs."""
    passing: dict[int, frozenset[str]] = {}
    _ask_whether_spread(marking, unsure, links, passing)
    mixing, in_question = _mixed(marking, _left(unsure, links))
    parts = apart(in_question)
    numbered = [{i: np.arange(marking.sources[i].width) for i in together} for together in parts]
    for together, codes in zip(parts, _decode(marking, numbered), strict=True):
        for i in together:
            for reader, where in unsure[i].items():
                code = codes[reader]
                at = np.flatnonzero(where & code.unique)
                if len(at):
                    links.pairs.append((i, code.value[at], reader, at))
                if (where & code.ambiguous).any():
                    mixing.setdefault(i, {})[reader] = where & code.ambiguous
    _ask_whether_spread(marking, mixing, links, passing)
    for i, entries in met(marking, _left(mixing, links)).items():
        links.mixed.append((i, [block for block, _ in entries], [positions for _, positions in entries]))
    new = {i: layers - marking.passed for i, layers in passing.items() if i not in links.spread}
    return {i: layers for i, layers in new.items() if layers}


def _mixed(
    marking: Marking, unsure: dict[int, dict[str, Channels]]
) -> tuple[dict[int, dict[str, Channels]], dict[int, dict[str, Channels]]]:
    """Split sources into those of which even and odd channels reach every position in question, and the others."""
    parts = apart(unsure)
    odd = {i: np.arange(marking.sources[i].width) % 2 == 1 for i in unsure}
    ones, zeros = (ask_parts(marking, parts, which) for which in (odd, {i: ~which for i, which in odd.items()}))
    mixed = {
        i: where
        for i, where in unsure.items()
        if all((ones[i][reader] & zeros[i][reader] | ~at).all() for reader, at in where.items())
    }
    return mixed, {i: where for i, where in unsure.items() if i not in mixed}


def _left(unsure: dict[int, dict[str, Channels]], links: Links) -> dict[int, dict[str, Channels]]:
    return {i: where for i, where in unsure.items() if where and i not in links.spread}


def _ask_whether_spread(
    marking: Marking, unsure: dict[int, dict[str, Channels]], links: Links, passing: dict[int, frozenset[str]]
) -> None:
    """Note sources all of whose channels hang together; drop the readers that others pass channel by channel.

    Where the former go beside the mixing does not matter. What has passed a layer on its own axis stands on another one
    than the channels of the readers behind it: it hangs together with none of these.
    """
    spread, passed = spread_of(marking, unsure)
    for i in spread:
        links.spread.add(i)
        links.mixed.append(_whole(marking, i, set() if marking.passed else positions_of(unsure[i], unsure[i])))
    for i, readers in passed.items():
        passing[i] = passing.get(i, frozenset()) | {r for r in readers if marking.is_maker(r)}
        for reader in readers:
            del unsure[i][reader]
