"""Values of every group of a network, and their file. No torch: a plan or a report is made from them alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shaprune.errors import InputError
from shaprune.players.players import Players
from shaprune.storage.atomic_files import check_replaceable, write_text
from shaprune.storage.schema import check_schema, read_document
from shaprune.storage.tables import Table, Tabular
from shaprune.storage.typed_json import Document, Size, typed
from shaprune.values.result import VALUE_COLUMNS, Values

SCHEMA = 1


class _Scores(Document):
    worth: str
    seconds: Size
    notes: list[str]
    values: dict[str, dict[str, Any]]
    players: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Tabular, Mapping[str, Values]):
    """Values by group name.

    Attributes:
        players: the players that were scored.
        by_group: values of each group, in player order.
        worth: name of the worth; ``"given"`` for values of your own.
        seconds: wall time of the whole scoring.
    """

    players: Players
    by_group: dict[str, Values]
    worth: str = "given"
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Values:
        self.players.group(name)  # names the nearest where there is none
        return self.by_group[name]

    def __contains__(self, name: object) -> bool:
        return name in self.by_group

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_group)

    def __len__(self) -> int:
        return len(self.by_group)

    @property
    def n_evaluations(self) -> int:
        """(coalition, example) rows paid in all; one game over all groups is paid once."""
        paid = [v.n_evaluations for v in self.by_group.values()]
        together = all("part_of" in v.options for v in self.by_group.values())
        return max(paid, default=0) if together else sum(paid)

    def headline(self) -> str:
        """Which worth, and what was paid."""
        n = sum(values.n for values in self.by_group.values())
        return f"{n:,} players in {len(self)} groups by {self.worth}; {self.n_evaluations:,} evaluations"

    def table(self) -> Table:
        """One row per group; the standard error is the mean over its players."""
        rows = []
        for group in self.players.groups:
            values = self[group.name]
            named = [f"{group.names[i]} {values.value[i]:.4g}" for i in values.ranking()[[-1, 0]]]
            stderr = float(values.stderr.mean())
            doubt = stderr if np.isfinite(stderr) else "unknown"
            rows.append((group.name, values.n, float(values.value.mean()), *named, doubt, values.n_evaluations))
        columns = {"group": "", "players": ",", "mean value": ".4g", "most valuable": "", "least valuable": ""}
        return Table({**columns, "standard error": ".2g", "evaluations": ","}, rows, self.notes)

    def records(self) -> Table:
        """One row per player."""
        rows = [
            (group.name, name, *numbers)
            for group in self.players.groups
            for name, (_, *numbers) in zip(group.names, self[group.name].records().rows, strict=True)
        ]
        return Table({"group": "", **VALUE_COLUMNS}, rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "schema": SCHEMA,
            "kind": "values",
            "worth": self.worth,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "values": {name: v.to_json() for name, v in self.by_group.items()},
            "players": self.players.to_json(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Scores:
        """Inverse of `to_json`.

        Raises:
            InputError: not values, a newer schema, or a missing field.
        """
        check_schema(data, "values", SCHEMA)
        found = typed(_Scores, data, "these values are damaged")
        by_group = {name: Values.from_json(v) for name, v in found.values.items()}
        players = Players.from_json(found.players)
        sizes = {group.name: len(group) for group in players.groups}
        for name, values in by_group.items():
            if sizes.get(name) != values.n:
                raise InputError(
                    f"these values are damaged: {values.n} values of {name!r}, {sizes.get(name, 0)} players"
                )
        return Scores(players, by_group, found.worth, found.seconds, tuple(found.notes))

    def save(self, path: str | Path) -> None:
        """Write the values, with their players, as JSON."""
        check_replaceable(path)
        write_text(path, json.dumps(self.to_json()))

    @staticmethod
    def load(path: str | Path) -> Scores:
        """Read values that `save` wrote."""
        return read_document(path, Scores.from_json)
