"""Options of runs: their folder, their workers, and parts of them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]
RunsFolder = Annotated[Path, typer.Argument(metavar="[DIR]", help="A run, or a folder that holds runs.")]
WorkersOrOwn = Annotated[
    int | None, typer.Option("--workers", min=1, help="Another number of workers.", show_default="as the run began")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Workers are actors of this Ray cluster: auto, local, host:port.")
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="NAME[:PLACE]",
        help="Write how it goes to jsonl[:FILE], tensorboard[:DIR] or mlflow[:URI]. Repeatable.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what it would cost (evaluations, seconds, memory), and stop.")
]
ValuesOut = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="File to write: .json, or .csv with one line per player.")
]
