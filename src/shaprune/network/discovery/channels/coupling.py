"""Coupled channels: the sets that can only leave together, in every layer.

Channels that reach the same input channel of a layer leave together (see
`shaprune.network.discovery.channels.channel_links`), and so do channels that share a slot of a grouped convolution. One
rule covers shortcuts, concatenations, splits, flattening, gates, padded shortcuts, groups of a group norm, and
attention: a head is the smallest set of its channels that can leave. torch-pruning's graph, which this replaces, gets
    padded shortcuts, parameters outside layers and attention wrong.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from shaprune.errors import InputError
from shaprune.network.batches import Inputs
from shaprune.network.discovery.channels.channel_links import Links, links_of
from shaprune.network.discovery.channels.nan_marking import Lost, Marking
from shaprune.network.discovery.channels.shared_readers import STAYS, apart, reading
from shaprune.network.discovery.channels.skip_reasons import functional, not_followed, why_not_grouped
from shaprune.network.discovery.channels.sources import Source
from shaprune.network.discovery.channels.stream_norms import find_norms
from shaprune.network.discovery.channels.tied_weights import (
    tied_channels,
    tied_otherwise,
    tied_to_input,
    with_tied,
)
from shaprune.network.discovery.channels.unread_reasons import (
    UNREAD,
    reader_without_a_mask,
    unread_layers,
    why_unread,
)
from shaprune.network.discovery.few_examples import more_examples
from shaprune.network.layers.kinds import CHANNEL_KINDS, CONSUMERS, measured
from shaprune.network.layers.used_parameters import modules_used
from shaprune.network.shared_weights import SharedParameters, shared_parameters
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Skipped
from shaprune.players.roles import Role

_NOT_RUN = "it does not run on the first of the example inputs, on which channels are followed"
_MAP_BACK = "; shaprune.builtin.map_back(model, example_inputs) puts a map behind it that a refit fits"
_TOGETHER = "all its channels can only leave together"
_Side = tuple[str, Role]
_Node = tuple[str, Role, int]
N = TypeVar("N", bound=Hashable)
_SIDES: tuple[Role, ...] = ("in", "both", "norm")


def find_candidates(
    copy: nn.Module, inputs: Inputs, few: Inputs, *, max_seconds: float, max_memory: int
) -> tuple[list[Candidate], list[Skipped], dict[str, Layer], Inputs]:
    """Find coupled groups in a private copy of a model.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs for one forward pass.
        few: those on which channels are followed, see `few_examples`.
        max_seconds, max_memory: bounds, in bytes for the activations.

    Returns:
        Candidates in order of execution; every convolution, linear layer and embedding that is in none of them, with
        the reason; the costs of all layers that ran; and the examples on which channels were followed: ``few``, or more
        where some layer's output reached nothing on these.

    Raises:
        InputError: the bounds are passed.
    """
    ran, odd = measured(copy, inputs)
    ran |= find_norms(copy, few)
    shared = shared_parameters(copy)
    ran = with_tied(shared, ran)
    marking, links = _followed(copy, few, ran, max_seconds, max_memory)
    more = more_examples(copy, inputs, few)
    if more is not None and (unread := unread_layers(marking, links)):
        again = _followed(copy, more, ran, max_seconds, max_memory)
        if len(unread_layers(*again)) < len(unread):
            (marking, links), few = again, more
    layers = marking.layers | _parameters(copy, marking.sources)
    sets = _coupled(copy, marking.sources, links, layers, shared)
    groups = list(_groups(sets, list(layers)))
    to_output = {marking.sources[i].name for i in links.to_output if marking.sources[i].is_layer}
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    owned: Counter[str] = Counter()  # channels of each layer that are in a group
    read = _input_reaches(marking)
    for sides, parts in groups:
        candidate = _candidate(sides, parts, read)
        reason = _refusal(copy, sides, parts, layers, shared, to_output) or tied_to_input(shared, sides, read)
        if reason == _TOGETHER:
            sets_apart = apart(marking.sources, links, layers, sides)
            finer = [
                _candidate(*group, read)
                for group in _groups(sets_apart, list(layers))
                if _refusal(copy, *group, layers, shared, to_output) is None
            ]
            found += finer
            if finer:
                skipped += _without(candidate, finer, layers)
                owned.update({made.name: made.channels for made in candidate.skipped(layers, "")})
                continue
            reason = _mixing(marking, sides[0][0], ran)
        if reason is not None and marking.is_silent(sides[0][0]):
            reason = _NOT_RUN
        if reason == UNREAD:
            reason = why_unread(marking, layers, sides[0][0])
        if reason is None:
            found.append(candidate)
        skipped += candidate.skipped(layers, reason) if reason is not None else []
        for made in candidate.skipped(layers, ""):
            owned[made.name] += made.channels
    for name, layer in layers.items():
        left = layer.n_out - owned[name] if layer.kind in CHANNEL_KINDS else 0
        if left:
            reason = _NOT_RUN if marking.is_silent(name) else why_not_grouped(name, layer, owned[name], to_output, read)
            reason = why_unread(marking, layers, name) if reason == UNREAD else reason
            skipped.append(Skipped(name, left, reason))
    grouped = {name for sides, _ in groups for name, _ in sides}
    skipped += functional(copy, grouped)
    skipped += not_followed(copy, marking, layers, odd)
    return found, skipped, ran | layers, few


def _followed(
    copy: nn.Module, inputs: Inputs, ran: dict[str, Layer], max_seconds: float, max_memory: int
) -> tuple[Marking, Links]:
    """Follow channels; a module in which marks lead another way (a router's experts) is not looked into."""
    whole: list[str] = []
    started = time.monotonic()
    while True:
        marking = Marking(copy, inputs, ran, max_seconds, max_memory, whole)
        marking.started = started
        try:
            return marking, links_of(marking)
        except Lost as lost:
            module = lost.module
            while module in whole:
                module = module.rpartition(".")[0]
            if not module:
                raise InputError(
                    f"the channels of this model cannot be followed: where some are NaN it breaks at {lost}; wrap the "
                    "model so that this part stays outside"
                ) from lost
            whole.append(module)


def _without(candidate: Candidate, finer: list[Candidate], layers: dict[str, Layer]) -> list[Skipped]:
    """What stays of a candidate when parts of it are candidates."""
    leave: Counter[str] = Counter()
    for made in (made for part in finer for made in part.skipped(layers, "")):
        leave[made.name] += made.channels
    stay = candidate.skipped(layers, STAYS.format(repr(finer[0].name)))
    return [replace(s, channels=s.channels - leave[s.name]) for s in stay if s.channels > leave[s.name]]


def _parameters(copy: nn.Module, sources: list[Source]) -> dict[str, Layer]:
    """Parameters and buffers outside layers, as layers that are cut along one axis."""
    tensors = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
    counted = {name for name, _ in copy.named_parameters()}
    stored = set(copy.state_dict())
    found = {}
    for source in sources:
        if source.axis is not None:
            tensor = tensors[source.name]
            each = tensor.numel() // source.width
            weights, buffers = (each, 0) if source.name in counted else (0, each * tensor.element_size())
            found[_key(source)] = Layer(
                "parameter",
                source.width,
                source.width,
                1,
                weights,
                False,
                0.0,
                source.axis,
                itemsize=tensor.element_size(),
                buffers=buffers if source.name in stored else 0,
            )
    return found


def _key(source: Source) -> str:
    return source.name if source.axis is None or source.alone else f"{source.name}@{source.axis}"


def _coupled(
    copy: nn.Module, sources: list[Source], links: Links, layers: dict[str, Layer], tied: SharedParameters
) -> list[set[_Node]]:
    """Sets of channels that can only leave together."""
    joined = _UnionFind[_Node]()
    vectors = _UnionFind[tuple[str, Role, bytes]]()  # channels in order, which are joined one by one
    shared: dict[_Node, list[_Node]] = defaultdict(list)  # channel of a norm -> who reaches it together with others
    couples = [source.width > 1 for source in sources]  # one channel alone can never leave: nothing leaves with it
    for i, channels, reader, positions in links.pairs:
        if not couples[i]:
            continue
        role = reading(layers[reader])
        if not vectors.join((*_making(sources[i], 0)[:2], channels.tobytes()), (reader, role, positions.tobytes())):
            continue
        for a, b in zip(channels.tolist(), positions.tolist(), strict=True):
            joined.join(_making(sources[i], a), (reader, role, b))
    for i, blocks, reached in links.mixed:
        if not couples[i] or (not sources[i].is_layer and i in links.spread):
            continue  # an axis that is no channel axis (positions, entries of a table)
        for block, where in zip(blocks, reached, strict=True):
            first = _making(sources[i], int(block[0]))
            for channel in block.tolist()[1:]:
                joined.join(first, _making(sources[i], channel))
            for reader, position in where:
                if layers[reader].kind in CHANNEL_KINDS:
                    joined.join(first, (reader, reading(layers[reader]), position))
                else:
                    shared[reader, reading(layers[reader]), position].append(first)
    for name, layer in layers.items():
        norm = copy.get_submodule(name) if layer.kind == "norm" else None
        if isinstance(norm, nn.GroupNorm):
            size = norm.num_channels // norm.num_groups
            for channel in range(layer.n_in):
                joined.join((name, "both", channel - channel % size), (name, "both", channel))
        if layer.kind == "recurrent":  # unit j of both directions
            units = layer.n_out // layer.groups
            for channel in range(units, layer.n_out):
                joined.join((name, "out", channel % units), (name, "out", channel))
        if layer.kind == "conv" and layer.groups > 1:
            _join_groups(joined, name, layer)
    for source in sources:
        _join_own(joined, copy, source, layers)
    for a, b in tied_channels(copy, tied, layers):
        joined.join(a, b)
    for norm_channel, nodes in shared.items():
        if len({joined.find(node) for node in nodes}) == 1:  # a norm that all heads share stays whole
            joined.join(nodes[0], norm_channel)
    return joined.sets()


def _join_groups(joined: _UnionFind[_Node], name: str, layer: Layer) -> None:
    """Couple what leaves a convolution in groups at once: a channel of every group, or a group as a whole."""
    for role, width in _sides_of(layer):
        slots = width // layer.groups
        for channel in range(width):
            whole: _Node = (name, "in", channel // slots * (layer.n_in // layer.groups))
            joined.join(whole if layer.by_group else (name, role, channel % slots), (name, role, channel))


def _join_own(joined: _UnionFind[_Node], copy: nn.Module, source: Source, layers: dict[str, Layer]) -> None:
    """Couple an axis of a layer's own parameter (of an adapter, say) with the side of the layer that is as wide.

    Where both sides are, the axis in front is that of the outputs, as in a weight. A wrong guess is refused by name. A
    parameter that has both stays, because costs are counted along one axis.
    """
    name, _, own = source.name.rpartition(".")
    layer = layers.get(name)
    if source.is_layer or layer is None or layer.kind not in CONSUMERS or layer.groups > 1:
        return
    parameter = copy.get_submodule(name)._parameters.get(own)
    if parameter is not None and sum(size in (layer.n_in, layer.n_out) for size in parameter.shape) > 1:
        return
    sides: list[Role] = [role for role, width in _sides_of(layer) if width == source.width]
    if sides:
        role = sides[0] if source.axis == 0 else sides[-1]
        for channel in range(source.width):
            joined.join((name, role, channel), (_key(source), "both", channel))


def _sides_of(layer: Layer) -> tuple[tuple[Role, int], tuple[Role, int]]:
    return ("out", layer.n_out), ("in", layer.n_in)


def _making(source: Source, channel: int) -> _Node:
    return _key(source), "out" if source.is_layer else "both", channel


class _UnionFind(Generic[N]):
    """Union of sets of nodes."""

    def __init__(self) -> None:
        self.leader: dict[N, N] = {}

    def find(self, node: N) -> N:
        path = [node]
        while (above := self.leader.setdefault(node, node)) != node:
            node = above
            path.append(node)
        for below in path:
            self.leader[below] = node
        return node

    def join(self, a: N, b: N) -> bool:
        """Join the sets of two nodes; whether they were two."""
        first, second = self.find(b), self.find(a)
        self.leader[first] = second
        return first != second

    def sets(self) -> list[set[N]]:
        found: dict[N, set[N]] = defaultdict(set)
        for node in list(self.leader):
            found[self.find(node)].add(node)
        return list(found.values())


def _groups(sets: list[set[_Node]], order: list[str]) -> Iterator[tuple[list[_Side], list[set[_Node]]]]:
    """Sets that take channels from the same layers, in order of execution: their sides, and the sets as parts."""
    place = {name: i for i, name in enumerate(order)}
    parts = [part for part in sets if any(role == "out" for _, role, _ in part)]
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    made = [sorted({name for name, role, _ in part if role == "out"}, key=place.__getitem__) for part in parts]
    for names in made:
        for name in names[1:]:
            leader[find(name)] = find(names[0])
    together: dict[str, list[set[_Node]]] = defaultdict(list)
    for names, part in zip(made, parts, strict=True):
        together[find(names[0])].append(part)
    result = []
    for members in together.values():
        sides = {(name, role) for part in members for name, role, _ in part}
        ordered = sorted(sides, key=lambda s: (place[s[0]], s[1]))
        first = next(s for s in ordered if s[1] == "out")
        ordered = [first, *(s for s in ordered if s != first)]
        rank = {side: i for i, side in enumerate(ordered)}
        members.sort(key=lambda part: min((rank[name, role], channel) for name, role, channel in part))
        result.append((ordered, members))
    yield from sorted(result, key=lambda r: place[r[0][0][0]])


def _refusal(
    copy: nn.Module,
    sides: list[_Side],
    parts: list[set[_Node]],
    layers: dict[str, Layer],
    shared: SharedParameters,
    to_output: set[str],
) -> str | None:
    """Why a group cannot be pruned."""
    names = list(dict.fromkeys(name for name, _ in sides))
    if any(name in to_output for name, role in sides if role == "out"):
        return "it feeds the network's output" + (_MAP_BACK if any(role == "norm" for _, role in sides) else "")
    for name, role in sides:
        other = tied_otherwise(copy, shared, layers, name, role)
        if other is not None:
            return f"{name} shares its weight with {other}"
        if layers[name].kind != "parameter" and is_parametrized(copy.get_submodule(name)):
            return (
                f"{name} is parametrized; call torch.nn.utils.parametrize.remove_parametrizations on it first, or "
                "shaprune.builtin.plain_layers(model, example_inputs)"
            )
    if len(parts) > 1 and len({name.partition("@")[0] for name in names}) < len(names):
        return "a parameter would be cut along two axes"
    if not any(role == "in" for _, role in sides):
        return UNREAD
    return None if len(parts) > 1 else _TOGETHER


def _mixing(marking: Marking, producer: str, ran: Collection[str]) -> str:
    """Why all channels of a group's first producer hang together."""
    mixer = marking.mixer([s.name for s in marking.sources].index(producer))
    if mixer is not None:
        return f"{_TOGETHER}: {mixer} mixes channels, so a mask is not a removal"
    uncalled = sorted(modules_used(marking.model, marking.inputs).difference(ran))
    what = reader_without_a_mask(marking, producer, uncalled) or "the network's code mixes them"
    return f"{_TOGETHER}: {what}"


def _input_reaches(marking: Marking) -> set[_Node]:
    """The channels that layers read, or read together with another source, from the network's input."""
    try:
        reached = marking.run({}, inputs=True)
    except Exception:
        return set()  # a network that takes no NaN: what is refused is refused without this reason
    return {(name, role, int(c)) for name, which in reached.items() for c in np.flatnonzero(which) for role in _SIDES}


def _candidate(sides: list[_Side], parts: list[set[_Node]], of_input: set[_Node]) -> Candidate:
    owned: dict[_Side, list[tuple[int, ...]]] = {side: [] for side in sides}
    for part in parts:
        channels: dict[_Side, list[int]] = {side: [] for side in sides}
        for name, role, channel in part:
            channels[name, role].append(channel)
        for side, found in channels.items():
            owned[side].append(tuple(sorted(found)))
    members = [Member(name, role, tuple(channels)) for (name, role), channels in owned.items()]
    return Candidate(sides[0][0], tuple(members), any(part & of_input for part in parts))
