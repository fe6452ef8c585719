"""A table of the games of a run on a terminal, renewed while they are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from shaprune.cli.tables import text_table
from shaprune.logs.progress import PROGRESS_HEADER, progress_cells

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shaprune.logs.progress import RunProgress

MAX_GAMES_SHOWN = 12  # games; the latest ones


@contextmanager
def live_table(board: RunProgress, console: Console | None = None) -> Iterator[None]:
    """Show the board until the end of the block, on stderr; the last picture stays."""
    console = console or Console(stderr=True)
    with Live(console=console, get_renderable=lambda: table(board), refresh_per_second=4):
        yield


def table(board: RunProgress) -> RenderableType:
    """The latest games, and how far the run is."""
    rows = board.rows()
    told = [progress_cells(row) for row in rows[-MAX_GAMES_SHOWN:]]
    return Group(text_table(PROGRESS_HEADER, told), Text(_footer(board, len(rows))))


def _footer(board: RunProgress, begun: int) -> str:
    hidden = f"{begun - MAX_GAMES_SHOWN} earlier games above these; " if begun > MAX_GAMES_SHOWN else ""
    paid = f"{board.evaluations:,} evaluations, {board.left()} left"
    return f"{hidden}{paid}; the cut leaves {board.share:.0%} of a group out"
