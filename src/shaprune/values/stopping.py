"""Stopping rules: functions ``Values -> reason or None`` for ``estimate(..., stop=...)``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shaprune.errors import InputError
from shaprune.values.result import Values


def stderr_below(limit: float) -> Callable[[Values], str | None]:
    """Stop once every player's standard error is below ``limit`` (in units of the worth)."""
    _check(limit)
    return lambda values: f"stderr_below({limit})" if np.all(values.stderr < limit) else None


def relative_error_below(limit: float) -> Callable[[Values], str | None]:
    """Stop once the expected ||value - truth|| / ||value||, judged by the standard errors, is below ``limit``."""
    _check(limit)

    def rule(values: Values) -> str | None:
        size = np.linalg.norm(values.value)
        return f"relative_error_below({limit})" if np.linalg.norm(values.stderr) < limit * size else None

    return rule


def _check(limit: float) -> None:
    if not limit > 0:
        raise InputError(f"the limit of a stopping rule is {limit}; it must be above 0")
