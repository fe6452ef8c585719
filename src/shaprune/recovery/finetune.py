"""The recovery steps that train: the built-in fine-tuning, and functions of the user."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shaprune.errors import InputError, ShapruneWarning, check_choice
from shaprune.network.batches import Forward, Inputs, length, pick_rows
from shaprune.network.borrow import copied, device_of
from shaprune.network.precision import Precision
from shaprune.network.state_dicts import tensors_of
from shaprune.options.step_values import check_step
from shaprune.planning.plan import Plan
from shaprune.recovery.lightning_trainer import TrainingResult
from shaprune.recovery.optimizer_state import carry_over_optimizer, check_optimizer
from shaprune.recovery.training import Training, fit
from shaprune.recovery.training_data import Augment

LEARNING_RATE = 1e-3
MIN_EXAMPLES_TO_HOLD_OUT = 200  # with fewer examples, a tenth of them says too little to choose an epoch by
_MAX_WATCHED_EXAMPLES = 1_000  # training examples that are watched where none are set aside

OwnFinetune = Callable[
    [nn.Module], nn.Module | None
]  # a fine-tuning of the user's: in place, or a network of the same shapes


@dataclass(frozen=True)
class Finetune:
    """A short training with Lightning: cross-entropy on labels, or distillation from the dense network without labels.

    A share of the *training* data is set aside; the epoch with the lowest loss on it is kept, and the weights before
    the training count as one, so that a training that diverges gives back the best earlier state, with a warning. With
    fewer than 200 examples, or ``validation=0``, the loss on (at most 1,000 of) the training examples is watched.

    Attributes:
        epochs: passes over the data, at most.
        lr: peak learning rate; None = 0.001, or the optimizer's own.
        loss: ``"cross_entropy"``, ``"distill"``; None = distill where there are no labels, else cross-entropy.
        validation: the share of the examples that is set aside, from 0 to below 1.
        patience: epochs without a lower loss after which the training stops.
        optimizer: the SGD, Adam or AdamW that trained the dense network: its options, rates and state are carried over,
            momenta cut along the channels (see `carry_over_optimizer`); None = a fresh AdamW.
        augment: ``(inputs) -> inputs`` makes each training batch's inputs anew (shifted, mirrored, noisy); with
            ``"distill"`` the dense network answers to what was made. The examples set aside stay as they are.
        precision: ``"bfloat16"`` runs the forward passes under torch's autocast: faster where the processor has such
            instructions; weights and losses stay in float32.
    """

    epochs: int = 3
    lr: float | None = None
    loss: Literal["cross_entropy", "distill"] | None = None
    validation: float = 0.1
    patience: int = 3
    optimizer: Optimizer | None = None
    augment: Augment | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_step(self, whole=("epochs", "patience"), positive=("lr",), functions=("augment",))
        if self.loss is not None:
            check_choice("loss", self.loss, ("cross_entropy", "distill"))
        if self.optimizer is not None and self.lr is not None:
            raise InputError("give lr or optimizer, not both: an optimizer has rates of its own")
        check_choice("precision", self.precision, get_args(Precision))


def finetune(
    model: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    inputs: Inputs,
    targets: Tensor | None,
    step: Finetune,
    *,
    forward: Forward | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> TrainingResult:
    """Train ``model`` in place; on any failure its weights come back.

    Args:
        model: the pruned network.
        teacher: the dense network, to distil from.
        plan: the plan that made ``model``.
        inputs, targets: all training examples, batch first; the validation split is taken from them.
        step: how.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        batch_size: rows per step.
        seed: of the split, the order of rows, and dropout.

    Raises:
        InputError: labels that the loss needs are missing, nothing to train, an optimizer of another network, or a loss
            that is not finite before the training has begun.
    """
    loss = step.loss or ("distill" if targets is None else "cross_entropy")
    if loss == "cross_entropy" and targets is None:
        raise InputError("fine-tuning with cross_entropy needs targets and the data has none; use loss='distill'")
    if step.optimizer is not None:
        check_optimizer(step.optimizer, teacher)
    train, watched = split_rows(length(inputs), step.validation, seed)
    optimizer = None if step.optimizer is None else carry_over_optimizer(step.optimizer, teacher, model, plan)
    trained = fit(
        model,
        [_rows(inputs, targets, train)],
        epochs=step.epochs,
        lr=step.lr if step.lr is not None else _rate(step.optimizer),
        loss=loss,
        teacher=teacher if loss == "distill" else None,
        batch_size=batch_size,
        seed=seed,
        validation=[_rows(inputs, targets, watched)],
        patience=step.patience,
        forward=forward,
        options=Training(optimizer=optimizer, augment=step.augment, precision=step.precision),
    )
    warn_of_failure(trained, "fine-tuning", "epoch")
    return trained


def own_finetune(model: nn.Module, function: OwnFinetune) -> nn.Module:
    """What a function of the user's makes of a copy of ``model``; ``model`` where its weights are then not finite.

    Raises:
        InputError: it returned something else than a network, or one with other tensors than ``model``.
    """
    name = getattr(function, "__name__", type(function).__name__)
    given = copied(model)
    returned = function(given)
    result = given if returned is None else returned
    if not isinstance(result, nn.Module):
        raise InputError(f"{name} returned a {type(result).__name__}; it must train in place or return the network")
    before, after = ({k: t.shape for k, t in tensors_of(m).items()} for m in (model, result))
    if before != after:
        wrong = next(k for k in (*before, *after) if before.get(k) != after.get(k))
        raise InputError(
            f"{name} changed the network: {wrong!r} has shape {_shape(after.get(wrong))} and had "
            f"{_shape(before.get(wrong))}; return the network itself, no wrapper around it"
        )
    broken = next((k for k, t in tensors_of(result).items() if not torch.isfinite(t).all()), None)
    if broken is not None:
        warnings.warn(
            f"{name} diverged: {broken!r} is not finite; the network as it was before is kept, lower its learning rate",
            ShapruneWarning,
            stacklevel=3,
        )
        return model
    result.zero_grad(set_to_none=True)
    return result.to(device_of(model))


def split_rows(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows to train on, and rows to watch the loss on: the same where there are few."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    aside = math.ceil(share * n) if n >= MIN_EXAMPLES_TO_HOLD_OUT else 0
    if not aside:
        return order, order[:_MAX_WATCHED_EXAMPLES]
    if n - aside < 2:
        raise InputError(f"validation={share} leaves {n - aside} of {n} examples to train on; lower it")
    return order[aside:], order[:aside]


def _rows(inputs: Inputs, targets: Tensor | None, rows: Tensor) -> tuple[Inputs, Tensor | None]:
    return pick_rows(inputs, rows), None if targets is None else targets[rows.to(targets.device)]


def _rate(optimizer: Optimizer | None) -> float:
    return LEARNING_RATE if optimizer is None else max(float(group["lr"]) for group in optimizer.param_groups)


def warn_of_failure(trained: TrainingResult, what: str, unit: str, each: int = 1) -> None:
    """Warn where a training diverged or did not help; the loss was watched after ``each`` units."""
    assert trained.kept is not None
    start, best = trained.losses[0], trained.losses[trained.kept]
    if trained.diverged is not None:
        kept = f"the weights after {unit} {each * trained.kept}" if trained.kept else "the weights before it"
        text = f"{what} diverged: {trained.diverged}; {kept} are kept (loss on the examples watched: {best:.4g})"
    elif not trained.kept:
        lowest = min(trained.losses[1:], default=start)
        text = (
            f"no {unit} of the {what} lowered the loss on the examples watched ({start:.4g} before, {lowest:.4g} "
            "at best); the weights before it are kept, lower lr or give more data"
        )
    else:
        return
    warnings.warn(text, ShapruneWarning, stacklevel=4)


def _shape(shape: Any) -> str:
    return "none" if shape is None else str(tuple(shape))
