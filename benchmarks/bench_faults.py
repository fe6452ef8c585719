"""Faults at random moments: nothing is lost, little is repeated, and the values have the bits of a quiet run.

A small convolutional network (two layers of 8 channels, random weights) is scored on 1,000 random images by two spawned
workers. Its worth notes every chunk that is computed, in a file beside the run, and sleeps a little, so that faults
meet chunks under way. Runs are started, hit, and resumed until all faults have happened:

- kills: SIGKILL of the driver or of one worker, after a random number of chunks and a random wait;
- disk: files of the driver may not grow beyond a random size (RLIMIT_FSIZE), as on a full disk;
- locked: another program holds the journal, first for less, then for more than the patience of the driver;
- truncated: the journal, and its write-ahead log, are cut at a random place;
- clock: the wall clock of all processes jumps by up to a year, both ways, at every look.

Asserted: bits equal to those of a run without journal and without faults; at most one chunk per worker repeated for
every driver killed, and one for every worker killed. Where the journal cannot be written, the driver ends with an error
and what is under way then (`QUESTIONS_PER_WORKER` questions per worker and game) may be repeated.

    python benchmarks/bench_faults.py [--kills 50]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import shaprune.network.forward.row_batches

EXAMPLES = 1_000
WALKS = 4  # of every example
UNDER_WAY = 4  # questions per worker: two for each of two games
PAUSE = 0.02  # seconds that a chunk takes longer
WAIT = 600.0  # seconds after which a driver counts as hung

shaprune.network.forward.row_batches.MAX_BATCH_THREADS = (
    1  # a chunk is one batch, so that calls of the worth are chunks
)

if os.environ.get("FAULTS_CLOCK"):  # in the driver and in its workers
    _now = time.time
    time.time = lambda: _now() + random.uniform(-3e7, 3e7)


def noted(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy that notes every chunk."""
    if len(outputs) > 500:
        time.sleep(PAUSE)
        with open(os.environ["FAULTS_CALLS"], "a") as file:
            file.write(f"{outputs.double().sum().item().hex()}\n")
    return -nn.functional.cross_entropy(outputs, targets, reduction="none")


def drive(out: str, run: str | None, workers: int) -> None:
    """What a driver does: the same run every time."""
    import shaprune as sp

    torch.set_num_threads(1)
    torch.manual_seed(0)
    relu, pool = nn.ReLU(), nn.AvgPool2d(2)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), relu, nn.Conv2d(8, 8, 3), relu, pool, nn.Flatten(), nn.Linear(32, 5)
    ).eval()
    inputs = torch.randn(EXAMPLES, 3, 8, 8)
    players = sp.find_players(model, inputs[:2])
    if os.environ.get("FAULTS_BYTES"):
        import resource

        limit = int(os.environ["FAULTS_BYTES"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if os.environ.get("FAULTS_PATIENCE"):
        import shaprune.runs.journal_database

        shaprune.runs.journal_database.PATIENCE = float(os.environ["FAULTS_PATIENCE"])
    data, budget = [(inputs, torch.arange(EXAMPLES) % 5)], WALKS * EXAMPLES * 9
    how: dict[str, Any] = {"options": sp.options.Scoring(window=(0, 1))}
    how |= {} if run is None else {"run": sp.options.RunOptions(run, workers=workers)}
    scores = sp.score(model, players, data, noted, max_evaluations=budget, progress=False, **how)
    scores.save(out)


@dataclass
class Campaign:
    """Runs in a folder, and what has happened to them.

    Attributes:
        folder: of all runs.
        seed: of the moments.
        workers: of every driver.
        faults: how often each has happened.
        repeated: chunks that were computed again, and how many might have been.
    """

    folder: Path
    seed: int = 0
    workers: int = 2
    faults: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    allowed: int = 0
    runs: int = 0
    truth: Any = None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        assert self._begin(run=None).wait(WAIT) == 0
        self.truth = json.loads((self.folder / "plain.json").read_text())["values"]
        self.chunks = set(_lines(self.folder / "plain.calls"))

    def kills(self, number: int) -> None:
        """Kill drivers and workers, so many in all."""
        while self.faults.total() < number:
            name = self._new()
            process = self._begin(name)
            while process.poll() is None and self.faults.total() < number:
                if not self._after_some_chunks(name, process):
                    break
                if self.random.random() < 0.5:
                    self._kill_driver(process)
                    process = self._begin(name)
                else:
                    self._kill_worker(process)
            self._check(name, process)

    def disk(self) -> None:
        """The journal reaches the limit of its files; what was committed is there when the limit is gone."""
        name = self._new()
        process = self._begin(name, FAULTS_BYTES=str(self.random.randrange(150_000, 250_000)))
        self._failed(process, "resume the run")
        self._hit("disk", UNDER_WAY * self.workers)
        self._check(name, self._begin(name))

    def locked(self) -> None:
        """A lock that is released in time only delays; one that is not ends the driver, and the run goes on later."""
        for patience, failing in (("60", False), ("0.2", True)):
            name = self._new()
            process = self._begin(name, FAULTS_PATIENCE=patience)
            if self._after_some_chunks(name, process, at_least=2):
                other = sqlite3.connect(self.folder / name / "journal.sqlite", isolation_level=None, timeout=30)
                other.execute("BEGIN IMMEDIATE")
                if failing:
                    self._failed(process, "another program holds it")
                else:
                    time.sleep(1)
                other.close()
                self._hit("locked", UNDER_WAY * self.workers if failing else 0)
            self._check(name, self._begin(name) if failing else process)

    def truncated(self) -> None:
        """A journal that was cut is set aside, or what is left of its log is used; nothing wrong is."""
        for ending in ("", "-wal"):
            name = self._new()
            process = self._begin(name)
            while self._after_some_chunks(name, process, at_least=4):
                self._kill_driver(process, "truncated")
                file = self.folder / name / f"journal.sqlite{ending}"
                if file.exists():
                    os.truncate(file, self.random.randrange(1, file.stat().st_size))
                    break
                process = self._begin(name)
            self.allowed += len(self.chunks)  # what was cut off is computed again
            self._check(name, self._begin(name))

    def clock(self) -> None:
        """The wall clock jumps."""
        name = self._new()
        self._hit("clock", 0)
        self._check(name, self._begin(name, FAULTS_CLOCK="1"))

    # -- one run ----------------------------------------------------------------------------------------------------

    def _new(self) -> str:
        self.runs += 1
        return f"run-{self.runs}"

    def _begin(self, run: str | None, **more: str) -> subprocess.Popen[str]:
        name = run or "plain"
        where = [] if run is None else ["--run", str(self.folder / name)]
        line = [sys.executable, __file__, "--drive", str(self.folder / f"{name}.json"), *where]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FAULTS_CALLS": str(self.folder / f"{name}.calls"),
            **more,
        }
        errors = (self.folder / f"{name}.err").open("w")
        with errors:
            return subprocess.Popen(
                [*line, "--workers", str(self.workers)], env=environment, text=True, stderr=errors, cwd=self.folder
            )

    def _after_some_chunks(self, name: str, process: subprocess.Popen[str], at_least: int = 0) -> bool:
        """Wait for a random moment; whether the driver is still at work then."""
        calls = self.folder / f"{name}.calls"
        wanted = len(_lines(calls)) + self.random.randint(at_least, 8)
        begun = time.monotonic()
        while len(_lines(calls)) < wanted and process.poll() is None:
            time.sleep(0.002)
            assert time.monotonic() - begun < WAIT, "the driver hangs"
        time.sleep(self.random.uniform(0, 3 * PAUSE))
        return process.poll() is None

    def _kill_driver(self, process: subprocess.Popen[str], kind: str = "driver killed") -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT)
        time.sleep(5 * PAUSE)  # its workers note the chunk that they are at, and end
        self._hit(kind, self.workers)

    def _kill_worker(self, process: subprocess.Popen[str]) -> None:
        found = [pid for pid in _children(process.pid) if "spawn_main" in _command(pid)]
        if found:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(found), signal.SIGKILL)
                self._hit("worker killed", 1)

    def _hit(self, kind: str, may_repeat: int) -> None:
        self.faults[kind] += 1
        self.allowed += may_repeat

    def _failed(self, process: subprocess.Popen[str], told: str) -> None:
        assert process.wait(WAIT) != 0, "the fault was not noticed"
        errors = max(self.folder.glob("*.err"), key=lambda path: path.stat().st_mtime).read_text()
        assert "InputError" in errors, errors
        assert told in errors, errors

    def _check(self, name: str, process: subprocess.Popen[str]) -> None:
        """Let a run end, on its own, and compare."""
        assert process.wait(WAIT) == 0, (self.folder / f"{name}.err").read_text()
        values = json.loads((self.folder / f"{name}.json").read_text())["values"]
        assert values == self.truth, f"{name} has other bits"
        paid = _lines(self.folder / f"{name}.calls")
        assert set(paid) == self.chunks, f"{name} computed other chunks"
        self.repeated += len(paid) - len(self.chunks)
        assert self.repeated <= self.allowed, f"{self.repeated} chunks were repeated, {self.allowed} may be"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.drive is not None:
        drive(chosen.drive, chosen.run, chosen.workers)
        return
    from common import write

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), chosen.seed, chosen.workers)
        faults: list[Callable[[], None]] = [campaign.disk, campaign.locked, campaign.truncated, campaign.clock]
        campaign.kills(chosen.kills)
        killed = {"repeated": campaign.repeated, "allowed": campaign.allowed}
        for fault in faults:
            fault()
    results = {
        "faults": dict(campaign.faults),
        "runs": campaign.runs,
        "workers": chosen.workers,
        "chunks of a run": len(campaign.chunks),
        "chunks repeated by kills": killed,
        "bits equal": True,
    }
    write("faults", results, started, seed=chosen.seed)


if __name__ == "__main__":
    main()
