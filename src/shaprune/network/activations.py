"""Criteria by what the consumers of a player read: its activations where the masks stand, and their gradients.

All elements that a player owns count alike: its channels, their positions, and all consumers that read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shaprune.network.borrow import borrowed
from shaprune.network.gradients import differentiated, first_order
from shaprune.network.masks import Edge, edges_of
from shaprune.network.players import Players
from shaprune.network.subject import BATCH, Subject
from shaprune.network.worths import AnyWorth


def sensitivities(subject: Subject, players: Players, worth: AnyWorth) -> NDArray[np.float64]:
    """(N, n) mean absolute gradient of each example's worth by a player's activations.

    As TorchPruner's sensitivity (Ancona et al. 2020), but averaged over positions where that sums them, and taken at
    the consumers' inputs, where that takes it at the output of the layer.

    Raises:
        InputError: the worth has no gradient, or a zero one at the dense network.
    """
    edges = _watched(players, subject)

    def derive(worths: Tensor, masks: list[Tensor]) -> Tensor:
        reads = [(edge, x) for edge in edges for x in edge.seen if x.requires_grad]  # not those of trial runs
        gradients = torch.autograd.grad(worths.sum(), [x for _, x in reads], materialize_grads=True)
        for edge in edges:
            edge.seen.clear()
        return _mean([(edge, g.abs()) for (edge, _), g in zip(reads, gradients, strict=True)], len(worths), players.n)

    return differentiated(subject, players, edges, first_order(worth), derive, rows=BATCH // 2)


def nonzero_shares(subject: Subject, players: Players) -> NDArray[np.float64]:
    """(N, n) share of a player's activations that are not zero: 1 - APoZ, the average percentage of zeros.

    Hu et al. 2016 count zeros behind a ReLU; what the consumers read may be pooled since, which leaves fewer.
    """
    return _observed(subject, players, lambda x: (x != 0) + 0 * x)  # NaN stays NaN


def activation_means(subject: Subject, players: Players) -> NDArray[np.float64]:
    """(N, n) mean absolute activation of a player (Molchanov et al. 2017 take the mean behind a ReLU: the same)."""
    return _observed(subject, players, torch.abs)


@dataclass(frozen=True, eq=False)
class _Watched(Edge):
    """An edge that keeps what its consumer reads; a consumer that runs twice reads twice."""

    seen: list[Tensor] = field(default_factory=list)

    def apply(self, x: Tensor, mask: Tensor) -> Tensor:
        self.seen.append(super().apply(x, mask))
        return self.seen[-1]


def _watched(players: Players, subject: Subject) -> list[_Watched]:
    plain = edges_of(players, players.groups, subject.outputs.device)
    return [_Watched(e.module, e.n_players, e.owners, e.last) for e in plain]


def _observed(subject: Subject, players: Players, of: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
    """(N, n) mean of a function of the activations that each player owns."""
    subject.check_apart("a criterion")
    edges = _watched(players, subject)
    parts = []
    with borrowed(subject.model), torch.no_grad():
        runner, _ = subject.runner(edges, subject.question(edges))
        batch = BATCH if runner.rows_apart else 1
        for rows in torch.arange(subject.n_examples, device=subject.outputs.device).split(batch):
            runner, state = subject.ready(runner, rows)
            for edge in edges:
                edge.seen.clear()
            runner.run(state, torch.ones(len(rows), players.n, device=rows.device))
            means = _mean([(e, of(x)) for e in edges for x in e.seen], len(rows), players.n)
            parts.append(means.double().cpu().numpy())
    return np.concatenate(parts)


def _mean(reads: Sequence[tuple[Edge, Tensor]], rows: int, n: int) -> Tensor:
    """(rows, n) mean over all elements that a player owns in all reads; 0 for a player whom nobody reads."""
    device = reads[0][1].device
    sums, counts = torch.zeros(rows, n + 1, device=device), torch.zeros(n + 1, device=device)
    for edge, x in reads:
        channels = x.movedim(-1 if edge.last else 1, -1).reshape(rows, -1, len(edge.owners))  # (rows, places, channels)
        sums.index_add_(1, edge.owners, channels.to(sums.dtype).sum(1))
        counts.index_add_(0, edge.owners, counts.new_full((len(edge.owners),), channels.shape[1]))
    return (sums / counts.clamp(min=1))[:, :n]  # the last column is nobody's
