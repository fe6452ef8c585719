"""Progress of scoring: a table on a terminal, lines elsewhere, and logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shaprune.cli.heartbeat import detailed

if TYPE_CHECKING:
    from shaprune.logs.progress import RunProgress


@contextmanager
def observed_progress(logs: Sequence[str], run: Path | None, *, follow: bool) -> Iterator[RunProgress]:
    """Yield a board, shown on stderr: as a table on a terminal, as a line now and then elsewhere.

    Args:
        logs: see `shaprune.logs.sinks.open_sink`.
        run: the folder of a run, whose ``progress.jsonl`` is written; None = no run.
        follow: see `RunProgress`.
    """
    from shaprune.logs.progress import RunProgress
    from shaprune.logs.sinks import PROGRESS_FILE, open_sink

    shown = sys.stderr.isatty()
    places = [*logs, *([] if run is None else [f"jsonl:{run / PROGRESS_FILE}"])]
    with ExitStack() as stack:
        sinks = []
        for place in places:
            sinks.append(open_sink(place))
            stack.callback(sinks[-1].close)
        board = RunProgress(sinks, follow=follow and (shown or bool(sinks)))
        if shown:
            from shaprune.cli.live_table import live_table

            stack.enter_context(live_table(board))
        else:
            stack.enter_context(detailed(board.line))
        yield board
