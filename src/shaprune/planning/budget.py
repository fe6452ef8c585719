"""Budgets: what may stay of a network, and what a coalition costs. NumPy only, no torch.

Five resources are predicted from the players alone; latency and the floor are measured, see `shaprune.pipeline.search`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

import numpy as np

from shaprune.errors import InputError
from shaprune.planning.resources import RESOURCES, costs
from shaprune.players.players import Players

MEASURED_RESOURCES = ("latency", "floor", "drop")
BUDGET_NAMES = (*RESOURCES, *MEASURED_RESOURCES)
_ABSOLUTE = "an absolute whole number above 1"


@dataclass(frozen=True)
class Budget:
    """How much of the network may stay; several limits must all be met.

    A number strictly between 0 and 1 is a fraction of the dense network (``macs=0.5``: at most half of the multiply-
    adds stay); a whole number above 1 is absolute.

    Attributes:
        macs: multiply-adds per example.
        params: parameters.
        players: players.
        bytes: bytes on disk, as a safetensors file. What is predicted is never below what the file takes; it may be a
            few bytes above it, because the file's header loses digits.
        activations: bytes per example that the layers (convolutions, linear layers, norms, embeddings) give out over a
            forward pass, which is what training holds of them. Running without gradients holds only some at a time.
        latency: measured time of a forward pass: a fraction of the dense network's, timed side by side, or absolute
            milliseconds: a number above 1, or a text such as ``"0.8 ms"``.
        floor: the measured quality must not be below this; the network gets as small as that allows.
        drop: the same, as a distance: the measured quality is at most so much below the dense network's
            (``drop=0.01``: at most one point of accuracy).

    Raises:
        InputError: any other number, no limit at all, or both a floor and a drop.
    """

    macs: float | None = None
    params: float | None = None
    players: float | None = None
    bytes: float | None = None
    activations: float | None = None
    latency: float | str | None = None
    floor: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, f.name) is None for f in fields(self)):
            raise InputError("the budget is empty; give Budget(macs=0.5), params=..., players=..., or drop=0.01")
        for name, limit in self.limits.items():
            if not _number(limit) or not (0 < limit < 1 or (limit > 1 and float(limit).is_integer())):
                raise InputError(
                    f"{name}={limit!r} is no budget: give the fraction that may stay, strictly between 0 and 1, "
                    f"or {_ABSOLUTE}"
                )
        self.milliseconds  # noqa: B018 (it checks the latency)
        for name in ("floor", "drop"):
            number = getattr(self, name)
            if number is not None and (not _number(number) or (name == "drop" and number < 0)):
                raise InputError(
                    f"{name}={number!r} is no budget: floor is a finite number, the least quality that is good enough; "
                    "drop is how far below the dense network's it may be, 0 or above"
                )
        if self.floor is not None and self.drop is not None:
            raise InputError("the budget has both a floor and a drop, which say the same thing; give one of them")

    @property
    def limits(self) -> dict[str, float]:
        """The limits on what is predicted, by name."""
        return {name: limit for name in RESOURCES if (limit := getattr(self, name)) is not None}

    @property
    def measured(self) -> dict[str, float | str]:
        """The limits on what must be measured, by name."""
        return {name: limit for name in MEASURED_RESOURCES if (limit := getattr(self, name)) is not None}

    @property
    def milliseconds(self) -> float | None:
        """An absolute latency; None where there is none, or where it is a fraction."""
        if self.latency is None:
            return None
        if isinstance(self.latency, str):
            found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*ms\s*", self.latency)
            if found and float(found[1]) > 0:
                return float(found[1])
        elif _number(self.latency) and self.latency > 0 and self.latency != 1:
            return float(self.latency) if self.latency > 1 else None
        raise InputError(
            f"latency={self.latency!r} is no budget: give the fraction of the dense network's time, strictly between 0 "
            "and 1, or milliseconds: a number above 1, or a text such as '0.8 ms'"
        )

    def absolute(self, players: Players) -> dict[str, float]:
        """The limits on what is predicted in multiply-adds, parameters, players and bytes.

        Raises:
            InputError: bytes or activations of players that an older version saved.
        """
        dense = costs(players, np.ones(players.n, dtype=bool))
        for name in self.limits:
            if name not in dense:
                raise InputError(f"these players do not say what {name} they cost; find and score the players again")
        return {name: limit * dense[name] if limit < 1 else float(limit) for name, limit in self.limits.items()}


def _number(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
