"""Values for every group of a network: one game each, or one game over all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from shaprune.errors import ShapruneError
from shaprune.network.batches import Forward
from shaprune.network.game import MAX_MEMORY, NetworkGame
from shaprune.network.players import Players
from shaprune.network.subject import Subject
from shaprune.network.worths import Evaluate, RowWorth, Worth
from shaprune.scores import Scores
from shaprune.values.estimate import estimate, expected_evaluations
from shaprune.values.game import ObservedGame
from shaprune.values.permutation import StoppingRule
from shaprune.values.result import Values

__all__ = ["Scores", "score"]


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
    because = subject.whole_because if isinstance(subject, Subject) else None
    notes = () if because is None else (f"the whole model was run for every coalition: {because}",)
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
