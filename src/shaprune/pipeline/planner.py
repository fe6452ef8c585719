"""Planners by allocation: what an allocation needs is measured once and used for any budget."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from shaprune.network.batches import Forward
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import DEFAULT_MAX_MEMORY
from shaprune.network.game.worths import AnyWorth, Evaluate
from shaprune.pipeline.sensitivity import layer_values, sensitivity
from shaprune.planning.frontier import Planner
from shaprune.planning.limits import Limits
from shaprune.planning.plan import plan
from shaprune.planning.scores import Scores


def make_planner(
    model: nn.Module,
    scores: Scores,
    data: Iterable[Any] | Calibration,
    worth: AnyWorth | Evaluate,
    allocation: str = "global",
    limits: Limits | None = None,
    *,
    refit: bool = False,
    seed: int = 0,
    forward: Forward | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Planner:
    """A function from budgets to plans; curves, or values of layers, are measured here where the allocation needs them.

    Args:
        model, scores: the dense network.
        data, worth, forward, max_memory: what to measure on, see `sensitivity`.
        allocation, limits: of every plan, see `plan`.
        refit: measure curves with refitted consumers, see `sensitivity`.
        seed: of the game of layers.

    Raises:
        InputError, GameError: as `sensitivity`, `layer_values`, and (when called) `plan`.
    """
    measured = (model, scores.players, scores, data, worth)
    curves = layers = None
    if allocation == "curves":
        curves = sensitivity(*measured, refit=refit, forward=forward, max_memory=max_memory)
    if allocation == "shapley-layers":
        layers = layer_values(*measured, seed=seed, forward=forward, max_memory=max_memory)
    return partial(plan, scores, allocation=allocation, curves=curves, layers=layers, limits=limits)
