"""Budgets: what may stay of a network, and what a coalition costs. NumPy only, no torch.

Resources are predicted from the players alone (`shaprune.planning.resources`); latency and the floor are measured, see
`shaprune.pipeline.search`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from shaprune.errors import InputError
from shaprune.planning.resources import RESOURCES, Resource, dense_costs
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
        energy: picojoules per example, of the multiply-adds and of the bytes that are moved: all weights read once, all
            layer outputs written once and read once. Weights of your own device stand behind the limit, in a text:
            ``"0.5:4.6,160,320"`` is half of the dense network's energy at 4.6 pJ per multiply-add, 160 per byte of
            weights and 320 per byte of outputs, which are also the defaults (`shaprune.planning.resources`).
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
    energy: float | str | None = None
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
        return {name: _limit_and_weights(name, RESOURCES[name], given)[0] for name, given in self._given.items()}

    @property
    def weights(self) -> dict[str, tuple[float, ...]]:
        """Weights that were given with a limit, by name."""
        read = {name: _limit_and_weights(name, RESOURCES[name], given)[1] for name, given in self._given.items()}
        return {name: weights for name, weights in read.items() if weights}

    @property
    def _given(self) -> dict[str, Any]:
        return {name: given for name in RESOURCES if (given := getattr(self, name)) is not None}

    @property
    def measured(self) -> dict[str, float | str]:
        """The limits on what must be measured, by name."""
        return {name: limit for name in MEASURED_RESOURCES if (limit := getattr(self, name)) is not None}

    @property
    def floored(self) -> bool:
        """Whether there is a least quality, given as a floor or a drop."""
        return self.floor is not None or self.drop is not None

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

    def like(self, limits: Mapping[str, float]) -> Budget:
        """A budget of other predicted limits, with the weights of this one."""
        weights = self.weights
        texts = {
            name: f"{float(x)!r}:{','.join(map(repr, weights[name]))}" for name, x in limits.items() if name in weights
        }
        return Budget(**{**limits, **texts})  # type: ignore[arg-type]

    def weigh(self, players: Players) -> Players:
        """The players, with the weights that were given with a limit."""
        own = self.weights
        return replace(players, weights={**players.weights, **own}) if own else players

    def absolute(self, players: Players) -> dict[str, float]:
        """The limits on what is predicted, in multiply-adds, parameters, players, bytes and picojoules.

        Raises:
            InputError: bytes or activations of players that an older version saved.
        """
        dense = dense_costs(self.weigh(players))
        for name in self.limits:
            if name not in dense:
                raise InputError(f"these players do not say what {name} they cost; find and score the players again")
        return {name: limit * dense[name] if limit < 1 else float(limit) for name, limit in self.limits.items()}


def _limit_and_weights(name: str, row: Resource, given: Any) -> tuple[Any, tuple[float, ...]]:
    """A limit as it was given, without the weights that may stand behind it in a text."""
    if not (row.parts and isinstance(given, str)):
        return given, ()
    limit, colon, texts = given.partition(":")
    try:
        found, weights = float(limit), tuple(float(text) for text in texts.split(",")) if colon else ()
    except ValueError:
        found, weights = math.nan, (math.nan,)
    if weights and not (len(weights) == len(row.parts) and all(0 <= w < math.inf for w in weights) and any(weights)):
        raise InputError(
            f"{name}={given!r} is no budget: give the fraction that may stay, strictly between 0 and 1, or "
            f"{_ABSOLUTE}, and behind a colon a weight, 0 or above, for each of {', '.join(row.parts)}: "
            f"'0.5:{','.join(f'{weight:g}' for weight in row.parts.values())}'"
        )
    return found, weights


def check_budget(given: object) -> None:
    """Check that a budget is one.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(given, Budget):
        raise InputError(f"budget is a {type(given).__name__}; give sp.Budget(macs=0.5), for example")


def _number(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
