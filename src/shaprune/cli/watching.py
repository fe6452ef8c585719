"""Who looks on while values are computed: a table on a terminal, and logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shaprune.logs.board import Board


@contextmanager
def watched(logs: Sequence[str], run: Path | None, *, follow: bool) -> Iterator[Board | None]:
    """A board, shown on stderr where that is a terminal; None where nobody looks.

    Args:
        logs: see `shaprune.logs.sinks.sink_of`.
        run: the folder of a run, whose ``progress.jsonl`` is written; None = no run.
        follow: see `Board`.
    """
    from shaprune.logs.board import Board
    from shaprune.logs.sinks import PROGRESS, sink_of

    shown = sys.stderr.isatty()
    places = [*logs, *([] if run is None else [f"jsonl:{run / PROGRESS}"])]
    if not places and not shown:
        yield None
        return
    with ExitStack() as stack:
        sinks = []
        for place in places:
            sinks.append(sink_of(place))
            stack.callback(sinks[-1].close)
        board = Board(sinks, follow=follow)
        if shown:
            from shaprune.cli.live import live

            stack.enter_context(live(board))
        yield board
