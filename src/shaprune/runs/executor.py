"""Executors: the protocol of answering questions about a game, in this process and behind a journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from shaprune.runs.journal import Journal, digest
from shaprune.values.games.arrays import Worths
from shaprune.values.games.game import Game, Question

Games = Callable[[str], Game]  # a game by its name


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to a question, and what it took.

    Attributes:
        worths: as the game gave them.
        seconds: of work, without waiting.
        worker: who computed it; empty = it was known.
    """

    worths: Worths
    seconds: float = 0.0
    worker: str = ""


class Executor(Protocol):
    """Answers questions, several at once where it can.

    Attributes:
        width: questions that should be under way at a time, so that no worker waits.
    """

    width: int

    def start(self) -> None:
        """Get ready.

        Raises:
            InputError: the games cannot be brought to the workers, or the workers cannot be used.
        """

    def submit(self, game: str, question: Question) -> Future[Answer]:
        """Ask; the answer, or what the game raised, comes through the future. May be called from several threads."""

    def close(self) -> None:
        """Stop; questions that are under way are dropped."""


class InProcess:
    """This process answers, at once."""

    width = 1

    def __init__(self, games: Games) -> None:
        self.games = games

    def start(self) -> None:
        """Nothing to do."""

    def submit(self, game: str, question: Question) -> Future[Answer]:
        done: Future[Answer] = Future()
        started = time.perf_counter()
        try:
            worths = question.of(self.games(game))
        except Exception as error:  # what a user's worth may raise
            done.set_exception(error)
        else:
            done.set_result(Answer(worths, time.perf_counter() - started, "driver"))
        return done

    def close(self) -> None:
        """Nothing to do."""


class Journaled:
    """Looks into the journal first; what has to be computed is committed before anybody sees it."""

    def __init__(self, executor: Executor, journal: Journal, n_examples: Callable[[str], int]) -> None:
        self.executor, self.journal, self.n_examples = executor, journal, n_examples
        self.width = executor.width
        self._failed = False

    def start(self) -> None:
        self.executor.start()

    def submit(self, game: str, question: Question) -> Future[Answer]:
        key = digest(question)
        result: Future[Answer] = Future()
        known = self.journal.get(game, key)
        if known is not None:
            result.set_result(Answer(known))
            return result
        under_way = self.executor.submit(game, question)
        result.add_done_callback(lambda dropped: under_way.cancel() if dropped.cancelled() else None)
        under_way.add_done_callback(lambda done: self._commit(game, key, question, done, result))
        return result

    def _commit(self, game: str, key: bytes, question: Question, done: Future[Answer], result: Future[Answer]) -> None:
        """Commit an answer and then pass it on; note a failure, the first only."""
        if done.cancelled():
            result.cancel()
            return
        outcome: Answer | BaseException | None = done.exception()
        try:
            if outcome is None:
                outcome = done.result()
                price = question.price(self.n_examples(game))
                self.journal.put(
                    game, key, outcome.worths, evaluations=price, seconds=outcome.seconds, worker=outcome.worker
                )
            elif not self._failed:
                self._failed = True
                self.journal.failed(game, "", f"{type(outcome).__name__}: {outcome}")
        except BaseException as error:
            _set_outcome(result, outcome if isinstance(outcome, BaseException) else error)
            if not isinstance(error, Exception):  # an interrupt: no caller may wait for this answer any more
                raise
        else:
            _set_outcome(result, outcome)

    def close(self) -> None:
        self.executor.close()


def _set_outcome(future: Future[Answer], outcome: Answer | BaseException) -> None:
    """Set the outcome, unless no caller waits for it any more."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
