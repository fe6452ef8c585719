"""Several workers that pull questions from one queue, so that uneven costs balance.

A worker that is lost (killed, out of memory, no connection) is started again after a pause, and its question goes back
to the front of its game, where another takes it. What the game itself raises is final.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from importlib.metadata import version
from typing import Protocol

from shaprune.errors import GameError, InputError
from shaprune.runs.executor import Answer
from shaprune.runs.work_queue import WorkQueue
from shaprune.values.games.game import Question

MAX_ATTEMPTS = 4  # times that a question is tried
RESTART_SECONDS = 0.25  # seconds before a lost worker is started again; doubled every time
QUESTIONS_PER_WORKER = 2  # questions under way per worker

_Waiting = tuple[str, Question, Future[Answer], int]


class WorkerLost(Exception):
    """A worker ended, ran out of memory, or cannot be reached: its question may be asked of another."""


class Worker(Protocol):
    """A worker that answers one question at a time; used from one thread."""

    def start(self) -> Mapping[str, str]:
        """Begin, with the games; the versions of what is installed there.

        Raises:
            InputError: the games cannot be brought there.
            WorkerLost: it ended at once.
        """

    def ask(self, game: str, question: Question) -> Answer:
        """Ask.

        Raises:
            WorkerLost: no answer.
            Exception: what the game raised.
        """

    def stop(self) -> None:
        """End it, whatever it does."""


class WorkerPool:
    """An executor (see `shaprune.runs.executor`) of several workers."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        self.width = QUESTIONS_PER_WORKER * len(self.workers)
        self._waiting: WorkQueue[_Waiting] = WorkQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start all workers; the error of the first that fails is raised."""
        begun: list[Future[None]] = [Future() for _ in self.workers]
        for worker, ready in zip(self.workers, begun, strict=True):
            thread = threading.Thread(target=self._serve, args=(worker, ready), daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            for ready in begun:
                ready.result()
        except BaseException:
            self.close()
            raise

    def submit(self, game: str, question: Question) -> Future[Answer]:
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
            else:
                self._waiting.add(game, (game, question, future, 1))
                self._changed.notify()
        return future

    def close(self) -> None:
        with self._changed:
            self._closed = True
            dropped = [future for _, _, future, _ in self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for future in dropped:
            future.cancel()
        for worker in self.workers:
            worker.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=10)

    def _serve(self, worker: Worker, ready: Future[None]) -> None:
        """Ask one worker, question after question."""
        try:
            check_versions(worker.start())
        except BaseException as error:
            ready.set_exception(_failed_start(error))
            return
        ready.set_result(None)
        try:
            self._answer(worker)
        finally:
            worker.stop()

    def _answer(self, worker: Worker) -> None:
        lost, last = 0, ""
        while (taken := self._next(last)) is not None:
            game, question, future, attempt = taken
            last = game
            if attempt == 1 and not future.set_running_or_notify_cancel():
                continue
            try:
                answer = worker.ask(game, question)
            except WorkerLost as loss:
                lost += 1
                self._again(taken, loss)
                if not self._revived(worker, lost):
                    with self._changed:
                        self._waiting.left(last)
                    return
            except BaseException as error:
                future.set_exception(error)
            else:
                lost = 0
                future.set_result(answer)

    def _next(self, last: str) -> _Waiting | None:
        """The next question, see `WorkQueue.take`; None once the pool is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            return self._waiting.take(last)[1]

    def _again(self, taken: _Waiting, loss: WorkerLost) -> None:
        """Put a question back, or give up on it."""
        game, question, future, attempt = taken
        with self._changed:
            if self._closed:
                future.set_exception(CancelledError())
                return
            if attempt < MAX_ATTEMPTS:
                self._waiting.add(game, (game, question, future, attempt + 1), first=True)
                self._changed.notify()
                return
        future.set_exception(
            GameError(
                f"{game}: {attempt} workers were lost on the same piece of work ({loss}); "
                "give fewer workers or a smaller max_memory"
            )
        )

    def _revived(self, worker: Worker, lost: int) -> bool:
        """Start a lost worker again, patiently; False once the pool is closed or the worker does not come back."""
        reason: Exception = WorkerLost()
        for attempt in range(lost, lost + MAX_ATTEMPTS):
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=RESTART_SECONDS * 2 ** (attempt - 1))
                if self._closed:
                    return False
            try:
                worker.stop()
                worker.start()
                return True
            except (WorkerLost, InputError) as error:
                reason = error
        with self._changed:
            self.workers.remove(worker)
            if not self.workers:
                self._closed = True
                for _, _, future, attempt in self._waiting:
                    if attempt == 1 and not future.set_running_or_notify_cancel():
                        continue
                    future.set_exception(GameError(f"the last worker is lost ({reason}); resume the run later"))
                self._waiting.clear()
        return False


def versions() -> dict[str, str]:
    """What decides the bits of an answer, where this is called."""
    return {"python": platform.python_version(), **{p: version(p) for p in ("shaprune", "torch", "numpy")}}


def check_versions(theirs: Mapping[str, str]) -> None:
    """Refuse a worker with other versions than the driver's.

    Raises:
        InputError: it is named what differs.
    """
    ours = versions()
    differing = [
        f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name]
    ]
    if differing:
        raise InputError(f"a worker has other versions: {'; '.join(differing)}; install the same on all machines")


def _failed_start(error: BaseException) -> BaseException:
    if isinstance(error, WorkerLost):
        return InputError(
            f"a worker ended before it was ready ({error}); in a script, start the work below "
            "if __name__ == '__main__':, and see that the machine has the memory for all workers"
        )
    return error
