"""Classical pruning criteria in the interface of values, for comparison. Higher is better, as for game values.

A criterion answers with one score per player, or with one per example and player, whose mean is the value. Scores are
raw: nothing is normalised within a layer, so that groups can be compared as the criterion itself compares them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from shaprune.criteria.activations import activation_means, nonzero_shares, sensitivities
from shaprune.criteria.gradients import gate_gradients, second_order
from shaprune.criteria.reconstruction import reconstruction_losses
from shaprune.criteria.torch_pruning_scores import bn_scales, geometric_medians, hessian, lamp, weight_norms
from shaprune.errors import GameError, InputError, ShapruneWarning, check_choice
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.worths import AnyWorth, Evaluate
from shaprune.network.removal.surgery import check_fits
from shaprune.players.players import Players, check_channels
from shaprune.values.result import Values

Floats = NDArray[np.float64]  # (n,), or (N, n) with one row per example


@dataclass(frozen=True)
class Criterion:
    """A score per player.

    Attributes:
        score: ``(model, players, seed) -> (n,)`` where ``examples`` is False, else
            ``(calibration, players, worth) -> (N, n)``.
        examples: whether it looks at data.
        source: the paper it follows.
    """

    score: Callable[..., Floats]
    examples: bool
    source: str


def criterion_scores(
    model: nn.Module,
    players: Players,
    calibration: Calibration | None = None,
    criterion: str = "weight_norm",
    *,
    worth: AnyWorth = "cross_entropy",
    seed: int = 0,
) -> dict[str, Values]:
    """Values of every group by a classical criterion.

    By the weights, called in torch-pruning (see `shaprune.criteria.torch_pruning_scores`): ``weight_norm``,
    ``weight_norm_l1``, ``bn_scale``, ``fpgm``, ``lamp``, ``hessian`` (which also looks at examples). By gradients of
    the worth with respect to the masks at the consumers' inputs: ``taylor``, ``taylor_signed``, ``taylor_squared``,
    ``second_order``. By what
    the consumers read: ``sensitivity``, ``apoz``, ``activation_mean``, ``reconstruction``. And ``random``.

    Criteria that look at examples average over them, and ``stderr`` is the standard error of that mean. They push
    every example once, for all groups together: ``n_evaluations`` of every group is N, or 0 without examples. Backward
    passes are not counted: one per example, and for ``second_order`` another one per group.

    Args:
        model: the dense network; it comes back untouched.
        players: from `find_players`.
        calibration: examples, for criteria that need them.
        criterion: a name in `CRITERIA`, which also names its source.
        worth: the worth whose gradient is taken, for criteria that take one.
        seed: of ``random``.

    Raises:
        InputError: an unknown criterion, players or examples of another model, no examples where they are needed, a
            worth without a gradient (or whose gradient is zero at the dense network), or a group that the criterion
            cannot score, such as ``bn_scale`` without a batch-norm.
        GameError: a score is NaN or infinite.

    Warns:
        ShapruneWarning: a criterion gives all players of a group the same score.
    """
    check_choice("criterion", criterion, CRITERIA)
    check_fits(model, players)
    chosen = CRITERIA[criterion]
    if criterion != "random":
        check_channels(players.groups, f"criterion {criterion!r}")
    if not chosen.examples:
        scores = chosen.score(model, players, seed)
    elif calibration is None:
        raise InputError(f"criterion {criterion!r} needs examples; give data")
    elif calibration.model is not model:
        raise InputError("the examples were prepared for another model; make a Calibration of this one")
    elif isinstance(worth, Evaluate):
        raise InputError(f"criterion {criterion!r} needs a worth per example, not one of the whole model")
    else:
        scores = chosen.score(calibration, players, worth)
    _check_finite(criterion, scores, players)
    value, stderr, samples = _mean(scores, calibration.n_examples if chosen.examples and calibration is not None else 0)
    for group in players.groups:
        if len(group) > 1 and np.ptp(value[group.indices]) == 0:
            warnings.warn(
                f"{criterion} gives all {len(group)} players of {group.name} the score {value[group.indices[0]]:g}: "
                "it cannot rank them, they leave in player order",
                ShapruneWarning,
                stacklevel=2,
            )
    return {
        g.name: Values(
            value=value[g.indices],
            stderr=stderr[g.indices],
            n_evaluations=samples,
            method=criterion,
            efficiency_gap=None,
            stopped_by="all examples" if samples else "closed form",
            worth_all=None,
            worth_none=None,
            counts=np.full(len(g), samples, dtype=np.int64),
            concept=criterion,
            efficient=False,
        )
        for g in players.groups
    }


def _check_finite(criterion: str, scores: Floats, players: Players) -> None:
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        where = "" if scores.ndim == 1 else f" on example {bad[0][0]}"
        raise GameError(
            f"{criterion} of {players.names[bad[0][-1]]} is NaN or infinite{where}; check the weights and the data"
        )


def _mean(scores: Floats, examples: int) -> tuple[Floats, Floats, int]:
    """Value and standard error of each player, and the number of examples behind them.

    The error of a score that is no mean over the examples it looks at is not known: infinite.
    """
    if scores.ndim == 1:
        return scores, np.full(len(scores), np.inf if examples else 0.0), examples
    count = len(scores)
    error = scores.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full(scores.shape[1], np.inf)
    return scores.mean(0), error, count


def _random(model: nn.Module, players: Players, seed: int) -> Floats:
    return np.random.default_rng(seed).random(players.n)


def _by_weights(score: Callable[[nn.Module, Players], Floats], source: str) -> Criterion:
    return Criterion(lambda model, players, seed: score(model, players), False, source)


def _by_gates(of_gradient: Callable[[Floats], Floats], source: str) -> Criterion:
    def score(calibration: Calibration, players: Players, worth: AnyWorth) -> Floats:
        return of_gradient(gate_gradients(calibration, players, worth))

    return Criterion(score, True, source)


def _by_activations(score: Callable[[Calibration, Players], Floats], source: str) -> Criterion:
    return Criterion(lambda calibration, players, worth: score(calibration, players), True, source)


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(_random, False, "uniform numbers from the seed"),
    "weight_norm": _by_weights(lambda m, p: weight_norms(m, p, 2), "L2 norm of the filters; cf. Li et al. 2017"),
    "weight_norm_l1": _by_weights(lambda m, p: weight_norms(m, p, 1), "L1 norm of the filters; Li et al. 2017"),
    "bn_scale": _by_weights(bn_scales, "network slimming; Liu et al. 2017"),
    "fpgm": _by_weights(geometric_medians, "distance to the other filters; He et al. 2019"),
    "lamp": _by_weights(lamp, "squared norm over that of all not smaller; Lee et al. 2021"),
    "hessian": Criterion(hessian, True, "optimal brain damage with an empirical Fisher; LeCun et al. 1989"),
    "taylor": _by_gates(np.abs, "absolute, per example; Molchanov et al. 2017"),
    "taylor_signed": _by_gates(lambda g: g, "signed: the first-order loss of worth when one player leaves"),
    "taylor_squared": _by_gates(np.square, "squared, per example; Molchanov et al. 2019"),
    "second_order": Criterion(second_order, True, "Shapley value of the second-order expansion"),
    "sensitivity": Criterion(sensitivities, True, "mean |gradient| by activation; cf. Ancona et al. 2020"),
    "reconstruction": _by_activations(
        reconstruction_losses, "what refitted consumers cannot give any more; Hassibi & Stork 1993, Kurtic et al. 2023"
    ),
    "apoz": _by_activations(nonzero_shares, "share of activations that are not zero; Hu et al. 2016"),
    "activation_mean": _by_activations(activation_means, "mean |activation|; cf. Molchanov et al. 2017"),
}
