"""Groups that share a reader of all their players, such as the one key and value head of many queries.

What is shared stays; the players that read it leave alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from shaprune.network.discovery.channels.channel_links import Links
from shaprune.network.discovery.channels.channel_mixing import Position
from shaprune.network.discovery.channels.sources import Source
from shaprune.network.layers.kinds import CHANNEL_KINDS, CONSUMERS
from shaprune.players.layer_costs import Layer
from shaprune.players.roles import Role

Node = tuple[str, Role, int]  # a layer, its side, and a channel
STAYS = "all players of {} read it, so that it stays"


def apart(
    sources: list[Source], links: Links, layers: dict[str, Layer], sides: Collection[tuple[str, Role]]
) -> list[set[Node]]:
    """The parts into which a group falls when what all of them read stays; none where it does not fall apart.

    Channels that reach the same positions make a part, where these parts share the group's positions out among them:
    the queries of each head. What reaches some of a part's positions only leaves with it. Of several ways to share
    them out, that in which the fewest channels stay is taken. Where whole groups of a convolution leave, what they
    read leaves with them: such a group of layers does not fall apart.

    Args:
        sources: what was marked.
        links: what reaches what.
        layers: all layers, by name.
        sides: the layers of the group, and on which side they are in it.
    """
    if any(layers[name].kind == "conv" and layers[name].by_group for name, _ in sides):
        return []
    reached: dict[Node, set[Position]] = defaultdict(set)
    for i, blocks, where in links.mixed:
        for block, positions in zip(blocks, where, strict=True):
            for channel in block.tolist():
                reached[sources[i].name, "out", channel] |= positions
    for i, channels, reader, at in links.pairs:
        for channel, position in zip(channels.tolist(), at.tolist(), strict=True):
            reached[sources[i].name, "out", channel].add((reader, position))
    parts: dict[frozenset[Position], set[Node]] = defaultdict(set)
    for node, positions in reached.items():
        if node[:2] in sides and layers[node[0]].kind in CHANNEL_KINDS:
            parts[frozenset(positions)].add(node)
    everywhere = frozenset[Position]().union(*parts)
    sizes = {positions: (len(positions), len(nodes)) for positions, nodes in parts.items()}
    ways = [[p for p in parts if sizes[p] == size] for size in set(sizes.values())]
    shared_out = [way for way in ways if len(way) > 1 and sorted(q for p in way for q in p) == sorted(everywhere)]
    best = max(shared_out, key=lambda way: sum(len(parts[p]) for p in way), default=[])
    found = []
    for part in best:
        own = set[Node]().union(*(inner for positions, inner in parts.items() if positions <= part))
        found.append(own | {(name, reading(layers[name]), channel) for name, channel in part})
    return found


def reading(layer: Layer) -> Role:
    """The role of a layer that reads channels."""
    if layer.kind == "stream_norm":
        return "norm"
    return "in" if layer.kind in CONSUMERS else "both"
