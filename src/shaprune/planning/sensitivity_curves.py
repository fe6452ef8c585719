"""Sensitivity curves: what each group loses along its ranking, as data. No torch.

They are measured by `shaprune.pipeline.sensitivity.sensitivity`, and decide a plan with ``allocation="curves"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, nearest
from shaprune.storage.atomic_files import check_replaceable, write_text
from shaprune.storage.schema import check_schema, read_document
from shaprune.storage.tables import Table, Tabular
from shaprune.storage.typed_json import Count, Document, Number, Size, typed
from shaprune.values.result import Values

SCHEMA = 1
TABLE_SHARES = (0.25, 0.5, 0.75, 1.0)  # shown by `Sensitivity.table`


class _Curve(Document):
    order: list[Count]
    removed: list[Count]
    worth: list[Number]


class _Sensitivity(Document):
    curves: dict[str, _Curve]
    worth: str
    n_examples: Count
    seconds: Size


@dataclass(frozen=True, eq=False)
class SensitivityCurve:
    """The worth of the network as one group loses its players, the other groups whole.

    Attributes:
        order: (n,) players of the group, counted within it, in the order in which they leave.
        removed: (P,) how many have left at each point, rising from 0 to n.
        worth: (P,) the measured worth there; higher is better.
    """

    order: NDArray[np.int64]
    removed: NDArray[np.int64]
    worth: NDArray[np.float64]

    def __post_init__(self) -> None:
        n, points = len(self.order), self.removed
        if not np.array_equal(np.sort(self.order), np.arange(n)):
            raise InputError("a sensitivity curve needs every player of its group once in the order of leaving")
        rising = len(points) > 1 and points[0] == 0 and points[-1] == n and (np.diff(points) > 0).all()
        if not rising or self.worth.shape != points.shape or not np.isfinite(self.worth).all():
            raise InputError("a sensitivity curve needs a finite worth at points that rise from 0 to all its players")

    def loss(self, removed: NDArray[np.int64]) -> NDArray[np.float64]:
        """What is lost once so many players have left: linear between the points, below 0 where it got better."""
        return np.asarray(self.worth[0] - np.interp(removed, self.removed, self.worth), dtype=np.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity(Tabular, Mapping[str, SensitivityCurve]):
    """Curves of the groups of a network.

    Attributes:
        curves: by group name.
        worth: name of the worth.
        n_examples: examples behind every point.
        seconds: wall time of the measurement.
    """

    curves: dict[str, SensitivityCurve]
    worth: str
    n_examples: int
    seconds: float = 0.0

    def __getitem__(self, name: str) -> SensitivityCurve:
        if name not in self.curves:
            raise InputError(f"no curve of group {name!r}{nearest(name, self.curves)}")
        return self.curves[name]

    def __contains__(self, name: object) -> bool:
        return name in self.curves

    def __iter__(self) -> Iterator[str]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)

    def check_of(self, scores: Mapping[str, Values]) -> None:
        """Check that these curves run along the rankings of ``scores``.

        Raises:
            InputError: naming the group that has no curve, or another ranking.
        """
        for name, values in scores.items():
            order = self[name].order
            if not np.array_equal(order, values.ranking()):
                raise InputError(
                    f"the curve of group {name!r} was measured along another ranking than these values'; measure the "
                    "sensitivity again with these values"
                )

    def together(self, gone: NDArray[np.int64]) -> NDArray[np.float64]:
        """The worth once players of several groups have left, from what each group loses alone.

        Each group leaves a share of the way from the worst measured worth to the dense network's, and the shares are
        multiplied. So small losses add up, and nothing is predicted outside of what has been measured, such as an
        accuracy below 0.

        Args:
            gone: (steps, groups) players that have left, groups in the order of the curves.

        Returns:
            (steps,) worths.
        """
        curves = list(self.curves.values())
        measured = np.concatenate([curve.worth for curve in curves])
        dense, worst, best = float(np.mean([c.worth[0] for c in curves])), measured.min(), measured.max()
        lost = np.stack([curve.loss(gone[:, i]) for i, curve in enumerate(curves)])
        if not dense > worst:
            return np.asarray(np.clip(dense - lost.sum(0), worst, best), dtype=np.float64)
        left = np.prod(np.clip(1 - lost / (dense - worst), 0, None), axis=0)
        return np.asarray(np.minimum(worst + (dense - worst) * left, best), dtype=np.float64)

    def headline(self) -> str:
        """What was measured."""
        return f"loss in {self.worth} of {len(self)} groups; {self.n_examples:,} examples"

    def table(self) -> Table:
        """What each group loses when shares of it leave, the most sensitive group first."""
        lost = {
            name: curve.loss(np.array([round(share * len(curve.order)) for share in TABLE_SHARES])).tolist()
            for name, curve in self.curves.items()
        }
        names = sorted(lost, key=lambda name: -sum(lost[name]))
        columns = {"group": "", "players": "", **{f"{share:.0%}": ".4g" for share in TABLE_SHARES}}
        rows = [(name, len(self.curves[name].order), *lost[name]) for name in names]
        note = f"loss in {self.worth} when so much of a group has left; {self.n_examples:,} examples"
        return Table(columns, rows, (note,))

    def records(self) -> Table:
        """One row per group and measured point."""
        rows = [
            (name, removed, worth, float(curve.worth[0]) - worth)
            for name, curve in self.curves.items()
            for removed, worth in zip(curve.removed.tolist(), curve.worth.tolist(), strict=True)
        ]
        return Table({"group": "", "removed": "", "worth": ".4g", "loss": ".4g"}, rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "schema": SCHEMA,
            "kind": "sensitivity",
            "worth": self.worth,
            "n_examples": self.n_examples,
            "seconds": self.seconds,
            "curves": {
                name: {"order": c.order.tolist(), "removed": c.removed.tolist(), "worth": c.worth.tolist()}
                for name, c in self.curves.items()
            },
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Sensitivity:
        """Inverse of `to_json`.

        Raises:
            InputError: not sensitivity curves, a newer schema, or a missing field.
        """
        check_schema(data, "sensitivity", SCHEMA)
        found = typed(_Sensitivity, data, "these curves are damaged")
        curves = {
            name: SensitivityCurve(
                np.array(c.order, dtype=np.int64),
                np.array(c.removed, dtype=np.int64),
                np.array(c.worth, dtype=np.float64),
            )
            for name, c in found.curves.items()
        }
        return Sensitivity(curves, found.worth, found.n_examples, found.seconds)

    def save(self, path: str | Path) -> None:
        """Write the curves as JSON."""
        check_replaceable(path)
        write_text(path, json.dumps(self.to_json()))

    @staticmethod
    def load(path: str | Path) -> Sensitivity:
        """Read curves that `save` wrote."""
        return read_document(path, Sensitivity.from_json)
