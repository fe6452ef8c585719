"""Metrics with ``reset``, ``update`` and ``compute`` (torchmetrics) as functions of all outputs and targets.

torchmetrics is not imported: a caller with a metric has it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from shaprune.errors import InputError


class Metric(Protocol):
    """What a `torchmetrics.Metric` does."""

    def reset(self) -> None:
        """Forget all examples."""

    @property
    def update(self) -> Callable[..., Any]:
        """Take examples in: ``update(outputs, targets)``."""

    @property
    def compute(self) -> Callable[..., Any]:
        """The value over the examples since the last reset."""


def is_metric(thing: Any) -> bool:
    """Whether a thing does what a `torchmetrics.Metric` does."""
    return all(callable(getattr(thing, name, None)) for name in ("reset", "update", "compute"))


@dataclass(frozen=True, eq=False)
class MetricFunction:
    """A metric as ``(outputs (N, ...), targets (N, ...)) -> value``, higher is better.

    Attributes:
        metric: a private copy; its state is empty between calls.
        sign: 1 where higher is better, -1 where lower is.
    """

    metric: Any
    sign: int

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        """The value over all examples; one output per example may stand in a dimension of its own.

        Raises:
            InputError: the metric refuses outputs or targets; in its own words.
        """
        if outputs.ndim == 2 and outputs.shape[1] == 1 and targets.ndim == 1:
            outputs = outputs[:, 0]
        metric = self.metric.to(outputs.device) if hasattr(self.metric, "to") else self.metric
        try:
            metric.update(outputs, targets)
            value = metric.compute()
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise InputError(
                f"metric {type(metric).__name__} cannot use outputs of shape {tuple(outputs.shape)} and targets "
                f"{targets.dtype} of shape {tuple(targets.shape)}: {' '.join(str(error).split())}; "
                "wrap it in sp.worths.SetWorth(name, function) that brings them into its form"
            ) from error
        finally:
            metric.reset()
        return self.sign * value if isinstance(value, (Tensor, int, float)) else value

    @property
    def identity(self) -> str:
        """The metric's type and plain options, those of inner metrics included; for fingerprints."""
        modules = getattr(self.metric, "named_modules", lambda: [("", self.metric)])()
        return repr([(name, type(m).__module__, type(m).__qualname__, _options(m)) for name, m in modules])


def _options(metric: Any) -> list[tuple[str, Any]]:
    plain = (bool, int, float, str, tuple, list, type(None))
    return sorted((k, repr(v)) for k, v in vars(metric).items() if not k.startswith("_") and isinstance(v, plain))


def metric_function(metric: Any) -> MetricFunction:
    """A metric as a function of all outputs and targets; the metric itself is left as it is.

    Raises:
        InputError: a metric that does not say whether higher is better.
    """
    better = getattr(metric, "higher_is_better", None)
    name = type(metric).__name__
    if better is None:
        raise InputError(
            f"metric {name} does not say whether higher is better; "
            "wrap it in sp.worths.SetWorth(name, function), with a function whose higher values are better"
        )
    private = copy.deepcopy(metric)
    private.reset()
    return MetricFunction(private, 1 if better else -1)
