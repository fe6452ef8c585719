"""Players of a network: what can leave, and what leaves with it. Pure data, no torch.

A *group* is a set of channels that are coupled across layers (the producer's filters, the batch-norm between, the
consumers' input channels). Its players leave one by one; what one player owns in every member layer leaves together.
Blocks, the experts of a mixture and the single weights of a layer are groups, too, with roles of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, nearest
from shaprune.players.hf_fields import HfFields
from shaprune.players.layer_costs import Layer
from shaprune.players.player_documents import check_config, check_players
from shaprune.players.roles import PARTS, Part, Role
from shaprune.storage.tables import Table, Tabular

LayerCost = Callable[[Layer, Any, Any], Any]  # of a layer and its widths in and out, numbers or arrays


@dataclass(frozen=True)
class Member:
    """One layer's part in a group.

    Attributes:
        module: name of the layer in the model.
        role: ``"out"`` produces the channels, ``"in"`` consumes them, ``"both"`` passes them on one by one (norms,
            depthwise convolutions), ``"norm"`` by a statistic over all of them (LayerNorm, RMSNorm); ``"skip"`` is a
            block that is passed by, ``"expert"`` a list of experts, ``"weight"`` a layer whose single weights are
            players.
        channels: per player of the group, the channels (experts, entries of the flat weight) that it owns here.
    """

    module: str
    role: Role
    channels: tuple[tuple[int, ...], ...]

    def makes(self, layer: Layer) -> bool:
        """Whether what it owns is made here: filters, also of a depthwise convolution, or experts."""
        return self.part.made or layer.kind == "depthwise"

    @property
    def part(self) -> Part:
        """What a player owns here."""
        return PARTS[self.role]

    def left(self, layer: Layer, lost: Any) -> tuple[Any, Any]:
        """Channels (in, out) of the dense layer less ``lost`` of them, a number or an array."""
        return layer.n_in - lost * self.part.takes_in, layer.n_out - lost * self.part.takes_out

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """(players of the group,) number of channels that each player owns here."""
        return np.array([len(c) for c in self.channels], dtype=np.int64)

    def owners(self, width: int, offset: int, absent: int) -> NDArray[np.int64]:
        """(width,) which player owns each channel, counted from ``offset``; ``absent`` where none does."""
        result = np.full(width, absent, dtype=np.int64)
        for player, channels in enumerate(self.channels):
            result[list(channels)] = offset + player
        return result


@dataclass(frozen=True)
class Group:
    """Players that are scored together, such as coupled channels.

    Attributes:
        name: of coupled channels the first producer.
        indices: the positions of its players among all players.
        members: what the players own.
        labels: names of the players where they are not named after what they own.
    """

    name: str
    indices: NDArray[np.int64]
    members: tuple[Member, ...]
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers at whose inputs the mask stands."""
        return tuple(m for m in self.members if m.role == "in")

    @property
    def producers(self) -> tuple[Member, ...]:
        """The layers whose filters are the players."""
        return tuple(m for m in self.members if m.role == "out")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the players, such as ``conv2[17]``: the first layer with a channel of theirs, and that channel."""
        if self.labels:
            return self.labels
        first = [next(m for m in self.members if m.channels[i]) for i in range(len(self))]
        return tuple(f"{m.module}[{m.channels[i][0]}]" for i, m in enumerate(first))


@dataclass(frozen=True)
class Skipped:
    """A layer whose output channels are not players, and why; 0 channels where it is not about channels."""

    name: str
    channels: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.channels:,} channels)" if self.channels else self.name


@dataclass(frozen=True, eq=False, repr=False)
class Players(Tabular):
    """Everything that can leave a network, in a fixed order, and everything that cannot, with the reason.

    Attributes:
        groups: the groups of coupled channels, in order of execution.
        layers: every layer that the groups touch, by name.
        skipped: layers whose channels cannot or shall not leave.
        model_params, model_macs: the whole dense network's parameters and multiply-adds per example.
        model_bytes: of the whole dense network as a safetensors file, its header included; 0 = unknown.
        model_activations: bytes per example that the layers (convolutions, linear layers, norms, embeddings) of the
            dense network give out, over one forward pass; 0 = unknown.
        config: what the config.json of a Hugging Face model can say about these groups; None for other networks.
        weights: by resource that is a weighted sum, such as energy, weights to take instead of its own, see
            `shaprune.planning.resources.Resource`.
    """

    groups: tuple[Group, ...]
    layers: dict[str, Layer]
    skipped: tuple[Skipped, ...]
    model_params: int
    model_macs: float
    model_bytes: int = 0
    model_activations: float = 0.0
    config: HfFields | None = None
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of players."""
        return sum(len(g) for g in self.groups)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Player names, in player order."""
        return tuple(name for g in self.groups for name in g.names)

    @cached_property
    def params(self) -> NDArray[np.int64]:
        """(n,) parameters that leave when one player alone leaves the dense network."""
        return self.each(Layer.params).astype(np.int64)

    @cached_property
    def macs(self) -> NDArray[np.float64]:
        """(n,) multiply-adds per example that leave when one player alone leaves the dense network."""
        return self.each(Layer.macs)

    def group(self, name: str) -> Group:
        """The group of this name.

        Raises:
            InputError: unknown name, with the nearest one.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(f"no group {name!r}{nearest(name, [g.name for g in self.groups])}")

    def widths(self, kept: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
        """Channels (in, out) left in every touched layer when the players ``kept`` stay."""
        gone = [(group, ~kept[group.indices]) for group in self.groups]
        return self.widths_less((m, int(m.widths @ left)) for group, left in gone for m in group.members)

    def widths_less(self, losses: Iterable[tuple[Member, Any]]) -> dict[str, tuple[Any, Any]]:
        """Channels (in, out) left in every touched layer when members lose some of theirs, numbers or arrays."""
        left: dict[str, tuple[Any, Any]] = {name: (layer.n_in, layer.n_out) for name, layer in self.layers.items()}
        for member, lost in losses:
            part, (n_in, n_out) = member.part, left[member.module]
            left[member.module] = (n_in - lost if part.takes_in else n_in, n_out - lost if part.takes_out else n_out)
        for name, layer in self.layers.items():
            if layer.kind == "embedding":  # it reads indices: its one width is what it gives out
                left[name] = (left[name][1], left[name][1])
        return left

    def too_narrow(self, kept: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
        """Layers that could not run when the players ``kept`` stay: what would be left, and what must."""
        left = {name: min(widths) for name, widths in self.widths(kept).items()}
        return {name: (n, self.layers[name].least) for name, n in left.items() if n < self.layers[name].least}

    def needed(self) -> dict[int, str]:
        """Players that can never leave: without one of them alone a layer could not run; each with that layer."""
        found: dict[int, str] = {}
        for group in self.groups:
            for member in group.members:
                layer = self.layers[member.module]
                n_in, n_out = member.left(layer, member.widths)
                for i in group.indices[np.minimum(n_in, n_out) < layer.least].tolist():
                    found.setdefault(i, member.module)
        return found

    def cost(self, kept: NDArray[np.bool_]) -> tuple[int, float]:
        """Parameters and multiply-adds per example of the network in which the players ``kept`` stay."""
        left = self.widths(kept)
        params = self.at_widths(self.model_params, Layer.params, left)
        return params, self.at_widths(self.model_macs, Layer.macs, left)

    def at_widths(self, dense: Any, cost: LayerCost, widths: Mapping[str, tuple[Any, Any]]) -> Any:
        """What the network costs whose layers have these `widths`, if the dense one costs ``dense``; also of arrays."""
        for name, (n_in, n_out) in widths.items():
            layer = self.layers[name]
            dense += cost(layer, n_in, n_out) - cost(layer, layer.n_in, layer.n_out)
        return dense

    def each(self, cost: LayerCost) -> NDArray[np.float64]:
        """(n,) the cost that leaves when one player alone leaves the dense network; not to be written to."""
        known = self._each_by_cost
        if cost not in known:
            known[cost] = self._each(cost)
        return known[cost]

    @cached_property
    def _each_by_cost(self) -> dict[LayerCost, NDArray[np.float64]]:
        return {}

    def headline(self) -> str:
        """How many there are, and the size of the dense network."""
        return (
            f"{self.n} players in {len(self.groups)} groups; dense network: {self.model_params:,} parameters, "
            f"{self.model_macs:,.0f} multiply-adds per example"
        )

    def table(self) -> Table:
        """One row per group with the costs of its first player; below, what is skipped and why."""
        rows = [
            (
                g.name,
                len(g),
                int(self.params[g.indices[0]]),
                float(self.macs[g.indices[0]]),
                ", ".join(f"{m.module}:{m.role}" for m in g.members),
            )
            for g in self.groups
        ]
        columns = {"group": "", "players": "", "params/player": ",", "macs/player": ",.0f", "coupled layers": ""}
        skipped = [f"  {s}: {s.reason}" for s in self.skipped]
        return Table(columns, rows, (self.headline(), *(["not prunable:", *skipped] if skipped else [])))

    def records(self) -> Table:
        """One row per player: what leaves when it alone leaves the dense network."""
        columns = {"group": "", "player": "", "params": ",", "macs": ",.0f", "bytes": ",.0f", "activations": ",.0f"}
        groups = [g.name for g in self.groups for _ in g.indices]
        costs = (self.each(cost).tolist() for cost in (Layer.params, Layer.macs, Layer.bytes, Layer.activations))
        return Table(columns, list(zip(groups, self.names, *costs, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "groups": [
                {
                    "name": g.name,
                    "members": [
                        {"module": m.module, "role": m.role, "channels": [list(c) for c in m.channels]}
                        for m in g.members
                    ],
                    "labels": list(g.labels),
                }
                for g in self.groups
            ],
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "skipped": [[s.name, s.channels, s.reason] for s in self.skipped],
            "model_params": self.model_params,
            "model_macs": self.model_macs,
            "model_bytes": self.model_bytes,
            "model_activations": self.model_activations,
            "config": None if self.config is None else self.config.to_json(),
            "weights": {name: list(own) for name, own in self.weights.items()},
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Players:
        """Inverse of `to_json`.

        Raises:
            InputError: a field that is missing or of the wrong kind, or parts that do not fit together.
        """
        check_players(data)
        if data.get("config") is not None:
            check_config(data["config"], [g["name"] for g in data["groups"]])
        members = [
            (g["name"], [Member(m["module"], m["role"], tuple(map(tuple, m["channels"]))) for m in g["members"]])
            for g in data["groups"]
        ]
        labels = [tuple(g.get("labels", ())) for g in data["groups"]]
        known = {field.name for field in fields(Layer)}
        return Players(
            groups=tuple(replace(g, labels=own) for g, own in zip(number_groups(members), labels, strict=True)),
            layers={
                name: Layer(**{key: _frozen(entry) for key, entry in layer.items() if key in known})
                for name, layer in data["layers"].items()
            },
            skipped=tuple(Skipped(*s) for s in data["skipped"]),
            model_params=data["model_params"],
            model_macs=float(data["model_macs"]),
            model_bytes=data.get("model_bytes", 0),
            model_activations=float(data.get("model_activations", 0.0)),
            config=None if data.get("config") is None else HfFields.from_json(data["config"]),
            weights={name: tuple(own) for name, own in data.get("weights", {}).items()},
        )

    def _each(self, cost: LayerCost) -> NDArray[np.float64]:
        result = np.zeros(self.n)
        for group in self.groups:
            for member in group.members:
                layer = self.layers[member.module]
                n_in, n_out = member.left(layer, member.widths)
                dense = cost(layer, layer.n_in, layer.n_out)
                result[group.indices] += [dense - cost(layer, int(a), int(b)) for a, b in zip(n_in, n_out, strict=True)]
        return result


def _frozen(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, list) else entry


def check_channels(groups: Sequence[Group], what: str) -> None:
    """Check that all players are channels, at whose readers' inputs masks stand.

    Raises:
        InputError: naming the group, what its players are, and ``what`` needs channels.
    """
    for group in groups:
        for member in group.members:
            if member.part.unit:
                raise InputError(
                    f"{what} needs channels, and the players of group {group.name!r} are {member.part.plural}; "
                    "find_players with unit='channel', or do without"
                )


def number_groups(groups: Sequence[tuple[str, Sequence[Member]]]) -> tuple[Group, ...]:
    """Give consecutive player indices to groups of members."""
    result, start = [], 0
    for name, members in groups:
        size = len(members[0].channels)
        result.append(Group(name, np.arange(start, start + size), tuple(members)))
        start += size
    return tuple(result)
