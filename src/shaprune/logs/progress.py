"""Progress of the games of a run, for tables, pages and logs. No torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.logs.sinks import Sink
from shaprune.values.estimators.marginal_statistics import Statistics, empty, from_samples, marginals
from shaprune.values.games.arrays import Worths
from shaprune.values.games.game import Question
from shaprune.values.result import Values

PROGRESS_HEADER = ("group", "players", "evaluations", "values", "standard error", "cut", "undecided", "")


@dataclass
class GameProgress:
    """How one game stands.

    Attributes:
        group: its name.
        players: how many.
        expected: evaluations; None = unknown.
        done: the estimate is final.
        evaluations: paid so far.
        value, stderr: (players,) the estimate so far; None = not yet known.
    """

    group: str
    players: int
    expected: int | None
    done: bool = False
    evaluations: int = 0
    value: NDArray[np.float64] | None = None
    stderr: NDArray[np.float64] | None = None
    sums: Statistics = field(default_factory=lambda: empty(0), repr=False)
    written: float = -math.inf

    def numbers(self, share: float) -> dict[str, float]:
        """What can be said about the values; ``share`` of the players is left out by the cut. Only finite numbers."""
        found: dict[str, float] = {"players": self.players, "done": float(self.done)}
        if self.expected is not None:
            found["expected"] = self.expected
        if self.value is None or self.stderr is None:
            return found
        ordered = np.sort(self.value)
        found |= {"least": ordered[0], "mean": self.value.mean(), "most": ordered[-1], "stderr": self.stderr.mean()}
        leaves = math.floor(share * self.players)
        if 0 < leaves < self.players:
            cut = (ordered[leaves - 1] + ordered[leaves]) / 2
            found |= {"cut": cut, "undecided": float((np.abs(self.value - cut) <= 2 * self.stderr).sum())}
        return {name: float(number) for name, number in found.items() if math.isfinite(number)}


class RunProgress:
    """A `shaprune.values.games.observers.GameObserver` that keeps the standing of every game, and writes it to logs.

    While a game is played by walks, its values so far are those of the walks seen (of every window and every method
    that walks; they are a picture of the estimate, which may weigh walks otherwise). At its end they are the estimate.

    Args:
        sinks: where numbers go, at most once in ``every`` seconds per game, and at its end.
        share: of the players of a group that leave at the cut.
        every: seconds.
        follow: whether walks are followed; not for values that weigh sizes unequally.
        now: the clock.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        *,
        share: float = 0.5,
        every: float = 1.0,
        follow: bool = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sinks, self.share, self.every, self.follow, self.now = sinks, share, every, follow, now
        self.standings: dict[str, GameProgress] = {}
        self.expected: dict[str, int | None] = {}
        self.started = now()
        self._lock = Lock()

    def opens(self, expected: Mapping[str, int | None]) -> None:
        self.expected = dict(expected)

    def begins(self, group: str, n_players: int) -> None:
        with self._lock:
            expected = self.expected.get(group)
            self.standings[group] = GameProgress(group, n_players, expected, sums=empty(n_players))

    def answered(self, group: str, question: Question, worths: Worths, evaluations: int) -> None:
        with self._lock:
            row = self.standings[group]
            row.evaluations += evaluations
            if self.follow and question.walks and question.start is None:
                value, present = marginals(worths, question.rows, np.ones(row.players))
                row.sums = row.sums + from_samples(value, present, antithetic=False, paired=False)
                row.value, row.stderr = row.sums.mean(), row.sums.stderr(1)
            if self.now() - row.written >= self.every:
                self._write(row)

    def ends(self, group: str, values: Values) -> None:
        with self._lock:
            row = self.standings[group]
            row.done, row.value, row.stderr = True, values.value, values.stderr
            self._write(row)

    def _write(self, row: GameProgress) -> None:
        row.written = self.now()
        for sink in self.sinks:
            sink.write(row.group, row.evaluations, row.numbers(self.share))

    @property
    def evaluations(self) -> int:
        """Paid so far, over all games."""
        return sum(row.evaluations for row in self.standings.values())

    def remaining(self) -> float | None:
        """Seconds that are left at the pace so far; None = unknown."""
        paid, total = self.evaluations, 0
        for expected in self.expected.values():
            if expected is None:
                return None
            total += expected
        return max(0.0, (self.now() - self.started) * (total - paid) / paid) if paid else None

    def left(self) -> str:
        """Minutes and seconds that are left, in words."""
        left = self.remaining()
        return "unknown" if left is None else f"{int(left) // 60}:{int(left) % 60:02d}"

    def line(self) -> str:
        """How far the run is, in one line."""
        with self._lock:
            standings = list(self.standings.values())
        done = sum(row.done for row in standings)
        games = f"{done} of {len(self.expected) or len(standings)} games done"
        now = ", ".join(row.group for row in standings if not row.done)
        paid, known = self.evaluations, [e for e in self.expected.values() if e is not None]
        total = f" of {sum(known):,}" if known and len(known) == len(self.expected) else ""
        return f"{paid:,}{total} evaluations, {self.left()} left; {games}" + (f", now {now}" if now else "")

    def rows(self) -> list[dict[str, Any]]:
        """Every game that has begun, JSON-ready."""
        with self._lock:
            standings = list(self.standings.values())
            return [{"group": row.group, "step": row.evaluations, **row.numbers(self.share)} for row in standings]


def progress_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of `RunProgress.rows`, or of ``progress.jsonl``, in words, as `PROGRESS_HEADER` has it."""
    known = "least" in row
    expected = f" of {row['expected']:,.0f}" if "expected" in row and not row.get("done") else ""
    return (
        str(row["group"]),
        f"{row.get('players', 0):,.0f}",
        f"{row['step']:,}{expected}",
        f"{row['least']:.3g} .. {row['most']:.3g}" if known else "",
        f"{row['stderr']:.2g}" if "stderr" in row else "",
        f"{row['cut']:.3g}" if "cut" in row else "",
        f"{row['undecided']:.0f}" if "undecided" in row else "",
        "done" if row.get("done") else "running",
    )
