"""Options that only ``shaprune report`` has. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OptionalReportOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to write report.html into, or a file ending in .html; not with --watch."),
]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch", help="Instead of a file: serve a page on 127.0.0.1 with the progress of RUN, at its end the report."
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of --watch; 0 = any that is free.")]
RunOrValues = Annotated[
    Path,
    typer.Argument(
        exists=True, metavar="RUN", help="values.json, or a folder that `shaprune score`, `demo` or `compress` wrote."
    ),
]
Static = Annotated[
    bool,
    typer.Option("--static", help="Pictures only, no scripts: what is written, too, where plotly is not installed."),
]
Frontiers = Annotated[
    list[str] | None,
    typer.Option(
        "--frontier",
        metavar="[NAME=]FILE",
        help="What `shaprune plan --sweep` wrote, of these values or of a rival's. Repeatable.",
    ),
]
RedundancyOf = Annotated[
    list[str] | None,
    typer.Option(
        "--redundancy",
        metavar="GROUP",
        help="A group of at most 30 players: which of them can replace each other; needs the network. Repeatable.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,..|DIR",
        help="Look inside a network of images: what its channels see, and where it looks without some of them, on test "
        "examples by number, or on the images of a folder.",
    ),
]
