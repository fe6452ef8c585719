"""Resources: what a budget can limit, one row of a table each, predicted from the players alone. NumPy only, no torch.

A row has what a layer costs at given widths and what the dense network costs, or is a weighted sum of other rows. The
costs of coalitions, of single players, of whole paths and of the options of a knapsack all follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, check_choice
from shaprune.players.layer_costs import Layer
from shaprune.players.players import LayerCost, Players
from shaprune.players.subset import Kept


@dataclass(frozen=True)
class Resource:
    """What a budget can limit; a row without ``layer`` and ``parts`` counts the players themselves.

    Attributes:
        title: what figures and tables call it.
        layer: what a layer costs at given widths.
        dense: what the dense network costs.
        parts: of a weighted sum, its parts and their weights; users may give others, see `Budget`.
        always: whether it is known of all players, also of those that older versions saved.
        in_bytes: whether it counts bytes, so that a limit may be written as ``2MB``.
        unit: what stands behind a printed number.
    """

    title: str
    layer: LayerCost | None = None
    dense: Callable[[Players], float] = lambda players: players.n
    parts: Mapping[str, float] = field(default_factory=dict)
    always: bool = True
    in_bytes: bool = False
    unit: str = ""

    def shown(self, cost: float) -> str:
        """A cost as text."""
        return f"{cost:,.0f} {self.unit}".rstrip()


# Per multiply-add in float32 (3.7 + 0.9 pJ at 45 nm), per byte of weights, which are read once from DRAM (1.3 nJ per 64
# bits), and per byte of outputs, which are written and read: Horowitz 2014, "Computing's energy problem", ISSCC.
_PICOJOULES = {"macs": 4.6, "bytes": 160.0, "activations": 320.0}

RESOURCES: dict[str, Resource] = {  # as they are printed; several limits must all be met
    "macs": Resource("multiply-adds", Layer.macs, lambda players: players.model_macs),
    "params": Resource("parameters", Layer.params, lambda players: players.model_params),
    "players": Resource("players"),
    "bytes": Resource("bytes on disk", Layer.bytes, lambda players: players.model_bytes, always=False, in_bytes=True),
    "activations": Resource(
        "layer outputs", Layer.activations, lambda players: players.model_activations, always=False, in_bytes=True
    ),
    "energy": Resource("energy", parts=_PICOJOULES, always=False, unit="pJ"),
}


def known_resources(players: Players) -> list[str]:
    """The resources that these players say the cost of: without bytes where an older version saved them."""
    return [name for name, row in RESOURCES.items() if row.always or players.model_bytes]


def tabulate(
    players: Players, names: Iterable[str], of_layers: Callable[[LayerCost, float], Any], of_players: Any
) -> dict[str, Any]:
    """Costs by resource, all numbers or all arrays of one shape.

    Args:
        players: the players, with the user's own weights, if any.
        names: the resources.
        of_layers: the cost of a `Resource.layer`, given what the dense network costs.
        of_players: the number of players.
    """
    found: dict[str, Any] = {}

    def cost(name: str) -> Any:
        if name not in found:
            row = RESOURCES[name]
            if row.parts:
                weights = players.weights.get(name, tuple(row.parts.values()))
                if len(weights) != len(row.parts):
                    raise InputError(
                        f"{name} is a sum of {', '.join(row.parts)}, and these players have {len(weights)} weights"
                    )
                found[name] = sum(weight * cost(part) for weight, part in zip(weights, row.parts, strict=True))
            else:
                found[name] = of_players if row.layer is None else of_layers(row.layer, row.dense(players))
        return found[name]

    return {name: cost(name) for name in names}


def costs(players: Players, kept: Kept) -> dict[str, float]:
    """What the players ``kept`` cost together, by resource; without those that are unknown."""
    left = players.widths(kept)

    def of_layers(cost: LayerCost, dense: float) -> float:
        return float(players.at_widths(dense, cost, left))

    return tabulate(players, known_resources(players), of_layers, float(kept.sum()))


def dense_costs(players: Players) -> dict[str, float]:
    """What the dense network costs, by resource; without those that are unknown."""
    return costs(players, np.ones(players.n, dtype=bool))


def costs_per_player(players: Players, name: str) -> NDArray[np.float64]:
    """(n,) what each player alone costs of a resource."""
    check_choice("resource", name, RESOURCES)
    found = tabulate(players, [name], lambda cost, dense: players.each(cost), np.ones(players.n))[name]
    return np.asarray(found, dtype=np.float64)


def meets_limits(players: Players, kept: Kept, limits: Mapping[str, float]) -> bool:
    """Whether the players ``kept`` cost no more than the absolute ``limits``."""
    found = costs(players, kept)
    return all(found[name] <= limit for name, limit in limits.items())
