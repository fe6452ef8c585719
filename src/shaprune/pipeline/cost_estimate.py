"""Expected cost of scoring: evaluations by counting, seconds by a timed probe, memory by sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from shaprune.network.batches import tensor_bytes
from shaprune.network.disk_buffer import MEMORY_PARTS
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.subset_worth import Only
from shaprune.network.game.worths import AnyWorth, Evaluate
from shaprune.network.precision import RowPrecision
from shaprune.options.fields import moved_keywords
from shaprune.options.groups import Scoring
from shaprune.players.players import Players
from shaprune.storage.tables import Table, Tabular
from shaprune.values.estimate import method_of
from shaprune.values.estimators.base import Method
from shaprune.values.rescoring import expected_evaluations_in_rounds
from shaprune.values.stopping import Reason, Rule

RENAMED = {"sizes": "options=sp.options.Scoring(window=...)", "step": "options=sp.options.Scoring(per_round=...)"}
PROBE_WALKS = (8, 128)  # of a probe, each on its own example: few, then as many as a chunk has
PROBE_STEPS = 64  # players that leave in a walk of a probe
MIN_PROBE_SECONDS = 0.05  # seconds that a probe must take to be believed


@dataclass(frozen=True)
class GameCost:
    """What one game will cost.

    Attributes:
        players: that play.
        evaluations: (coalition, example) rows at most; None where only a stopping rule ends it.
        seconds: on one worker; None likewise.
        memory: bytes of its activations.
    """

    players: int
    evaluations: int | None
    seconds: float | None
    memory: int


@dataclass(frozen=True, repr=False)
class ScoringCost(Tabular):
    """What `score` will cost.

    Attributes:
        by_game: of every game, by the name of its group (``"all groups"`` where all play together).
        evaluations: in all; None where only a stopping rule ends a game.
        seconds: in all, shared out among the workers; None likewise.
        memory: bytes of the network, the examples and the largest game, for every worker.
        probe_seconds: what the estimate itself took.
    """

    by_game: dict[str, GameCost]
    evaluations: int | None
    seconds: float | None
    memory: int
    probe_seconds: float

    def headline(self) -> str:
        """What all games cost together."""
        rows, time = ("unknown" if x is None else f"{x:,.4g}" for x in (self.evaluations, self.seconds))
        return f"{rows} evaluations, {time} seconds, {self.memory / 2**20:,.0f} MiB"

    def table(self) -> Table:
        """One row per game."""
        rows = [(name, c.players, c.evaluations, c.seconds, c.memory / 2**20) for name, c in self.by_game.items()]
        columns = {"group": "", "players": ",", "evaluations": ",", "seconds": ".2f", "MiB": ",.0f"}
        return Table(columns, rows)


@moved_keywords({"options": Scoring}, RENAMED)
def expected_cost(
    model: nn.Module,
    players: Players,
    data: Iterable[Any] | Calibration | None,
    worth: AnyWorth | Only | Evaluate = "fidelity",
    method: str | Method = "permutation",
    *,
    max_evaluations: int | None = None,
    stop: Rule | Reason | None = None,
    workers: int = 1,
    options: Scoring | None = None,
) -> ScoringCost:
    """Estimate what `score` with these arguments will cost; nothing is scored.

    Every game walks a few orders on a few examples, or differentiates as many coalitions, against the clock. Rounds of
    modes other than one-shot are taken to cost as much per evaluation as the first; ``precision="auto"`` is priced in
    float32, the dearer.

    Raises:
        InputError, GameError: as `score`.
    """
    started, how = time.perf_counter(), options or Scoring()
    forward, max_memory = how.forward, how.max_memory
    if not (data is None or isinstance(worth, Evaluate)):
        data = Calibration.of(model, data, forward, max_memory=max_memory)
    rows_in: RowPrecision = "float32" if how.precision == "auto" else how.precision
    groups: dict[str, str | None] = {"all groups": None} if how.together else {g.name: g.name for g in players.groups}
    found: dict[str, GameCost] = {}
    for name, group in groups.items():
        game = NetworkGame(
            model, players, data, worth, group, forward=forward, max_memory=max_memory, precision=rows_in
        )
        rows = expected_evaluations_in_rounds(game, how.mode, method, max_evaluations, stop, **how.price(method))
        once, each = _time_game(game, method_of(method).differentiates)
        seconds = None if rows is None else once + rows * each
        found[name] = GameCost(game.n_players, rows, seconds, _activations(game, max_memory))
    evaluations = [cost.evaluations for cost in found.values() if cost.evaluations is not None]
    times = [cost.seconds for cost in found.values() if cost.seconds is not None]
    bounded = len(evaluations) == len(found)
    memory = tensor_bytes([*model.parameters(), *model.buffers()]) + max((c.memory for c in found.values()), default=0)
    if isinstance(data, Calibration):
        examples = tensor_bytes((data.inputs, data.targets))
        memory += sum(min(size, max_memory // MEMORY_PARTS) for size in (examples, tensor_bytes(data.outputs)))
    return ScoringCost(
        found,
        sum(evaluations) if bounded else None,
        sum(times) / workers if bounded else None,
        memory * workers,
        time.perf_counter() - started,
    )


def _time_game(game: NetworkGame, differentiates: bool) -> tuple[float, float]:
    """Seconds that a game takes once, for what lies before the masks, and for each evaluation after that."""
    rng = np.random.default_rng(0)
    n, examples = game.n_players, game.n_examples
    if not game.separable:  # its worth may mean nothing on a few examples only
        rows = rng.random((1 if game.whole_model is not None else 4, n)) < 0.9
        first, second = (_seconds(lambda: game(rows)) for _ in range(2))
        return max(first - second, 0.0), second / (len(rows) * examples)
    once = each = 0.0
    for walks in PROBE_WALKS:
        some = np.unique(np.linspace(0, examples - 1, walks).astype(np.int64))
        ask, evaluations = _probe_question(game.part(some), differentiates, rng)
        first, second = (_seconds(ask) for _ in range(2))
        once, each = max(first - second, 0.0) * examples / len(some), second / evaluations
        if second > MIN_PROBE_SECONDS or len(some) == examples:
            break
    return once, each


def _probe_question(game: NetworkGame, differentiates: bool, rng: np.random.Generator) -> tuple[Callable[[], Any], int]:
    """What is asked of every example against the clock, and how many evaluations that is."""
    every, steps = np.arange(game.n_examples), min(PROBE_STEPS, game.n_players)
    if differentiates:
        rows = rng.random((len(every) * (steps + 1), game.n_players)) < 0.5
        examples = np.repeat(every, steps + 1)
        return lambda: game.derivatives(rows, examples), len(rows) * game.derivative_price
    orders = rng.permuted(np.tile(np.arange(game.n_players), (len(every), 1)), axis=1)[:, :steps]
    return lambda: game.walk(orders, every), orders.size + len(orders)


def _seconds(ask: Callable[[], Any]) -> float:
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


def _activations(game: NetworkGame, max_memory: int) -> int:
    """Bytes of the values at the cut and of one batch of rows."""
    if game.whole_model is not None:
        return 0
    rows = game.evaluator.rows
    cached = min(rows.state_bytes * game.n_examples, max_memory // MEMORY_PARTS)
    return cached + rows.batches.largest(rows.row_bytes) * rows.row_bytes
