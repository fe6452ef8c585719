"""Hooks on modules that are gone again on any exit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


class AllSeenError(BaseException):
    """A hook has seen all that it is there for; the rest of the run is not needed."""


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks for a while; also those so far are removed where registering another one fails.

    Args:
        handles: best a generator, so that hooks are registered in here: ``hooked(m.register_forward_hook(f) for m in
            modules)``.
    """
    registered: list[RemovableHandle] = []
    try:
        for handle in handles:
            registered.append(handle)
        yield
    finally:
        for handle in registered:
            handle.remove()
