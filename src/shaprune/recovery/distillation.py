"""Distillation: the pruned network learns, on examples without labels, to answer as the dense one does.

It starts where the closed-form refit ends. Batch-norms keep their statistics and dropout stays off: what is trained is
the function that is evaluated. A refitted network whose batch-norms are put into training mode loses what the refit won
before the first step (ResNet-56 with 30 % of its multiply-adds: .849 to .776).

Source: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network* (2015). The learning rate is a tenth of
what fine-tuning on labels takes: the start is close to a minimum.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from shaprune.errors import InputError, check_choice
from shaprune.network.batches import Forward, Inputs, call, length, main_output, named_leaves, pick_rows
from shaprune.network.borrow import device_of
from shaprune.network.game.fingerprint import add_tensor
from shaprune.network.state_dicts import tensors_of
from shaprune.options.step_values import check_checkpoint, check_step
from shaprune.recovery.finetune import split_rows, warn_of_failure
from shaprune.recovery.folded_norms import TrainedCopy
from shaprune.recovery.lessons import Lessons
from shaprune.recovery.lightning_trainer import TrainingResult
from shaprune.recovery.step_training import (
    AT_ONCE,
    EVERY,
    FEW,
    StepSchedule,
    Task,
    said_of_few,
    train_steps,
    trained_parameters,
)
from shaprune.recovery.training_data import Augment, mean_loss

_WATCHED = 1_000  # examples at most whose loss decides
SQUARED = "the dense network's outputs are no logits: the squared distance to them was made smaller"

DistillationLoss = Literal["kl", "mse"]


@dataclass(frozen=True)
class Distill:
    """Train the pruned network, end to end, to answer as the dense one does; needs no labels.

    A share of the examples is set aside, and the weights with the lowest loss on them are kept; those before the
    training count, so that it never makes the network worse there. With fewer than 200 examples, the loss on the
    training examples is watched; with fewer than 100, only scales and biases are trained.

    Attributes:
        steps: of the optimizer.
        lr: the highest learning rate.
        batch_size: examples per step.
        temperature: both networks' logits are divided by it.
        loss: ``"kl"`` between the class probabilities, or ``"mse"``, the squared distance of the outputs; None = kl
            where the dense network's outputs are rows of at least two numbers that are neither targets' numbers nor of
            length 1, else mse.
        augment: ``(inputs) -> inputs`` makes a second view of the examples, which the dense network answers to as well;
            None = images are mirrored and shifted at random, other inputs have one view.
        validation: the share of the examples that is set aside, from 0 to below 1.
        max_seconds: fewer steps are taken where these would not suffice; None = no limit.
        checkpoint: a file from which the same training goes on after an interruption; None = none.
    """

    steps: int = 300
    lr: float = 2e-4
    batch_size: int = 64
    temperature: float = 4.0
    loss: DistillationLoss | None = None
    augment: Augment | None = None
    validation: float = 0.1
    max_seconds: float | None = None
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        check_step(
            self,
            whole=("steps", "batch_size"),
            positive=("lr", "temperature", "max_seconds"),
            functions=("augment",),
        )
        check_checkpoint(self.checkpoint)
        if self.loss is not None:
            check_choice("loss", self.loss, get_args(DistillationLoss))


def distill(
    model: nn.Module,
    teacher: nn.Module,
    inputs: Inputs,
    targets: Tensor | None,
    step: Distill,
    *,
    forward: Forward | None = None,
    seed: int = 0,
) -> TrainingResult:
    """Train ``model`` in place, in eval mode; on any failure its weights are as they were.

    Args:
        model: the pruned network, in eval mode.
        teacher: the dense network, in eval mode.
        inputs: all examples, batch first.
        targets: these examples' targets, if any; only whether they are numbers matters, see `Distill.loss`.
        step: how.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        seed: of the views, the split and the order of rows.

    Returns:
        How it went.

    Raises:
        InputError: nothing to train, outputs of other shapes than the dense network's, a time limit below one step, a
            loss that is not finite before the first step, or a checkpoint of another training.
    """
    began = time.perf_counter()
    train, watched = split_rows(length(inputs), step.validation, seed)
    few = len(train) < FEW
    train, watched = train[: step.steps * step.batch_size], watched[:_WATCHED]
    used, where = torch.cat([train, watched]).unique(return_inverse=True)
    inputs = pick_rows(inputs, used)
    train, watched = where[: len(train)], where[len(train) :]
    lessons = Lessons(teacher, inputs, step.augment, forward or call, device_of(model), seed)
    lessons.prepare(watched)
    kind = step.loss or _loss_for(lessons.answers(watched[:AT_ONCE]), targets)
    copy = TrainedCopy(model, None if few or forward is not None else lessons.inputs(watched))
    run = forward or call

    def loss_of(rows: Tensor) -> Tensor:
        outputs = main_output(run(copy.model, lessons.inputs(rows)))
        return _loss(kind, outputs, lessons.answers(rows).to(outputs), step.temperature)

    for module in copy.model.modules():
        if isinstance(module, nn.RNNBase) and not module.dropout:
            module.train()  # cuDNN has gradients in training mode only, and without dropout it is the same function
    task = Task(trained_parameters(copy.model, few), lessons.rows(train), loss_of, watched, lessons.prepare)
    with torch.random.fork_rng(devices=[]):
        result = train_steps(task, _schedule(step, seed, model, teacher, lessons, kind), began)
    if result.kept:
        copy.write_back()
    notes: tuple[str, ...] = (SQUARED,) if kind == "mse" and step.loss is None else ()
    notes += (said_of_few(len(train)),) if few else ()
    warn_of_failure(result, "distillation", "step", EVERY)
    return replace(result, notes=notes)


def _schedule(
    step: Distill, seed: int, model: nn.Module, teacher: nn.Module, lessons: Lessons, kind: str
) -> StepSchedule:
    path, key = None, ""
    if step.checkpoint is not None:
        path = Path(step.checkpoint)
        digest = hashlib.sha256(f"{replace(step, augment=None, checkpoint=None)} {kind} {seed}".encode())
        networks = [*tensors_of(model).items(), *tensors_of(teacher).items()]
        for name, tensor in (*networks, *named_leaves(lessons.views).items()):
            add_tensor(digest, name, tensor)
        key = digest.hexdigest()
    return StepSchedule(step.steps, step.lr, step.batch_size, seed, step.max_seconds, path, key)


def _loss_for(answers: Tensor, targets: Tensor | None) -> DistillationLoss:
    """Squared distance for what are no logits: numbers as targets, one output, vectors of length 1."""
    if (targets is not None and targets.is_floating_point()) or answers.ndim < 2 or answers.shape[1] < 2:
        return "mse"
    lengths = answers.flatten(2).norm(dim=1) if answers.ndim > 2 else answers.norm(dim=1)
    return "mse" if torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3) else "kl"


def _loss(kind: DistillationLoss, outputs: Tensor, answers: Tensor, temperature: float) -> Tensor:
    if outputs.shape != answers.shape:
        raise InputError(
            f"the pruned network's outputs have shape {tuple(outputs.shape)} and the dense one's "
            f"{tuple(answers.shape)}; distillation needs the same"
        )
    if kind == "kl":
        outputs, answers = outputs.float(), answers.float()
    return mean_loss(kind, outputs, answers, temperature)
