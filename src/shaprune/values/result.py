"""Values: the result of an estimate in player order, with standard errors and the evaluations paid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.storage.tables import Table, Tabular
from shaprune.storage.typed_json import Count, Document, Number, Size, typed
from shaprune.values.intervals import fixed_time_reach, sequence_reach


class _Values(Document):
    value: list[Number]
    stderr: list[Size | None]
    n_evaluations: Count
    method: str
    efficiency_gap: Number | None
    stopped_by: str
    worth_all: Number | None
    worth_none: Number | None
    counts: list[Count]
    options: dict[str, Any]
    concept: str = "shapley"
    efficient: bool = True
    diagnostics: dict[str, float] = {}  # noqa: RUF012  # pydantic copies it


VALUE_COLUMNS = {"player": "", "value": ".4g", "stderr": ".2g", "samples": ","}
SHOWN_AT_EACH_END = 10  # players in the table of many


@dataclass(frozen=True, eq=False, repr=False)
class Values(Tabular):
    """What each player contributes to the worth of a game.

    Attributes:
        value: (n,) float64, worth per player, in player order. Higher = more worth keeping.
        stderr: (n,) float64, standard error of ``value``; 0 where the value is exact, inf where fewer than two samples
            were taken.
        n_evaluations: (coalition, example) rows paid for these values.
        method: the estimator, e.g. ``"permutation"``.
        efficiency_gap: sum of the values minus (v(all) - v(none)); None where the concept promises no such sum.
        stopped_by: the rule that ended the estimate: ``"max_evaluations"``, ``"enumerated"``, what ``stop`` returned.
        worth_all: worth of the full coalition over the examples that were used; None where no walk met it.
        worth_none: worth of the empty coalition, likewise.
        counts: (n,) int64, number of independent samples behind each value.
        options: the estimator's options, JSON types only.
        concept: the solution concept with its parameters, such as ``"banzhaf:0.7"``.
        efficient: whether the concept promises that values sum to v(all) - v(none); only the Shapley value does.
        diagnostics: what else the estimator has to say in numbers, such as ``condition_number``.
        by_example: (N, n) float64, values of every example, where they were asked for; NaN where an example was not
            sampled. Not written to files.
    """

    value: NDArray[np.float64]
    stderr: NDArray[np.float64]
    n_evaluations: int
    method: str
    efficiency_gap: float | None
    stopped_by: str
    worth_all: float | None
    worth_none: float | None
    counts: NDArray[np.int64]
    options: dict[str, Any] = field(default_factory=dict)
    concept: str = "shapley"
    efficient: bool = True
    diagnostics: dict[str, float] = field(default_factory=dict)
    by_example: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for array in (self.value, self.stderr, self.counts):
            array.setflags(write=False)

    @property
    def n(self) -> int:
        """Number of players."""
        return len(self.value)

    @property
    def flat(self) -> bool:
        """Whether all values are 0, or all the same, with standard error 0: they distinguish no players."""
        exact = bool((self.stderr == 0).all())
        return exact and (not self.value.any() or (self.n > 1 and bool(np.ptp(self.value) == 0)))

    def ranking(self) -> NDArray[np.int64]:
        """Players from the least to the most valuable; ties in player order."""
        return np.argsort(self.value, kind="stable")

    @property
    def looks(self) -> int:
        """How often a stopping rule looked at the estimate; 0 where none did."""
        return int(self.diagnostics.get("looks", 0))

    def interval(self, confidence: float = 0.95) -> NDArray[np.float64]:
        """(n, 2) lower and upper end of each player's own confidence interval.

        Where a stopping rule looked at the estimate it is the `confidence_sequence`, else the `fixed_time_interval`.

        Raises:
            InputError: a confidence outside (0, 1).
        """
        return self.confidence_sequence(confidence) if self.looks else self.fixed_time_interval(confidence)

    def fixed_time_interval(self, confidence: float = 0.95) -> NDArray[np.float64]:
        """(n, 2) ``value -+ t * stderr``: true for one look, if the values did not decide when it is taken.

        t is Student's quantile with ``counts - 1`` degrees of freedom.

        Raises:
            InputError: a confidence outside (0, 1).
        """
        return self._around(fixed_time_reach(confidence, self.counts))

    def confidence_sequence(self, confidence: float = 0.95, players: int = 1) -> NDArray[np.float64]:
        """(n, 2) ends that hold at all looks together, whatever stops them, see `shaprune.values.intervals`.

        Args:
            confidence: of each player for itself; of ``players`` players together, where so many are given.
            players: among how many the doubt is divided.

        Raises:
            InputError: a confidence outside (0, 1).
        """
        return self._around(sequence_reach(confidence, self.counts, players))

    def _around(self, reach: NDArray[np.float64]) -> NDArray[np.float64]:
        width = np.where(self.stderr > 0, reach, 0)  # what is exact has no doubt, of however few samples
        width[width > 0] *= self.stderr[width > 0]
        return np.stack([self.value - width, self.value + width], axis=1)

    def headline(self) -> str:
        """What was computed how, and what was paid."""
        return (
            f"{self.n:,} players, {self.concept} by {self.method}; {self.n_evaluations:,} evaluations, "
            f"stopped by {self.stopped_by}"
        )

    def table(self) -> Table:
        """The players from the most to the least valuable; of many the first and the last."""
        rows, order = self.records().rows, self.ranking()[::-1].tolist()
        between = max(0, self.n - 2 * SHOWN_AT_EACH_END)
        shown = order if not between else order[:SHOWN_AT_EACH_END] + order[-SHOWN_AT_EACH_END:]
        notes = (f"{between:,} players between them are not shown",) if between else ()
        return Table(VALUE_COLUMNS, [rows[i] for i in shown], notes)

    def records(self) -> Table:
        """One row per player, in player order."""
        columns = (range(self.n), self.value.tolist(), self.stderr.tolist(), self.counts.tolist())
        return Table(VALUE_COLUMNS, list(zip(*columns, strict=True)))

    def part(self, players: NDArray[np.int64]) -> Values:
        """The values of some players of the same game; price and worths stay those of the whole game."""
        return replace(
            self,
            value=self.value[players],
            stderr=self.stderr[players],
            counts=self.counts[players],
            efficiency_gap=None,
            efficient=False,
            by_example=None if self.by_example is None else self.by_example[:, players],
            options={**self.options, "part_of": self.n},
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "value": self.value.tolist(),
            "stderr": [x if np.isfinite(x) else None for x in self.stderr.tolist()],
            "n_evaluations": self.n_evaluations,
            "method": self.method,
            "efficiency_gap": self.efficiency_gap,
            "stopped_by": self.stopped_by,
            "worth_all": self.worth_all,
            "worth_none": self.worth_none,
            "counts": self.counts.tolist(),
            "options": self.options,
            "concept": self.concept,
            "efficient": self.efficient,
            "diagnostics": self.diagnostics,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Values:
        """Inverse of `to_json`.

        Raises:
            InputError: a field that is missing or of the wrong kind, or lengths that differ.
        """
        typed(_Values, data, "these are not values written by shaprune")
        try:
            values = Values(
                value=np.asarray(data["value"], dtype=np.float64),
                stderr=np.asarray([np.inf if x is None else x for x in data["stderr"]], dtype=np.float64),
                n_evaluations=int(data["n_evaluations"]),
                method=str(data["method"]),
                efficiency_gap=data["efficiency_gap"],
                stopped_by=str(data["stopped_by"]),
                worth_all=data["worth_all"],
                worth_none=data["worth_none"],
                counts=np.asarray(data["counts"], dtype=np.int64),
                options=dict(data["options"]),
                concept=str(data.get("concept", "shapley")),  # files of schema 1 before concepts had names
                efficient=bool(data.get("efficient", data["efficiency_gap"] is not None)),
                diagnostics=dict(data.get("diagnostics", {})),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"these are not values written by shaprune: {error!r}") from error
        if not values.value.shape == values.stderr.shape == values.counts.shape:
            raise InputError("these values are damaged: value, stderr and counts differ in length")
        return values
