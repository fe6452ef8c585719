"""The application: its commands, and ``--version``. Imports no torch, so that help answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from shaprune.cli.commands.bench import bench
from shaprune.cli.commands.compress import compress
from shaprune.cli.commands.demo import demo
from shaprune.cli.commands.doctor import doctor
from shaprune.cli.commands.evaluate import evaluate
from shaprune.cli.commands.export import export
from shaprune.cli.commands.plan import plan
from shaprune.cli.commands.players import players
from shaprune.cli.commands.prune import prune
from shaprune.cli.commands.report import report
from shaprune.cli.commands.runs import export_values, merge, resume, runs
from shaprune.cli.commands.score import score
from shaprune.cli.commands.sensitivity import sensitivity

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(shown: bool) -> None:
    if shown:
        from importlib.metadata import version

        print(f"shaprune {version('shaprune')}")
        raise typer.Exit


@app.callback()
def shaprune(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make trained PyTorch networks smaller and faster, with Shapley values.

    Score what every channel contributes, plan for a budget, cut, and win the accuracy back. [bold]shaprune demo[/bold]
    shows all of it on handwritten digits in well under a minute.

    Exit codes: 0 done, 1 the work failed, 2 wrong usage.
    """


for command in (demo, compress, players, score, sensitivity, plan, prune, evaluate, export, report):
    app.command(no_args_is_help=command is not demo)(command)
for of_runs in (resume, merge, export_values):
    app.command(no_args_is_help=True)(of_runs)
app.command()(runs)
app.command()(doctor)
app.add_typer(bench, name="bench")
