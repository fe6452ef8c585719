"""Samples that grow until a budget is spent or a rule is met; the random stream belongs to (seed, chunk)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Protocol

import numpy as np

from shaprune.values.estimators.base import Method, Task
from shaprune.values.estimators.exact import MAX_PLAYERS, Exact
from shaprune.values.result import Values

LOOK_GROWTH = 1.25  # of a sample from one look of a stopping rule to the next


class Sample(Protocol):
    """Coalitions drawn and evaluated so far."""

    @property
    def complete(self) -> bool:
        """Whether no coalition that counts is left."""

    def grow(self, evaluations: int, rng: np.random.Generator) -> None:
        """Draw and evaluate further coalitions, so that at most so many evaluations are paid in all."""


def grow_sample(method: Method, task: Task, sample: Sample, values: Callable[[str], Values]) -> Values:
    """Let ``sample`` grow: at once to the budget, or from look to look of the rule.

    Args:
        method: whose budget is asked for.
        task: what is estimated.
        sample: empty.
        values: the estimate from the sample as it is, with what stopped it.
    """
    ended = "default" if task.max_evaluations is None else "max_evaluations"
    limit = task.max_evaluations
    if task.check is None:
        limit = limit or method.default(task)
    look = max(method.least(task), task.game.price(max(10 * task.n, 64)))
    for chunk in count():
        goal = limit if task.check is None or (limit is not None and limit < look) else look
        assert goal is not None
        sample.grow(goal, np.random.default_rng([task.seed, chunk]))
        last = sample.complete or goal == limit
        found = values("enumerated" if sample.complete else ended)
        reason = None if task.check is None else task.check.reason(found)
        if reason:
            return replace(found, stopped_by=reason)
        if last:
            return found
        look = int(look * LOOK_GROWTH) + task.game.price(2)
    raise AssertionError("unreachable")


def by_enumeration(method: Method, task: Task) -> Values | None:
    """Exact values, where the budget covers all coalitions that count and no rule could stop earlier."""
    if task.check is not None or task.n > MAX_PLAYERS:
        return None
    budget = task.max_evaluations or method.default(task)
    if budget < Exact().least(task):
        return None
    return replace(Exact().run(task), method=method.name, options=method.options(task))
