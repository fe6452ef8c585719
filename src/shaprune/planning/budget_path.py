"""Budget path: the plans of one scoring for all budgets, one removal step at a time. NumPy only, no torch.

`shaprune.planning.plan.plan` answers one budget; a descent holds the answers to all of them, so that what shows it
(the report's slider) only looks up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.planning.limits import Limits
from shaprune.planning.plan import Plan, removal_path
from shaprune.planning.removal_sequences import RemovalStep
from shaprune.planning.resources import known_resources, tabulate
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.players.players import LayerCost, Players
from shaprune.values.result import Values

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BudgetPath:
    """The plans of all budgets of one resource.

    Attributes:
        players: the players of the dense network.
        allocation: how removals are shared out between groups.
        steps: who leaves, one step after the other.
        costs: by resource, (steps + 1,) what is left after so many steps.
    """

    players: Players
    allocation: str
    steps: tuple[RemovalStep, ...]
    costs: dict[str, Floats]

    def kept(self, k: int) -> NDArray[np.bool_]:
        """(n,) who is left after ``k`` steps."""
        kept = np.ones(self.players.n, dtype=bool)
        for step in self.steps[:k]:
            kept[step] = False
        return kept

    def first(self, resource: str, limit: float) -> int:
        """The fewest steps after which ``resource`` costs at most ``limit``.

        Raises:
            InputError: no number of steps is enough.
        """
        met = np.flatnonzero(self.costs[resource] <= limit)
        if not len(met):
            raise InputError(f"{resource} <= {limit:,.0f} is not reached; {self.costs[resource][-1]:,.0f} is the least")
        return int(met[0])

    def plan(self, resource: str, limit: float) -> Plan:
        """What `shaprune.planning.plan.plan` decides for this limit, an absolute number."""
        return Plan(self.players, self.kept(self.first(resource, limit)), self.allocation, {resource: limit})

    def at(self, shares: Floats, resources: Sequence[str]) -> BudgetPath:
        """The same way, in no more steps than it takes to meet the limits ``shares`` x the dense network's cost.

        For each of these limits, of each of ``resources``, `first` finds the same players as before.
        """
        last = len(self.steps)
        stops = {last}
        for name in resources:
            cost = self.costs[name]  # falls
            stops.update(np.searchsorted(-cost, -(shares * cost[0])).clip(max=last).tolist())
        ends = sorted({0, *stops})
        steps = tuple(np.concatenate(self.steps[a:b]) for a, b in pairwise(ends))
        return replace(self, steps=steps, costs={name: cost[ends] for name, cost in self.costs.items()})

    def gone(self) -> NDArray[np.int64]:
        """(steps + 1, groups) how many players of each group have left."""
        owners = np.concatenate([np.full(len(g), i) for i, g in enumerate(self.players.groups)])
        each = np.zeros((len(self.steps) + 1, len(self.players.groups)), dtype=np.int64)
        for k, step in enumerate(self.steps, 1):
            np.add.at(each[k], owners[step], 1)
        return np.cumsum(each, axis=0)

    def predicted(self, curves: Sensitivity) -> Floats:
        """(steps + 1,) the worth that the curves predict, see `Sensitivity.together`."""
        ours = replace(curves, curves={group.name: curves[group.name] for group in self.players.groups})
        return ours.together(self.gone())


def budget_path(
    players: Players,
    scores: Mapping[str, Values],
    resource: str = "macs",
    allocation: str = "global",
    *,
    within: Limits | None = None,
) -> BudgetPath:
    """Go down from all players to the smallest network, as budgets of ``resource`` would.

    Only ``"global"`` looks at the resource; the steps of other allocations are the same for all.

    Args:
        players: the players of the dense network.
        scores: values per group name.
        resource: what will be limited.
        allocation: any but ``"curves"``.
        within: what must stay, whatever the budget; None = one player per group.

    Raises:
        InputError: as `shaprune.planning.plan.plan`.
    """
    steps = removal_path(players, scores, [resource], allocation, within=within).steps
    return BudgetPath(players, allocation, steps, costs_along_path(players, steps))


def costs_along_path(players: Players, steps: Sequence[RemovalStep]) -> dict[str, Floats]:
    """By resource, (steps + 1,) what is left after each step: `resources.costs`, to the bit, all at once."""
    n = len(steps) + 1
    leaves = np.full(players.n, n, dtype=np.int64)  # the step at which each player leaves; n = it stays
    for k, step in enumerate(steps, 1):
        leaves[step] = k
    left = players.widths_less(
        (m, np.cumsum(np.bincount(leaves[group.indices], m.widths, n + 1)[:n].astype(np.int64)))
        for group in players.groups
        for m in group.members
    )

    def of_layers(cost: LayerCost, dense: float) -> Floats:
        found: Floats = players.at_widths(np.full(n, float(dense)), cost, left)
        return found

    players_left = players.n - np.cumsum(np.bincount(leaves, minlength=n + 1)[:n])
    return tabulate(players, known_resources(players), of_layers, players_left.astype(np.float64))
