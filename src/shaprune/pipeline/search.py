"""Budgets that must be measured: latency on this device, and a floor on the quality. Bisection over plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite

import numpy as np
from torch import nn

from shaprune.deploy.measure import latency
from shaprune.errors import BudgetError, GameError, InputError, check_choice
from shaprune.network.batches import Inputs
from shaprune.options.fields import moved_keywords
from shaprune.pipeline.prune import prune
from shaprune.pipeline.quality import Quality
from shaprune.planning.budget import Budget, check_budget
from shaprune.planning.frontier import Planner, check_planner, smallest_plan, with_limit
from shaprune.planning.plan import Plan
from shaprune.planning.resources import RESOURCES, dense_costs
from shaprune.storage.tables import Table, Tabular

RecoverPlan = Callable[[nn.Module, Plan], nn.Module]
TOLERANCE = 0.01
TIMINGS = 15  # per network whose latency is asked for


@dataclass(frozen=True, eq=False)
class Trial:
    """One network that was measured on the way.

    Attributes:
        plan: who stays.
        share: the share of the searched resource that stays.
        quality: measured; None where no floor asked for it.
        milliseconds: median time of a forward pass; None where no latency asked for it.
        dense_milliseconds: the dense network's, timed side by side with it.
        good: whether all that is measured was within the budget.
    """

    plan: Plan
    share: float
    quality: float | None
    milliseconds: float | None
    dense_milliseconds: float | None
    good: bool


@dataclass(frozen=True, eq=False, repr=False)
class Decision(Tabular):
    """What `search_plan` found.

    Attributes:
        plan: the plan to use.
        raw: the network that the plan leaves, as cut.
        model: the same, recovered; with a floor, the very network whose quality was measured.
        by: the resource that was searched over.
        dense_quality: the dense network's measured quality; None where no floor asked for it.
        trials: everything that was measured, in that order.
    """

    plan: Plan
    raw: nn.Module
    model: nn.Module
    by: str
    dense_quality: float | None = None
    trials: tuple[Trial, ...] = ()

    def headline(self) -> str:
        """How many players stay, and what was measured."""
        return f"{self.plan.headline()}; {len(self.trials)} trials by {self.by}"

    def table(self) -> Table:
        """The trials, the largest network first."""
        rows = [
            (t.share, t.quality, t.milliseconds, t.dense_milliseconds, t.good)
            for t in sorted(self.trials, key=lambda trial: -trial.share)
        ]
        return Table({self.by: ".2%", "quality": ".4g", "ms": ".4g", "dense ms": ".4g", "in budget": ""}, rows)


@moved_keywords({}, {"mend": "recover=...", "rounds": "timings=..."})
def search_plan(
    model: nn.Module,
    planner: Planner,
    budget: Budget,
    *,
    example_inputs: Inputs,
    quality: Quality | None = None,
    recover: RecoverPlan | None = None,
    by: str | None = None,
    tolerance: float = TOLERANCE,
    timings: int = TIMINGS,
    hf_uniform: bool = False,
) -> Decision:
    """Find the plan of a budget, with measurements where it asks for them.

    Without a floor: the largest network within all limits. With a floor (or a drop): the smallest network whose
    measured quality holds it; the other limits must then hold, too. Both are found by bisection, which takes for
    granted that a smaller network is no slower and no better; what is returned was itself measured and is within the
    budget, but a smaller (larger) one may be, too, where that is not so.

    Example: ``sp.search_plan(model, functools.partial(sp.plan, scores), sp.Budget(drop=0.01), example_inputs=x,
    quality=sp.metrics.quality_on(model, validation))``.

    Args:
        model: the dense network; it comes back untouched.
        planner: makes the plan of a budget of predicted resources.
        budget: what may stay.
        example_inputs: inputs of one forward pass, batch first; latency is that of this batch.
        quality: measures a network, higher is better; needed for a floor. Never on the test set.
        recover: recovers a pruned network before its quality is measured; None = measured as cut.
        by: the resource to search over; None = the first that the budget limits, else multiply-adds.
        tolerance: the share of it up to which the search goes.
        timings: per network whose latency is asked for.
        hf_uniform: see `prune`.

    Returns:
        The plan, with the network it leaves and everything that was measured on the way.

    Raises:
        InputError: a floor without a quality, a number out of range.
        BudgetError: what cannot be met, with the nearest that can: predicted limits before anything is measured; a
            floor above the dense network's quality and a latency below the smallest network's before the search; a
            floor that the other limits contradict.
    """
    check_budget(budget)
    check_planner(planner)
    if by is not None:
        check_choice("resource", by, RESOURCES)
    by = by or next(iter(budget.limits), "macs")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance!r}; it is a share of the {by}, strictly between 0 and 1")
    if budget.floored and quality is None:
        raise InputError(
            "a floor needs quality=...: a function from a network to a number, such as sp.metrics.quality_on(...)"
        )
    largest = planner(replace(budget, latency=None, floor=None, drop=None)) if budget.limits else None
    make = partial(_make, model, example_inputs, recover, hf_uniform)
    if not budget.measured:
        assert largest is not None
        made = make(largest)
        return Decision(largest, made.raw, made.recovered, by)
    return _Bisection(model, planner, budget, example_inputs, quality, make, by, tolerance, timings, largest).run()


def check_attainable(
    model: nn.Module, planner: Planner, budget: Budget, *, example_inputs: Inputs, quality: Quality | None = None
) -> None:
    """Refuse a measured budget that no values can meet, before there are any.

    Args:
        planner: of any scores; see `search_plan` for the others.

    Raises:
        BudgetError: a floor above the dense network's quality, or a latency below the smallest network's.
    """
    by = next(iter(budget.limits), "macs")
    make = partial(_make, model, example_inputs, None, False)
    search = _Bisection(model, planner, budget, example_inputs, quality, make, by, TOLERANCE, TIMINGS, None)
    if budget.latency is not None:
        search.check_latency()


class _Networks:
    """What a plan leaves, made when it is first asked for."""

    def __init__(self, raw: nn.Module, recover: Callable[[], nn.Module] | None) -> None:
        self.raw, self._recover = raw, recover

    @cached_property
    def recovered(self) -> nn.Module:
        """The network, recovered once."""
        return self._recover() if self._recover else self.raw


_Make = Callable[[Plan], _Networks]


def _make(
    model: nn.Module, example_inputs: Inputs, recover: RecoverPlan | None, hf_uniform: bool, plan: Plan
) -> _Networks:
    raw = prune(model, plan, example_inputs, hf_uniform=hf_uniform)
    return _Networks(raw, partial(recover, raw, plan) if recover else None)


class _Bisection:
    """The state of one bisection."""

    def __init__(
        self,
        model: nn.Module,
        planner: Planner,
        budget: Budget,
        example_inputs: Inputs,
        quality: Quality | None,
        make: _Make,
        by: str,
        tolerance: float,
        timings: int,
        largest: Plan | None,
    ) -> None:
        self.model, self.budget, self.inputs = model, budget, example_inputs
        self.planner: Planner = lambda asked: planner(budget.like(asked.limits))
        self.quality, self.make, self.by = quality, make, by
        self.tolerance, self.timings, self.largest = tolerance, timings, largest
        self.latest: tuple[Plan, _Networks] | None = None  # that was measured and good: in the end, the one to return
        self.smallest = self._smallest()
        dense = dense_costs(self.smallest.players)
        self.dense = dense[by]
        self.trials: dict[bytes, Trial] = {}
        self.floor, self.dense_quality = self._floor()

    def _smallest(self) -> Plan:
        try:
            return self.planner(with_limit(self.by, 2))
        except BudgetError as error:
            return smallest_plan(self.planner, self.by, error)

    def _floor(self) -> tuple[float | None, float | None]:
        """The least quality that is good enough, and the dense network's."""
        budget = self.budget
        if not budget.floored:
            return None, None
        dense = self._quality(self.model)
        floor = dense - budget.drop if budget.drop is not None else budget.floor
        assert floor is not None
        if floor > dense:
            raise BudgetError(
                f"the floor {floor:.4g} is above the dense network's measured quality {dense:.4g}, so that no pruned "
                "network is expected to hold it; lower it, or say drop=0.01: at most so much below the dense network",
                {"quality": dense},
            )
        return floor, dense

    def _quality(self, model: nn.Module) -> float:
        assert self.quality is not None
        found = float(self.quality(model))
        if not isfinite(found):
            raise GameError(f"quality(model) returned {found}; it must be a finite number")
        return found

    def share(self, plan: Plan) -> float:
        """Of the searched resource, what a plan leaves."""
        return plan.cost[self.by] / self.dense

    def run(self) -> Decision:
        """Search, the cheap way to fail first."""
        if self.budget.latency is not None:
            self.check_latency()
        found = self._fastest_enough() if self.floor is None else self._least_good()
        known = self.latest is not None and np.array_equal(self.latest[0].kept, found.kept)
        made = self.latest[1] if self.latest is not None and known else self.make(found)
        return Decision(found, made.raw, made.recovered, self.by, self.dense_quality, tuple(self.trials.values()))

    def check_latency(self) -> None:
        """Refuse a latency below the smallest network's."""
        trial = self.measured(self.smallest, latency_only=True)
        if not self._in_time(trial):
            raise BudgetError(
                f"the latency budget cannot be met: the smallest network, {trial.share:.1%} of the {self.by}, takes "
                f"{_time(trial)}; the budget is {self.budget.latency!r}; raise it, or loosen the limits of the plan",
                {"latency": (trial.milliseconds or 0) / (trial.dense_milliseconds or 1)},
            )

    def _fastest_enough(self) -> Plan:
        """The largest network within the time."""
        if self.largest is not None and self.measured(self.largest).good:
            return self.largest
        found = self._bisect(self.share(self.smallest), self._top(), self._in_time, good_below=True)
        return self.smallest if found is None else found

    def _least_good(self) -> Plan:
        """The smallest network that holds the floor, if it is within the other limits."""
        top, holds = self._top(), self._holds
        if self.largest is not None and not holds(self.measured(self.largest)):
            raise self._contradiction(self._bisect(top, 1.0, holds, good_below=False, within=False) or self._gentlest())
        if holds(self.measured(self.smallest)):
            return self.smallest
        found = self._bisect(self.share(self.smallest), top, holds, good_below=False) or self.largest
        found = found or self._gentlest()
        if not self._in_time(self.measured(found)):
            raise self._contradiction(found)
        return found

    def _contradiction(self, nearest: Plan) -> BudgetError:
        trial = self.measured(nearest)
        time = f" in {_time(trial)}" if trial.milliseconds is not None else ""
        limits = ", ".join(f"{name}={limit}" for name, limit in (self.budget.limits | self.budget.measured).items())
        return BudgetError(
            f"the budget contradicts itself ({limits}): the smallest network found with a quality of at least "
            f"{self.floor:.4g} keeps {trial.share:.1%} of the {self.by}, quality {trial.quality:.4g}{time}; raise the "
            "other limits, or lower the floor",
            {self.by: nearest.cost[self.by]},
        )

    def _top(self) -> float:
        return 1.0 if self.largest is None else self.share(self.largest)

    def _bisect(
        self, low: float, high: float, good: Callable[[Trial], bool], *, good_below: bool, within: bool = True
    ) -> Plan | None:
        """The last good plan between two shares; good ones are below some share, or above it. None = there was none."""
        best = None
        while high - low > self.tolerance:
            middle = (low + high) / 2
            plan = self._at(middle, within=within)
            fine = good(self.measured(plan))
            best = plan if fine else best
            low, high = (middle, high) if fine == good_below else (low, middle)
        return best

    def _gentlest(self) -> Plan:
        """The network that is only just smaller than the dense one, where no other holds the floor."""
        plan = self._at(1 - 1e-9, within=False)
        if not self._holds(self.measured(plan)):
            raise BudgetError(
                f"no pruned network holds the floor {self.floor:.4g}: the dense one has {self.dense_quality:.4g}, and "
                f"{self.share(plan):.1%} of its {self.by} {self.measured(plan).quality:.4g}; lower it, or recover more",
                {self.by: self.dense},
            )
        return plan

    def _at(self, share: float, *, within: bool) -> Plan:
        """The plan at a share of the searched resource, within the other limits or not."""
        return self.planner(with_limit(self.by, share, self.budget if within else None))

    def measured(self, plan: Plan, *, latency_only: bool = False) -> Trial:
        """Cut and measure, once per plan."""
        key = plan.kept.tobytes()
        old = self.trials.get(key)
        needs_quality = self.floor is not None and not latency_only
        if old is not None and (old.quality is not None or not needs_quality):
            return old
        made = self.make(plan)
        trial = old or Trial(plan, self.share(plan), None, None, None, good=True)
        if self.budget.latency is not None and old is None:
            times = latency({"dense": self.model, "pruned": made.raw}, self.inputs, timings=self.timings)
            trial = replace(trial, milliseconds=times["pruned"].median_ms, dense_milliseconds=times["dense"].median_ms)
        if needs_quality:
            trial = replace(trial, quality=self._quality(made.recovered))
        trial = self.trials[key] = replace(trial, good=self._in_time(trial) and self._holds(trial))
        if trial.good and not latency_only:
            self.latest = plan, made
        return trial

    def _in_time(self, trial: Trial) -> bool:
        if trial.milliseconds is None or trial.dense_milliseconds is None:
            return True
        most = self.budget.milliseconds
        if most is None:
            assert isinstance(self.budget.latency, (int, float))
            most = self.budget.latency * trial.dense_milliseconds
        return trial.milliseconds <= most

    def _holds(self, trial: Trial) -> bool:
        return self.floor is None or trial.quality is None or trial.quality >= self.floor


def _time(trial: Trial) -> str:
    ms, dense = trial.milliseconds or 0.0, trial.dense_milliseconds or 1.0
    return f"{ms:.3g} ms, {ms / dense:.1%} of the dense network's {dense:.3g} ms"
