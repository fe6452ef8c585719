"""Base of all estimators: options are the fields of a frozen dataclass, and the price is known in advance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.concepts import Concept
from shaprune.values.games.game import CountingGame
from shaprune.values.result import Values
from shaprune.values.stopping import Check


@dataclass(frozen=True)
class Task:
    """One estimate to make.

    Attributes:
        game: the game; it counts what is asked of it.
        concept: which semivalue is asked for.
        max_evaluations: most (coalition, example) rows that may be asked for; None = the method's default.
        check: the stopping rule, started; asked with the values so far.
        seed: of all random streams.
        keep_examples: also return the values of every example.
        max_memory: bytes that the values of every example may take.
    """

    game: CountingGame
    concept: Concept
    max_evaluations: int | None = None
    check: Check | None = None
    seed: int = 0
    keep_examples: bool = False
    max_memory: int = 1 << 30

    @property
    def n(self) -> int:
        """Number of players."""
        return self.game.n_players

    @property
    def weights(self) -> NDArray[np.float64]:
        """(n,) share of each coalition size."""
        return self.concept.weights(self.game.n_players)

    @property
    def efficient(self) -> bool:
        """Whether the values are to sum to v(all) - v(none)."""
        return self.concept.efficient(self.game.n_players)

    def gap(self, value: NDArray[np.float64], worth_all: float | None, worth_none: float | None) -> float | None:
        """Sum of the values minus (v(all) - v(none)); None where the concept promises no such sum."""
        if not self.efficient or worth_all is None or worth_none is None:
            return None
        return float(value.sum() - (worth_all - worth_none))


@dataclass(frozen=True)
class Method(ABC):
    """An estimator; subclasses are frozen dataclasses whose fields are its options.

    Attributes:
        name: in the registry.
        stops: whether it can be ended by a stopping rule.
        by_example: whether it can return the values of every example.
        differentiates: whether it asks for derivatives, see `Game.derivatives`.
    """

    name: ClassVar[str]
    stops: ClassVar[bool] = True
    by_example: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False

    @abstractmethod
    def least(self, task: Task) -> int:
        """Evaluations of the smallest estimate that works (all of them, for a method that enumerates).

        Raises:
            InputError: a game or a concept that the method cannot serve, with the method that can.
        """

    @abstractmethod
    def default(self, task: Task) -> int:
        """Evaluations where neither a budget nor a rule is given."""

    @property
    def claims_errors(self) -> bool:
        """Whether standard errors are claimed at all, once there are enough samples."""
        return True

    @abstractmethod
    def run(self, task: Task) -> Values:
        """Estimate. ``task`` has been checked: the budget, where there is one, covers `least`."""

    def options(self, task: Task) -> dict[str, Any]:
        """What is noted in the result."""
        return {**asdict(self), "concept": task.concept.label, "seed": task.seed}

    def result(
        self,
        task: Task,
        value: NDArray[np.float64],
        stderr: NDArray[np.float64],
        *,
        ends: tuple[float | None, float | None],
        counts: int | NDArray[np.int64],
        stopped_by: str,
        diagnostics: dict[str, float] | None = None,
        by_example: NDArray[np.float64] | None = None,
    ) -> Values:
        """The values of ``task``; ``ends`` = the worths of all players and of none, ``counts`` of each or of all."""
        return Values(
            value=value,
            stderr=stderr,
            n_evaluations=task.game.evaluations,
            method=self.name,
            efficiency_gap=task.gap(value, *ends),
            stopped_by=stopped_by,
            worth_all=ends[0],
            worth_none=ends[1],
            counts=np.full(task.n, counts, dtype=np.int64),
            options=self.options(task),
            concept=task.concept.label,
            efficient=task.efficient,
            diagnostics=diagnostics or {},
            by_example=by_example,
        )

    def check(self, task: Task) -> None:
        """Refuse what cannot work, before any evaluation.

        Raises:
            InputError: as `least`; a budget below it, with the smallest that works; a rule for a method that has none.
        """
        least = self.least(task)
        if task.max_evaluations is not None and task.max_evaluations < least:
            raise InputError(
                f"max_evaluations={task.max_evaluations} is too small for method {self.name!r} on this game; "
                f"the smallest that works is {least}"
            )
        if task.check is not None and not self.stops:
            raise InputError(
                f"method {self.name!r} has no option 'stop': it evaluates a fixed set of coalitions; drop it"
            )
        if task.keep_examples and not self.by_example:
            raise InputError(f"method {self.name!r} has no values per example; use method='permutation'")

    def cost(self, task: Task) -> int | None:
        """Evaluations that `run` will ask for at most; None where only a stopping rule ends it."""
        least = self.least(task)
        if not self.stops:
            return least
        if task.max_evaluations is not None:
            return task.max_evaluations
        return self.default(task) if task.check is None else None
