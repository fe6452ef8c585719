"""From values to a plan: which players leave so that a budget is met. NumPy only, no torch.

A plan is data: the players of the dense network and one boolean row of who stays. Changing the budget never needs new
values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.atomic import read_json, write_text
from shaprune.errors import InputError, check_choice
from shaprune.limits import Limits, Step, ladders
from shaprune.network.players import Players
from shaprune.values.result import Values

SCHEMA = 1
ALLOCATIONS = ("global", "uniform")
Kept = NDArray[np.bool_]  # (n_players,), True = kept


@dataclass(frozen=True)
class Budget:
    """How much of the network may stay: multiply-adds, parameters, players; several at once must all be met.

    A number strictly between 0 and 1 is a fraction of the dense network (``macs=0.5``: at most half of the multiply-
    adds stay); a whole number above 1 is absolute.

    Raises:
        InputError: any other number, or no limit at all.
    """

    macs: float | None = None
    params: float | None = None
    players: float | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            raise InputError("the budget is empty; give Budget(macs=0.5), params=... or players=...")
        for name, limit in self.limits.items():
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
            if not number or not (0 < limit < 1 or (limit > 1 and float(limit).is_integer())):
                raise InputError(
                    f"{name}={limit!r} is no budget: give the fraction that may stay, strictly between 0 and 1, "
                    "or an absolute whole number above 1"
                )

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        given = {"macs": self.macs, "params": self.params, "players": self.players}
        return {name: limit for name, limit in given.items() if limit is not None}

    def absolute(self, players: Players) -> dict[str, float]:
        """The limits in multiply-adds, parameters and players."""
        dense = _costs(players, np.ones(players.n, dtype=bool))
        return {name: limit * dense[name] if limit < 1 else float(limit) for name, limit in self.limits.items()}


@dataclass(frozen=True, eq=False)
class Plan:
    """Who stays.

    Attributes:
        players: the players of the dense network.
        kept: (n,) bool, True = stays.
        allocation: how the plan was made; ``"by hand"`` for `from_coalition`.
        budget: the limits it was made for.
    """

    players: Players
    kept: Kept
    allocation: str = "by hand"
    budget: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept.shape != (self.players.n,) or self.kept.dtype != bool:
            raise InputError(
                f"kept has shape {self.kept.shape} and type {self.kept.dtype}; it must be one boolean for each of the "
                f"{self.players.n} players"
            )
        self.kept.setflags(write=False)

    @staticmethod
    def from_coalition(players: Players, kept: Any) -> Plan:
        """A plan by hand: ``kept`` is a boolean row over all players, True = stays."""
        row = np.array(kept)
        if row.dtype != bool and not np.isin(row, (0, 1)).all():
            raise InputError("kept must hold booleans, one per player (True = stays)")
        return Plan(players, row.astype(bool))

    @property
    def removed(self) -> tuple[str, ...]:
        """Names of the players that leave."""
        return tuple(name for name, stays in zip(self.players.names, self.kept, strict=True) if not stays)

    @property
    def cost(self) -> dict[str, float]:
        """Predicted multiply-adds, parameters and players that stay."""
        return _costs(self.players, self.kept)

    def summary(self) -> str:
        """A table of what goes and what stays, per group and in all."""
        groups = self.players.groups
        wide = max([len(g.name) for g in groups] + [5])
        lines = [f"{'group'.ljust(wide)}  players   kept  removed"]
        for g in groups:
            stays = int(self.kept[g.indices].sum())
            lines.append(f"{g.name.ljust(wide)}  {len(g):7d}  {stays:5d}  {len(g) - stays:7d}")
        dense = _costs(self.players, np.ones(self.players.n, dtype=bool))
        for name, left in self.cost.items():
            limit = f" (budget {self.budget[name]:,.0f})" if name in self.budget else ""
            lines.append(f"{name}: {dense[name]:,.0f} -> {left:,.0f}, {left / dense[name]:.1%} stay{limit}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "schema": SCHEMA,
            "kind": "plan",
            "allocation": self.allocation,
            "budget": self.budget,
            "kept": [int(k) for k in self.kept],
            "cost": self.cost,
            "removed": list(self.removed),
            "players": self.players.to_json(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """Inverse of `to_json`.

        Raises:
            InputError: not a plan, a newer schema, or a missing field.
        """
        check_schema(data, "plan", SCHEMA)
        try:
            players = Players.from_json(data["players"])
            return Plan(players, np.array(data["kept"], dtype=bool), str(data["allocation"]), dict(data["budget"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"this plan is damaged: {error!r} is missing or of the wrong kind") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; an existing file is replaced at once, never half."""
        write_text(path, json.dumps(self.to_json()))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan that `save` wrote."""
        return Plan.from_json(read_json(path))


def plan(
    players: Players,
    scores: Mapping[str, Values],
    budget: Budget,
    allocation: str = "global",
    *,
    min_players: int = 1,
    min_width: int = 1,
    round_to: int = 1,
    max_removed: float | Mapping[str, float] = 1.0,
    exclude: str | Sequence[str] = (),
) -> Plan:
    """Choose who leaves: the least valuable players, as few as the budget allows.

    Players leave one by one, or as many of a group together as its limits ask for; such players are ranked by their
    mean. A limit is never passed to meet a budget.

    Args:
        players: the players of the dense network.
        scores: values per group name, one per player of the group.
        budget: what may stay.
        allocation: ``"global"``: one ranking over all groups, by value per unit of what the budget limits (the greedy
            rule for knapsacks; for a budget of players that is the value itself); ``"uniform"``: the same share of
            every group, or what its limits allow below it.
        min_players: players that stay in every group.
        min_width: channels that stay in every layer whose filters are players; a narrower layer stays whole.
        round_to: such a layer is left whole or with a multiple of so many channels (8, say). Of heads and of slots of
            a grouped convolution, which own several channels each, only so many leave together that every width fits;
            where no number does, the group stays whole.
        max_removed: the largest share of each group's players, and of their channels in each such layer, that leaves;
            or one per glob over group names (``{"layer1*": 0.25}``), of which the smallest holds.
        exclude: globs over the names of groups whose players all stay.

    Raises:
        InputError: values that do not fit the players, a limit out of range, a glob that matches no group, a budget
            that is already met, or one that cannot be met (with the nearest that can).
    """
    check_choice("allocation", allocation, ALLOCATIONS)
    within = Limits(min_players, min_width, round_to, max_removed, exclude)
    value = _values_of(players, scores)
    limits = budget.absolute(players)
    dense = np.ones(players.n, dtype=bool)
    if _meets(players, dense, limits):
        met = ", ".join(
            f"{name}: {_costs(players, dense)[name]:,.0f} <= {limit:,.0f}" for name, limit in limits.items()
        )
        raise InputError(f"the dense network already meets the budget ({met}); nothing would be removed, lower it")
    if allocation == "global":
        candidates = _global(players, _density(players, value, budget), within)
    else:
        candidates = _uniform(players, value, within)
    smallest = candidates(players.n)
    if not _meets(players, smallest, limits):
        reachable = _costs(players, smallest)
        misses = [
            f"{name} <= {limit:,.0f} (the smallest reachable is {reachable[name]:,.0f}, "
            f"{reachable[name] / _costs(players, dense)[name]:.4f} of the dense network)"
            for name, limit in limits.items()
            if reachable[name] > limit
        ]
        raise InputError(
            f"the budget cannot be met: {'; '.join(misses)}; raise it, loosen the limits ({within}), or find more "
            "players (another unit, fewer excluded layers)"
        )
    low, high = 0, players.n  # low misses the budget, high meets it: cost falls as more leave
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _meets(players, candidates(middle), limits) else (middle, high)
    return Plan(players, candidates(high), allocation, limits)


def _values_of(players: Players, scores: Mapping[str, Values]) -> NDArray[np.float64]:
    """(n,) values of all players."""
    parts = []
    for group in players.groups:
        if group.name not in scores:
            raise InputError(
                f"the scores have no values for group {group.name!r}; they belong to other players, score again"
            )
        value = scores[group.name].value
        if len(value) != len(group):
            raise InputError(f"group {group.name!r} has {len(group)} players and {len(value)} values; score again")
        if not np.isfinite(value).all():
            raise InputError(f"a value of group {group.name!r} is not finite; score again")
        parts.append(value)
    return np.concatenate(parts)


def _density(players: Players, value: NDArray[np.float64], budget: Budget) -> NDArray[np.float64]:
    """(n,) value per unit of the limited resources, each as a share of the dense network.

    A player of negative value harms, so the more it costs the sooner it leaves: its value is multiplied instead.
    """
    each = {"macs": players.macs, "params": players.params, "players": np.ones(players.n)}
    for name in budget.limits:
        if not each[name].any():
            raise InputError(f"no player costs any {name} here, so that none can be saved; give Budget(players=...)")
    cost = sum(each[name] / each[name].sum() for name in budget.limits)
    cost = cost / np.mean(cost)
    with np.errstate(divide="ignore", invalid="ignore"):  # a player that costs nothing and is worth something: last
        return np.asarray(np.where(value > 0, value / cost, value * cost), dtype=np.float64)


def _global(players: Players, value: NDArray[np.float64], within: Limits) -> Callable[[int], Kept]:
    """The coalition after the first k steps down, of all groups' steps the least valuable first."""
    steps: list[tuple[float, Step]] = []
    for ladder in ladders(players, value, within):
        reached = -np.inf  # a step comes no sooner than those before it in its group
        for step in ladder:
            reached = max(reached, float(value[step].mean()))
            steps.append((reached, step))
    steps.sort(key=lambda ranked: ranked[0])
    return lambda k: _without(players, [step for _, step in steps[:k]])


def _uniform(players: Players, value: NDArray[np.float64], within: Limits) -> Callable[[int], Kept]:
    """The coalition at the k-th of all shares at which some group loses more of its least valuable players."""
    found = ladders(players, value, within)
    gone = [np.cumsum([len(step) for step in ladder]) for ladder in found]
    sizes = [len(group) for group in players.groups]
    shares = sorted({0.0, *(n / size for counts, size in zip(gone, sizes, strict=True) for n in counts.tolist())})

    def at(k: int) -> Kept:
        share = shares[min(k, len(shares) - 1)]
        steps = [int((counts <= share * size + 1e-9).sum()) for counts, size in zip(gone, sizes, strict=True)]
        return _without(players, [step for ladder, n in zip(found, steps, strict=True) for step in ladder[:n]])

    return at


def _without(players: Players, steps: Sequence[Step]) -> Kept:
    kept = np.ones(players.n, dtype=bool)
    kept[np.concatenate([np.empty(0, dtype=np.int64), *steps])] = False
    return kept


def _costs(players: Players, kept: Kept) -> dict[str, float]:
    params, macs = players.cost(kept)
    return {"macs": float(macs), "params": float(params), "players": float(kept.sum())}


def _meets(players: Players, kept: Kept, limits: Mapping[str, float]) -> bool:
    costs = _costs(players, kept)
    return all(costs[name] <= limit for name, limit in limits.items())


def check_schema(data: Any, kind: str, schema: int) -> None:
    """Check the head of a JSON document written by shaprune.

    Raises:
        InputError: another kind of document, or a newer schema.
    """
    if not isinstance(data, dict) or data.get("kind") != kind or not isinstance(data.get("schema"), int):
        raise InputError(f"this is no {kind} written by shaprune")
    if data["schema"] > schema:
        raise InputError(f"this {kind} has schema {data['schema']}, newer than {schema}; update shaprune")
