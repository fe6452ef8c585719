"""Values for every group of a network: one game each, or one game over all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from shaprune.criteria.registry import CRITERIA, criterion_scores
from shaprune.errors import InputError, ShapruneError
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.fingerprint import identity
from shaprune.network.game.game_witness import witness_of
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.precision_probe import probe_precision
from shaprune.network.game.subset_worth import Only, restrict_to_subset
from shaprune.network.game.worker_recipe import ROW_PRECISION_KEY, GameRecipe, answer_dependencies, worker_recipe
from shaprune.network.game.worths import AnyWorth, Evaluate, worth_name
from shaprune.network.precision import RowPrecision
from shaprune.options.fields import moved_keywords
from shaprune.options.groups import Scoring
from shaprune.pipeline.output_to_input import score_output_to_input
from shaprune.pipeline.preflight import check_scoring, is_criterion
from shaprune.pipeline.score_notes import flat_notes, running_notes
from shaprune.planning.scores import Scores
from shaprune.players.players import Players
from shaprune.runs.session import VALUES, OpenRun, RunOptions, open_run, recorded_dependency
from shaprune.runs.worker_pool import versions
from shaprune.values.concepts import concept_of
from shaprune.values.estimate import method_of
from shaprune.values.estimators.base import Method
from shaprune.values.games.game import Game, ObservedGame
from shaprune.values.games.logged import LoggedGame
from shaprune.values.games.observers import ReportingGame
from shaprune.values.rescoring import estimate_in_rounds, expected_evaluations_in_rounds
from shaprune.values.result import Values
from shaprune.values.stopping import Reason, Rule

__all__ = ["Scores", "score"]

ALL_GROUPS = "all groups"
RENAMED = {"sizes": "options=sp.options.Scoring(window=...)", "step": "options=sp.options.Scoring(per_round=...)"}


@moved_keywords({"options": Scoring, "run": RunOptions}, RENAMED)
def score(
    model: nn.Module,
    players: Players,
    data: Iterable[Any] | Calibration | None,
    worth: AnyWorth | Only | Evaluate = "fidelity",
    method: str | Method = "permutation",
    *,
    max_evaluations: int | None = None,
    stop: Rule | Reason | None = None,
    seed: int = 0,
    run: str | Path | RunOptions | None = None,
    log: str | Path | None = None,
    progress: bool | None = None,
    options: Scoring | None = None,
) -> Scores:
    """Score every group: one game per group with the other groups whole, or one game over all players.

    The defaults need no labels: fidelity, which is how far the output moves, while at least half of a group is kept.

    Example: ``sp.score(model, players, data, "accuracy", run="runs/a", options=sp.options.Scoring(together=True))``.

    Args:
        model: the dense network; it comes back untouched.
        players: from `find_players`.
        data: batches, see `NetworkGame`.
        worth: see `NetworkGame`.
        method: an estimator, see `estimate`; or the name of a classical criterion, see
            `shaprune.criteria.registry.criterion_scores`, which plays no game, so that most options do not apply.
        max_evaluations, stop, seed: see `estimate`; a budget is per game.
        run: a folder that keeps every answer of the network, so that the same call goes on where an earlier one ended;
            or `RunOptions`, which has workers and shards, too.
        log: a folder; worths over all examples are kept there, one file per game, and are not paid again. A few of
            them are asked anew first, as with ``run``.
        progress: show a bar with the remaining time, and the error of the game that ended last, on stderr; None = only
            on a terminal.
        options: the concept, its window, rounds, precision, memory, ..., see `Scoring`.

    Returns:
        `Scores`, a mapping from group names to `Values`, which carries the players.

    Raises:
        InputError, GameError: options that do not go together, before any work; else as `NetworkGame` and `estimate`,
            naming the group.
    """
    started = time.perf_counter()
    how, run_options = options or Scoring(), RunOptions.of(run)
    check_scoring(method, worth, how, run_options, max_evaluations=max_evaluations, stop=stop, log=log)
    stop = stop.among(players.n) if isinstance(stop, Rule) else stop
    if not (data is None or isinstance(worth, Evaluate)):
        data = Calibration.of(model, data, how.forward, max_memory=how.max_memory)
    network = _Network(model, players, data, worth, how)
    if is_criterion(method):
        assert isinstance(method, str)
        found = network.by_criterion(method, seed)
        return Scores(players, found, worth_name(worth), time.perf_counter() - started)
    games, rows_in, told = network.games(run_options)
    asked, totals = dict(games), _expected(games, method, max_evaluations, stop, how)
    if how.watch is not None:
        how.watch.opens(totals)
    estimation = {"mode": how.mode, "method": method, "max_evaluations": max_evaluations, "stop": stop, "seed": seed}
    about = {} if run_options.folder is None else _dependencies(asked, {**estimation, **how.rounds(method)}, how)
    recipe = None if run_options.alone else network.recipe(games, run_options, rows_in)
    witness = partial(_witness, games)
    with (
        open_run(
            run_options, {name: game.n_examples for name, game in games.items()}, recipe, about, witness
        ) as opened,
        _progress_bar(totals, sys.stderr.isatty() if progress is None else progress) as bar,
    ):
        values_of = _Estimates(opened, bar, log, how, {**estimation, **how.rounds(method)})
        if how.layers == "output-to-input":
            games.clear()
            results = network.from_the_output(values_of, rows_in)
            flat = flat_notes(results, {})
        else:
            results = opened.all(games, values_of)
            flat = flat_notes(results, asked)
            if how.together and results:
                values = results.pop(ALL_GROUPS)
                results = {g.name: values.part(np.asarray(g.indices)) for g in players.groups}
        notes = (*running_notes(asked, stop, run_options), *([f"rows were run in {told}"] if told else []), *flat)
        scores = Scores(players, results, worth_name(worth), time.perf_counter() - started, notes)
        if run_options.path is not None and run_options.shard is None:
            scores.save(run_options.path / VALUES)
    return scores


@dataclass(frozen=True, eq=False)
class _Network:
    """What is scored, on what, and how."""

    model: nn.Module
    players: Players
    data: Any
    worth: AnyWorth | Only | Evaluate
    how: Scoring

    @property
    def groups(self) -> dict[str, str | None]:
        """The group of every game, by the name of the game; None = all of them."""
        return {ALL_GROUPS: None} if self.how.together else {g.name: g.name for g in self.players.groups}

    def by_criterion(self, criterion: str, seed: int) -> dict[str, Values]:
        """Values by a classical criterion; accuracy, which has no gradient, gives way to the cross-entropy."""
        if isinstance(self.worth, Evaluate):
            if CRITERIA[criterion].examples:
                raise InputError(
                    f"criterion {criterion!r} looks at examples, and Evaluate keeps its own; give data and a worth"
                )
            return criterion_scores(self.model, self.players, None, criterion, seed=seed)
        examples, chosen = restrict_to_subset(self.data, self.worth)
        worth = "cross_entropy" if chosen == "accuracy" else chosen
        return criterion_scores(self.model, self.players, examples, criterion, worth=worth, seed=seed)

    def games(self, run: RunOptions) -> tuple[dict[str, NetworkGame], RowPrecision, str | None]:
        """The games by name, the precision of their rows, and what to say of it."""
        rows_in, told = _precision(self.how.precision, run)
        setting: dict[str, Any] = {"forward": self.how.forward, "max_memory": self.how.max_memory}
        whole = (self.model, self.players, self.data, self.worth)
        games = {name: NetworkGame(*whole, g, precision=rows_in, **setting) for name, g in self.groups.items()}
        if told is None:
            rows_in, told = probe_precision([*games.values()])
            if rows_in != "float32":
                games = {name: game.at(rows_in) for name, game in games.items()}
        return games, rows_in, told

    def recipe(self, games: Mapping[str, NetworkGame], run: RunOptions, rows_in: RowPrecision) -> GameRecipe:
        """What workers make the games from."""
        shared = self.data if isinstance(self.data, Calibration) else None
        return worker_recipe(
            self.model,
            self.players,
            shared,
            self.worth,
            self.groups,
            build=run.build,
            max_memory=self.how.max_memory,
            precision=rows_in,
            workers=run.workers,
        )

    def from_the_output(self, values_of: _Estimates, rows_in: RowPrecision) -> dict[str, Values]:
        """Values of every group in the network whose later groups have been cut already."""

        def in_smaller(small: nn.Module, part: Players, calibration: Calibration, worth: AnyWorth, name: str) -> Values:
            game = NetworkGame(small, part, calibration, worth, name, max_memory=self.how.max_memory, precision=rows_in)
            return values_of(game, name)

        if not isinstance(self.data, Calibration) or isinstance(self.worth, (Evaluate, Only)):
            raise InputError("layers='output-to-input' needs data and a worth")
        how = self.how
        return score_output_to_input(
            self.model, self.players, self.data, self.worth, how.remove, how.forward, in_smaller
        )


@dataclass(frozen=True, eq=False)
class _Estimates:
    """Estimates the values of one game of a run after the other; the bar, the log and who watches are kept informed."""

    run: OpenRun
    bar: _Bar
    log: str | Path | None
    how: Scoring
    estimation: Mapping[str, Any]

    def __call__(self, game: Game, name: str) -> Values:
        self.bar.start(name)
        watch = self.how.watch
        with _name_group_in_errors(name), _logged(self.run.play(game, name), self.log, name) as logged:
            asked: Game = logged
            if watch is not None:
                watch.begins(name, game.n_players)
                asked = ReportingGame(logged, partial(watch.answered, name))
            values = estimate_in_rounds(ObservedGame(asked, self.bar.advance), **self.estimation)
            self.bar.finish(values)
            if watch is not None:
                watch.ends(name, values)
            return values


def _witness(games: Mapping[str, NetworkGame], name: str) -> Any:
    return witness_of(games[name])


def _expected(
    games: Mapping[str, NetworkGame],
    method: str | Method,
    max_evaluations: int | None,
    stop: Rule | Reason | None,
    how: Scoring,
) -> dict[str, int | None]:
    """Evaluations of every game at most; refuses what `estimate` would, before any game is played."""
    totals: dict[str, int | None] = {}
    for name, game in games.items():
        with _name_group_in_errors(name):
            totals[name] = expected_evaluations_in_rounds(
                game, how.mode, method, max_evaluations, stop, **how.price(method)
            )
    return totals


def _dependencies(games: Mapping[str, NetworkGame], estimation: Mapping[str, Any], how: Scoring) -> dict[str, Any]:
    """What the answers of a run depend on: a run that goes on must have the same."""
    stop = estimation["stop"]
    return {
        **answer_dependencies([*games.values()]),
        "groups": ", ".join(games),
        **estimation,
        "method": repr(method_of(estimation["method"])),
        "stop": None if stop is None else stop.name if isinstance(stop, Rule) else identity(stop),
        "concept": concept_of(how.concept).label,
        "max_memory": how.max_memory,
        **versions(),
    }


def _precision(wanted: str, run_options: RunOptions) -> tuple[RowPrecision, str | None]:
    """The precision that rows are run in, and what to say of it; None where a probe of the games is to decide."""
    known: dict[str, RowPrecision] = {one: one for one in get_args(RowPrecision)}
    if wanted != "auto":
        return known[wanted], "" if wanted == "float32" else wanted
    begun = None if run_options.path is None else recorded_dependency(run_options.path, ROW_PRECISION_KEY)
    if begun is None:
        return "float32", None
    return known.get(begun, "float32"), f"{begun}, as the run began"


@contextmanager
def _name_group_in_errors(name: str) -> Iterator[None]:
    """Errors say which group they are about."""
    try:
        yield
    except ShapruneError as error:
        raise type(error)(f"{name}: {error}") from error


@contextmanager
def _logged(game: Game, log: str | Path | None, name: str) -> Iterator[Game]:
    """The game with its log from the folder ``log``; what has been paid is written back, also after a failure."""
    if log is None:
        yield game
        return
    path = Path(log) / f"{name}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"log={str(log)!r} cannot be made a folder: {error.strerror}; give another") from error
    logged = LoggedGame.load(path, game) if path.exists() else LoggedGame(game)
    try:
        yield logged
    finally:
        logged.save(path)


@dataclass(frozen=True, eq=False)
class _Bar:
    """What moves a progress bar: the name of the current game, evaluations that were paid, the values of a game."""

    start: Callable[[str], None]
    advance: Callable[[int], None]
    finish: Callable[[Values], None]


@contextmanager
def _progress_bar(totals: Mapping[str, int | None], shown: bool) -> Iterator[_Bar]:
    """A progress bar over evaluations."""
    from rich.console import Console

    known = [t for t in totals.values() if t is not None]
    columns = (TextColumn("scoring {task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[error]}"))
    with Progress(*columns, *times, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=sum(known) if len(known) == len(totals) else None, error="")
        yield _Bar(
            lambda name: bar.update(task, description=name),
            lambda rows: bar.advance(task, rows),
            lambda values: bar.update(task, error=_relative_error(values)),
        )


def _relative_error(values: Values) -> str:
    """The median standard error relative to the value; empty where there is none."""
    known = (values.value != 0) & np.isfinite(values.stderr) & (values.stderr > 0)
    if not known.any():
        return ""
    with np.errstate(over="ignore"):  # values next to nothing
        return f"± {np.median(values.stderr[known] / np.abs(values.value[known])):.0%}"
