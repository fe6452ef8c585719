"""Rivals: classical criteria in the interface of values, for comparison.

Each returns one `Values` per group; higher is better, as for game values. They need no coalition, so ``n_evaluations``
is
the number of forward passes with a gradient, or 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import InputError, check_choice
from shaprune.network.borrow import borrowed
from shaprune.network.masks import edges_of
from shaprune.network.players import Players
from shaprune.network.subject import BATCH, Subject
from shaprune.network.worths import check_targets, rows_worth, worth_of
from shaprune.values.result import Values

Criterion = Callable[[nn.Module, Players, Subject | None, str, int], dict[str, Values]]


def rank(
    model: nn.Module,
    players: Players,
    subject: Subject | None = None,
    criterion: str = "weight_norm",
    *,
    worth: str = "cross_entropy",
    seed: int = 0,
) -> dict[str, Values]:
    """Values of every group by a classical criterion.

    Args:
        model: the dense network; it comes back untouched.
        players: from `find_players`.
        subject: examples, for criteria that need them.
        criterion: ``"random"``; ``"weight_norm"`` (L2 norm of a player's filters, cf. Li et al. 2017);
            ``"taylor"`` and ``"taylor_signed"`` (gradient of the worth times activation at the consumers' inputs,
            absolute or signed per example, then averaged; Molchanov et al. 2017).
        worth: the worth whose gradient Taylor takes.
        seed: of ``"random"``.

    Raises:
        InputError: unknown criterion, or no examples where they are needed.
    """
    check_choice("criterion", criterion, CRITERIA)
    return CRITERIA[criterion](model, players, subject, worth, seed)


def _random(model: nn.Module, players: Players, subject: Subject | None, worth: str, seed: int) -> dict[str, Values]:
    rng = np.random.default_rng(seed)
    return {g.name: _values(rng.random(len(g)), "random") for g in players.groups}


def _weight_norm(
    model: nn.Module, players: Players, subject: Subject | None, worth: str, seed: int
) -> dict[str, Values]:
    result = {}
    for group in players.groups:
        square = np.zeros(len(group))
        for member in group.producers:
            layer = model.get_submodule(member.module)
            weight = cast(Tensor, layer.weight).detach()
            transposed = bool(getattr(layer, "transposed", False))
            filters = (
                (weight.transpose(0, 1) if transposed else weight).flatten(1).square().sum(1).double().cpu().numpy()
            )
            square += [filters[list(channels)].sum() for channels in member.channels]
        result[group.name] = _values(np.sqrt(square), "weight_norm")
    return result


def _taylor(signed: bool) -> Criterion:
    def criterion(
        model: nn.Module, players: Players, subject: Subject | None, worth: str, seed: int
    ) -> dict[str, Values]:
        name = "taylor_signed" if signed else "taylor"
        if subject is None:
            raise InputError(f"criterion {name!r} needs examples; give data")
        sample = _gradients(model, players, subject, worth)
        sample = sample if signed else np.abs(sample)
        mean = sample.mean(0)
        error = sample.std(0, ddof=1) / np.sqrt(len(sample)) if len(sample) > 1 else np.full(len(mean), np.inf)
        return {
            g.name: _values(mean[g.indices], name, error[g.indices], n_evaluations=len(sample)) for g in players.groups
        }

    return criterion


def _gradients(model: nn.Module, players: Players, subject: Subject, worth: str) -> NDArray[np.float64]:
    """(N, n) gradient of each example's worth with respect to the mask at the full coalition."""
    chosen = worth_of(worth)
    check_targets(chosen, subject.targets, subject.outputs)
    reference = subject.outputs if chosen.reference == "dense" else subject.targets
    assert reference is not None
    runner = subject.runner(edges_of(players, players.groups, reference.device))
    parts = []
    with borrowed(model):
        for rows in torch.arange(subject.n_examples, device=reference.device).split(BATCH // 2):
            with torch.no_grad():
                state = runner.prepare(subject.rows(rows))
            with torch.enable_grad():
                mask = torch.ones(len(rows), players.n, device=reference.device, requires_grad=True)
                worths = rows_worth(chosen, runner.run(state, mask), reference[rows])
                parts.append(torch.autograd.grad(worths.sum(), mask)[0].double().cpu().numpy())
    return np.concatenate(parts)


def _values(
    value: NDArray[np.float64], method: str, stderr: NDArray[np.float64] | None = None, n_evaluations: int = 0
) -> Values:
    return Values(
        value=np.array(value, dtype=np.float64),
        stderr=np.zeros(len(value)) if stderr is None else np.array(stderr),
        n_evaluations=n_evaluations,
        method=method,
        efficiency_gap=None,
        stopped_by="closed form",
        worth_all=None,
        worth_none=None,
        counts=np.full(len(value), n_evaluations, dtype=np.int64),
    )


CRITERIA: dict[str, Criterion] = {
    "random": _random,
    "weight_norm": _weight_norm,
    "taylor": _taylor(signed=False),
    "taylor_signed": _taylor(signed=True),
}
