"""``shaprune bench curves``: accuracy and loss as players leave, for everything that can rank them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from shaprune.builtin.demo_recipes import choose_architecture
from shaprune.cli.command import Outcome, as_usage_error, renaming, say
from shaprune.cli.options.groups import Machine
from shaprune.cli.options.shared import Architecture, DemoData, Out, Overwrite, Worth
from shaprune.cli.outputs import check_out

FILES = ("curves.json", "curves.svg")

Layer = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only groups of these layers. Repeatable.", show_default="all but the first"),
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Networks to train; bands are over them.")]
HeldOut = Annotated[int, typer.Option("--examples", min=1, help="Held-out examples to score on.")]
TestExamples = Annotated[int, typer.Option(min=1, help="Test examples to measure the curves on.")]
PerRound = Annotated[
    float,
    typer.Option(help="Players per round of a mode, or a fraction below 1; it sets what every contender may pay."),
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Contenders by name, or a kind: concept, estimator, aggregation, mode, rival."),
]


@renaming({"step": "per-round"})
def curves(
    machine: Machine,
    data: DemoData = "digits",
    architecture: Architecture = None,
    layer: Layer = None,
    networks: Seeds = 3,
    examples: HeldOut = 64,
    test_examples: TestExamples = 200,
    per_round: PerRound = 0.25,
    worth: Worth = "cross_entropy",
    only: Only = None,
    out: Out = Path("curves"),
    overwrite: Overwrite = False,
) -> Outcome:
    """Accuracy and loss as players leave: every concept, estimator, mode and rival, at equal evaluations.

    Trains --seeds networks, ranks the players of each layer on held-out examples, and removes them one after another
    without any recovery, layer by layer and network-wide. Tables are sorted by the area under the loss curve; +- is
    half of a 95 % interval over networks. Writes curves.json and curves.svg into --out.

    The defaults are small, so that digits take less than a minute; quote numbers of larger runs.

    Example: shaprune bench curves --layer conv3 --per-round 1 --examples 300 --only mode --only rival --out curves
    """
    with as_usage_error("--data"):
        choose_architecture(data, None)
    with as_usage_error("--arch"):
        chosen = choose_architecture(data, architecture)
    check_out(out, FILES, overwrite=overwrite)

    from shaprune.cli.inputs import device_of, read_data
    from shaprune.experiments.contenders import choose
    from shaprune.experiments.curves_study import curves_study
    from shaprune.report.figures.curve_bands import curve_bands_figure
    from shaprune.storage.atomic_files import replacing_directory, write_text
    from shaprune.storage.schema import head

    with as_usage_error("--only"):
        contenders = choose(only or None)
    where = device_of(machine.device)
    study = curves_study(
        read_data(data),
        chosen,
        contenders,
        layers=layer,
        networks=networks,
        examples=examples,
        test_examples=test_examples,
        step=per_round,
        worth=worth,
        seed=machine.seed,
        device=where,
        say=say,
    )
    found = {**head("curves"), **study}
    panels: dict[str, Any] = dict(found["layers"])
    if found["network_wide"] is not None:
        panels["network-wide"] = found["network_wide"]
    with replacing_directory(out, files=FILES, overwrite=overwrite) as folder:
        write_text(folder / "curves.json", json.dumps(found, indent=1) + "\n")
        write_text(folder / "curves.svg", curve_bands_figure(panels))
    found["artifacts"] = {name.removeprefix("curves."): str(out / name) for name in FILES}
    left_out = tuple(f"left out: {name}: {why}" for name, why in found["left_out"].items())
    told = f"{networks} networks in {found['seconds']:.0f} s -> {out / FILES[0]}, {out / FILES[1]}"
    tables = tuple(_table(title, rows, found["examples"]) for title, rows in panels.items())
    return Outcome(found, (*tables, *left_out, told))


def _table(title: str, rows: dict[str, Any], examples: int) -> Table:
    """One line per contender, the smallest area under the loss curve first."""
    shares = list(next(iter(rows.values()))["accuracy_at"])
    table = Table(title=title, title_justify="left", header_style="bold")
    names = ("contender", "kind", "area, loss", "area, accuracy", *(f"{float(s):.0%} removed" for s in shares))
    for i, name in enumerate((*names, "evaluations per example")):
        table.add_column(Text(name), justify="right" if i > 1 else "left")
    for name, row in rows.items():
        areas = (_cell(row["area_loss"]), _cell(row["area_accuracy"]))
        accuracies = (f"{row['accuracy_at'][share]['mean']:.3f}" for share in shares)
        paid = f"{row['n_evaluations'] / examples:,.0f}"
        table.add_row(*map(Text, (name, row["kind"], *areas, *accuracies, paid)))
    return table


def _cell(of: dict[str, Any]) -> str:
    return f"{of['mean']:.3f}" + ("" if of["reach"] is None else f" +- {of['reach']:.3f}")
