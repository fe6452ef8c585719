"""The quality of a network that a floor of a budget is about: its worth on examples of your choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from shaprune.network.batches import Forward, main_output
from shaprune.network.borrow import borrowed
from shaprune.network.forward.calibration import FORWARD_BATCH, Calibration
from shaprune.network.game.worths import (
    AnyWorth,
    Evaluate,
    SetWorth,
    apply_row_worth,
    apply_set_worth,
    reference_for,
    resolve_worth,
)

Quality = Callable[[nn.Module], float]


def quality_on(
    model: nn.Module,
    data: Iterable[Any] | Calibration,
    worth: AnyWorth | Evaluate = "accuracy",
    *,
    forward: Forward | None = None,
) -> Quality:
    """A function that measures the worth of any network on the same examples.

    Args:
        model: the dense network, which ``fidelity`` and ``kl`` compare with.
        data: batches ``(inputs, targets)``, read once; a validation split, never the test set.
        worth: see `NetworkGame`.
        forward: see `NetworkGame`.

    Raises:
        InputError: unusable data, targets or worth.
    """
    if isinstance(worth, Evaluate):
        return worth.function
    calibration = Calibration.of(model, data, forward)
    evaluator = resolve_worth(worth)
    reference, factor = reference_for(evaluator, calibration.targets, calibration.outputs)

    def quality(network: nn.Module) -> float:
        with borrowed(network), torch.no_grad():
            parts = torch.arange(calibration.n_examples).split(FORWARD_BATCH)
            outputs = torch.cat([main_output(calibration.forward(network, calibration.rows(rows))) for rows in parts])
            if isinstance(evaluator, SetWorth):
                kept = outputs if evaluator.keep is None else evaluator.keep(outputs, reference)
                return apply_set_worth(evaluator, kept, reference)
            return factor * float(apply_row_worth(evaluator, outputs, reference).double().mean())

    return quality
