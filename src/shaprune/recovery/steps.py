"""Recover accuracy after pruning: each step on its own, each optional, in the order given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shaprune.errors import InputError, check_choice
from shaprune.network.batches import Forward, length, pick_rows, run, split_batch, transform
from shaprune.network.borrow import borrowed, copied, device_of
from shaprune.network.buffers import kept_buffers
from shaprune.network.collect_batches import check_data, collect_batches
from shaprune.network.forward.calibration import Calibration
from shaprune.network.model_turns import turn
from shaprune.network.precision import check_precision
from shaprune.options.step_values import check_step
from shaprune.planning.plan import Plan
from shaprune.recovery.batchnorm import recalibrate
from shaprune.recovery.blocks import Blocks, reconstruct_blocks
from shaprune.recovery.distillation import Distill, distill
from shaprune.recovery.finetune import Finetune, OwnFinetune, finetune, own_finetune
from shaprune.recovery.lightning_trainer import TrainingResult
from shaprune.recovery.refit import refit


@dataclass(frozen=True)
class Refit:
    """Closed-form refit of the consumers, see `shaprune.recovery.refit`; needs no labels."""

    ridge: float | None = None

    def __post_init__(self) -> None:
        check_step(self, positive=("ridge",))


@dataclass(frozen=True)
class Batchnorm:
    """Batch-norm recalibration; needs no labels."""


@dataclass(frozen=True)
class Recovered:
    """How a recovery step went.

    Attributes:
        step: its name.
        seconds: wall time.
        before, after: the loss on the examples watched; None where none are watched.
        taken: steps of the optimizer; None where these are not counted.
        notes: what a reader should know of it.
    """

    step: str
    seconds: float
    before: float | None = None
    after: float | None = None
    taken: int | None = None
    notes: tuple[str, ...] = ()

    def told(self) -> str:
        """One line on it."""
        found = [f"{self.seconds:.1f} s"]
        if self.taken is not None:
            found.append(f"{self.taken} steps")
        if self.before is not None:
            found.append(f"loss on the examples watched {self.before:.4g} -> {self.after:.4g}")
        return f"{self.step}: {'; '.join((*found, *self.notes))}"


_Configured = Refit | Batchnorm | Blocks | Distill | Finetune
RecoveryStep = _Configured | OwnFinetune
_NORMS = (nn.modules.batchnorm._BatchNorm,)  # refits and recalibration write to their statistics
STEPS: dict[str, Callable[[], RecoveryStep]] = {
    "refit": Refit,
    "batchnorm": Batchnorm,
    "blocks": Blocks,
    "distill": Distill,
    "finetune": Finetune,
}


def recover(
    small: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    data: Iterable[Any] | Calibration,
    steps: Sequence[str | RecoveryStep] = ("refit",),
    *,
    train: Iterable[Any] | None = None,
    forward: Forward | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> nn.Module:
    """Return a recovered copy of a pruned network; ``small`` and ``teacher`` are not changed.

    Args:
        small: the pruned network.
        teacher: the dense network it came from.
        plan: the plan that made ``small``.
        data: batches ``(inputs, targets)``, or a `Calibration` of these; targets only matter to fine-tuning on labels.
            Never the test set.
        steps: names (``"refit"``, ``"batchnorm"``, ``"blocks"``, ``"distill"``, ``"finetune"``), configured steps
            (``Distill(steps=1000)``), or functions of your own: ``finetune(model)`` gets a copy in eval mode, trains it
            in place or returns another network of the same shapes.
        train: batches for distillation and fine-tuning in place of ``data``, which is often small; their validation
            splits are taken from them.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        batch_size: examples per forward pass.
        seed: seed of the fine-tuning.

    Returns:
        The recovered network.

    Raises:
        InputError: an unknown step, a step that these players do not go with, data that the network does not run on, or
            nothing to train.
    """
    return recovered(small, teacher, plan, data, steps, train=train, forward=forward, batch_size=batch_size, seed=seed)[
        0
    ]


def recovered(
    small: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    data: Iterable[Any] | Calibration,
    steps: Sequence[str | RecoveryStep],
    *,
    train: Iterable[Any] | None,
    forward: Forward | None,
    batch_size: int = 128,
    seed: int,
) -> tuple[nn.Module, tuple[Recovered, ...]]:
    """As `recover`, with how each step went."""
    chosen = check_steps(steps, small)
    if any(not isinstance(step, (Refit, Batchnorm)) for step in chosen):
        _check_stays_gone(plan)
    inputs, targets = (data.inputs, data.targets) if isinstance(data, Calibration) else collect_batches(data)
    device = device_of(small)
    inputs = transform(inputs, lambda t: t.to(device))
    learnt = (inputs, targets) if train is None else collect_batches(train)
    count = length(inputs)
    cuts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    batches = [pick_rows(inputs, cut) for cut in cuts]
    result = copied(small)
    check_batches(teacher, [(inputs, None)], "the data", forward)
    if train is not None:
        check_batches(teacher, [(learnt[0], None)], "train", forward)
    went: list[Recovered] = []
    with borrowed(teacher):
        for step in chosen:
            clock, trained_as = time.perf_counter(), None
            trained = not isinstance(step, (Refit, Batchnorm))
            with borrowed(result, buffers=False), nullcontext() if trained else kept_buffers(result, _NORMS):
                if isinstance(step, Refit):
                    refit(result, teacher, plan, batches, ridge=step.ridge, forward=forward)
                elif isinstance(step, Batchnorm):
                    recalibrate(result, batches, forward=forward)
                elif isinstance(step, Blocks):
                    trained_as = reconstruct_blocks(result, teacher, learnt[0], step, forward=forward, seed=seed)
                elif isinstance(step, Distill):
                    trained_as = distill(result, teacher, *learnt, step, forward=forward, seed=seed)
                elif isinstance(step, Finetune):
                    trained_as = finetune(
                        result, teacher, plan, *learnt, step, forward=forward, batch_size=batch_size, seed=seed
                    )
                else:
                    result = own_finetune(result, step)
            went.append(_went(step, time.perf_counter() - clock, trained_as))
    with turn(small):
        for name, module in small.named_modules():
            result.get_submodule(name).training = module.training
    return result, tuple(went)


def _went(step: RecoveryStep, seconds: float, trained: TrainingResult | None) -> Recovered:
    kinds = {Refit: "refit", Batchnorm: "batchnorm", Blocks: "blocks", Distill: "distill", Finetune: "finetune"}
    name = str(kinds.get(type(step)) or getattr(step, "__name__", "own"))
    if trained is None:
        return Recovered(name, seconds)
    kept = trained.losses[trained.kept or 0] if trained.losses else None
    notes = trained.notes + (() if trained.diverged is None else (f"it diverged: {trained.diverged}",))
    return Recovered(name, seconds, trained.losses[0] if trained.losses else None, kept, trained.steps, notes)


def check_steps(steps: Sequence[str | RecoveryStep], model: nn.Module) -> list[RecoveryStep]:
    """The steps that names and configured steps stand for.

    Raises:
        InputError: an unknown name, something else than a step, or a precision that ``model`` cannot be trained in.
    """
    if isinstance(steps, str):
        raise InputError(f"steps is the string {steps!r}; give a tuple, such as ({steps!r},)")
    if not isinstance(steps, Sequence):
        raise InputError(f"steps is {steps!r}; give a tuple, such as ('refit',), or () for none")
    for step in steps:
        if isinstance(step, str):
            check_choice("recovery step", step, STEPS)
        elif not isinstance(step, _Configured) and (not callable(step) or isinstance(step, type)):
            raise InputError(
                f"a recovery step is the {type(step).__name__} {step!r}; give a name, Refit(), Batchnorm(), Blocks(), "
                "Distill(), Finetune(), or a function that trains a network"
            )
    chosen = [STEPS[s]() if isinstance(s, str) else s for s in steps]
    for step in chosen:
        if isinstance(step, Finetune):
            check_precision(model, step.precision)
    return chosen


def check_batches(model: nn.Module, batches: Iterable[Any] | None, name: str, forward: Forward | None = None) -> None:
    """Refuse examples of another size or type than the dense network takes, before any work.

    The first batch is looked at; what can be read only once is left alone.

    Raises:
        InputError: the network does not run on it; ``name`` is what the user calls these batches.
    """
    check_data(batches, name)
    if batches is None or iter(batches) is batches:
        return
    device = device_of(model)
    with borrowed(model), torch.no_grad():
        batch = next(iter(batches), None)
        if batch is None:
            return
        inputs = pick_rows(split_batch(batch)[0], slice(2))
        try:
            run(model, inputs, forward, device)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"the dense network does not run on {name}: {error}; see forward=...") from error


def _check_stays_gone(plan: Plan) -> None:
    """Refuse to train what the plan has set to zero."""
    zeroed = [m.module for group in plan.players.groups for m in group.members if m.part.stays_zero]
    if zeroed:
        raise InputError(
            f"fine-tuning would let the single weights of {zeroed[0]} grow back that the plan has set to zero; "
            "leave fine-tuning out"
        )
