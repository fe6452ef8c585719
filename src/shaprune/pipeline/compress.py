"""Compress a network in one call: find players, score, plan, prune, recover, measure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from shaprune.criteria.registry import criterion_scores
from shaprune.deploy.measure import Measurement, compare
from shaprune.errors import InputError
from shaprune.network.batches import Inputs, split_batch
from shaprune.network.discovery.find_players import find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.worths import AnyWorth, Evaluate
from shaprune.network.layers.open_attention import opened_for, opened_where_same
from shaprune.options.fields import moved_keywords
from shaprune.options.groups import Compression
from shaprune.pipeline.cycles import prune_in_cycles
from shaprune.pipeline.planner import make_planner
from shaprune.pipeline.preflight import check_compression, check_players
from shaprune.pipeline.prune import prune
from shaprune.pipeline.quality import Quality, quality_on
from shaprune.pipeline.recipe import Recipe, recipe_of
from shaprune.pipeline.score import Scores, score
from shaprune.pipeline.search import Trial, check_attainable, search_plan
from shaprune.planning.budget import Budget
from shaprune.planning.frontier import Planner
from shaprune.planning.plan import Plan
from shaprune.players.players import Players
from shaprune.recovery.step_training import TooFewSecondsError
from shaprune.recovery.steps import Recovered, RecoveryStep, Refit, recovered
from shaprune.storage.tables import Table, Tabular
from shaprune.values.estimators.base import Method

RENAMED = {
    "sizes": "options=sp.options.Compression(scoring=sp.options.Scoring(window=...))",
    "rounds": "options=sp.options.Compression(planning=sp.options.Planning(cycles=...))",
}


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
        recipe: what the effort stood for.
        recovery: how each recovery step of the network returned went.
    """

    model: nn.Module
    plan: Plan
    values: Scores
    measurements: dict[str, Measurement]
    seconds: dict[str, float]
    trials: tuple[Trial, ...] = ()
    recipe: Recipe | None = None
    recovery: tuple[Recovered, ...] = ()

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
        return Table(columns, rows, (*self.plan.table().notes, *self.told()))

    def told(self) -> tuple[str, ...]:
        """Lines on what was chosen, why, and how the recovery went."""
        recipe = () if self.recipe is None else (self.recipe.told(),)
        return (*recipe, *(went.told() for went in self.recovery))


@moved_keywords({"options": Compression}, RENAMED)
def compress(
    model: nn.Module,
    data: Iterable[Any],
    budget: Budget,
    *,
    example_inputs: Inputs | None = None,
    worth: AnyWorth | Evaluate = "fidelity",
    method: str | Method | None = None,
    recover: Sequence[str | RecoveryStep] | None = None,
    effort: str | float = "seconds",
    test: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool | None = None,
    options: Compression | None = None,
) -> Compressed:
    """Make a trained network smaller; ``model`` is not changed.

    The defaults need no labels: players are scored by how far the output moves (fidelity) while at least half of a
    group is kept, and the consumers are refitted in closed form. `find_players`, `score`, `plan`, `prune` and `recover`
    by hand, with their defaults, give the same network. Where more time may be spent, say so: ``effort="minutes"`` also
    learns the dense network's answers on unlabelled examples, and ``effort="hour"`` ranks players by what refitted
    consumers cannot give any more and sets the widths of layers by measured curves.

    Heads of `torch.nn.MultiheadAttention` can leave: where some do, its place takes an attention that can be as narrow,
    see `shaprune.builtin.open_attention`.

    Example: ``sp.compress(model, data, sp.Budget(macs=0.5), example_inputs=x,
    options=sp.options.Compression(limits=sp.options.Limits(round_to=8)))``.

    Args:
        model: the dense network.
        data: batches to score and recover on, see `NetworkGame`; never the test set.
        budget: what may stay.
        example_inputs: inputs of one forward pass, batch first, on which latency is measured, too; None = those of the
            first batch.
        worth, progress: see `score`.
        method: see `score`; None = as ``effort`` says.
        recover: recovery steps, see `recover`; ``()`` for none, None = as ``effort`` says.
        effort: how much time it may take: ``"seconds"``, ``"minutes"`` (two), ``"hour"``, or a number of seconds. The
            ranking, the allocation and the recovery follow from it, where they are not given; see `Compressed.recipe`.
            The training ends with the time, so that on a slower machine it may take fewer steps.
        test: labelled batches on which accuracy is measured; None = not measured.
        seed: seed of everything random.
        options: units, scoring and how much of it, limits, planning, batches for fine-tuning and for a floor, see
            `Compression`.

    Returns:
        The network with its plan, the scores behind it, and measurements, see `Compressed`.

    Raises:
        InputError: a floor without ``validation``; a budget out of reach (a floor above the dense network's quality, a
            latency below the smallest network's), or ``train`` or ``test`` that do not fit: before anything is scored.
        InputError, GameError, SurgeryError: as the stages it calls.
    """
    began, chosen, seconds = time.perf_counter(), options or Compression(), dict[str, float]()
    with _timed(seconds, "find_players"):
        recipe = recipe_of(effort, budget, worth, method, recover, chosen)
        chosen = replace(chosen, planning=replace(chosen.planning, allocation=recipe.allocation))
        given = {"data": data, "train": chosen.train, "validation": chosen.validation, "test": test}
        check_compression(model, given, budget, worth, recipe.method, recipe.recover, seed, chosen)
        batches, tests = list(data), None if test is None else list(test)
        if example_inputs is None and not batches:
            raise InputError("data hold no batch; give at least one (an iterator can be read only once)")
        example = split_batch(batches[0])[0] if example_inputs is None else example_inputs
        opened = opened_where_same(model, example)
        players = find_players(opened, example, **vars(chosen.units))
        given_model, model = model, opened_for(model, players.layers)
        check_players(model, players, budget, chosen, tests)
        quality = None
        if budget.floored and chosen.validation is not None:
            quality = quality_on(model, chosen.validation, chosen.metric, forward=chosen.scoring.forward)
        if budget.measured:
            ignorant = Scores(players, criterion_scores(model, players, None, "random"), "random")
            anyhow = make_planner(model, ignorant, batches, worth, limits=chosen.limits)
            check_attainable(model, anyhow, budget, example_inputs=example, quality=quality)
    how = chosen.scoring
    wrapped = (
        None if isinstance(worth, Evaluate) else Calibration(model, batches, how.forward, max_memory=how.max_memory)
    )
    stages = _Stages(
        model,
        players,
        batches,
        wrapped,
        example,
        worth,
        recipe,
        began,
        seed,
        progress,
        chosen,
    )
    made = (stages.in_cycles if chosen.planning.cycles > 1 else stages.at_once)(budget, quality, seconds)
    with _timed(seconds, "measure"):
        measurements = compare({"dense": given_model, "raw": made.raw, "pruned": made.model}, example, tests)
    went = stages.went.get(made.model, ())
    return Compressed(made.model, made.plan, made.scores, measurements, seconds, made.trials, recipe, went)


@dataclass(frozen=True, eq=False)
class _Made:
    """A pruned network, before and after its recovery."""

    model: nn.Module
    raw: nn.Module
    plan: Plan
    scores: Scores
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, eq=False)
class _Stages:
    """The stages of one compression, with all that they share."""

    model: nn.Module
    players: Players
    batches: list[Any]
    calibration: Calibration | None  # the batches, wrapped once; None where the worth looks at none
    example_inputs: Inputs
    worth: AnyWorth | Evaluate
    recipe: Recipe
    began: float
    seed: int
    progress: bool | None
    options: Compression
    went: WeakKeyDictionary[nn.Module, tuple[Recovered, ...]] = field(default_factory=WeakKeyDictionary)

    def scored(self, model: nn.Module, players: Players, data: Calibration | None, worth: Any, cycle: int) -> Scores:
        """The scores of a network, in a cycle."""
        return score(
            model,
            players,
            data,
            worth,
            self.recipe.method,
            max_evaluations=self.options.max_evaluations,
            seed=self.seed + cycle - 1,
            progress=self.progress,
            options=self.options.scoring,
        )

    def planner(self, scores: Scores) -> Planner:
        """What makes plans of these scores; curves are measured with refitted consumers if the refit comes first."""
        steps = self.recipe.recover
        refit = bool(steps) and (steps[0] == "refit" or isinstance(steps[0], Refit))
        return make_planner(
            self.model,
            scores,
            self.batches if self.calibration is None else self.calibration,
            self.worth,
            self.options.planning.allocation,
            self.options.limits,
            refit=refit and self.calibration is not None,
            seed=self.seed,
            forward=self.options.scoring.forward,
            max_memory=self.options.scoring.max_memory,
        )

    def recovered(self, network: nn.Module, plan: Plan) -> nn.Module:
        """A pruned network, recovered."""
        if not self.recipe.recover:
            return network
        data = self.batches if self.calibration is None else self.calibration

        def take(network: nn.Module, steps: Sequence[str | RecoveryStep]) -> tuple[nn.Module, tuple[Recovered, ...]]:
            how = {"train": self.options.train, "forward": self.options.scoring.forward, "seed": self.seed}
            return recovered(network, self.model, plan, data, steps, **how)  # type: ignore[arg-type]

        if not self.recipe.limited:
            made, went = take(network, self.recipe.recover)
        else:
            made, went = take(network, self.recipe.recover[:-1])
            steps = self.recipe.within(self.recipe.seconds - (time.perf_counter() - self.began))
            try:
                made, last = take(made, steps[len(self.recipe.recover) - 1 :])
            except TooFewSecondsError:
                last = ()
            went += last or (Recovered("distill", 0.0, taken=0, notes=("no time was left for it",)),)
        self.went[made] = went
        return made

    def at_once(self, budget: Budget, quality: Quality | None, seconds: dict[str, float]) -> _Made:
        """Score once, and plan for the whole budget."""
        with _timed(seconds, "score"):
            scores = self.scored(self.model, self.players, self.calibration, self.worth, 1)
        uniform = self.options.limits.hf_uniform
        with _timed(seconds, "plan"):
            planner = self.planner(scores)
            if budget.measured:
                found = search_plan(
                    self.model,
                    planner,
                    budget,
                    example_inputs=self.example_inputs,
                    quality=quality,
                    recover=self.recovered,
                    hf_uniform=uniform,
                )
                return _Made(found.model, found.raw, found.plan, scores, found.trials)
            plan = planner(budget)
        with _timed(seconds, "prune"):
            raw = prune(self.model, plan, self.example_inputs, hf_uniform=uniform)
        with _timed(seconds, "recover"):
            return _Made(self.recovered(raw, plan), raw, plan, scores)

    def in_cycles(self, budget: Budget, _: Quality | None, seconds: dict[str, float]) -> _Made:
        """Score, prune and recover several times on the way to the budget."""
        assert self.calibration is not None
        with _timed(seconds, "cycles"):
            found = prune_in_cycles(
                self.model,
                self.players,
                self.calibration,
                self.worth,  # type: ignore[arg-type]  # no Evaluate, see check_compression
                budget,
                example_inputs=self.example_inputs,
                score_cycle=self.scored,
                plan_cycle=lambda scores, due: self.planner(scores)(due),
                recover=self.recovered,
                planning=self.options.planning,
                forward=self.options.scoring.forward,
            )
            raw = prune(self.model, found.plan, self.example_inputs, hf_uniform=self.options.limits.hf_uniform)
        return _Made(found.model, raw, found.plan, found.scores)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the wall time of a stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
