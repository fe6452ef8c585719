"""Aggregation of the values of single examples into the value of a player.

The Shapley value of a mean is the mean of the Shapley values, and only the mean has a game behind it. Other statistics
keep what matters much for few examples: Ancona et al. 2020 found mean + 2 standard deviations best. With one order per
example the values of single examples are noisy, which widens their spread and their quantiles; more samples per example
(a larger ``max_evaluations``) reduce that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, nearest
from shaprune.values.result import Values

# (N, n) values of N examples -> (n,); (N, 1) -> (1,) where players were sampled on different examples
Aggregate = Callable[[NDArray[np.float64]], NDArray[np.float64]]
BOOTSTRAP_RESAMPLES = 100  # for the standard errors of statistics other than the mean
AGGREGATES = ("mean", "mean+2std", "quantile:0.9", "worst-group")


def mean_std(k: float) -> Aggregate:
    """Mean plus ``k`` standard deviations over the examples (Ancona et al. 2020)."""
    return lambda values: np.asarray(values.mean(0) + k * values.std(0))


def quantile(q: float) -> Aggregate:
    """The q-quantile over the examples.

    Raises:
        InputError: ``q`` outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise InputError(f"the quantile is {q}; it must lie in [0, 1]")
    return lambda values: np.asarray(np.quantile(values, q, axis=0))


def per_group(values: Values, labels: NDArray[np.int64]) -> dict[int, Values]:
    """Values per class, or per any other grouping of the examples.

    Args:
        values: with ``by_example``.
        labels: (N,) group of each example, such as ``game.labels``.

    Raises:
        InputError: values without ``by_example``, labels of another length, or a group none of whose examples has been
            sampled for some player.
    """
    rows, labels = _by_example(values), np.asarray(labels)
    if labels.shape != (len(rows),):
        raise InputError(f"labels have shape {labels.shape}; give one for each of {len(rows)} examples")
    result = {}
    for label in np.unique(labels):
        part = rows[labels == label]
        count = _sampled_examples(part, f" of group {label}").sum(0)
        mean = np.nansum(part, axis=0) / count
        spread = np.nansum((part - mean) ** 2, axis=0) / np.maximum(count - 1, 1)
        result[int(label)] = replace(
            values,
            value=mean,
            stderr=np.where(count > 1, np.sqrt(spread / count), np.inf),
            counts=count,
            efficiency_gap=None,
            worth_all=None,
            worth_none=None,
            by_example=part,
        )
    return result


def aggregated(values: Values, how: str | Aggregate, labels: NDArray[np.int64] | None, seed: int = 0) -> Values:
    """Values under another aggregation than the mean.

    Args:
        values: with ``by_example``.
        how: ``"mean+2std"`` (any factor), ``"quantile:0.9"``, ``"worst-group"`` (the largest of a player's mean values
            over the classes: it stays if any class needs it), or a callable (N, n) -> (n,).
        labels: (N,) class of each example, for ``"worst-group"``.
        seed: of the bootstrap over examples that gives the standard errors.

    Raises:
        InputError: an unknown name, a callable that returns another shape, or no labels where they are needed.
    """
    if how == "worst-group":
        if labels is None:
            raise InputError(
                "aggregate='worst-group' needs the class of each example; the targets are no class indices"
            )
        groups = list(per_group(values, labels).values())
        best = np.argmax([g.value for g in groups], axis=0)
        every = np.arange(values.n)
        value, error = (np.stack([getattr(g, key) for g in groups])[best, every] for key in ("value", "stderr"))
    else:
        statistic = aggregate_of(how)
        rows = _by_example(values)
        seen = _sampled_examples(rows)
        rng = np.random.default_rng([seed, 1 << 33])
        if (seen == seen[:, :1]).all():
            value, error = _with_error(statistic, rows[seen[:, 0]], how, rng)
        else:  # a walk in a size window says something about some of the players only
            columns = [_with_error(statistic, rows[seen[:, i], i : i + 1], how, rng) for i in range(values.n)]
            value, error = np.concatenate(columns, axis=1)
    name = how if isinstance(how, str) else getattr(how, "__name__", "callable")
    return replace(
        values,
        value=value,
        stderr=error,
        efficiency_gap=None,
        efficient=False,
        options={**values.options, "aggregate": name},
    )


def check_aggregate(how: str | Aggregate, labels: NDArray[np.int64] | None) -> None:
    """Refuse an aggregation that cannot work, before any evaluation; raises `InputError` as `aggregated` does."""
    if how == "worst-group":
        if labels is None:
            raise InputError("aggregate='worst-group' needs the class of each example, and this game knows none")
    elif how != "mean":
        aggregate_of(how)


def aggregate_of(how: str | Aggregate) -> Aggregate:
    """The aggregation of a name, such as ``"mean+2std"`` or ``"quantile:0.9"``.

    Raises:
        InputError: an unknown name, with the nearest.
    """
    if not isinstance(how, str):
        if not callable(how):
            raise InputError(f"aggregate is a {type(how).__name__}; give one of {', '.join(AGGREGATES)}, or a callable")
        return how
    name, _, rest = how.partition(":")
    try:
        if name == "quantile" and rest:
            return quantile(float(rest))
        if how.startswith("mean+") and how.endswith("std"):
            return mean_std(float(how[len("mean+") : -len("std")] or 1))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
    raise InputError(f"unknown aggregate {how!r}{nearest(how, AGGREGATES)} Or give a callable.")


def _with_error(
    statistic: Aggregate, rows: NDArray[np.float64], how: str | Aggregate, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A statistic over examples and its standard error, by the bootstrap over examples; inf for one example."""
    value = _applied(statistic, rows, how)
    if len(rows) < 2:
        return value, np.full(value.shape, np.inf)
    again = [
        _applied(statistic, rows[rng.integers(len(rows), size=len(rows))], how) for _ in range(BOOTSTRAP_RESAMPLES)
    ]
    return value, np.std(again, axis=0, ddof=1)


def _applied(statistic: Aggregate, rows: NDArray[np.float64], how: str | Aggregate) -> NDArray[np.float64]:
    value = np.asarray(statistic(rows), dtype=np.float64)
    if value.shape != rows.shape[1:] or not np.isfinite(value).all():
        raise InputError(
            f"aggregate {how!r} returned shape {value.shape} or a number that is not finite; "
            f"it must turn {rows.shape} into ({rows.shape[1]},)"
        )
    return value


def _by_example(values: Values) -> NDArray[np.float64]:
    if values.by_example is None:
        raise InputError("these values were made without keep_examples=True; estimate them again with it")
    return values.by_example


def _sampled_examples(rows: NDArray[np.float64], of: str = "") -> NDArray[np.bool_]:
    """(N, n) which examples have been sampled for which player; every player needs one."""
    seen = np.isfinite(rows)
    never = np.flatnonzero(~seen.any(0))
    if never.size:
        raise InputError(f"no example{of} has a value for player {never[0]}; raise max_evaluations")
    return seen
