"""Win accuracy back after pruning: each step on its own, each optional, in the order given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from shaprune.errors import InputError, check_choice
from shaprune.network.batches import Forward, collect, length, transform
from shaprune.network.borrow import borrowed, copied, device_of
from shaprune.planning import Plan
from shaprune.recovery.batchnorm import recalibrate
from shaprune.recovery.fit import fit
from shaprune.recovery.refit import refit


@dataclass(frozen=True)
class Refit:
    """Closed-form refit of the consumers, see `shaprune.recovery.refit`; needs no labels."""

    ridge: float = 1e-3


@dataclass(frozen=True)
class Batchnorm:
    """Batch-norm recalibration; needs no labels."""


@dataclass(frozen=True)
class Finetune:
    """A short training with Lightning: cross-entropy on labels, or distillation from the dense network without labels.

    Attributes:
        epochs: passes over the data.
        lr: peak learning rate.
        loss: ``"cross_entropy"``, ``"distill"``; None = distill where there are no labels, else cross-entropy.
    """

    epochs: int = 3
    lr: float = 1e-3
    loss: Literal["cross_entropy", "distill"] | None = None


Step = Refit | Batchnorm | Finetune
STEPS: dict[str, Callable[[], Step]] = {"refit": Refit, "batchnorm": Batchnorm, "finetune": Finetune}


def recover(
    small: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    data: Iterable[Any],
    steps: Sequence[str | Step] = ("refit", "batchnorm"),
    *,
    forward: Forward | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> nn.Module:
    """Return a recovered copy of a pruned network; ``small`` and ``teacher`` are not changed.

    Args:
        small: the pruned network.
        teacher: the dense network it came from.
        plan: the plan that made ``small``.
        data: batches ``(inputs, targets)``; targets only matter to fine-tuning on labels.
        steps: names (``"refit"``, ``"batchnorm"``, ``"finetune"``) or configured steps (``Finetune(epochs=5)``).
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        batch_size: examples per forward pass.
        seed: seed of the fine-tuning.

    Raises:
        InputError: an unknown step, a step that these players do not go with, unusable data, or nothing to train.
    """
    if isinstance(steps, str):
        raise InputError(f"steps is the string {steps!r}; give a tuple, such as ({steps!r},)")
    for step in steps:
        if isinstance(step, str):
            check_choice("recovery step", step, STEPS)
        elif not isinstance(step, (Refit, Batchnorm, Finetune)):
            raise InputError(f"a recovery step is a {type(step).__name__}; give a name, Refit, Batchnorm or Finetune")
        if step == "finetune" or isinstance(step, Finetune):
            _check_stays_gone(plan)
    inputs, targets = collect(data)
    device = device_of(small)
    inputs = transform(inputs, lambda t: t.to(device))
    count = length(inputs)
    cuts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    batches = [transform(inputs, lambda t, cut=cut: t[cut] if t.ndim else t) for cut in cuts]  # type: ignore[misc]
    result = copied(small)
    with borrowed(teacher), borrowed(result):
        for step in [STEPS[s]() if isinstance(s, str) else s for s in steps]:
            if isinstance(step, Refit):
                refit(result, teacher, plan, batches, ridge=step.ridge, forward=forward)
            elif isinstance(step, Batchnorm):
                recalibrate(result, batches, forward=forward)
            else:
                loss = step.loss or ("distill" if targets is None else "cross_entropy")
                if loss == "cross_entropy" and targets is None:
                    raise InputError(
                        "fine-tuning with cross_entropy needs targets and the data has none; use loss='distill'"
                    )
                labels = [None if targets is None else targets[cut] for cut in cuts]
                fit(
                    result,
                    list(zip(batches, labels, strict=True)),
                    epochs=step.epochs,
                    lr=step.lr,
                    loss=loss,
                    teacher=teacher if loss == "distill" else None,
                    seed=seed,
                )
    return result


def _check_stays_gone(plan: Plan) -> None:
    """Refuse to train what the plan has set to zero."""
    zeroed = [m.module for group in plan.players.groups for m in group.members if m.role == "weight"]
    if zeroed:
        raise InputError(
            f"fine-tuning would let the single weights of {zeroed[0]} grow back that the plan has set to zero; "
            "leave 'finetune' out"
        )
