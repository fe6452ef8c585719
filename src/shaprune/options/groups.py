"""Groups of options of a run, beside its network, data and budget. No torch.

Every option stands here once, or in `Limits` and `RunOptions`: Python, config files and the command line read the
fields of these dataclasses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shaprune.errors import InputError, check_choice
from shaprune.options.fields import option
from shaprune.planning.limits import Limits
from shaprune.planning.plan import ALLOCATIONS
from shaprune.players.roles import CHANNEL_UNITS, NORMS, SPECIAL_UNITS
from shaprune.values.aggregation import Aggregate, aggregate_of
from shaprune.values.concepts import Concept, concept_of, shapley
from shaprune.values.estimators.base import Method
from shaprune.values.games.observers import GameObserver
from shaprune.values.rescoring import MODES

# The names of registries that import much, written out; a test holds them against the registries.
METHODS = ("permutation", "control-variate", "exact", "partial", "leave-one-out", "regression", "msr", "svarm")
WORTHS = ("fidelity", "kl", "accuracy", "cross_entropy", "margin", "perplexity", "squared_error", "absolute_error")
PRECISIONS = ("auto", "float32", "bfloat16", "bfloat16-channels-last")
UNITS = (*CHANNEL_UNITS, *SPECIAL_UNITS)
LAYER_ORDERS = ("independent", "output-to-input")
SCHEDULES = ("geometric", "linear")
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
STEPS = ("refit", "batchnorm", "blocks", "distill", "finetune")
TRAINED_STEPS = ("blocks", "distill", "finetune")  # which take all training examples
BUDGET_HELP = (
    "What may stay: macs=0.5, params=100000, players=0.6, bytes=2MB, activations=0.5, energy=0.5; measured "
    "(`plan` then needs --model and --data): latency=0.6 or latency=0.8ms, drop=0.01 or floor=0.9 of accuracy, as "
    "small as that allows. Repeatable."
)
NO_GAME = ("forward", "max_memory", "remove", "watch")  # options of `Scoring` that mean something without a game
NEAR, ANY_SIZE = (0.5, 1.0), (0.0, 1.0)  # windows: coalitions near the whole network, and all of them
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def bytes_of(text: str) -> int:
    """``"2GiB"`` -> 2147483648.

    Raises:
        InputError: no number of bytes.
    """
    found = re.fullmatch(r"([\d.]+(?:e\d+)?) ?([a-z]*)", text.strip().lower())
    try:
        number, unit = found.groups() if found else ("", "")
        size = int(float(number) * BYTES[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise InputError(f"{text!r} is no number of bytes above 0, such as 2GiB, 500MB or 1e9")
    return size


def window_of(text: str) -> tuple[float, float]:
    """``"0.5,1.0"`` -> (0.5, 1.0).

    Raises:
        InputError: not two shares, the smaller first.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{text!r} is not of the form LO,HI, such as 0.5,1.0") from None
    shapley((low, high))
    return low, high


def unit_of(texts: Sequence[str]) -> str | list[str] | dict[str, list[str]]:
    """``["head", "ffn"]`` or ``["mine=conv2[0]", "mine=conv2[1]"]`` -> the unit of `find_players`.

    Raises:
        InputError: an unknown unit, with the nearest; units by name beside others.
    """
    named: dict[str, list[str]] = {}
    for text in texts:
        name, equals, glob = text.partition("=")
        if not equals:
            check_choice("unit", name, UNITS)
        elif not name or not glob:
            raise InputError(f"{text!r} is not of the form NAME=GLOB, such as 'mine=conv2[1?]'")
        else:
            named.setdefault(name, []).append(glob)
    if not named:
        return texts[0] if len(texts) == 1 else list(texts)
    if len(texts) > sum(map(len, named.values())):
        raise InputError("units by name (NAME=GLOB) go with no other unit")
    return named


def _known_concept(text: str) -> str:
    concept_of(text)
    return text


def _known_aggregate(text: str) -> str:
    if text not in ("mean", "worst-group"):
        aggregate_of(text)
    return text


@dataclass(frozen=True)
class Units:
    """What a player is, and of which layers, see `find_players`.

    Attributes:
        unit: ``"channel"``, ``"head"``, ...; several of these; or a mapping of names to globs.
        include: only groups of these layers: names, globs or module types; None = all.
        exclude: no groups of these layers.
        norm: what norms over a stream do without channels that left.
    """

    unit: str | Sequence[str] | Mapping[str, str | Sequence[str]] = option(
        "channel",
        f"What a player is: {', '.join(UNITS)}; or one player by name, NAME=GLOB over names of channels, e.g. "
        "'mine=conv2[1?]'. Repeatable.",
        metavar="UNIT",
        read=unit_of,
        repeated=True,
        plain=str | tuple[str, ...] | dict[str, str | tuple[str, ...]],
        shown="channel: the smallest sets of channels that can leave",
    )
    include: str | type | Sequence[str | type] | None = option(
        None,
        "Only groups of these layers, e.g. 'layer*.conv1'. Repeatable.",
        metavar="GLOB",
        repeated=True,
        plain=str | tuple[str, ...] | None,
    )
    exclude: str | type | Sequence[str | type] | None = option(
        None,
        "No groups of these layers. Repeatable.",
        metavar="GLOB",
        repeated=True,
        plain=str | tuple[str, ...] | None,
    )
    norm: str = option(
        "slice",
        "Norms over a stream without channels that left: slice, narrower; compensated, their means stand in for them.",
        names=NORMS,
    )


@dataclass(frozen=True)
class Scoring:
    """How players are scored.

    Attributes:
        concept: the value, see `shaprune.values.concepts`: ``"shapley"``, ``"banzhaf:0.7"``, ...
        window: (lo, hi): only coalitions that keep such shares of the players; None = (0.5, 1) for Shapley values that
            walk or enumerate (methods permutation and exact), which then say what a player contributes near the size
            that is kept, and (0, 1), all sizes, for the rest.
        aggregate: how values of single examples become one, see `shaprune.values.aggregation`.
        together: one game over all players of all groups instead of one per group.
        mode: score once, or again after every few players, see `shaprune.values.rescoring.estimate_in_rounds`.
        per_round: players per round of a mode; a fraction of them below 1.
        negative_first: in a round, all players of negative value leave together.
        layers: ``"independent"``: every group in the dense network; ``"output-to-input"``: from the last group to the
            first, each in the network whose later groups have lost the lowest ``remove`` share already (Ancona et al.
            2020).
        remove: that share.
        precision: ``"float32"``, ``"bfloat16"``, ``"bfloat16-channels-last"`` (see `NetworkGame`), or ``"auto"``: what
            a probe of a few walks finds faster and the ranking unmoved, see `shaprune.network.game.precision_probe`; a
            run that goes on keeps what it began with.
        max_memory: bytes that activations and examples may take, see `NetworkGame`.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        watch: observer of the games, see `shaprune.values.games.observers.GameObserver`.
    """

    concept: str | Concept = option(
        "shapley",
        "The value: shapley, banzhaf, owen, beta, semivalue; banzhaf:0.7, beta:1,16, owen:0.5,1.",
        metavar="NAME[:P,..]",
        read=_known_concept,
        plain=str,
    )
    window: tuple[float, float] | None = option(
        None,
        "Shares of a group that a coalition keeps; 0,1 = the Shapley value.",
        metavar="LO,HI",
        read=window_of,
        shown="0.5,1.0 for sampled Shapley values, else 0,1",
    )
    aggregate: str | Aggregate = option(
        "mean",
        "Over examples: mean, mean+2std, quantile:0.9, worst-group (any factor, any quantile).",
        metavar="HOW",
        read=_known_aggregate,
        plain=str,
    )
    together: bool = option(False, "One game over all groups instead of one per group.")
    mode: str = option("one-shot", f"Score once or again and again: {', '.join(MODES)}.", names=MODES)
    per_round: float = option(1.0, "Players per round of a mode, or a fraction of them below 1.")
    negative_first: bool = option(False, "In a round, all players of negative value leave together.")
    layers: str = option("independent", "Each group in the dense network, or from the output back.", names=LAYER_ORDERS)
    remove: float = 0.5
    precision: Literal["auto", "float32", "bfloat16", "bfloat16-channels-last"] = option(
        "float32",
        "What is behind the masks is computed in float32, bfloat16, or auto: what a probe finds faster and alike.",
        names=PRECISIONS,
    )
    max_memory: int = option(
        1 << 30, "What the activations may take: 2GiB, 500MB, 1e9.", metavar="BYTES", read=bytes_of, shown="1GiB"
    )
    forward: Callable[..., Any] | None = None
    watch: GameObserver | None = None

    def window_for(self, method: str | Method) -> tuple[float, float]:
        """The window of a method, where none is given."""
        if self.window is not None:
            return self.window
        name = method.name if isinstance(method, Method) else method
        sampled = name in ("permutation", "exact") and not self.mode.startswith("greedy")
        return NEAR if sampled and concept_of(self.concept).label == "shapley" else ANY_SIZE

    def price(self, method: str | Method) -> dict[str, Any]:
        """What the number of evaluations depends on, as keywords of `expected_evaluations_in_rounds`."""
        return {"step": self.per_round, "concept": self.concept, "sizes": self.window_for(method)}

    def rounds(self, method: str | Method) -> dict[str, Any]:
        """The same, with what only the values depend on, as keywords of `estimate_in_rounds`."""
        return {**self.price(method), "negative_first": self.negative_first, "aggregate": self.aggregate}


@dataclass(frozen=True)
class Planning:
    """How a plan is found.

    Attributes:
        allocation: how removals are shared out between groups, see `plan`.
        cycles: score, cut and recover so often on the way to the budget, see `prune_in_cycles`.
        schedule: how the budget falls over the cycles.
    """

    allocation: str = option(
        "global",
        "global: one ranking by value per cost; value: by value alone; uniform: equal shares; shapley-layers: in "
        "proportion to the value of each group; curves: the least loss by measured curves.",
        names=ALLOCATIONS,
    )
    cycles: int = option(1, "Score, cut and recover so often on the way to the budget.", least=1)
    schedule: str = option(
        "geometric", f"How the budget falls over the cycles: {', '.join(SCHEDULES)}.", names=SCHEDULES
    )


@dataclass(frozen=True)
class Compression:
    """All options of `compress` beside its plain arguments.

    Attributes:
        units: what a player is.
        scoring: how players are scored; its ``forward`` calls the network in every stage.
        limits: what every plan must leave.
        planning: how the plan is found.
        max_evaluations: how much is scored, see `score`.
        train: batches for fine-tuning where it is not to be on the data, see `recover`; never the test set.
        validation: batches on which a floor is measured; neither the data nor the test set.
        metric: what a floor is about: a worth, see `NetworkGame`.
    """

    units: Units = field(default_factory=Units)
    scoring: Scoring = field(default_factory=Scoring)
    limits: Limits = field(default_factory=Limits)
    planning: Planning = field(default_factory=Planning)
    max_evaluations: int | None = option(
        None, "Budget per game, in (coalition, example) rows.", least=1, shown="one sweep"
    )
    train: Iterable[Any] | None = None
    validation: Iterable[Any] | None = None
    metric: Any = option("accuracy", "What a floor or drop of the budget is about.", names=WORTHS, plain=str)
