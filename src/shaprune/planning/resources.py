"""Resources: what a coalition costs of each, predicted from the players alone. NumPy only, no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import check_choice
from shaprune.players.players import Players
from shaprune.players.subset import Kept

RESOURCES = ("macs", "params", "players", "bytes", "activations")  # predicted; several limits must all be met


def costs(players: Players, kept: Kept) -> dict[str, float]:
    """What the players ``kept`` cost together, by resource; without bytes and activations where they are unknown."""
    params, macs = players.cost(kept)
    found = {"macs": float(macs), "params": float(params), "players": float(kept.sum())}
    if players.model_bytes:
        found["bytes"], found["activations"] = players.memory(kept)
    return found


def costs_per_player(players: Players, name: str) -> NDArray[np.float64]:
    """(n,) what each player alone costs of a resource."""
    check_choice("resource", name, RESOURCES)
    return np.ones(players.n) if name == "players" else np.asarray(getattr(players, name), dtype=np.float64)


def meets_limits(players: Players, kept: Kept, limits: Mapping[str, float]) -> bool:
    """Whether the players ``kept`` cost no more than the absolute ``limits``."""
    found = costs(players, kept)
    return all(found[name] <= limit for name, limit in limits.items())
