"""The commands' options, each declared once. No torch here: help and wrong usage answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from shaprune.builtin.demo_recipes import RECIPES
from shaprune.errors import check_choice

# The registries' names, written out because most registries need torch; a test holds them against the registries.
WORTHS = (
    "fidelity",
    "kl",
    "accuracy",
    "cross_entropy",
    "margin",
    "perplexity",
    "squared_error",
    "absolute_error",
)
PRECISIONS = ("auto", "float32", "bfloat16", "bfloat16-channels-last")
METHODS = ("permutation", "control-variate", "exact", "partial", "leave-one-out", "regression", "msr", "svarm")
CRITERIA = (
    "random",
    "weight_norm",
    "weight_norm_l1",
    "bn_scale",
    "fpgm",
    "lamp",
    "hessian",
    "taylor",
    "taylor_signed",
    "taylor_squared",
    "second_order",
    "sensitivity",
    "reconstruction",
    "apoz",
    "activation_mean",
)
CONCEPTS = ("shapley", "banzhaf", "owen", "beta", "semivalue")
MODES = ("one-shot", "iterated", "building", "greedy-backward", "greedy-forward")
UNITS = ("channel", "neuron", "ffn", "head", "block", "expert", "weight")
LAYERS = ("independent", "output-to-input")
AGGREGATES = ("mean", "mean+2std", "quantile:0.9", "worst-group")
SCHEDULES = ("geometric", "linear")
ALLOCATIONS = ("global", "value", "uniform", "shapley-layers", "curves")
RESOURCES = ("macs", "params", "players", "bytes", "activations")
STEPS = ("refit", "batchnorm", "distill", "finetune")
TRAINED_STEPS = ("distill", "finetune")  # which take all training examples
FOLDERS = ("mnist", "cifar10", "folder")  # kinds of data that live in a folder
UNSET: Any = None  # the default of an option of `compress`: the config file's value, or else the config's own default


def one_of(what: str, names: Iterable[str]) -> Callable[[str | None], str | None]:
    """A callback that refuses names outside a registry and tells the nearest."""

    def check(value: str | None) -> str | None:
        if value is not None:
            try:
                check_choice(what, value, names)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
        return value

    return check


def choice(what: str, names: Iterable[str]) -> dict[str, Any]:
    """An option with a name of a registry: others are refused, and shells complete it."""
    known = tuple(names)
    return {"callback": one_of(what, known), "autocompletion": lambda incomplete: _starting(known, incomplete)}


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def all_of(what: str, names: Iterable[str]) -> Callable[[list[str] | None], list[str] | None]:
    """The same for an option that may be given several times."""
    check = one_of(what, names)

    def check_all(values: list[str] | None) -> list[str] | None:
        for value in values or []:
            check(value)
        return values

    return check_all


def _check_data(spec: str | None) -> str | None:
    """Refuse a folder of data that does not exist; the rest is found out when the data are read."""
    kind, _, rest = (spec or "").partition(":")
    if kind in FOLDERS and rest and not Path(rest).expanduser().is_dir():
        raise typer.BadParameter(f"{rest} is not a directory; {kind}:DIR names the folder that holds the data")
    return spec


_file = {"exists": True, "dir_okay": False}

# every command
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[
    str | None,
    typer.Option(help="Where the network runs: cpu, cuda, cuda:1.", show_default="cuda where there is one, else cpu"),
]
Out = Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")]
PlayersOut = Annotated[
    Path | None, typer.Option("--out", help="Folder to write players.json into, or a file ending in .json.")
]
OptionalOut = Annotated[Path | None, typer.Option(help="Folder to write; it must be new or empty.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a folder that holds nothing but this command's own files.")
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
Include = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Only groups of these layers, e.g. 'layer*.conv1'. Repeatable.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="No groups of these layers. Repeatable.")]
Unit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="UNIT",
        help=f"What a player is: {', '.join(UNITS)}; or one player by name, NAME=GLOB over names of channels, e.g. "
        "'mine=conv2[1?]'. Repeatable.",
        show_default="channel: the smallest sets of channels that can leave",
    ),
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
MaxMemory = Annotated[str, typer.Option(metavar="BYTES", help="What the activations may take: 2GiB, 500MB, 1e9.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass when latency is measured.")]

# values
ScoreExamples = Annotated[
    int, typer.Option("--examples", min=1, help="Examples to score on, from the held-out part of the data.")
]
CurveExamples = Annotated[
    int, typer.Option("--examples", min=1, help="Test examples to measure the removal curves on.")
]
RecoverExamples = Annotated[
    int,
    typer.Option("--examples", min=1, help="Training examples for refit and batchnorm; the other steps take all."),
]
Worth = Annotated[
    str,
    typer.Option(**choice("worth", WORTHS), help=f"What a coalition is judged by: {', '.join(WORTHS)}."),
]
Precision = Annotated[
    str,
    typer.Option(
        **choice("precision", PRECISIONS),
        help="What is behind the masks is computed in float32, bfloat16, or auto: what a probe finds faster and alike.",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        **choice("method", (*METHODS, *CRITERIA)),
        help=f"The estimator: {', '.join(METHODS)}; or a criterion to compare with: {', '.join(CRITERIA)}.",
    ),
]
Concept = Annotated[
    str,
    typer.Option(metavar="NAME[:P,..]", help=f"The value: {', '.join(CONCEPTS)}; banzhaf:0.7, beta:1,16, owen:0.5,1."),
]
Mode = Annotated[str, typer.Option(**choice("mode", MODES), help=f"Score once or again and again: {', '.join(MODES)}.")]
Step = Annotated[float, typer.Option(help="Players per round of a mode, or a fraction of them below 1.")]
NegativeFirst = Annotated[
    bool, typer.Option("--negative-first", help="In a round, all players of negative value leave together.")
]
Layers = Annotated[
    str,
    typer.Option(**choice("layers", LAYERS), help="Each group in the dense network, or from the output back."),
]
Aggregate = Annotated[
    str, typer.Option(metavar="HOW", help=f"Over examples: {', '.join(AGGREGATES)} (any factor, any quantile).")
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
Sizes = Annotated[
    str | None,
    typer.Option(
        metavar="LO,HI",
        help="Shares of a group that a coalition keeps; 0,1 = the Shapley value.",
        show_default="0.5,1.0 for sampled Shapley values, else 0,1",
    ),
]
Antithetic = Annotated[bool, typer.Option("--antithetic", help="Walk every order also backwards.")]
Together = Annotated[bool, typer.Option("--together", help="One game over all groups instead of one per group.")]
ValuesFile = Annotated[Path, typer.Argument(**_file, metavar="VALUES.json", help="What `shaprune score` wrote.")]

# plan and surgery
_LIMIT = (
    "What may stay: macs=0.5, params=100000, players=0.6, bytes=2MB, activations=0.5; measured (with --model and "
    "--data): latency=0.6 or latency=0.8ms, drop=0.01 or floor=0.9 of accuracy, as small as that allows. Repeatable."
)
Limits = Annotated[list[str], typer.Option("--budget", metavar="NAME=NUMBER", help=_LIMIT)]
OptionalLimits = Annotated[list[str] | None, typer.Option("--budget", metavar="NAME=NUMBER", help=_LIMIT)]
Sweep = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        **choice("resource", RESOURCES),
        help="Instead of a budget: decide for every share of macs, params, players, bytes or activations, and print "
        "all of it; with --model and --data each network is measured, too.",
    ),
]
Allocation = Annotated[
    str,
    typer.Option(
        **choice("allocation", ALLOCATIONS),
        help="global: one ranking by value per cost; value: by value alone; uniform: equal shares; shapley-layers: in "
        "proportion to the value of each group; curves: the least loss by --curves.",
    ),
]
CurvesFile = Annotated[
    Path | None, typer.Option("--curves", **_file, metavar="FILE", help="What `shaprune sensitivity` wrote.")
]
Refitted = Annotated[
    bool, typer.Option("--refit", help="Measure with the consumers of each group fitted anew, as the refit will do.")
]
Points = Annotated[int, typer.Option(min=1, help="Measurements per group along its ranking.")]
MinPlayers = Annotated[int, typer.Option(min=0, help="Players that stay in every group.")]
MinWidth = Annotated[int, typer.Option(min=1, help="Channels that stay in every layer that loses some.")]
RoundTo = Annotated[
    int, typer.Option(min=1, help="Layers that lose channels are left with a multiple of so many, such as 8.")
]
MaxRemoved = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[GLOB=]SHARE",
        help="The largest share of a group that leaves: 0.5, or 'layer1*=0.25' for some groups. Repeatable.",
        show_default="1",
    ),
]
Spared = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Groups whose players all stay. Repeatable.")
]
HfUniform = Annotated[
    bool,
    typer.Option(
        "--hf-uniform",
        help="Only what the config.json of a transformers model can say: as many heads or neurons from every layer.",
    ),
]
PlanFile = Annotated[Path, typer.Option("--plan", **_file, metavar="PLAN.json", help="What `shaprune plan` wrote.")]
OptionalPlanFile = Annotated[
    Path | None, typer.Option("--plan", **_file, metavar="PLAN.json", help="What `shaprune plan` wrote.")
]
Recover = Annotated[
    str, typer.Option(metavar="STEPS", help=f"Steps after surgery, in order: {', '.join(STEPS)}; or none.")
]
RecoverOrOwn = Annotated[
    str,
    typer.Option(
        metavar="STEPS",
        help=f"Steps after surgery, in order: {', '.join(STEPS)}, or package.module:function of your own; or none.",
    ),
]

# a whole run, and its files
Rounds = Annotated[
    int, typer.Option(min=1, help="Score, cut and recover so often on the way to the budget.", show_default="1")
]
Schedule = Annotated[
    str,
    typer.Option(
        **choice("schedule", SCHEDULES), help=f"How the budget falls over the rounds: {', '.join(SCHEDULES)}."
    ),
]
Metric = Annotated[str, typer.Option(**choice("worth", WORTHS), help="What a floor or drop of the budget is about.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        **_file, metavar="RUN.yaml", help="The run: model, data, budget and any option below, under its name."
    ),
]
OutOfRun = Annotated[
    Path, typer.Option(help="Folder to write; it must be new or empty.", show_default="the config's, or compressed")
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
