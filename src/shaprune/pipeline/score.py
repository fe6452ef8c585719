"""Values for every group of a network: one game each, or one game over all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from shaprune.criteria.registry import CRITERIA, criterion_scores
from shaprune.errors import InputError, ShapruneError, check_choice
from shaprune.network.batches import Forward
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.fingerprint import identity
from shaprune.network.game.game_witness import witness_of
from shaprune.network.game.network_game import DEFAULT_MAX_MEMORY, NetworkGame
from shaprune.network.game.precision_probe import probe_precision
from shaprune.network.game.subset_worth import Only, restrict_to_subset
from shaprune.network.game.worker_recipe import ROW_PRECISION_KEY, answer_dependencies, worker_recipe
from shaprune.network.game.worths import AnyWorth, Evaluate, worth_name
from shaprune.network.precision import RowPrecision
from shaprune.pipeline.output_to_input import score_output_to_input
from shaprune.pipeline.score_notes import flat_notes, running_notes
from shaprune.planning.scores import Scores
from shaprune.players.players import Players
from shaprune.runs.session import VALUES, RunOptions, open_run, recorded_dependency
from shaprune.runs.worker_pool import versions
from shaprune.values.aggregation import Aggregate
from shaprune.values.concepts import Concept, concept_of
from shaprune.values.estimate import METHODS
from shaprune.values.estimators.base import Method
from shaprune.values.games.game import Game, ObservedGame
from shaprune.values.games.logged import LoggedGame
from shaprune.values.games.observers import GameObserver, ReportingGame
from shaprune.values.rescoring import MODES, estimate_in_rounds, expected_evaluations_in_rounds
from shaprune.values.result import Values
from shaprune.values.stopping import Reason, Rule

__all__ = ["Scores", "score"]

PRECISIONS = ("auto", *get_args(RowPrecision))
LAYER_ORDERS = ("independent", "output-to-input")
ALL_GROUPS = "all groups"
OPTIONS_WITHOUT_GAME = {  # what may be given for a criterion, which plays no game; anything else is None
    "mode": "one-shot",
    "layers": "independent",
    "concept": "shapley",
    "aggregate": "mean",
    "together": False,
    "workers": 1,
    "precision": "float32",
}


def score(
    model: nn.Module,
    players: Players,
    data: Iterable[Any] | Calibration | None,
    worth: AnyWorth | Only | Evaluate = "accuracy",
    method: str | Method = "permutation",
    *,
    mode: str = "one-shot",
    step: int | float = 1,
    negative_first: bool = False,
    layers: str = "independent",
    remove: float = 0.5,
    max_evaluations: int | None = None,
    stop: Rule | Reason | None = None,
    seed: int = 0,
    concept: str | Concept = "shapley",
    sizes: tuple[float, float] = (0.0, 1.0),
    aggregate: str | Aggregate = "mean",
    together: bool = False,
    log: str | Path | None = None,
    run: str | Path | None = None,
    workers: int = 1,
    ray_address: str | None = None,
    shard: str | None = None,
    build: Callable[[], nn.Module] | None = None,
    forward: Forward | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    precision: RowPrecision | Literal["auto"] = "float32",
    progress: bool | None = None,
    watch: GameObserver | None = None,
) -> Scores:
    """Score every group: one game per group with the other groups whole, or one game over all players.

    Args:
        model: the dense network; it comes back untouched.
        players: from `find_players`.
        data: batches, see `NetworkGame`.
        worth: see `NetworkGame`.
        method: an estimator, see `estimate`; or the name of a classical criterion, see
            `shaprune.criteria.registry.criterion_scores`, which plays no game, so that the options below do not apply.
        mode, step, negative_first: score once or again after every few players, see
            `shaprune.values.rescoring.estimate_in_rounds`.
        layers: ``"independent"``: every group in the dense network; ``"output-to-input"``: from the last group to the
            first, each in the network whose later groups have lost the lowest ``remove`` share already (Ancona et al.
            2020).
        max_evaluations, stop, seed, concept, sizes, aggregate: see `estimate`; a budget is per game.
        together: one game over all players of all groups instead of one per group.
        log: a folder; worths over all examples are kept there, one file per game, and are not paid again. A few of
            them are asked anew first, as with ``run``.
        run: a folder with the journal of this run: every answer of the network is committed there before it counts. The
            same call goes on where an earlier one ended, however it ended, and gives the same bits; ``values.json`` is
            written at the end. Before any known answer is used, a few worths of every game are asked anew and compared
            with what they were; where the network or the worth has changed the call is refused.
        workers: processes of this machine, or actors where ``ray_address`` is given; 1 = this process. Any number gives
            the same bits (float32 on CPU). In a script, call below ``if __name__ == "__main__":``.
        ray_address: of a Ray cluster (``"auto"``, ``"local"``, ``"host:port"``).
        shard: ``"i/n"``: compute the i-th of n parts into ``run`` and return no values; once all parts have finished,
            `shaprune.runs.merge_shards.merge` joins them, and the call without a shard gives the values.
        build: makes the network (its weights are loaded into it) where it cannot be pickled to workers.
        forward, max_memory: see `NetworkGame`.
        precision: ``"float32"``, ``"bfloat16"``, ``"bfloat16-channels-last"`` (see `NetworkGame`), or ``"auto"``: what
            a probe of a few walks finds faster and the ranking unmoved, see `shaprune.network.game.precision_probe`; a
            run that goes on keeps what it began with.
        progress: show a bar with the remaining time, and the error of the game that ended last, on stderr; None = only
            on a terminal.
        watch: observer of the games, see `shaprune.values.games.observers.GameObserver`.

    Returns:
        `Scores`, a mapping from group names to `Values`.

    Raises:
        InputError, GameError: as `NetworkGame` and `estimate`, naming the group.
    """
    started = time.perf_counter()
    check_choice("layers", layers, LAYER_ORDERS)
    check_choice("mode", mode, MODES)
    if data is None or isinstance(data, Calibration) or isinstance(worth, Evaluate):
        calibration = data
    else:
        calibration = Calibration(model, data, forward, max_memory=max_memory)
    if isinstance(method, str) and method not in METHODS:
        check_choice("method", method, (*METHODS, *CRITERIA))
        given = {
            "mode": mode,
            "layers": layers,
            "concept": concept_of(concept).label,
            "aggregate": aggregate,
            "together": together,
            "stop": stop,
            "max_evaluations": max_evaluations,
            "log": log,
            "run": run,
            "workers": workers,
            "ray_address": ray_address,
            "shard": shard,
            "precision": precision,
        }
        idle = [name for name, value in given.items() if value != OPTIONS_WITHOUT_GAME.get(name)]
        if idle:
            raise InputError(f"criterion {method!r} plays no game; drop {', '.join(idle)}")
        found = _by_criterion(model, players, calibration, worth, method, seed)
        return Scores(players, found, worth_name(worth), time.perf_counter() - started)
    run_options = RunOptions.of(run, workers, ray_address, shard)
    check_choice("precision", precision, PRECISIONS)
    run_options.check(layers=layers, mode=mode, stop=stop, log=log, precision=precision)
    groups: dict[str, str | None] = {ALL_GROUPS: None} if together else {g.name: g.name for g in players.groups}
    how: dict[str, Any] = {"step": step, "concept": concept, "sizes": sizes}
    rows_in, told = _precision(precision, run_options)
    setting: dict[str, Any] = {"forward": forward, "max_memory": max_memory, "precision": rows_in}
    games = {n: NetworkGame(model, players, calibration, worth, g, **setting) for n, g in groups.items()}
    if told is None:
        rows_in, told = probe_precision([*games.values()])
        if rows_in != "float32":
            games = {name: game.at(rows_in) for name, game in games.items()}
    totals: dict[str, int | None] = {}
    for name, game in games.items():
        with _name_group_in_errors(name):
            totals[name] = expected_evaluations_in_rounds(game, mode, method, max_evaluations, stop, **how)
    if watch is not None:
        watch.opens(totals)
    asked = dict(games)
    how |= {"negative_first": negative_first, "aggregate": aggregate}
    shared = calibration if isinstance(calibration, Calibration) else None
    chosen = METHODS[method] if isinstance(method, str) else method
    options = {
        "groups": ", ".join(groups),
        "method": repr(chosen),
        "mode": mode,
        **how,
        "concept": concept_of(concept).label,
        "max_evaluations": max_evaluations,
        "stop": _rule_text(stop),
        "seed": seed,
        "max_memory": max_memory,
    }
    about = {**answer_dependencies([*games.values()]), **options, **versions()} if run_options.run is not None else {}
    recipe = (
        None
        if run_options.alone
        else worker_recipe(
            model,
            players,
            shared,
            worth,
            groups,
            build=build,
            max_memory=max_memory,
            precision=rows_in,
            workers=workers,
        )
    )
    with (
        open_run(
            run_options,
            {name: game.n_examples for name, game in games.items()},
            recipe,
            about,
            lambda name: witness_of(games[name]),
        ) as running,
        _progress_bar(totals, sys.stderr.isatty() if progress is None else progress) as (start, advance, finish),
    ):

        def values_of(game: Game, name: str) -> Values:
            start(name)
            with _name_group_in_errors(name), _logged(running.play(game, name), log, name) as logged:
                asked: Game = logged
                if watch is not None:
                    watch.begins(name, game.n_players)
                    asked = ReportingGame(logged, partial(watch.answered, name))
                values = estimate_in_rounds(
                    ObservedGame(asked, advance), mode, method, max_evaluations, stop, seed, **how
                )
                finish(values)
                if watch is not None:
                    watch.ends(name, values)
                return values

        def in_smaller(small: nn.Module, part: Players, calibration: Calibration, worth: AnyWorth, name: str) -> Values:
            game = NetworkGame(small, part, calibration, worth, name, max_memory=max_memory, precision=rows_in)
            return values_of(game, name)

        if layers == "output-to-input":
            if (
                together
                or log is not None
                or not isinstance(calibration, Calibration)
                or isinstance(worth, (Evaluate, Only))
            ):
                raise InputError(f"layers={layers!r} goes with neither together, log, Only nor Evaluate; drop these")
            games.clear()
            results = score_output_to_input(model, players, calibration, worth, remove, forward, in_smaller)
            flat = flat_notes(results, {})
        else:
            results = running.all(games, values_of)
            flat = flat_notes(results, asked)
            if together and results:
                values = results.pop(ALL_GROUPS)
                results = {g.name: values.part(np.asarray(g.indices)) for g in players.groups}
        notes = (*running_notes(asked, stop, run_options), *([f"rows were run in {told}"] if told else []), *flat)
        scores = Scores(players, results, worth_name(worth), time.perf_counter() - started, notes)
        if run_options.run is not None and run_options.shard is None:
            scores.save(run_options.run / VALUES)
    return scores


def _precision(wanted: RowPrecision | Literal["auto"], run_options: RunOptions) -> tuple[RowPrecision, str | None]:
    """The precision that rows are run in, and a note about it; None where a probe of the games is to decide."""
    if wanted != "auto":
        return wanted, "" if wanted == "float32" else wanted
    begun = None if run_options.run is None else recorded_dependency(run_options.run, ROW_PRECISION_KEY)
    if begun is None:
        return "float32", None
    known: RowPrecision = next((one for one in get_args(RowPrecision) if one == begun), "float32")
    return known, f"{begun}, as the run began"


def _rule_text(stop: Rule | Reason | None) -> str | None:
    """A stopping rule in words."""
    return None if stop is None else stop.name if isinstance(stop, Rule) else identity(stop)


def _by_criterion(
    model: nn.Module,
    players: Players,
    calibration: Any,
    worth: AnyWorth | Only | Evaluate,
    criterion: str,
    seed: int,
) -> dict[str, Values]:
    """Values by a classical criterion; accuracy, which has no gradient, gives way to the cross-entropy."""
    if isinstance(worth, Evaluate):
        if CRITERIA[criterion].examples:
            raise InputError(
                f"criterion {criterion!r} looks at examples, and Evaluate keeps its own; give data and a worth"
            )
        return criterion_scores(model, players, None, criterion, seed=seed)
    examples, chosen = restrict_to_subset(calibration, worth)
    return criterion_scores(
        model, players, examples, criterion, worth="cross_entropy" if chosen == "accuracy" else chosen, seed=seed
    )


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


@contextmanager
def _progress_bar(
    totals: Mapping[str, int | None], shown: bool
) -> Iterator[tuple[Callable[[str], None], Callable[[int], None], Callable[[Values], None]]]:
    """A progress bar over evaluations; yields (name the current game, advance, show the error of a game)."""
    from rich.console import Console

    known = [t for t in totals.values() if t is not None]
    columns = (TextColumn("scoring {task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[error]}"))
    with Progress(*columns, *times, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=sum(known) if len(known) == len(totals) else None, error="")
        yield (
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
