"""Warnings and log messages of other packages, dropped in one thread; other threads go on hearing theirs.

`warnings.catch_warnings` replaces the filters of the whole process, and drops what other threads add meanwhile.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Here:
    """Stands in a filter of warnings for the pattern of a message: it matches whatever its own thread says."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def match(self, text: str) -> bool:
        return threading.get_ident() == self.thread

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a log message pass, as a filter of `logging`: errors, and what other threads say."""
        return record.levelno >= logging.ERROR or record.thread != self.thread


@contextmanager
def silence(*loggers: str) -> Iterator[None]:
    """Drop all warnings, and what these loggers and those below them say short of an error, until the block ends."""
    here = _Here()
    rule: Any = ("ignore", here, Warning, None, 0)
    listening = [logging.getLogger(name) for name in _below(loggers)]
    warnings.filters.insert(0, rule)  # type: ignore[attr-defined]
    for logger in listening:
        logger.addFilter(here)
    try:
        yield
    finally:
        for logger in listening:
            logger.removeFilter(here)
        if rule in warnings.filters:
            warnings.filters.remove(rule)  # type: ignore[attr-defined]


def _below(loggers: tuple[str, ...]) -> list[str]:
    """These names, and all that are known below them: a logger does not apply the filters of those above it."""
    known = list(logging.root.manager.loggerDict)
    return [*loggers, *(name for name in known if name.startswith(tuple(f"{logger}." for logger in loggers)))]
