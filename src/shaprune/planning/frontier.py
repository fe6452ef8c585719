"""Frontier: costs and quality of the plans of one scoring at many sizes. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shaprune.errors import BudgetError, InputError, check_choice
from shaprune.options.fields import moved_keywords
from shaprune.planning.budget import Budget
from shaprune.planning.plan import Plan
from shaprune.planning.resources import RESOURCES, dense_costs
from shaprune.storage.tables import Table, Tabular

Planner = Callable[[Budget], Plan]
SCHEMA = 1
DEFAULT_SHARES = tuple(round(0.05 * k, 2) for k in range(19, 0, -1))  # 0.95, 0.9, ..., 0.05


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """One network of a frontier.

    Attributes:
        plan: who stays.
        size: the share of the swept resource that was asked for; 1 = the dense network.
        quality: measured; None where it was not.
    """

    plan: Plan
    size: float
    quality: float | None

    @property
    def shares(self) -> dict[str, float]:
        """The share of each resource that stays."""
        dense = dense_costs(self.plan.players)
        return {name: cost / dense[name] if dense[name] else 1.0 for name, cost in self.plan.cost.items()}


@dataclass(frozen=True, eq=False, repr=False)
class Frontier(Tabular):
    """Networks of one scoring at many sizes, the largest first.

    Attributes:
        by: the resource that was swept.
        points: one per size; sizes that cannot be reached end in the smallest network that can.
    """

    by: str
    points: tuple[FrontierPoint, ...]

    def headline(self) -> str:
        """How many networks, and along which resource."""
        return f"{len(self.points)} networks by {self.by}"

    def table(self) -> Table:
        """Costs of every point, and its measured quality."""
        columns = {"asked": ".3g", **dict.fromkeys(self.points[0].shares, "")}
        rows = [
            (p.size, *(f"{RESOURCES[name].shown(cost)} ({p.shares[name]:.1%})" for name, cost in p.plan.cost.items()))
            for p in self.points
        ]
        return self._with_quality(columns, rows)

    def records(self) -> Table:
        """One row per point: the costs that stay."""
        columns = {"asked": ".3g", **dict.fromkeys(self.points[0].shares, ",.0f")}
        return self._with_quality(columns, [(p.size, *p.plan.cost.values()) for p in self.points])

    def _with_quality(self, columns: dict[str, str], rows: list[tuple[Any, ...]]) -> Table:
        if self.points[0].quality is None:
            return Table(columns, rows)
        measured = [(*row, point.quality) for row, point in zip(rows, self.points, strict=True)]
        return Table(columns | {"quality": ".4f"}, measured)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"schema": SCHEMA, "kind": "frontier", "by": self.by, "points": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-ready dictionary per point."""
        return [
            {
                "asked": point.size,
                "cost": point.plan.cost,
                "shares": point.shares,
                "quality": point.quality,
                "kept": {g.name: int(point.plan.kept[g.indices].sum()) for g in point.plan.players.groups},
            }
            for point in self.points
        ]


@moved_keywords({}, {"sizes": "shares=..."})
def frontier(
    planner: Planner,
    by: str = "macs",
    shares: Sequence[float] = DEFAULT_SHARES,
    *,
    quality: Callable[[Plan], float] | None = None,
) -> Frontier:
    """Decide for many sizes; nothing is scored again.

    Example: ``sp.metrics.frontier(functools.partial(sp.plan, scores, allocation="uniform"), "macs")``.

    Args:
        planner: makes the plan of a budget.
        by: the resource whose share is swept, by its name in a `Budget`.
        shares: of it that may stay, strictly between 0 and 1.
        quality: measures a plan (cut, recover, evaluate); None = nothing is measured.

    Raises:
        InputError: an unknown resource, no size, or one out of range; and as the planner.
    """
    check_planner(planner)
    check_choice("resource", by, RESOURCES)
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"shares are {list(shares)}; give at least one share, strictly between 0 and 1")
    points: list[FrontierPoint] = []
    for size in sorted(set(shares), reverse=True):
        try:
            decided = planner(with_limit(by, size))
        except BudgetError as error:
            last = smallest_plan(planner, by, error)
            if not points or not np.array_equal(last.kept, points[-1].plan.kept):
                points.append(FrontierPoint(last, size, None if quality is None else float(quality(last))))
            break
        points.append(FrontierPoint(decided, size, None if quality is None else float(quality(decided))))
    return Frontier(by, tuple(points))


def check_planner(given: object) -> None:
    """Check that a planner can be called.

    Raises:
        InputError: it is something else, such as scores.
    """
    if not callable(given):
        raise InputError(f"planner is a {type(given).__name__}; give functools.partial(sp.plan, scores)")


def smallest_plan(planner: Planner, by: str, error: BudgetError) -> Plan:
    """The smallest network that a planner can reach, as the error of a smaller budget states."""
    return planner(with_limit(by, max(2, int(np.ceil(error.reachable[by])))))


def with_limit(by: str, limit: float, other: Budget | None = None) -> Budget:
    """The predicted limits of ``other``, with one set anew."""
    return Budget(**{by: limit}) if other is None else other.like(other.limits | {by: limit})
