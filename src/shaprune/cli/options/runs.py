"""Options of runs: their folder, their workers, and parts of them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep every answer of the network in DIR; the same command, or `shaprune resume DIR`, goes on after a "
        "crash. Writes DIR/values.json.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]
RunsFolder = Annotated[Path, typer.Argument(metavar="[DIR]", help="A run, or a folder that holds runs.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes of this machine, or actors with --ray-address; any number, the same bits.")
]
WorkersOrOwn = Annotated[
    int | None, typer.Option("--workers", min=1, help="Another number of workers.", show_default="as the run began")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Workers are actors of this Ray cluster: auto, local, host:port.")
]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Compute one of N parts of the run, then `shaprune merge DIR` (batch schedulers).",
    ),
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
