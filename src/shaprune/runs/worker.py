"""Worker: make the games once, answer questions, and return errors as messages."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shaprune.errors import GameError, ShapruneError
from shaprune.runs.executor import Answer, Games
from shaprune.runs.worker_pool import WorkerLost, versions
from shaprune.values.games.game import Question


@dataclass(frozen=True, eq=False)
class WorkerMessage:
    """What a worker says: that it is ready, an answer, or an error."""

    versions: Mapping[str, str] = field(default_factory=dict)
    found: Answer | None = None
    error: ShapruneError | None = None
    memory: str | None = None

    def answer(self) -> Answer:
        """The answer.

        Raises:
            WorkerLost: the worker ran out of memory.
            ShapruneError: what the game raised.
        """
        if self.memory is not None:
            raise WorkerLost(self.memory)
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found


class WorkerGames:
    """The games of one worker."""

    def __init__(self, recipe: Callable[[], Games], number: int) -> None:
        self.games = recipe()
        self.name = f"{platform.node()}:{os.getpid()}:{number}"
        self.versions = versions()

    def tell(self, game: str, question: Question) -> WorkerMessage:
        """Answer a question; an error of the user's code becomes a `GameError` with its name and its words."""
        started = time.perf_counter()
        try:
            worths = question.of(self.games(game))
        except Exception as error:
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                return WorkerMessage(memory=f"worker {self.name} ran out of memory: {error}")
            if isinstance(error, ShapruneError):
                return WorkerMessage(error=error)
            return WorkerMessage(error=GameError(f"on worker {self.name}: {type(error).__name__}: {error}"))
        return WorkerMessage(found=Answer(worths, time.perf_counter() - started, self.name))
