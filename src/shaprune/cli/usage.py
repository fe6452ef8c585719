"""Wrong usage: an option or argument that cannot be used, exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from shaprune.errors import InputError


@contextmanager
def as_usage_error(option: str) -> Iterator[None]:
    """An `InputError` inside the block is the fault of this option's value: wrong usage."""
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option or None) from error
