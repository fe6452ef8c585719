"""Who looks on while values are computed: a table on a terminal, lines elsewhere, and logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shaprune.cli.heartbeat import detailed

if TYPE_CHECKING:
    from shaprune.logs.board import Board


@contextmanager
def watched(logs: Sequence[str], run: Path | None, *, follow: bool) -> Iterator[Board]:
    """Yield a board, shown on stderr: as a table on a terminal, as a line now and then elsewhere.

    Args:
        logs: see `shaprune.logs.sinks.sink_of`.
        run: the folder of a run, whose ``progress.jsonl`` is written; None = no run.
        follow: see `Board`.
    """
    from shaprune.logs.board import Board
    from shaprune.logs.sinks import PROGRESS, sink_of

    shown = sys.stderr.isatty()
    places = [*logs, *([] if run is None else [f"jsonl:{run / PROGRESS}"])]
    with ExitStack() as stack:
        sinks = []
        for place in places:
            sinks.append(sink_of(place))
            stack.callback(sinks[-1].close)
        board = Board(sinks, follow=follow and (shown or bool(sinks)))
        if shown:
            from shaprune.cli.live import live

            stack.enter_context(live(board))
        else:
            stack.enter_context(detailed(board.line))
        yield board
