"""Progress lines at intervals on a stderr that is no terminal, for the logs of long runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0  # seconds without a word, after which one is said

_doing = "starting"  # what was said last
_heard = 0.0  # when
_detail: Callable[[], str] | None = None  # how far it is


def say(text: str) -> None:
    """Say how the work goes, on stderr."""
    global _doing, _heard
    _doing, _heard = text, time.monotonic()
    print(text, file=sys.stderr, flush=True)


@contextmanager
def detailed(detail: Callable[[], str]) -> Iterator[None]:
    """Let the lines say how far the work is, until the end of the block."""
    global _detail
    before, _detail = _detail, detail
    try:
        yield
    finally:
        _detail = before


@contextmanager
def beating() -> Iterator[None]:
    """Say every `EVERY` seconds what goes on, and how far it is, until the end of the block; nothing on a terminal."""
    global _doing, _heard
    if sys.stderr.isatty():
        yield
        return
    _doing, _heard = "starting", time.monotonic()
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(ended, time.monotonic()), name="shaprune-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat(ended: threading.Event, started: float) -> None:
    global _heard
    while not ended.wait(min(max(0.0, _heard + EVERY - time.monotonic()), threading.TIMEOUT_MAX)):
        now = time.monotonic()
        if now >= _heard + EVERY:
            _heard = now
            print(line(now - started), file=sys.stderr, flush=True)


def line(seconds: float) -> str:
    """What is said after so many seconds."""
    told = _doing.removesuffix("...").strip() if _detail is None else _detail()
    return f"[{int(seconds) // 60}:{int(seconds) % 60:02d}] {told}"
