"""Rows to train on, with targets or a teacher's outputs, and the loss between them and the model's.

Distillation (Hinton et al. 2015) follows the teacher's outputs at temperature 2 and needs no labels. The teacher runs
once over the data, not once per epoch; but where inputs are augmented, on what was made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shaprune.errors import InputError
from shaprune.network.batches import Forward, Inputs, call, length, main_output, run, transform
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.collect_batches import collect_batches
from shaprune.network.game.target_checks import IGNORED, class_last, class_targets, counted

Loss = Literal["cross_entropy", "mse", "distill"]
LossKind = Literal["cross_entropy", "mse", "kl"]  # what a loss comes down to on given targets
Augment = Callable[[Inputs], Inputs]
Change = Callable[[Inputs, Tensor], tuple[Inputs, Tensor]]
LOSSES = ("cross_entropy", "mse", "distill")
_TEMPERATURE = 2.0
_MSE = "where the targets are numbers, loss='mse' takes them"


class TrainingRows:
    """Examples with what the loss compares them to, in order, in batches."""

    def __init__(self, inputs: Inputs, targets: Tensor, batch_size: int) -> None:
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        return (self.at(slice(i, i + self.batch_size)) for i in range(0, len(self.targets), self.batch_size))

    def at(self, rows: slice | Tensor) -> tuple[Inputs, Tensor]:
        return transform(self.inputs, lambda tensor: tensor[rows]), self.targets[rows]


class ShuffledRows:
    """The same rows in a new order every time; one row left over at the end sits out, as batch-norm needs two.

    Args:
        rows: the examples.
        seed: of the orders.
        change: what is done to each batch, such as `augment_batches`.
    """

    def __init__(self, rows: TrainingRows, seed: int, change: Change | None = None) -> None:
        self.rows, self.generator = rows, torch.Generator().manual_seed(seed)
        self.change: Change = change or (lambda inputs, targets: (inputs, targets))

    def __len__(self) -> int:
        n, size = len(self.rows.targets), self.rows.batch_size
        return max(1, n // size + (n % size > 1))

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        order = torch.randperm(len(self.rows.targets), generator=self.generator)
        size = self.rows.batch_size
        return (self.change(*self.rows.at(order[i * size : (i + 1) * size])) for i in range(len(self)))


def augment_batches(augment: Augment, teacher: nn.Module | None, forward: Forward = call) -> Change:
    """Batches with inputs of the user's making, and what the teacher, if any, answers to these.

    Raises:
        InputError: (when called) another number of examples comes back.
    """

    def change(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
        made = augment(inputs)
        if length(made) != len(targets):
            raise InputError(f"augment returned {length(made)} examples for {len(targets)}; return one for each")
        return made, targets if teacher is None else _outputs(teacher, made, forward).view_as(targets).to(targets)

    return change


def training_rows(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    teacher: nn.Module | None,
    batch_size: int,
    forward: Forward = call,
) -> tuple[TrainingRows, LossKind]:
    """Read the data, put the teacher's outputs in place of targets, and check that they fit the model's outputs."""
    inputs, targets = collect_batches(batches)
    kind: LossKind = "mse" if loss == "mse" else "cross_entropy"
    if teacher is not None:
        numbers = targets is not None and targets.is_floating_point()
        rows = TrainingRows(inputs, torch.empty(length(inputs)), batch_size)
        targets = torch.cat([_outputs(teacher, batch, forward) for batch, _ in rows])
        kind = "mse" if numbers or targets.ndim < 2 or targets.shape[1] < 2 else "kl"
    if targets is None:
        raise InputError(f"loss={loss!r} needs targets and the batches have none; loss='distill' needs no labels")
    outputs = _outputs(model, transform(inputs, lambda tensor: tensor[:1]), forward)
    if kind == "cross_entropy":
        targets = class_targets(f"loss={loss!r}", targets, outputs.expand(len(targets), *outputs.shape[1:]), _MSE)
    elif targets.shape[1:] != outputs.shape[1:]:
        if targets[:1].numel() != outputs.numel():
            raise InputError(
                f"targets have shape {tuple(targets.shape[1:])} per example and the model's outputs "
                f"{tuple(outputs.shape[1:])}; they must agree"
            )
        targets = targets.reshape(-1, *outputs.shape[1:])
    return TrainingRows(inputs, targets if kind == "cross_entropy" else targets.to(outputs.dtype), batch_size), kind


def _outputs(model: nn.Module, inputs: Inputs, forward: Forward) -> Tensor:
    with borrowed(model), torch.no_grad():
        return main_output(run(model, inputs, forward, device_of(model))).cpu()


def mean_loss(kind: LossKind, outputs: Tensor, targets: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """The mean loss over the rows of a batch (and over positions, where outputs have any) whose targets count."""
    if kind == "cross_entropy":
        logits = class_last(outputs, targets).reshape(targets.numel(), -1)
        total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / counted(targets).sum().clamp(min=1)
    if kind == "mse":
        return F.mse_loss(outputs, targets)
    student = F.log_softmax(outputs / temperature, dim=1)
    teacher = F.log_softmax(targets / temperature, dim=1)
    return (teacher.exp() * (teacher - student)).sum(1).mean() * temperature**2
