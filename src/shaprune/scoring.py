"""Values for every group of a network: one game each, or one game over all."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from shaprune.atomic import read_json, write_text
from shaprune.errors import InputError, ShapruneError
from shaprune.network.batches import Forward
from shaprune.network.game import MAX_MEMORY, NetworkGame
from shaprune.network.players import Players
from shaprune.network.subject import Subject
from shaprune.network.worths import Evaluate, RowWorth, Worth
from shaprune.planning import check_schema
from shaprune.values.estimate import estimate, expected_evaluations
from shaprune.values.game import ObservedGame
from shaprune.values.permutation import StoppingRule
from shaprune.values.result import Values

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Scores(Mapping[str, Values]):
    """Values by group name.

    Attributes:
        players: the players that were scored.
        by_group: values of each group, in player order.
        worth: name of the worth.
        seconds: wall time of the whole scoring.
    """

    players: Players
    by_group: dict[str, Values]
    worth: str
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
        """(coalition, example) rows paid in all."""
        return sum(v.n_evaluations for v in self.by_group.values())

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
        try:
            by_group = {name: Values.from_json(v) for name, v in data["values"].items()}
            players = Players.from_json(data["players"])
            return Scores(players, by_group, str(data["worth"]), float(data["seconds"]), tuple(data["notes"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"these values are damaged: {error!r} is missing or of the wrong kind") from error

    def save(self, path: str | Path) -> None:
        """Write the values, with their players, as JSON."""
        write_text(path, json.dumps(self.to_json()))

    @staticmethod
    def load(path: str | Path) -> Scores:
        """Read values that `save` wrote."""
        return Scores.from_json(read_json(path))


def score(
    model: nn.Module,
    players: Players,
    data: Iterable[Any] | Subject | None,
    worth: str | RowWorth | Worth | Evaluate = "accuracy",
    method: str = "permutation",
    *,
    max_evaluations: int | None = None,
    stop: StoppingRule | None = None,
    seed: int = 0,
    antithetic: bool = False,
    per_example: bool = True,
    sizes: tuple[float, float] = (0.0, 1.0),
    together: bool = False,
    forward: Forward | None = None,
    max_memory: int = MAX_MEMORY,
    progress: bool | None = None,
) -> Scores:
    """Score every group: one game per group with the other groups whole, or one game over all players.

    Args:
        model: the dense network; it comes back untouched.
        players: from `find_players`.
        data: batches, see `NetworkGame`.
        worth: see `NetworkGame`.
        method, max_evaluations, stop, seed, antithetic, per_example, sizes: see `estimate`; a budget is per game.
        together: one game over all players of all groups instead of one per group.
        forward, max_memory: see `NetworkGame`.
        progress: show a bar with the remaining time on stderr; None = only on a terminal.

    Returns:
        `Scores`, a mapping from group names to `Values`.

    Raises:
        InputError, GameError: as `NetworkGame` and `estimate`, naming the group.
    """
    started = time.perf_counter()
    subject = (
        data
        if isinstance(data, Subject) or isinstance(worth, Evaluate)
        else Subject(model, [] if data is None else data, forward)
    )
    names: list[str | None] = [None] if together else [g.name for g in players.groups]
    games = {
        name: NetworkGame(model, players, subject, worth, name, forward=forward, max_memory=max_memory)
        for name in names
    }
    expected = partial(expected_evaluations, antithetic=antithetic, per_example=per_example, sizes=sizes)
    totals = {name: expected(game, method, max_evaluations, stop) for name, game in games.items()}
    paid = partial(estimate, antithetic=antithetic, per_example=per_example, sizes=sizes)
    results: dict[str, Values] = {}
    with _bar(totals, sys.stderr.isatty() if progress is None else progress) as (start, advance):
        for name in names:
            start(name or "all groups")
            game = games.pop(name)
            try:
                values = paid(ObservedGame(game, advance), method, max_evaluations, stop, seed)
            except ShapruneError as error:
                raise type(error)(f"{name or 'all groups'}: {error}") from error
            if name is not None:
                results[name] = values
            else:
                results = {g.name: values.part(np.asarray(g.indices)) for g in players.groups}
    worth_name = worth if isinstance(worth, str) else getattr(worth, "name", getattr(worth, "__name__", "evaluate"))
    notes = tuple(
        f"the whole model was run for every coalition: {subject.whole_because}"
        for _ in [0]
        if isinstance(subject, Subject) and subject.whole_because
    )
    return Scores(players, results, str(worth_name), time.perf_counter() - started, notes)


@contextmanager
def _bar(
    totals: Mapping[str | None, int | None], shown: bool
) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A progress bar over evaluations; yields (name the current game, advance)."""
    from rich.console import Console

    known = [t for t in totals.values() if t is not None]
    columns = (TextColumn("scoring {task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=sum(known) if len(known) == len(totals) else None)
        yield lambda name: bar.update(task, description=name), lambda rows: bar.advance(task, rows)
