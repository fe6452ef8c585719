"""Units: which coupled groups a unit names, and which units are no coupled channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shaprune.errors import InputError, check_choice
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member
from shaprune.players.roles import SPECIAL_UNITS

Layers = Mapping[str, Layer]


def _makers(members: Sequence[Member]) -> list[Member]:
    return [m for m in members if m.role == "out"]


def _readers(members: Sequence[Member]) -> list[Member]:
    return [m for m in members if m.role == "in"]


def are_heads(members: Sequence[Member], layers: Layers) -> bool:
    """Attention heads: several neurons of linear layers each, read by several inputs of linear layers.

    A column of an embedding may leave with each of them: its biases of relative positions.
    """
    made = _makers(members)
    biases = [m for m in made if layers[m.module].kind == "embedding"]
    sides = [*(m for m in made if m not in biases), *_readers(members)]
    return (
        len(made) > len(biases)
        and all(layers[m.module].kind == "linear" and bool((m.widths > 1).all()) for m in sides)
        and all(bool((m.widths == 1).all()) for m in biases)
        and not are_gated(members, layers)
    )


def are_gated(members: Sequence[Member], layers: Layers) -> bool:
    """Neurons of one linear layer that makes their gates, too: in its other half, or beside each of them."""
    made, read = _makers(members), _readers(members)
    if len(made) != 1 or not read or layers[made[0].module].kind != "linear":
        return False
    half = layers[made[0].module].n_out // 2

    def gated(own: tuple[int, ...], n: int) -> bool:
        first, second = own[:n], own[n:]
        beside = n == 1 and second == (own[0] + 1,)  # with more they may be queries, keys and values
        return beside or second == tuple(i + half for i in first)

    return all(gated(own, len(used)) for m in read for own, used in zip(made[0].channels, m.channels, strict=True))


def are_neurons(members: Sequence[Member], layers: Layers) -> bool:
    """Neurons: one output of linear layers each, or two where a layer makes their gates, too."""
    return _are_linear(members, layers) and not are_hidden(members, layers)


def are_feed_forward(members: Sequence[Member], layers: Layers) -> bool:
    """Hidden neurons of a feed-forward block, which writes as many features as it reads."""
    read = {layers[m.module].n_in for m in _makers(members)}
    written = {layers[m.module].n_out for m in _readers(members)}
    return _are_linear(members, layers) and len(read) == 1 and read == written


def are_hidden(members: Sequence[Member], layers: Layers) -> bool:
    """Channels of a stream: norms run over them, and they are no neurons of a feed-forward block."""
    return any(m.role == "norm" for m in members) and not (
        are_feed_forward(members, layers) or are_heads(members, layers)
    )


def _are_linear(members: Sequence[Member], layers: Layers) -> bool:
    """One output of linear layers each, or two where a layer makes their gates, too."""
    made = _makers(members)
    alone = all(layers[m.module].kind == "linear" and bool((m.widths == 1).all()) for m in made)
    return bool(made) and (alone or are_gated(members, layers))


def are_recurrent(members: Sequence[Member], layers: Layers) -> bool:
    """Units of recurrent layers."""
    return any(layers[m.module].kind == "recurrent" for m in _makers(members))


CHANNEL_UNITS: dict[str, Callable[[Sequence[Member], Layers], bool]] = {
    "channel": lambda members, layers: True,  # the smallest sets of channels that can leave, of whatever layer
    "neuron": are_neurons,
    "ffn": are_feed_forward,
    "head": are_heads,
    "hidden": are_hidden,
    "recurrent": are_recurrent,
}


def special_unit(unit: str | Sequence[str]) -> str | None:
    """The one of `SPECIAL_UNITS` that is asked for; None for coupled channels.

    Raises:
        InputError: an unknown unit, with the nearest name; or one of these beside another.
    """
    names = [unit] if isinstance(unit, str) else list(unit)
    for name in names:
        check_choice("unit", name, (*CHANNEL_UNITS, *SPECIAL_UNITS))
    found = [name for name in names if name in SPECIAL_UNITS]
    if found and len(names) > 1:
        raise InputError(
            f"unit={names!r}: {found[0]!r} goes with no other unit, only {', '.join(CHANNEL_UNITS)} go together; "
            "find_players once for each"
        )
    return found[0] if found else None


def has_unit(unit: str | Sequence[str]) -> Callable[[Sequence[Member], Layers], bool]:
    """Whether a coupled group consists of such units.

    Raises:
        InputError: an unknown unit, with the nearest name.
    """
    names = [unit] if isinstance(unit, str) else list(unit)
    if not names:
        raise InputError("unit is empty; name at least one")
    for name in names:
        check_choice("unit", name, CHANNEL_UNITS)
    return lambda members, layers: any(CHANNEL_UNITS[name](members, layers) for name in names)
