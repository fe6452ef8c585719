"""Workers that are spawned processes of this machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from shaprune.errors import InputError, ShapruneError
from shaprune.runs.executor import Answer, Games
from shaprune.runs.worker import WorkerGames, WorkerMessage
from shaprune.runs.worker_pool import WorkerLost
from shaprune.values.games.game import Question

Recipe = Callable[[], Games]  # makes the games where the work is done; can be pickled
PR_SET_PDEATHSIG = 1  # of prctl(2)
BUILD_HINT = (
    "give build=, a function of an importable module that makes the network (its weights are sent along): with "
    "`def network(): return Net(width=64)` in nets.py, sp.score(model, ..., build=nets.network); worths, forward and "
    "the like must be importable, too: functions with a name, no lambdas"
)


def pickle_recipe(recipe: Recipe) -> bytes:
    """A recipe as bytes for other processes of this machine.

    Raises:
        InputError: something in it cannot be serialised; it is named, with what to give instead.
    """
    try:
        return pickle.dumps(recipe, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickle raises whatever an object's own methods raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the game cannot be sent to workers: {reason}; {BUILD_HINT}") from error


class ProcessWorker:
    """One spawned process (see `shaprune.runs.worker_pool.Worker`)."""

    def __init__(self, recipe: bytes, number: int) -> None:
        self.recipe, self.number = recipe, number
        self._process: BaseProcess | None = None
        self._line: Connection | None = None
        self._changing = threading.Lock()  # its own thread starts and stops it, who closes the pool stops it, too

    def start(self) -> Mapping[str, str]:
        context = multiprocessing.get_context("spawn")
        with self._changing:
            self._line, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs, self.recipe, self.number), daemon=True)
            self._process.start()
            theirs.close()
        said = self._heard()
        if said.error is not None:
            raise InputError(f"a worker cannot make the games: {said.error}") from said.error
        return said.versions

    def ask(self, game: str, question: Question) -> Answer:
        try:
            assert self._line is not None
            self._line.send((game, question))
        except (OSError, ValueError) as error:
            raise WorkerLost(f"process {self._pid()}: {error}") from error
        return self._heard().answer()

    def stop(self) -> None:
        with self._changing:
            if self._process is not None and self._process.pid is not None:  # None: it could not be started
                self._process.kill()
                self._process.join(timeout=10)
            if self._line is not None and not self._line.closed:
                self._line.close()

    def _heard(self) -> WorkerMessage:
        try:
            assert self._line is not None
            told: WorkerMessage = self._line.recv()
        except (OSError, EOFError) as error:
            raise WorkerLost(f"process {self._pid()} ended") from error
        return told

    def _pid(self) -> int | None:
        return None if self._process is None else self._process.pid


def _work(line: Connection, recipe: bytes, number: int) -> None:
    """Answer until the driver ends."""
    _end_with_driver()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which ends the workers
    try:
        serving = WorkerGames(pickle.loads(recipe), number)
    except Exception as error:
        line.send(
            WorkerMessage(
                error=error if isinstance(error, ShapruneError) else InputError(f"{type(error).__name__}: {error}")
            )
        )
        return
    line.send(WorkerMessage(versions=serving.versions))
    while True:
        try:
            game, question = line.recv()
            line.send(serving.tell(game, question))
        except (EOFError, OSError):
            return


def _end_with_driver() -> None:
    """See that this process ends with its driver, also by kill -9, in the middle of whatever it does.

    A thread waits for that, and needs the lock of Python, which loading a library holds for seconds. Linux is asked as
    well: it ends a process with the thread that began it, here the one that asks it its questions.
    """
    threading.Thread(target=_wait_for_end, daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_end() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)
