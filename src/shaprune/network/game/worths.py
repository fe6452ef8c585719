"""Worths of outputs, per row or over all examples. Higher is better.

A *row worth* is a function ``(outputs (R, ...), reference (R, ...)) -> (R,)``: one number per row; the worth of a
coalition is the mean over the examples. A *set worth* is one number for all examples together (perplexity, F1, AUROC).
The reference is the targets, or, for ``fidelity`` and ``kl``, the dense network's own outputs.

Where a row holds several predictions (tokens, places of a class map), its worth is their mean; over all examples, the
mean over all predictions whose target counts (is not -100). Shapes of targets: see
`shaprune.network.game.target_checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaprune.errors import GameError, InputError, check_choice
from shaprune.network.game.target_checks import (
    INSTEAD,
    PROBABILITIES,
    check_logits,
    class_last,
    class_targets,
    counted,
    looks_like_probabilities,
    number_targets,
)
from shaprune.network.game.torchmetrics_worth import Metric, is_metric, metric_function

_FEW = 4096  # outputs of a row up to which differences are taken in float64
RowWorth = Callable[[Tensor, Tensor], Tensor]
Reference = Literal["targets", "dense"]
Needs = Literal["anything", "classes", "logits", "numbers"]  # what `reference_for` looks at


@dataclass(frozen=True)
class Worth:
    """A worth per row, what it compares the outputs with, and what both must be."""

    name: str
    function: RowWorth
    reference: Reference = "targets"
    needs: Needs = "anything"


@dataclass(frozen=True)
class SetWorth:
    """A worth that is no mean over examples: one number for all examples together.

    Attributes:
        name: for messages and results.
        function: ``(outputs (N, ...), reference (N, ...)) -> number``, higher is better; examples in the order of the
            data. It is asked once with the dense outputs when a game is made.
        reference: compare with the targets, or with the dense network's outputs.
        keep: ``(outputs (R, ...), reference (R, ...)) -> (R, ...)``, applied to blocks of rows; what it returns is
            given to ``function`` in place of the outputs. It saves memory where all examples' outputs are large.
        needs: what `reference_for` looks at.
    """

    name: str
    function: Callable[[Tensor, Tensor], Any]
    reference: Reference = "targets"
    keep: RowWorth | None = None
    needs: Needs = "anything"


@dataclass(frozen=True)
class Evaluate:
    """A worth of the whole model: wraps ``evaluate(model) -> float``, called under masks, once per coalition.

    Use it where the worth is no function of outputs and targets, or where the evaluation loop is given. Higher is
    better.

    Attributes:
        function: ``evaluate``; it takes the model under a mask and returns a finite number.
    """

    function: Callable[[nn.Module], float]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output is the target's, else 0 (Adamczewski et al. 2024)."""
    return _per_row((class_last(outputs, targets).argmax(-1) == targets).to(torch.float32))  # never equal to -100


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the cross-entropy of logits (Ancona et al. 2020)."""
    return _per_row(_log_likelihood(outputs, targets))


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """The target's logit minus the largest other one; positive where the answer is right."""
    outputs = class_last(outputs, targets)
    own = targets.long().clamp(min=0)[..., None]
    others = outputs.scatter(-1, own, float("-inf")).amax(-1)
    return _per_row((outputs.gather(-1, own)[..., 0] - others).where(counted(targets), 0.0))


def fidelity(outputs: Tensor, dense: Tensor) -> Tensor:
    """Minus the squared distance to the dense network's outputs; needs no labels."""
    return -_difference(outputs, dense).square().reshape(len(outputs), -1).sum(1)


def kl(outputs: Tensor, dense: Tensor) -> Tensor:
    """Minus KL(softmax(dense) || softmax(outputs)) in nats over the last dimension; needs no labels."""
    terms = F.kl_div(F.log_softmax(outputs, -1), F.log_softmax(dense, -1), log_target=True, reduction="none")
    return _per_row(-terms.sum(-1))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean squared error over a row's outputs."""
    return _per_row(-_difference(outputs, targets.view_as(outputs)).square())


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean absolute error over a row's outputs."""
    return _per_row(-_difference(outputs, targets.view_as(outputs)).abs())


def _log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logarithm of the probability of each target, 0 where it does not count."""
    outputs = class_last(outputs, targets)
    own = outputs.gather(-1, targets.long().clamp(min=0)[..., None])[..., 0]
    found = own - outputs.logsumexp(-1)  # F.cross_entropy takes five times as long for ten classes
    return found.where(counted(targets), 0.0)


def _row_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """(R, 2): the log-likelihood of each row, and of how many predictions."""
    found = _log_likelihood(outputs, targets).double().reshape(len(outputs), -1).sum(1)
    return torch.stack([found, counted(targets).reshape(len(outputs), -1).sum(1).to(found)], 1)


def _minus_perplexity(rows: Tensor, targets: Tensor) -> Tensor:
    """Minus exp(mean negative log-likelihood) over all predictions, from `_row_likelihood`."""
    total, number = rows.sum(0)
    return torch.neg((-total / number).exp())


def _difference(outputs: Tensor, reference: Tensor) -> Tensor:
    """The difference, in float64 where that costs next to nothing: a large worth keeps what coalitions differ by."""
    wide = outputs.device.type != "mps" and outputs[:1].numel() <= _FEW
    return outputs.double() - reference if wide else (outputs - reference).float()


def _per_row(values: Tensor) -> Tensor:
    """(R, ...) -> (R,): the mean over all but the first dimension."""
    return values if values.ndim == 1 else values.flatten(1).mean(1)


WORTHS: dict[str, Worth | SetWorth] = {
    "accuracy": Worth("accuracy", accuracy, needs="classes"),
    "cross_entropy": Worth("cross_entropy", cross_entropy, needs="classes"),
    "margin": Worth("margin", margin, needs="classes"),
    "perplexity": SetWorth("perplexity", _minus_perplexity, keep=_row_likelihood, needs="classes"),
    "fidelity": Worth("fidelity", fidelity, "dense"),
    "kl": Worth("kl", kl, "dense", needs="logits"),
    "squared_error": Worth("squared_error", squared_error, needs="numbers"),
    "absolute_error": Worth("absolute_error", absolute_error, needs="numbers"),
}

AnyWorth = str | RowWorth | Worth | SetWorth | Metric


def resolve_worth(worth: AnyWorth) -> Worth | SetWorth:
    """The worth of a name, around a callable ``(outputs, targets) -> one number per row``, or around a metric.

    Raises:
        InputError: unknown name, with the nearest; a metric that does not say whether higher is better; or something
            that is none of these.
    """
    if isinstance(worth, (Worth, SetWorth)):
        return worth
    if isinstance(worth, str):
        check_choice("worth", worth, WORTHS)
        return WORTHS[worth]
    if isinstance(worth, type):
        raise InputError(f"worth is the class {worth.__name__}; give an instance of it")
    if is_metric(worth):
        return SetWorth(worth_name(worth), metric_function(worth))
    if callable(worth):
        return Worth(worth_name(worth), worth)
    raise InputError(
        f"worth is a {type(worth).__name__}; give a name, a callable (outputs, targets), a torchmetrics metric, "
        "sp.worths.SetWorth(name, fn), or sp.Evaluate(fn)"
    )


def resolve_row_worth(worth: AnyWorth) -> Worth:
    """The row worth of a name or around a callable, for those that need a worth per example.

    Raises:
        InputError: as `resolve_worth`; a worth that is no mean over examples.
    """
    evaluator = resolve_worth(worth)
    if isinstance(evaluator, SetWorth):
        raise InputError(
            f"worth {evaluator.name!r} is one number over all examples, and a number per example is needed here; "
            "use a worth per row, such as 'cross_entropy'"
        )
    return evaluator


def reference_for(worth: Worth | SetWorth, targets: Tensor | None, outputs: Tensor) -> tuple[Tensor, float]:
    """What a worth compares outputs with, in the one shape that it takes.

    Args:
        worth: any.
        targets: (N, ...), see `shaprune.network.game.target_checks`.
        outputs: (N, ...) of the dense network.

    Returns:
        The reference, and the factor that makes the mean over examples one over all predictions that count.

    Raises:
        InputError: no targets; no class indices, or classes that the outputs do not have; targets of another shape than
            the outputs of a regression, or not finite; outputs that are no logits.
    """
    if worth.needs == "logits":
        check_logits(worth.name, outputs)
    if worth.reference == "dense":
        return outputs, 1.0
    if targets is None:
        raise InputError(
            f"worth {worth.name!r} needs targets and the batches have none; use worth='fidelity' without labels"
        )
    if worth.needs == "numbers":
        return number_targets(worth.name, targets, outputs), 1.0
    if worth.needs != "classes":
        return targets, 1.0
    name = f"worth {worth.name!r}"
    found = class_targets(name, targets, outputs, INSTEAD)
    if looks_like_probabilities(found, outputs):
        raise InputError(f"{name} {PROBABILITIES}")
    return found, found.numel() / int(counted(found).sum())


def worth_name(worth: Any) -> str:
    """What to call a worth in messages and results."""
    if isinstance(worth, str):
        return worth
    if isinstance(worth, Evaluate):
        return "evaluate"
    name = getattr(worth, "name", None) or getattr(worth, "__name__", None)
    return name if isinstance(name, str) else type(worth).__name__


def is_built_in(worth: Worth | SetWorth) -> bool:
    """Whether a worth is one of ours: a function of its arguments alone, which it does not change."""
    return WORTHS.get(worth.name) is worth


def is_smooth(worth: Worth | SetWorth) -> bool:
    """Whether a worth is one of ours that has derivatives by the outputs."""
    return is_built_in(worth) and worth.name != "accuracy"


def apply_row_worth(worth: Worth, outputs: Tensor, reference: Tensor) -> Tensor:
    """Apply a worth and check its shape.

    Raises:
        GameError: the function did not return one number per row.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # puts the mode back where the function changed it
        result = worth.function(outputs, reference)
    if not isinstance(result, Tensor) or result.shape != (len(outputs),):
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        single = not isinstance(result, Tensor) or result.numel() == 1
        hint = (
            "; leave the mean out, or wrap it in sp.worths.SetWorth(name, function) over all examples" if single else ""
        )
        raise GameError(
            f"worth {worth.name!r} returned {shape} for {len(outputs)} rows; it must return shape ({len(outputs)},), "
            f"one number per row{hint}"
        )
    return result


def apply_set_worth(worth: SetWorth, kept: Tensor, reference: Tensor) -> float:
    """Apply a set worth to all examples, (N, ...) each; NaN and infinity are the caller's to judge.

    Raises:
        GameError: the function did not return one number.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        result = worth.function(kept, reference)
    if isinstance(result, Tensor) and result.numel() == 1:
        return float(result)
    try:
        return float(result)
    except (TypeError, ValueError, RuntimeError):
        shape = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise GameError(
            f"worth {worth.name!r} returned {shape} for {len(kept)} examples; it must return one number "
            "(for a metric: choose its average)"
        ) from None
