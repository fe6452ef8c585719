"""Locks of models: one thread at a time hangs hooks on a model, changes its flags or copies it.

A turn covers every module of the model, so that a wrapper around it, or a part of it, waits as well. Within one thread
turns nest. Threads that would wait for each other for ever are refused, whatever order they take models in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from shaprune.errors import InputError

RANDOM = "the generators of random numbers of this process"
TRACING = "the tracer of torch.fx, which patches torch.nn.Module while it works"
_LOOK = 1.0  # seconds between two looks whether the thread that is waited for is alive


@dataclass(eq=False)
class _Turn:
    """What one thread holds.

    Attributes:
        keys: of the modules, and the modules, whose ids stay theirs as long as they are held.
        depth: how often the thread has taken it.
    """

    thread: threading.Thread
    keys: list[object]
    modules: list[nn.Module]
    depth: int = 1


@dataclass(eq=False)
class _Table:
    """Who holds what, and who waits for what."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    held: dict[object, _Turn] = field(default_factory=dict)
    waiting: dict[threading.Thread, list[object]] = field(default_factory=dict)

    def take(self, what: nn.Module | str) -> _Turn:
        """Wait until no other thread holds any of it, then hold all of it."""
        me, first = threading.current_thread(), _key(what)
        with self.changed:
            mine = self.held.get(first)
            if mine is not None and mine.thread is me:
                mine.depth += 1
                return mine
            modules = list(what.modules()) if isinstance(what, nn.Module) else []
            keys = [_key(module) for module in modules] or [first]
            while (other := self._other(keys, me)) is not None:
                self._wait(me, other, what, keys)
            turn = _Turn(me, [key for key in keys if key not in self.held], modules)
            self.held.update(dict.fromkeys(turn.keys, turn))
            return turn

    def give(self, turn: _Turn) -> None:
        """End a turn, unless it was taken several times."""
        with self.changed:
            turn.depth -= 1
            if not turn.depth:
                for key in turn.keys:
                    if self.held.get(key) is turn:
                        del self.held[key]
                self.changed.notify_all()

    def _other(self, keys: list[object], me: threading.Thread) -> threading.Thread | None:
        """A thread, other than ``me``, that holds one of these."""
        for key in keys:
            turn = self.held.get(key)
            if turn is not None and turn.thread is not me:
                if turn.thread.is_alive():
                    return turn.thread
                del self.held[key]  # it ended within a generator that is still referred to
        return None

    def _wait(self, me: threading.Thread, other: threading.Thread, what: nn.Module | str, keys: list[object]) -> None:
        """Wait until something has changed."""
        last: threading.Thread | None = other
        while last is not None:
            if last is me:
                name = what if isinstance(what, str) else f"a {type(what).__name__}"
                raise InputError(
                    f"this thread waits for {name} that another thread is using, which waits for a model that this "
                    "one is using; do not score one model from the worth or the forward of another in several threads"
                )
            last = self._other(self.waiting.get(last, []), last)  # one that has been called up holds what it wants
        self.waiting[me] = keys
        try:
            self.changed.wait(_LOOK)
        finally:
            del self.waiting[me]


_table = _Table()


@contextmanager
def turn(what: nn.Module | str) -> Iterator[None]:
    """Hold a model (or something of this process) until the end of the block; other threads wait for it.

    Raises:
        InputError: another thread that holds it waits for something that this one holds.
    """
    taken = _table.take(what)
    try:
        yield
    finally:
        _table.give(taken)


def _key(what: nn.Module | str) -> object:
    return what if isinstance(what, str) else id(what)


def _forget() -> None:
    """Begin anew in a forked process, which has none of the threads."""
    global _table
    _table = _Table()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
