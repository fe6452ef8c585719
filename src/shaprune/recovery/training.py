"""Gradient training in place, for the demo's networks and for the recover step "finetune".

What is minimised is in `objective`, how in `trainer`; here the model is given to them and restored.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shaprune.errors import InputError, check_choice
from shaprune.network.batches import Forward, call, copied_inputs, length, main_output
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.precision import Precision, check_precision, in_precision
from shaprune.options.fields import moved_keywords
from shaprune.recovery.lightning_trainer import TrainingResult, train
from shaprune.recovery.training_data import (
    LOSSES,
    Augment,
    Loss,
    ShuffledRows,
    augment_batches,
    mean_loss,
    training_rows,
)


@dataclass(frozen=True)
class Training:
    """What is seldom said of a training.

    Attributes:
        weight_decay: AdamW's.
        device: where to train; None for where the model is. The model ends where it was.
        optimizer: in place of AdamW, over the model's parameters; its own rates and weight decay hold.
        augment: makes each training batch's inputs anew; validation sees them as they are.
        precision: of the forward passes, the teacher's too; weights, optimizer and losses stay in float32.
    """

    weight_decay: float = 0.0
    device: str | torch.device | None = None
    optimizer: Optimizer | None = None
    augment: Augment | None = None
    precision: Precision = "float32"


@moved_keywords({"options": Training})
def fit(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int,
    lr: float,
    loss: Loss = "cross_entropy",
    teacher: nn.Module | None = None,
    batch_size: int = 128,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    patience: int | None = None,
    forward: Forward | None = None,
    options: Training | None = None,
) -> TrainingResult:
    """Train ``model`` in place. Training flags and random states come back; on any failure the weights do too.

    Args:
        batches: read once and kept in memory; the rows are shuffled anew in every epoch.
        epochs: passes over the data.
        lr: the highest learning rate (AdamW, warm-up, cosine down to zero).
        loss: ``cross_entropy`` (class indices), ``mse`` (numbers), or ``distill`` (KL to the ``teacher``'s outputs;
            squared error where these are no class scores: float targets, or a single output).
        teacher: the network to follow, for ``distill`` only.
        batch_size: rows per step.
        seed: of the order of rows and of dropout.
        validation: batches; where given, the weights of the epoch with the lowest loss on them are kept.
        patience: stop after so many epochs without a lower one, and keep the best instead of raising where the loss is
            not finite; see `train`. Needs ``validation``.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        options: weight decay, device, optimizer, augmentation, precision, see `Training`.

    Returns:
        How it went.

    Raises:
        InputError: an option out of range, no batch, nothing to train, targets that do not fit the loss or the outputs,
            or a loss that is NaN or infinite.
    """
    how = options or Training()
    check_choice("loss", loss, LOSSES)
    _check_options(model, epochs=epochs, lr=lr, weight_decay=how.weight_decay, batch_size=batch_size)
    if (teacher is None) == (loss == "distill"):
        raise InputError("loss='distill' needs teacher=..., and only it does")
    if patience is not None and (patience < 1 or validation is None):
        raise InputError(f"patience is {patience}; it must be at least 1, and it needs validation=...")
    check_choice("precision", how.precision, get_args(Precision))
    check_precision(model, how.precision)
    home, where = device_of(model), _device(how.device, device_of(model))
    run = in_precision(forward or call, where, how.precision)
    rows, kind = training_rows(model, batches, loss, teacher, batch_size, run)
    checks = training_rows(model, validation, loss, teacher, batch_size, run)[0] if validation is not None else None
    shuffled = ShuffledRows(rows, seed, None if how.augment is None else augment_batches(how.augment, teacher, run))
    before = copy.deepcopy(model.state_dict())

    def objective(batch: Any) -> Tensor:
        return mean_loss(kind, main_output(run(model, batch[0])), batch[1])

    def validate() -> float:
        assert checks is not None
        with borrowed(model), torch.no_grad():
            losses = [(length(b[0]), float(objective(copied_inputs(b, where)))) for b in checks]
        return sum(n * value for n, value in losses) / sum(n for n, _ in losses)

    with borrowed(model, buffers=False):
        model.train()
        torch.manual_seed(seed)
        try:
            return train(
                model,
                shuffled,
                objective,
                n_batches=len(shuffled),
                epochs=epochs,
                lr=lr,
                weight_decay=how.weight_decay,
                device=where,
                after_epoch=validate if checks is not None else None,
                patience=patience,
                optimizer=how.optimizer,
            )
        except BaseException:
            model.load_state_dict(before)
            raise
        finally:
            model.zero_grad(set_to_none=True)
            model.to(home)


def _check_options(model: nn.Module, *, epochs: int, lr: float, weight_decay: float, batch_size: int) -> None:
    check_length(epochs, lr)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"weight_decay is {weight_decay}; it must be 0 or above")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("the model has no trainable parameter; call requires_grad_(True) on those to train")


def check_length(epochs: int, lr: float) -> None:
    """Refuse a number of epochs, or a learning rate, that no training can have.

    Raises:
        InputError: below 1; not above 0, or infinite.
    """
    if epochs < 1:
        raise InputError(f"epochs is {epochs}; it must be at least 1")
    if not 0 < lr < math.inf:
        raise InputError(f"lr is {lr}; it must be a number above 0")


def _device(device: str | torch.device | None, home: torch.device) -> torch.device:
    if device is None:
        return home
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]}); try 'cpu'") from error
    return torch.device(device)
