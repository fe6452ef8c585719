"""Criteria by what the consumers of a player read: its activations where the masks stand, and their gradients.

All elements that a player owns count alike: its channels, their positions, and all consumers that read them. Padded
positions of sequences do not count, where the inputs are a dict with an ``attention_mask``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shaprune.criteria.gradients import differentiable_worth, differentiate_batches, over_batches, ready_apart
from shaprune.errors import InputError
from shaprune.network.batches import Inputs, tensors
from shaprune.network.borrow import borrowed
from shaprune.network.forward.calibration import FORWARD_BATCH, Calibration
from shaprune.network.forward.runner import Runner
from shaprune.network.game.worths import AnyWorth
from shaprune.network.layers.normal_equations import unpadded_positions
from shaprune.network.removal.masks import ConsumerInputMask, consumer_input_masks
from shaprune.players.players import Players


def sensitivities(calibration: Calibration, players: Players, worth: AnyWorth) -> NDArray[np.float64]:
    """(N, n) mean absolute gradient of each example's worth by a player's activations.

    As TorchPruner's sensitivity (Ancona et al. 2020), but averaged over positions where that sums them, and taken at
    the consumers' inputs, where that takes it at the output of the layer.

    Raises:
        InputError: the worth has no gradient, or a zero one at the dense network; a group whose consumers do not run.
    """
    input_masks = _recording_masks(players, calibration)
    read: set[str] = set()

    def derive(worths: Tensor, masks: list[Tensor], examples: Tensor) -> Tensor:
        reads = [
            (input_mask, x) for input_mask in input_masks for x in input_mask.seen if x.requires_grad
        ]  # not those of trial runs
        read.update(input_mask.module for input_mask, _ in reads)
        given = [x for _, x in reads]
        gradients = torch.autograd.grad(worths.sum(), given, materialize_grads=True) if given else ()
        for input_mask in input_masks:
            input_mask.seen.clear()
        return _mean(
            [(input_mask, g.abs()) for (input_mask, _), g in zip(reads, gradients, strict=True)],
            (len(worths), players.n),
            calibration.rows(examples),
        )

    found = differentiate_batches(
        calibration, players, input_masks, differentiable_worth(worth), derive, rows=FORWARD_BATCH // 2
    )
    _check_read(players, read)
    return found


def nonzero_shares(calibration: Calibration, players: Players) -> NDArray[np.float64]:
    """(N, n) share of a player's activations that are not zero: 1 - APoZ, the average percentage of zeros.

    Hu et al. 2016 count zeros behind a ReLU; what the consumers read may be pooled since, which leaves fewer.
    """
    return _mean_over_activations(calibration, players, lambda x: (x != 0) + 0 * x)  # NaN stays NaN


def activation_means(calibration: Calibration, players: Players) -> NDArray[np.float64]:
    """(N, n) mean absolute activation of a player (Molchanov et al. 2017 take the mean behind a ReLU: the same)."""
    return _mean_over_activations(calibration, players, torch.abs)


@dataclass(frozen=True, eq=False)
class _RecordingInputMask(ConsumerInputMask):
    """An input mask that keeps what its consumer reads; a consumer that runs twice reads twice."""

    seen: list[Tensor] = field(default_factory=list)

    def apply(self, x: Tensor, mask: Tensor) -> Tensor:
        self.seen.append(super().apply(x, mask))
        return self.seen[-1]


def _recording_masks(players: Players, calibration: Calibration) -> list[_RecordingInputMask]:
    plain = consumer_input_masks(players, players.groups, calibration.outputs.device)
    return [_RecordingInputMask(e.module, e.n_players, e.owners, e.last) for e in plain]


def _mean_over_activations(
    calibration: Calibration, players: Players, of: Callable[[Tensor], Tensor]
) -> NDArray[np.float64]:
    """(N, n) mean of a function of the activations that each player owns."""
    calibration.check_apart("a criterion")
    input_masks = _recording_masks(players, calibration)
    read: set[str] = set()

    def means(runner: Runner, batch: Tensor) -> Tensor:
        runner, state = ready_apart(calibration, runner, batch)
        for input_mask in input_masks:
            input_mask.seen.clear()
        runner.run(state, torch.ones(len(batch), players.n, device=batch.device))
        read.update(e.module for e in input_masks if e.seen)
        reads = [(e, of(x)) for e in input_masks for x in e.seen]
        return _mean(reads, (len(batch), players.n), calibration.rows(batch))

    with borrowed(calibration.model), torch.no_grad():
        found = over_batches(calibration, input_masks, means, FORWARD_BATCH)
    _check_read(players, read)
    return found


def _check_read(players: Players, read: Collection[str]) -> None:
    """Refuse groups none of whose consumers is among those that ``read`` something.

    Raises:
        InputError: naming the group.
    """
    for group in players.groups:
        names = [m.module for m in group.consumers]
        if not any(name in read for name in names):
            raise InputError(
                f"nothing reads the players of {group.name!r} on the data: {', '.join(names)} does not run; add "
                "examples that take the way through it, or exclude the group"
            )


def _mean(reads: Sequence[tuple[ConsumerInputMask, Tensor]], shape: tuple[int, int], inputs: Inputs) -> Tensor:
    """(rows, n) mean over all elements that a player owns in all reads; 0 for a player that these rows do not read.

    Args:
        reads: an input mask, and what stands there.
        shape: (rows, n).
        inputs: of these rows, which may say what is padding.
    """
    rows, n = shape
    totals = []  # sums and counts, (2, rows, n + 1) of each read
    for input_mask, x in reads:
        real = unpadded_positions(inputs, x) if input_mask.last else None
        channels = x.movedim(-1 if input_mask.last else 1, -1)
        channels = channels.reshape(rows, -1, len(input_mask.owners)).float()  # (rows, places, channels)
        counts = channels.new_full((rows, 1), channels.shape[1])
        if real is not None:
            real = real.reshape(rows, -1, 1)
            channels, counts = channels.where(real, 0.0), real.sum(1).float()
        sums = torch.stack([channels.sum(1), counts.expand(rows, channels.shape[2])])
        totals.append(sums.new_zeros(2, rows, n + 1).index_add_(2, input_mask.owners, sums))
    if not totals:
        return torch.zeros(shape, device=tensors(inputs)[0].device)
    given, counted = torch.stack(totals).sum(0).unbind()
    mean: Tensor = (given / counted.clamp(min=1))[:, :n]  # the last column belongs to no player
    return mean
