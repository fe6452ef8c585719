"""The commands' options, each declared once. No torch here: help and wrong usage answer at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shaprune.builtin.demo_recipes import RECIPES
from shaprune.cli.options.choices import choice
from shaprune.options.fields import help_of
from shaprune.options.groups import BUDGET_HELP, CRITERIA, METHODS, STEPS, WORTHS, Planning, Scoring
from shaprune.planning.plan import ALLOCATIONS
from shaprune.planning.resources import RESOURCES

FOLDERS = ("mnist", "cifar10", "folder")  # kinds of data that live in a folder


def _check_data(spec: str | None) -> str | None:
    """Refuse a folder of data that does not exist; the rest is found out when the data are read."""
    kind, _, rest = (spec or "").partition(":")
    if kind in FOLDERS and rest and not Path(rest).expanduser().is_dir():
        raise typer.BadParameter(f"{rest} is not a directory; {kind}:DIR names the folder that holds the data")
    return spec


_file = {"exists": True, "dir_okay": False}

# every command
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[
    str | None,
    typer.Option(help="Where the network runs: cpu, cuda, cuda:1.", show_default="cuda where there is one, else cpu"),
]
Out = Annotated[Path, typer.Option(help="Folder to write; new or empty, unless --overwrite.")]
DemoOut = Annotated[Path, typer.Option("--out", help="Folder to write; new, empty, or an earlier demo's.")]
PlayersOut = Annotated[
    Path | None, typer.Option("--out", help="Folder to write players.json into, or a file ending in .json.")
]
OptionalOut = Annotated[Path | None, typer.Option(help="Folder to write; new or empty, unless --overwrite.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what stands in --out, where this command wrote all of it.")
]

# the network and its data
_MODEL = "A network: package.module:factory (called without arguments), or a built-in name such as lenet5."
_WEIGHTS = "Its weights: .safetensors, or .pt (a state dict, read without running code)."
_DATA = "digits, mnist:DIR, cifar10:DIR, folder:DIR (train/CLASS/, test/CLASS/) or package.module:factory."
Model = Annotated[str, typer.Option(metavar="FACTORY", help=_MODEL)]
OptionalModel = Annotated[str | None, typer.Option(metavar="FACTORY", help=_MODEL)]
Weights = Annotated[Path | None, typer.Option(**_file, metavar="FILE", help=_WEIGHTS)]
Data = Annotated[str, typer.Option(metavar="DATA", callback=_check_data, help=_DATA)]
OptionalData = Annotated[str | None, typer.Option(metavar="DATA", callback=_check_data, help=_DATA)]
Cache = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep decoded images here for the next run.")]
Pruned = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, metavar="DIR", help="What `shaprune prune` wrote.")
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE",
        help="Instead of --data: the shape of one example, such as 3x224x224, or 16:int64 for whole numbers (zeros). "
        "Once per input of the network.",
    ),
]
MaxSeconds = Annotated[float, typer.Option(min=0, help="When to give up following channels through the network.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass when latency is measured.")]
MaxMemory = Annotated[str, typer.Option(metavar="BYTES", help=help_of(Scoring, "max_memory"))]
ScoreExamples = Annotated[
    int, typer.Option("--examples", min=1, help="Examples to score on, from the held-out part of the data.")
]
CurveExamples = Annotated[
    int, typer.Option("--examples", min=1, help="Test examples to measure the removal curves on.")
]
RecoverExamples = Annotated[
    int,
    typer.Option(
        "--examples", min=1, help="Held-out examples for refit and batchnorm; the others take the training part."
    ),
]
Worth = Annotated[
    str,
    typer.Option(**choice("worth", WORTHS), help=f"What a coalition is judged by: {', '.join(WORTHS)}."),
]
Method = Annotated[
    str,
    typer.Option(
        **choice("method", (*METHODS, *CRITERIA)),
        help=f"The estimator: {', '.join(METHODS)}; or a criterion to compare with: {', '.join(CRITERIA)}.",
    ),
]
Stop = Annotated[
    str | None,
    typer.Option(metavar="RULE", help="When to stop: 'cut_settled(0.5) | seconds(60)', 'stderr_below(0.01)', ..."),
]
WorthLog = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep worths over all examples here; what is there is not paid again."),
]
MaxEvaluations = Annotated[
    int | None, typer.Option(min=1, help="Budget per game, in (coalition, example) rows.", show_default="one sweep")
]
ValuesFile = Annotated[Path, typer.Argument(**_file, metavar="VALUES.json", help="What `shaprune score` wrote.")]
Antithetic = Annotated[bool, typer.Option("--antithetic", help="Walk every order also backwards.")]
Allocation = Annotated[str, typer.Option(**choice("allocation", ALLOCATIONS), help=help_of(Planning, "allocation"))]
Budgets = Annotated[list[str], typer.Option("--budget", metavar="NAME=NUMBER", help=BUDGET_HELP)]
OptionalBudgets = Annotated[list[str] | None, typer.Option("--budget", metavar="NAME=NUMBER", help=BUDGET_HELP)]
Sweep = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        **choice("resource", RESOURCES),
        help=f"Instead of a budget: decide for every share of one of {', '.join(RESOURCES)}, and print all of "
        "it; with --model and --data each network is measured, too.",
    ),
]
CurvesFile = Annotated[
    Path | None, typer.Option("--curves", **_file, metavar="FILE", help="What `shaprune sensitivity` wrote.")
]
Refitted = Annotated[
    bool, typer.Option("--refit", help="Measure with the consumers of each group fitted anew, as the refit will do.")
]
Points = Annotated[int, typer.Option(min=1, help="Measurements per group along its ranking.")]
PlanFile = Annotated[Path, typer.Option("--plan", **_file, metavar="PLAN.json", help="What `shaprune plan` wrote.")]
OptionalPlanFile = Annotated[
    Path | None, typer.Option("--plan", **_file, metavar="PLAN.json", help="What `shaprune plan` wrote.")
]
Recover = Annotated[
    str, typer.Option(metavar="STEPS", help=f"Steps after surgery, in order: {', '.join(STEPS)}; or none.")
]

# a whole run, and its files
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        **_file, metavar="RUN.yaml", help="The run: model, data, budget and any option below, under its name."
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads when latency is measured.", show_default="as torch has it")
]
Compiled = Annotated[
    str | None,
    typer.Option(metavar="BACKEND", help="Time what torch.compile makes of the networks with this backend: inductor."),
]
ExportOut = Annotated[
    Path,
    typer.Option(metavar="FILE", help="File to write: .onnx, or .pt2 for a program of torch.export."),
]
FixedBatch = Annotated[
    bool, typer.Option("--fixed-batch", help="Only for as many examples as are given, not for any number.")
]

# the demo
DemoData = Annotated[
    str, typer.Option(metavar="DATA", callback=_check_data, help="digits (nothing is downloaded), or mnist:DIR.")
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        **choice("architecture", RECIPES),
        help=f"The network to train: {', '.join(RECIPES)}.",
        show_default="digits; lenet5 for mnist",
    ),
]
