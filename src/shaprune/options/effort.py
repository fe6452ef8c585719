"""Effort: the time that a compression may take, a word or a number of seconds. No torch."""

from __future__ import annotations

import math

from shaprune.errors import InputError, check_choice

EFFORTS = {"seconds": 20.0, "minutes": 120.0, "hour": 3600.0}  # seconds that each may take on one core
Effort = str | float


def effort_of(given: object) -> Effort:
    """``"minutes"`` -> "minutes"; ``"300"`` -> 300.0 seconds.

    Raises:
        InputError: neither a word of `EFFORTS` nor a number above 0.
    """
    try:
        number = float(given) if not isinstance(given, bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError):
        if not isinstance(given, str):
            raise InputError(f"effort is {given!r}; give {', '.join(EFFORTS)}, or a number of seconds") from None
        check_choice("effort", given, EFFORTS)
        return given
    if not 0 < number < math.inf:
        raise InputError(f"effort is {given!r}; give {', '.join(EFFORTS)}, or a number of seconds above 0")
    return number


def seconds_of(effort: Effort) -> float:
    """The seconds that an effort may take."""
    return EFFORTS[effort] if isinstance(effort, str) else effort
