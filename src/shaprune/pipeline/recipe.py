"""The ranking, allocation and recovery that an effort stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shaprune.network.game.worths import AnyWorth, Evaluate
from shaprune.options.effort import EFFORTS, Effort, effort_of, seconds_of
from shaprune.options.fields import changed
from shaprune.options.groups import NO_GAME, Compression
from shaprune.planning.budget import Budget, check_budget
from shaprune.recovery.distillation import Distill
from shaprune.recovery.steps import RecoveryStep, Refit
from shaprune.values.estimators.base import Method

_STEPS = {"minutes": 300, "hour": 3000}  # of distillation


@dataclass(frozen=True)
class Recipe:
    """What a compression does.

    Attributes:
        effort: what was asked for.
        method: ranks the players.
        allocation: sets the widths.
        recover: the recovery steps.
        why: what decided.
        limited: whether the last step ends when the seconds of the effort have passed.
    """

    effort: Effort
    method: str | Method
    allocation: str
    recover: tuple[str | RecoveryStep, ...]
    why: str
    limited: bool = False

    @property
    def seconds(self) -> float:
        """The seconds that the effort may take."""
        return seconds_of(self.effort)

    def told(self) -> str:
        """One line on what was chosen, and why."""
        steps = [step if isinstance(step, str) else _named(step) for step in self.recover]
        method = self.method if isinstance(self.method, str) else self.method.name
        return f"effort {self.effort}: {method}, {self.allocation}, {' + '.join(steps) or 'no recovery'} ({self.why})"

    def within(self, left: float) -> tuple[str | RecoveryStep, ...]:
        """The recovery steps, the last of which ends in so many seconds where the effort limits it."""
        if not self.limited:
            return self.recover
        last = self.recover[-1]
        assert isinstance(last, Distill)
        return (*self.recover[:-1], *([replace(last, max_seconds=left)] if left > 0 else []))


def recipe_of(
    effort: Effort,
    budget: Budget,
    worth: AnyWorth | Evaluate,
    method: str | Method | None,
    recover: Sequence[str | RecoveryStep] | None,
    options: Compression,
) -> Recipe:
    """What an effort stands for; what was given stays as it is.

    Args:
        effort: a word, or seconds: the largest word that fits into them, and what it does ends with them.
        budget, worth, options: of the compression.
        method, recover: None = as the effort says.

    Raises:
        InputError: no effort, or no budget.
    """
    check_budget(budget)
    effort = effort_of(effort)
    given = seconds_of(effort)
    level = max((name for name in EFFORTS if EFFORTS[name] <= given), key=EFFORTS.__getitem__, default="seconds")
    planning = options.planning
    asked = bool(changed(options.scoring, but=NO_GAME)) or options.max_evaluations is not None
    plays = asked or isinstance(worth, Evaluate)
    many = budget.measured or planning.cycles > 1
    why, chosen, allocation = ["closed form only"] if level == "seconds" else [], method, planning.allocation
    if method is None:
        curves = level == "hour" and not plays and not many and allocation in ("global", "curves")
        chosen, allocation = ("reconstruction", "curves") if curves else ("permutation", allocation)
        if curves:
            why.append("curves by refitted consumers hold deeper cuts")
    steps, limited = tuple(recover) if recover is not None else (Refit(),), False
    if recover is None and level != "seconds":
        if many:
            why.append("several networks are recovered on the way, so none is trained")
        else:
            steps, limited = (Refit(), Distill(steps=_STEPS[level])), True
            why.append(f"the dense network's answers are learned until {given:g} s have passed")
    if method is not None or recover is not None:
        why.append("what was given stays")
    return Recipe(effort, chosen or "permutation", allocation, steps, "; ".join(why), limited)


def _named(step: RecoveryStep) -> str:
    name = type(step).__name__.lower() if hasattr(step, "__dataclass_fields__") else getattr(step, "__name__", "own")
    return f"{name} ({step.steps} steps at most)" if isinstance(step, Distill) else name
