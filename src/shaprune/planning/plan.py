"""Plans: which players leave so that a budget is met. NumPy only, no torch.

A plan is data: the players of the dense network and one boolean row of who stays. Changing the budget never needs new
values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shaprune.errors import BudgetError, InputError, check_choice
from shaprune.options.fields import moved_keywords
from shaprune.planning.allocation import RemovalPath as Way
from shaprune.planning.allocation import by_layer, by_value, smallest_coalition, uniform, value_density
from shaprune.planning.budget import Budget, check_budget
from shaprune.planning.curve_allocation import allocate_by_curves
from shaprune.planning.cut_certificate import certify_plan
from shaprune.planning.limits import Limits
from shaprune.planning.removal_sequences import RemovalStep, removal_sequences
from shaprune.planning.resources import RESOURCES, costs, dense_costs, meets_limits
from shaprune.planning.scores import Scores
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.players.players import Players
from shaprune.players.subset import Kept
from shaprune.storage.atomic_files import check_replaceable, write_text
from shaprune.storage.schema import check_schema, read_document
from shaprune.storage.tables import Table, Tabular
from shaprune.storage.typed_json import Count, Document, Number, Size, typed
from shaprune.values.certificate import Certificate
from shaprune.values.result import Values


class _Certificate(Document):
    confidence: Size
    eps: Size
    undecided: Count


class _Plan(Document):
    players: dict[str, Any]
    kept: list[Annotated[int, Field(ge=0, le=1)] | bool]
    allocation: str
    budget: dict[str, Number]
    removed: list[str] | None = None
    certificate: _Certificate | None = None


SCHEMA = 1
ALLOCATIONS = ("global", "value", "uniform", "shapley-layers", "curves")


MOST_PERCENT = 100  # a limit up to which a percentage may have been meant


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Tabular):
    """The players that stay and those that leave.

    Attributes:
        players: the players of the dense network.
        kept: (n,) bool, True = stays.
        allocation: how the plan was made; ``"by hand"`` for `from_coalition`.
        budget: the limits it was made for.
        certificate: what is certain of the cut; None where the scores were not stopped by a
            `shaprune.stopping.certified_cut`.

    Raises:
        InputError: ``kept`` is not one boolean per player.
    """

    players: Players
    kept: Kept
    allocation: str = "by hand"
    budget: dict[str, float] = field(default_factory=dict)
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        if self.kept.shape != (self.players.n,) or self.kept.dtype != bool:
            raise InputError(
                f"kept has shape {self.kept.shape} and type {self.kept.dtype}; it must be one boolean for each of the "
                f"{self.players.n} players"
            )
        self.kept.setflags(write=False)

    @staticmethod
    def from_coalition(players: Players, kept: Any) -> Plan:
        """A plan by hand: ``kept`` is a boolean row over all players (list, array or tensor), True = stays."""
        row = np.array(kept.tolist() if hasattr(kept, "tolist") else kept)
        if row.dtype != bool and not np.isin(row, (0, 1)).all():
            raise InputError("kept must hold booleans, one per player (True = stays)")
        return Plan(players, row.astype(bool))

    def headline(self) -> str:
        """How many players stay, and why."""
        stay = f"{int(self.kept.sum()):,} of {self.players.n:,} players stay"
        return f"{stay}, allocation={self.allocation!r}, budget={self.budget!r}"

    @property
    def removed(self) -> tuple[str, ...]:
        """Names of the players that leave."""
        return tuple(name for name, stays in zip(self.players.names, self.kept, strict=True) if not stays)

    @property
    def cost(self) -> dict[str, float]:
        """Predicted multiply-adds, parameters, players and bytes that stay, by resource."""
        return costs(self.players, self.kept)

    def table(self) -> Table:
        """How many players of each group stay and leave; below, the costs in all."""
        stays = [int(self.kept[g.indices].sum()) for g in self.players.groups]
        rows = [(g.name, len(g), n, len(g) - n) for g, n in zip(self.players.groups, stays, strict=True)]
        notes = (*self._costs(), *([] if self.certificate is None else [str(self.certificate)]))
        return Table({"group": "", "players": "", "kept": "", "removed": ""}, rows, notes)

    def records(self) -> Table:
        """One row per player: whether it stays."""
        groups = [g.name for g in self.players.groups for _ in g.indices]
        rows = list(zip(groups, self.players.names, self.kept.tolist(), strict=True))
        return Table({"group": "", "player": "", "kept": ""}, rows)

    def _costs(self) -> Iterator[str]:
        dense = dense_costs(self.players)
        for name, left in self.cost.items():
            shown = RESOURCES[name].shown
            limit = f" (budget {shown(self.budget[name])})" if name in self.budget else ""
            share = f", {left / dense[name]:.1%} stay" if dense[name] else ""  # 0 = unknown
            yield f"{name}: {shown(dense[name])} -> {shown(left)}{share}{limit}"

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
            **({} if self.certificate is None else {"certificate": asdict(self.certificate)}),
            "players": self.players.to_json(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """Inverse of `to_json`.

        Raises:
            InputError: not a plan, a newer schema, or a missing field.
        """
        check_schema(data, "plan", SCHEMA)
        found = typed(_Plan, data, "this plan is damaged")
        kept, said = np.array(found.kept, dtype=bool), found.certificate
        certificate = None if said is None else Certificate(**said.model_dump())
        made = Plan(Players.from_json(found.players), kept, found.allocation, dict(found.budget), certificate)
        if found.removed is not None and found.removed != list(made.removed):
            raise InputError("this plan is damaged: who leaves by name are not those who leave by number")
        return made

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; an existing file is replaced at once, never half."""
        check_replaceable(path)
        write_text(path, json.dumps(self.to_json()))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan that `save` wrote."""
        return read_document(path, Plan.from_json)


@moved_keywords({"limits": Limits}, {"exclude": "limits=sp.options.Limits(keep=...)", "players": "in the scores"})
def plan(
    scores: Scores,
    budget: Budget,
    allocation: str = "global",
    *,
    curves: Sensitivity | None = None,
    layers: Values | None = None,
    limits: Limits | None = None,
) -> Plan:
    """Choose who leaves: the least valuable players, as few as the budget allows.

    Players leave one by one, or as many of a group together as its limits ask for; such players are ranked by their
    mean. A limit is never passed to meet a budget.

    Example: ``sp.plan(scores, sp.Budget(macs=0.5), limits=sp.options.Limits(round_to=8))``.

    Args:
        scores: the values, which carry the players of the dense network; ``Scores(players, by_group)`` of your own.
        budget: what may stay, of resources that are predicted; latency and a floor are measured, see
            `shaprune.pipeline.search.search_plan`.
        allocation: how removals are shared out between groups. ``"global"``: one ranking over all groups, by value per
            unit of what the budget limits (the greedy rule for knapsacks; for a budget of players that is the value
            itself); ``"value"``: one ranking by the value alone; ``"uniform"``: the same share of every group, or what
            its limits allow below it; ``"shapley-layers"``: each group keeps a share in proportion to the value of the
            group as a whole; ``"curves"``: the least loss by measured curves, see `shaprune.planning.curve_allocation`.
        curves: for ``"curves"``, from `shaprune.pipeline.sensitivity.sensitivity` with these scores.
        layers: for ``"shapley-layers"``, one value per group, from `shaprune.pipeline.sensitivity.layer_values`; None =
            the sum of the values of its players.
        limits: what must stay in every group, whatever the budget; None = one player.

    Returns:
        The plan, which `prune` applies.

    Raises:
        InputError: scores without players, values or curves that do not fit the players, a limit out of range, a glob
            that matches no group, a budget that must be measured, that is already met, or that cannot be met (with the
            nearest that can).
    """
    _check_scores(scores)
    check_budget(budget)
    check_allocation(allocation, curves, layers)
    if budget.measured:
        raise InputError(
            f"{' and '.join(budget.measured)} must be measured on the network; use sp.search_plan or sp.compress, or "
            "leave it out"
        )
    players, within = budget.weigh(scores.players), limits or Limits()
    value = player_values(players, scores)
    most = budget.absolute(players)
    ranked = value_density(players, value, list(most))  # also refuses a resource that no player costs
    check_reachable(players, budget, within, ranked if allocation == "global" else value)
    ranked = ranked if allocation == "global" else value
    found = removal_sequences(players, ranked, within)
    if allocation == "curves":
        assert curves is not None
        curves.check_of(scores)
        return _certified(Plan(players, allocate_by_curves(players, found, curves, most), allocation, most), scores)
    path = _path(players, value, ranked, found, allocation, layers)
    low, high = 0, players.n  # low misses the budget, high meets it: cost falls as more leave
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets_limits(players, path(middle), most) else (middle, high)
    return _certified(Plan(players, path(high), allocation, most), scores)


def _certified(made: Plan, scores: Scores) -> Plan:
    certificate = certify_plan(made.players, scores, made.kept, made.allocation, list(made.budget))
    return replace(made, certificate=certificate)


def _check_scores(scores: object) -> None:
    if isinstance(scores, Players):
        raise InputError("scores is a Players; scores carry their players: plan(scores, budget)")
    if not isinstance(scores, Scores):
        what = "give the Scores of sp.score, or Scores(players, values_by_group) of your own"
        raise InputError(f"scores is a {type(scores).__name__}; {what}")


def removal_path(
    players: Players,
    scores: Mapping[str, Values],
    resources: Sequence[str],
    allocation: str = "global",
    *,
    layers: Values | None = None,
    within: Limits | None = None,
) -> Way:
    """The path that `plan` goes down when these resources are limited; any allocation but ``"curves"`` has one.

    Raises:
        InputError: as `plan`.
    """
    if allocation == "curves":
        raise InputError("allocation='curves' decides anew for every budget; it goes down no path, ask sp.plan")
    check_allocation(allocation, None, layers)
    value = player_values(players, scores)
    ranked = value_density(players, value, resources) if allocation == "global" else value
    return _path(players, value, ranked, removal_sequences(players, ranked, within or Limits()), allocation, layers)


def _path(
    players: Players,
    value: NDArray[np.float64],
    ranked: NDArray[np.float64],
    found: Sequence[Sequence[RemovalStep]],
    allocation: str,
    layers: Values | None,
) -> Way:
    if allocation == "uniform":
        return uniform(players, found)
    if allocation == "shapley-layers":
        return by_layer(players, _group_values(players, value, layers), found)
    return by_value(players, ranked, found)


def check_allocation(allocation: str, curves: Sensitivity | None = None, layers: Values | None = None) -> None:
    """Check that an allocation has what it needs, and nothing that it does not look at.

    Raises:
        InputError: an unknown name, with the nearest; curves or layers that are missing or not used.
    """
    check_choice("allocation", allocation, ALLOCATIONS)
    if (allocation == "curves") != (curves is not None):
        what = "needs curves=sp.sensitivity(...)" if curves is None else "does not look at curves; drop them"
        raise InputError(f"allocation={allocation!r} {what}")
    if layers is not None and allocation != "shapley-layers":
        raise InputError(f"allocation={allocation!r} does not look at layers; drop them, or take 'shapley-layers'")


def check_reachable(players: Players, budget: Budget, within: Limits, value: NDArray[np.float64] | None = None) -> None:
    """Check that the predicted part of a budget asks for something, and can be met; values need not be known yet.

    Raises:
        InputError: it is already met.
        BudgetError: it cannot be met, with the nearest that can.
    """
    players = budget.weigh(players)
    limits = budget.absolute(players)
    dense = dense_costs(players)
    least = costs(
        players,
        smallest_coalition(
            players, removal_sequences(players, np.zeros(players.n) if value is None else value, within)
        ),
    )
    if limits and all(dense[name] <= limit for name, limit in limits.items()):
        met = ", ".join(
            f"{name}: {RESOURCES[name].shown(dense[name])} <= {RESOURCES[name].shown(limit)}"
            for name, limit in limits.items()
        )
        raise InputError(f"the dense network already meets the budget ({met}); nothing would be removed, lower it")
    misses = [
        f"{name} <= {RESOURCES[name].shown(limit)} (the smallest reachable is {RESOURCES[name].shown(least[name])}, "
        f"{least[name] / dense[name]:.4f} of the dense network)"
        for name, limit in limits.items()
        if least[name] > limit
    ]
    if misses:
        raise BudgetError(
            f"the budget cannot be met: {'; '.join(misses)}{_percent(budget.limits)}; raise it, loosen the limits "
            f"({within}), or find more players (another unit, fewer excluded layers)",
            least,
        )


def _percent(limits: Mapping[str, float]) -> str:
    """A hint where a limit may have been meant as a percentage."""
    low = next((name for name, limit in limits.items() if 1 < limit <= MOST_PERCENT and name != "players"), None)
    return "" if low is None else f" (a share is written {low}={limits[low] / 100:g})"


def player_values(players: Players, scores: Mapping[str, Values]) -> NDArray[np.float64]:
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


def _group_values(players: Players, value: NDArray[np.float64], layers: Values | None) -> NDArray[np.float64]:
    """(groups,) the value of each group."""
    if layers is None:
        return np.array([value[group.indices].sum() for group in players.groups])
    if len(layers.value) != len(players.groups) or not np.isfinite(layers.value).all():
        raise InputError(
            f"layers has {len(layers.value)} values, of which {np.isfinite(layers.value).sum()} are finite; it must "
            f"have one for each of {len(players.groups)} groups, from sp.metrics.layer_values"
        )
    return layers.value
