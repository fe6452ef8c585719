"""Checks of what a recovery step is made with: numbers, functions, a checkpoint that can be written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from pathlib import Path

from shaprune.errors import InputError
from shaprune.values.estimate import check_whole_number


def check_step(
    step: object, *, whole: Iterable[str] = (), positive: Iterable[str] = (), functions: Iterable[str] = ()
) -> None:
    """Check options of a step by name; None is an option that was not given, ``validation`` a share.

    Args:
        step: holds them as attributes.
        whole: whole numbers, 1 or above.
        positive: finite numbers above 0.
        functions: what is called.

    Raises:
        InputError: one that is not as it must be, by name.
    """
    for name in whole:
        check_whole_number(name, getattr(step, name), 1)
    for name in positive:
        number = getattr(step, name)
        if number is not None and not (_is_number(number) and 0 < number < math.inf):
            raise InputError(f"{name} is {number!r}; it must be a number above 0")
    share = getattr(step, "validation", 0)
    if not (_is_number(share) and 0 <= share < 1):
        raise InputError(f"validation is {share!r}; it must be a share from 0 to below 1")
    for name in functions:
        function = getattr(step, name)
        if function is not None and not callable(function):
            raise InputError(f"{name} is {function!r}; give a function")


def check_checkpoint(path: str | Path | None) -> None:
    """Check that a checkpoint could be written, before any work.

    Raises:
        InputError: no path, a folder, or a file in a folder that is not there.
    """
    if path is None:
        return
    if not isinstance(path, (str, Path)) or not str(path) or Path(path).is_dir():
        raise InputError(f"checkpoint is {str(path)!r}; name a file")
    if not Path(path).parent.is_dir():
        raise InputError(
            f"checkpoint is {str(path)!r}, and there is no folder {str(Path(path).parent)!r}; make it first"
        )


def _is_number(given: object) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool)
