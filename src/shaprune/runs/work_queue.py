"""Queue of the work of several games, from which workers take questions."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class WorkQueue(Generic[T]):
    """Pieces of work, by the name of their game, first come, first served within a game.

    A worker keeps to its game as long as something of it waits: what lies before the masks has been computed there.
    Otherwise it goes to the game that the fewest workers are at. Not safe against threads.
    """

    def __init__(self) -> None:
        self._games: dict[str, deque[T]] = {}
        self._workers: Counter[str] = Counter()

    def add(self, game: str, piece: T, *, first: bool = False) -> None:
        """Put a piece behind those of its game, or before them."""
        waiting = self._games.setdefault(game, deque())
        if first:
            waiting.appendleft(piece)
        else:
            waiting.append(piece)

    def take(self, last: str) -> tuple[str, T]:
        """The next piece for a worker whose last game was ``last`` (empty = it had none), and its game.

        Raises:
            IndexError: nothing waits.
        """
        if not self._games:
            raise IndexError("nothing waits")
        game = last if last in self._games else min(self._games, key=self._workers.__getitem__)
        self.left(last)
        self._workers[game] += 1
        piece = self._games[game].popleft()
        if not self._games[game]:
            del self._games[game]
        return game, piece

    def left(self, game: str) -> None:
        """A worker is at its last game no longer."""
        self._workers[game] -= 1

    def __iter__(self) -> Iterator[T]:
        for waiting in self._games.values():
            yield from waiting

    def __bool__(self) -> bool:
        return bool(self._games)

    def clear(self) -> None:
        """Drop everything that waits."""
        self._games.clear()
