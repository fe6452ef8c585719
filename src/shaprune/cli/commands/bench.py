"""``shaprune bench NAME``: published benchmarks, run here. ``BENCHMARKS`` is the registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from shaprune.cli.command import Outcome, as_usage_error, command, say
from shaprune.cli.commands.bench_curves import curves
from shaprune.cli.options.choices import choice
from shaprune.cli.options.shared import DemoData, Device, Out, Overwrite, Seed
from shaprune.cli.outputs import check_out
from shaprune.experiments.oracle import COLUMNS, QUESTIONS

ARCHITECTURES = ("narrow", "lenet5-reduced", "lenet5-reduced-bn")  # written out because the registry needs torch
ORACLE_FILE = "oracle.json"
MISSING = "-"

Networks = Annotated[int, typer.Option(min=1, help="Networks to train; means and spreads are over them.")]
Repeats = Annotated[int, typer.Option(min=1, help="Seeds per network of the estimators that draw.")]
WorthExamples = Annotated[
    int | None,
    typer.Option(
        "--examples", min=1, help="Held-out examples behind a worth.", show_default="1000; 250 above 12 players"
    ),
]
OracleArchitecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        **choice("architecture", ARCHITECTURES),
        help=f"The network to train: {', '.join(ARCHITECTURES)}.",
        show_default="narrow; lenet5-reduced for mnist",
    ),
]


@command
def oracle(
    data: DemoData = "digits",
    architecture: OracleArchitecture = None,
    networks: Networks = 5,
    examples: WorthExamples = None,
    repeats: Repeats = 3,
    out: Out = Path("oracle"),
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """How well rankings agree with the best subsets of 1 to 5 channels, found by enumeration.

    Table 2 of Adamczewski, Li, Van Gool 2024, on networks trained here, with more rows; writes oracle.json into --out.
    All 2^N worths of each convolution are computed: on digits (8 and 9 channels) in seconds, for the 20 channels of
    the reduced LeNet-5 in some 50 s per network and 250 examples on 2 cores.

    Example: shaprune bench oracle --data mnist:data/mnist --networks 5 --examples 250 --out oracle-mnist
    """
    check_out(out, [ORACLE_FILE], overwrite=overwrite)

    from shaprune.cli.inputs import device_of, read_data
    from shaprune.experiments.oracle_networks import choose
    from shaprune.experiments.oracle_study import oracle_study
    from shaprune.storage.atomic_files import replacing_directory, write_text
    from shaprune.storage.schema import head

    kind = data.partition(":")[0]
    with as_usage_error("--data"):
        choose(kind, None)
    with as_usage_error("--arch"):
        chosen = choose(kind, architecture)
    where = device_of(device)
    study = oracle_study(
        read_data(data),
        chosen,
        networks=networks,
        examples=examples,
        repeats=repeats,
        seed=seed,
        device=where,
        say=say,
    )
    found = {**head("oracle"), **study}
    with replacing_directory(out, files=[ORACLE_FILE], overwrite=overwrite) as folder:
        write_text(folder / ORACLE_FILE, json.dumps(found, indent=1) + "\n")
    found["artifacts"] = {"oracle": str(out / ORACLE_FILE)}
    left_out = tuple(
        f"left out in {name}: {why}" for name, layer in found["layers"].items() for why in layer["left_out"].values()
    )
    told = f"{networks} networks in {found['seconds']:.0f} s -> {out / ORACLE_FILE}"
    return Outcome(found, (_paper_table(found), _row_table(found), *left_out, told))


def _paper_table(found: dict[str, Any]) -> Table:
    """The paper's table: its columns, one line per question and layer, and below it the paper's own numbers."""
    table = _table(("mean score (deviation)", *COLUMNS))
    for question in QUESTIONS:
        for layer in found["layers"].values():
            cells = {row["paper_column"]: row[question] for row in layer["rows"].values() if row["paper_column"]}
            ours = (_score(cells[column]) if column in cells else MISSING for column in COLUMNS)
            table.add_row(*map(Text, (f"{question}, N = {layer['players']}", *ours)))
            fair = (_score(cells[column]["any"]) if column in cells else MISSING for column in COLUMNS)
            table.add_row(*map(Text, ("  nearest of tied sets", *fair)))
            if found["paper"]:
                theirs = (cells[column]["paper"] if column in cells else None for column in COLUMNS)
                table.add_row(*map(Text, ("  the paper", *(MISSING if t is None else f"{t:.3f}" for t in theirs))))
    return table


def _row_table(found: dict[str, Any]) -> Table:
    """Every row; where rows of layers differ by name (their budgets do), cells stay empty."""
    layers = found["layers"].values()
    columns = [(question, layer) for question in QUESTIONS for layer in layers]
    heads = (f"{question}, N = {layer['players']}" for question, layer in columns)
    table = _table(("nearest of tied sets", *heads, *(f"evaluations, N = {layer['players']}" for layer in layers)))
    for name in dict.fromkeys(name for layer in layers for name in layer["rows"]):
        scores = (_score(layer["rows"][name][q]["any"]) if name in layer["rows"] else MISSING for q, layer in columns)
        paid = (f"{layer['rows'][name]['evaluations']:,.0f}" if name in layer["rows"] else MISSING for layer in layers)
        table.add_row(*map(Text, (name, *scores, *paid)))
    return table


def _table(header: tuple[str, ...]) -> Table:
    table = Table(header_style="bold")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    return table


def _score(cell: dict[str, Any]) -> str:
    return f"{cell['mean']:.3f}" + ("" if cell["std"] is None else f" ({cell['std']:.3f})")


BENCHMARKS: dict[str, Callable[..., None]] = {"oracle": oracle, "curves": curves}

bench = typer.Typer(no_args_is_help=True, help="Run a published benchmark here: " + ", ".join(BENCHMARKS) + ".")
for _name, _benchmark in BENCHMARKS.items():
    bench.command(_name)(_benchmark)


@bench.callback()
def _group() -> None:
    """A callback keeps a group of one command a group."""
