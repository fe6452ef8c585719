"""A simulated cluster: how well 1 to 256 workers are used, with recorded chunk times, stragglers and lost workers.

Recorded: the seconds of every chunk of two inner groups of ResNet-56 (512 images, one thread), from the journal of a
run; a chunk of the large run is drawn from them. The large run has as many games as ResNet-56 has groups.

Simulated, in virtual time, is the executor: games draw their questions ahead (`WorkerPool.width` of them), as many
games as there are workers are under way, workers pull from its own `WorkQueue`, a question of a lost worker goes back
to the front, the worker comes back after `RESTART_SECONDS` and a start. Of the workers 5 % are slow (half speed), 1 %
of the chunks take four times as long, and a worker is lost in 1 % of the chunks. The driver takes its own time for each
answer (drawing orders, journal, sums), one after the other; it is recorded, too.

Efficiency = seconds of work / (workers x seconds until the last answer), where the work is that of the chunks at full
speed, each once: whatever is lost, repeated, waited for or slow counts against it.

The simulation is held against the executor itself: a `WorkerPool` of 8 workers that sleep, on the same chunk times
scaled to 50 ms.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import ROOT, SEED, resnet56, write
from numpy.typing import NDArray

import shaprune as sp
from shaprune.network.game.worker_recipe import MAX_GAMES_KEPT
from shaprune.runs.executed_games import ExecutedGame
from shaprune.runs.executor import Answer
from shaprune.runs.work_queue import WorkQueue
from shaprune.runs.worker_pool import QUESTIONS_PER_WORKER, RESTART_SECONDS, WorkerPool, versions
from shaprune.values.games.game import Game, Question

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
START = 8.0  # seconds until a lost worker is there again
GAMES, CHUNKS = 56, 64  # of the large run: groups, and chunks of each
SLOW, STRAGGLER, LOST = (0.05, 2.0), (0.01, 4.0), 0.01  # (share, factor); share of the chunks that end a worker


@dataclass(frozen=True)
class Trouble:
    """What goes wrong: see the constants above."""

    slow: tuple[float, float] = (0.0, 1.0)
    straggler: tuple[float, float] = (0.0, 1.0)
    lost: float = 0.0


@dataclass(frozen=True)
class Recorded:
    """What a real run took: seconds of its chunks, of the first of a game more than of others, of an answer here."""

    chunks: list[float]
    first: float
    driver: float


@dataclass
class Simulation:
    """The executor in virtual time.

    Attributes:
        times: (games, chunks) seconds of every chunk at full speed.
        first: seconds that a worker takes longer for the first chunk of a game (what lies before the masks).
        driver: seconds that the driver takes for an answer; the worker waits for its commit.
    """

    times: NDArray[np.float64]
    workers: int
    trouble: Trouble
    first: float = 0.0
    driver: float = 0.0

    def __post_init__(self) -> None:
        games, _ = self.times.shape
        self.random = random.Random(SEED)
        share, factor = self.trouble.slow
        self.speed = [factor if self.random.random() < share else 1.0 for _ in range(self.workers)]
        self.at_hand: list[deque[int]] = [deque(maxlen=MAX_GAMES_KEPT) for _ in range(self.workers)]
        self.idle, self.later = deque(range(self.workers)), deque(range(games))
        self.waiting: WorkQueue[tuple[int, int]] = WorkQueue()
        self.events: list[tuple[float, int, str, int, tuple[int, int]]] = []
        self.drawn, self.given = [0] * games, [0] * games  # questions that a game has asked, answers it has taken
        self.answered = np.zeros(self.times.shape, dtype=bool)
        self.under_way: set[int] = set()
        self.tickets = count()

    def seconds(self) -> float:
        """Until the last answer."""
        now = driver_free = 0.0
        self._open_games()
        while self.under_way:
            while self.idle and self.waiting:
                self._pull(self.idle.popleft(), now)
            now, _, what, worker, taken = heapq.heappop(self.events)
            if what == "answer":
                driver_free = max(driver_free, now) + self.driver
                self._later(driver_free, "committed", worker, taken)
            elif what == "lost":
                self.waiting.add(str(taken[0]), taken, first=True)
                self.waiting.left(str(taken[0]))
                self.at_hand[worker].clear()
                self._later(now + RESTART_SECONDS + START, "back", worker, taken)
            else:
                self.idle.append(worker)
                if what == "committed":
                    self._take(taken)
        return now

    def efficiency(self) -> float:
        return float(self.times.sum()) / (self.workers * self.seconds())

    def _later(self, when: float, what: str, worker: int, taken: tuple[int, int]) -> None:
        heapq.heappush(self.events, (when, next(self.tickets), what, worker, taken))

    def _pull(self, worker: int, now: float) -> None:
        known = self.at_hand[worker]
        last = str(known[-1]) if known else ""
        _, taken = self.waiting.take(last)
        seconds = float(self.times[taken]) + (0.0 if taken[0] in known else self.first)
        if taken[0] in known:
            known.remove(taken[0])
        known.append(taken[0])
        share, factor = self.trouble.straggler
        seconds *= self.speed[worker] * (factor if self.random.random() < share else 1.0)
        if self.random.random() < self.trouble.lost:
            self._later(now + seconds * self.random.random(), "lost", worker, taken)
        else:
            self._later(now + seconds, "answer", worker, taken)

    def _take(self, taken: tuple[int, int]) -> None:
        """As `ExecutedGame.stream` does: answers are taken in order, and as many questions follow."""
        game, chunks = taken[0], self.times.shape[1]
        self.answered[taken] = True
        while self.given[game] < chunks and self.answered[game, self.given[game]]:
            self.given[game] += 1
        self._draw(game)
        if self.given[game] == chunks:
            self.under_way.remove(game)
            self._open_games()

    def _open_games(self) -> None:
        """As `OpenRun.all` does: as many games as workers are under way."""
        while self.later and len(self.under_way) < self.workers:
            game = self.later.popleft()
            self.under_way.add(game)
            self._draw(game)

    def _draw(self, game: int) -> None:
        while (
            self.drawn[game] < self.times.shape[1]
            and self.drawn[game] - self.given[game] < QUESTIONS_PER_WORKER * self.workers
        ):
            self.waiting.add(str(game), (game, self.drawn[game]))
            self.drawn[game] += 1


# -- recorded ---------------------------------------------------------------------------------------------------------


def recorded(examples: int, walks: int) -> Recorded:
    """A run of two groups of ResNet-56."""
    model, data = resnet56()
    split = data.held_out.take(examples)
    players = sp.find_players(model, split.inputs[:2], include=["layer2.4.conv1", "layer3.8.conv1"])
    batches = [(split.inputs, split.targets)]

    def known(folder: Path, evaluations: int) -> float:
        """CPU seconds of a run whose answers are all known: the driver's part alone."""
        for _ in range(2):
            clock = time.process_time()
            sp.score(
                model,
                players,
                batches,
                "cross_entropy",
                run=folder,
                max_evaluations=evaluations,
                progress=False,
                options=sp.options.Scoring(window=(0, 1)),
            )
            spent = time.process_time() - clock
        return spent

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spent = known(folder / "run", walks * examples * 33) - known(folder / "nearly nothing", 65)
        connection = sqlite3.connect(folder / "run" / "journal.sqlite")
        rows = connection.execute("SELECT game, seconds FROM answers ORDER BY rowid").fetchall()
        connection.close()
        games = [[seconds for game, seconds in rows if game == name] for name in sorted({game for game, _ in rows})]
        times = [seconds for game in games for seconds in game[1:]]
        driver = max(0.0, spent / len(rows))
    return Recorded(times, max(0.0, median(game[0] - median(game[1:]) for game in games)), driver)


class Sleeping:
    """A worker of the pool that sleeps as long as it is told."""

    def __init__(self, times: NDArray[np.float64]) -> None:
        self.times = times

    def start(self) -> Mapping[str, str]:
        return versions()

    def ask(self, game: str, question: Question) -> Answer:
        time.sleep(float(self.times[int(game), int(question.rows[0, 0])]))
        return Answer(np.zeros(1), 0.0, "asleep")

    def stop(self) -> None: ...


class Nothing(Game):
    """A game whose questions are the numbers of their chunks."""

    n_players = 1

    def __call__(self, coalitions: Any, examples: Any = None) -> Any:
        raise NotImplementedError


def executed(times: NDArray[np.float64], workers: int) -> float:
    """Seconds that the executor itself takes, with workers that sleep."""
    pool = WorkerPool([Sleeping(times) for _ in range(workers)])
    pool.start()
    clock = time.perf_counter()

    def one(game: int) -> None:
        questions = (Question(np.array([[chunk]])) for chunk in range(times.shape[1]))
        for _ in ExecutedGame(Nothing(), str(game), pool).stream(questions):
            pass

    with ThreadPoolExecutor(min(workers, len(times))) as threads:
        list(threads.map(one, range(len(times))))
    seconds = time.perf_counter() - clock
    pool.close()
    return seconds


def large(chunk_times: Sequence[float], games: int, chunks: int) -> NDArray[np.float64]:
    """(games, chunks) seconds, drawn from those that were recorded."""
    return np.random.default_rng(SEED).choice(np.asarray(chunk_times), (games, chunks))


def plot(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=name)
    axes.axhline(0.8, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS, [str(workers) for workers in WORKERS])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("workers")
    axes.set_ylabel("efficiency")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--walks", type=int, default=4)
    parser.add_argument("--times", type=float, nargs="+", help="chunk seconds, instead of recording them")
    chosen = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    real = Recorded(chosen.times, 0.0, 2e-3) if chosen.times else recorded(chosen.examples, chosen.walks)
    work = large(real.chunks, GAMES, CHUNKS)
    troubles = {
        "nothing goes wrong": Trouble(),
        "stragglers": Trouble(SLOW, STRAGGLER),
        "stragglers, a worker lost in 1 % of the chunks": Trouble(SLOW, STRAGGLER, LOST),
    }
    curves = {
        name: {n: round(Simulation(work, n, trouble, real.first, real.driver).efficiency(), 3) for n in WORKERS}
        for name, trouble in troubles.items()
    }
    small = large(real.chunks, 8, 32)
    small *= 0.05 / small.mean()
    simulated = Simulation(small, 8, Trouble()).seconds()
    spread = {name: of(real.chunks) for name, of in (("median", median), ("min", min), ("max", max), ("recorded", len))}
    results = {
        "chunk seconds": spread,
        "seconds more for the first chunk of a game": real.first,
        "driver seconds per answer": real.driver,
        "chunks": work.size,
        "efficiency": curves,
        "executor over simulation, 8 workers": round(executed(small, 8) / simulated, 3),
    }
    plot(curves, ROOT / "benchmarks" / "results" / "cluster.svg")
    write("cluster", results, started)
    for n in WORKERS:
        print(f"{n:4d} workers  " + "  ".join(f"{name} {curve[n]:.0%}" for name, curve in curves.items()))


if __name__ == "__main__":
    main()
