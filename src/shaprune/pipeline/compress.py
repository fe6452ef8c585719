"""Compress a network in one call: find players, score, plan, prune, recover, measure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from shaprune.criteria.registry import CRITERIA, criterion_scores
from shaprune.deploy.measure import Measurement, accuracy, compare
from shaprune.errors import InputError, check_choice
from shaprune.network.batches import Forward, Inputs
from shaprune.network.collect_batches import check_data
from shaprune.network.discovery.find_players import Filter, Unit, find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import DEFAULT_MAX_MEMORY
from shaprune.network.game.worths import AnyWorth, Evaluate, RowWorth, Worth
from shaprune.network.precision import RowPrecision
from shaprune.pipeline.planner import make_planner
from shaprune.pipeline.prune import prune
from shaprune.pipeline.rounds import SCHEDULES, prune_in_rounds, round_budget
from shaprune.pipeline.score import Scores, score
from shaprune.pipeline.search import Trial, check_attainable, decide, quality_on
from shaprune.planning.budget import Budget
from shaprune.planning.frontier import Planner
from shaprune.planning.limits import Limits, check_hf_uniform
from shaprune.planning.plan import ALLOCATIONS, Plan, check_reachable
from shaprune.players.players import Players
from shaprune.recovery.steps import RecoveryStep, Refit, check_batches, check_steps
from shaprune.recovery.steps import recover as run_steps
from shaprune.storage.tables import Table, Tabular
from shaprune.values.estimate import METHODS
from shaprune.values.estimators.base import Method


@dataclass(frozen=True, eq=False, repr=False)
class Compressed(Tabular):
    """What `compress` returns.

    Attributes:
        model: the pruned, recovered network.
        plan: who stayed.
        values: the scores behind the plan.
        measurements: ``"dense"``, ``"raw"`` (pruned, not recovered) and ``"pruned"`` networks, measured side by side.
        seconds: wall time per stage.
        trials: the networks that were measured on the way to a latency or a floor.
    """

    model: nn.Module
    plan: Plan
    values: Scores
    measurements: dict[str, Measurement]
    seconds: dict[str, float]
    trials: tuple[Trial, ...] = field(default=())

    def headline(self) -> str:
        """The network, how many players stay, and how long it took."""
        return f"{type(self.model).__name__}, {self.plan!r}, {sum(self.seconds.values()):.1f} s"

    def table(self) -> Table:
        """The networks side by side; below, the costs that stay."""
        rows = [
            (name, m.accuracy, m.parameters, m.macs, m.latency.median_ms, m.bytes)
            for name, m in self.measurements.items()
        ]
        columns = {"network": "", "accuracy": ".4f", "parameters": ",", "multiply-adds": ",", "ms": ".3g", "bytes": ","}
        return Table(columns, rows, self.plan.table().notes)


def compress(
    model: nn.Module,
    data: Iterable[Any],
    budget: Budget,
    *,
    example_inputs: Inputs,
    worth: str | RowWorth | Worth | Evaluate = "fidelity",
    method: str | Method = "permutation",
    recover: Sequence[str | RecoveryStep] = ("refit",),
    unit: Unit = "channel",
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
    allocation: str = "global",
    min_players: int = 1,
    min_width: int = 1,
    round_to: int = 1,
    max_removed: float | Mapping[str, float] = 1.0,
    hf_uniform: bool = False,
    rounds: int = 1,
    schedule: str = "geometric",
    sizes: tuple[float, float] = (0.5, 1.0),
    max_evaluations: int | None = None,
    train: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    metric: AnyWorth | Evaluate = "accuracy",
    test: Iterable[Any] | None = None,
    forward: Forward | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    precision: RowPrecision | Literal["auto"] = "float32",
    seed: int = 0,
    progress: bool | None = None,
) -> Compressed:
    """Make a trained network smaller; ``model`` is not changed.

    The defaults need no labels: players are scored by how far the output moves (fidelity) while at least half of a
    group is kept, and the consumers are refitted in closed form. Where more time may be spent,
    ``method="reconstruction", allocation="curves"`` ranks players by what refitted consumers cannot give any more, and
    sets the widths of layers by measured curves, with refitted consumers where ``"refit"`` is the first step.

    Args:
        model: the dense network.
        data: batches to score and recover on, see `NetworkGame`; never the test set.
        budget: what may stay.
        example_inputs: inputs of one forward pass, batch first.
        worth, method, sizes, max_evaluations, forward, max_memory, precision, progress: see `score`.
        recover: recovery steps, see `recover`; ``()`` for none.
        unit, include, exclude: see `find_players`.
        allocation, min_players, min_width, round_to, max_removed, hf_uniform: see `plan`.
        train: batches for fine-tuning where it is not to be on ``data``, see `recover`; never the test set.
        rounds, schedule: score, cut and recover so often on the way, see `shaprune.pipeline.rounds.prune_in_rounds`.
        validation: batches on which the ``metric`` of a floor is measured; neither ``data`` nor the test set.
        metric: what a floor is about, see `NetworkGame`.
        test: labelled batches on which accuracy is measured; None = not measured.
        seed: seed of everything random.

    Returns:
        `Compressed`: the recovered network (a plain `nn.Module`), its plan, the scores behind it, and measurements.

    Raises:
        InputError: a floor without ``validation``; a budget out of reach (a floor above the dense network's quality, a
            latency below the smallest network's), or ``train`` or ``test`` that do not fit: before anything is scored.
        InputError, GameError, SurgeryError: as the stages it calls.
    """
    if not isinstance(budget, Budget):
        raise InputError(f"budget is a {type(budget).__name__}; give sp.Budget(macs=0.5), for example")
    check_steps(recover, model)
    check_choice("allocation", allocation, ALLOCATIONS)
    if isinstance(method, str):
        check_choice("method", method, (*METHODS, *CRITERIA))
    _check_rounds(rounds, schedule, allocation, worth)
    floored = budget.floor is not None or budget.drop is not None
    if floored and validation is None:
        raise InputError("a floor needs validation=...: batches that are neither recovered on nor the test set")
    within = Limits(min_players, min_width, round_to, max_removed, hf_uniform=hf_uniform)
    seconds: dict[str, float] = {}
    clock = time.perf_counter

    for name, given in (("data", data), ("train", train), ("validation", validation), ("test", test)):
        check_data(given, name)
    start = clock()
    batches = list(data)
    players = find_players(model, example_inputs, unit, include, exclude)
    if hf_uniform:
        check_hf_uniform(players)
    check_reachable(players, budget, within)
    if rounds > 1:
        round_budget(budget, players, 1, rounds, schedule)
    check_batches(model, train, "train", forward)
    tests = None if test is None else list(test)
    if tests is not None:
        check_batches(model, tests, "test")
        accuracy(model, tests[:1])
    quality = quality_on(model, validation, metric, forward=forward) if floored and validation is not None else None
    if budget.measured:
        anybody = Scores(players, criterion_scores(model, players, None, "random"), "random", 0.0)
        anyhow = make_planner(model, players, anybody, batches, worth, within=within)
        check_attainable(model, anyhow, budget, example_inputs=example_inputs, quality=quality)
    seconds["find_players"], start = clock() - start, clock()

    calibration = None if isinstance(worth, Evaluate) else Calibration(model, batches, forward, max_memory=max_memory)

    def scored(network: nn.Module, part: Players, own: Calibration | None, evaluator: Any, round_: int) -> Scores:
        return score(
            network,
            part,
            own,
            evaluator,
            method,
            max_evaluations=max_evaluations,
            seed=seed + round_ - 1,
            sizes=sizes,
            forward=forward,
            max_memory=max_memory,
            precision=precision,
            progress=progress,
        )

    def planner(values: Scores) -> Planner:
        examples = batches if calibration is None else calibration
        measured = (model, players, values, examples, worth, allocation, within)
        refit = bool(recover) and (recover[0] == "refit" or isinstance(recover[0], Refit)) and calibration is not None
        return make_planner(*measured, refit=refit, seed=seed, forward=forward, max_memory=max_memory)

    def mend(network: nn.Module, made_by: Plan) -> nn.Module:
        if not recover:
            return network
        return run_steps(network, model, made_by, batches, recover, train=train, forward=forward, seed=seed)

    trials: tuple[Trial, ...] = ()
    if rounds > 1:
        assert calibration is not None
        found = prune_in_rounds(
            model,
            players,
            calibration,
            worth,  # type: ignore[arg-type]  # no Evaluate, see _check_rounds
            budget,
            example_inputs=example_inputs,
            score_round=scored,
            plan_round=lambda values, step: planner(values)(step),
            mend=mend,
            rounds=rounds,
            schedule=schedule,
            forward=forward,
        )
        decided, scores, small = found.plan, found.scores, found.model
        raw = prune(model, decided, example_inputs, hf_uniform=hf_uniform)
        seconds["rounds"], start = clock() - start, clock()
    else:
        scores = scored(model, players, calibration, worth, 1)
        seconds["score"], start = clock() - start, clock()

        decision = decide(model, planner(scores), budget, example_inputs=example_inputs, quality=quality, mend=mend)
        decided, trials = decision.plan, decision.trials
        seconds["plan"], start = clock() - start, clock()

        raw = prune(model, decided, example_inputs, hf_uniform=hf_uniform)
        seconds["prune"], start = clock() - start, clock()

        small = mend(raw, decided)
        seconds["recover"], start = clock() - start, clock()

    measurements = compare({"dense": model, "raw": raw, "pruned": small}, example_inputs, tests)
    seconds["measure"] = clock() - start
    return Compressed(small, decided, scores, measurements, seconds, trials)


def _check_rounds(rounds: int, schedule: str, allocation: str, worth: Any) -> None:
    """Check what can be done in rounds.

    Raises:
        InputError: less than one, an unknown schedule, or what goes with one round only.
    """
    check_choice("schedule", schedule, SCHEDULES)
    if not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"rounds is {rounds!r}; it must be a whole number, 1 or above")
    if rounds > 1 and (allocation in ("curves", "shapley-layers") or isinstance(worth, Evaluate)):
        what = "worth=Evaluate(...)" if isinstance(worth, Evaluate) else f"allocation={allocation!r}"
        raise InputError(f"{what} measures the dense network and does not go with rounds={rounds}; use rounds=1")
