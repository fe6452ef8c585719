"""Options that take one name of a registry. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import typer

from shaprune.errors import check_choice


def one_of(what: str, names: Iterable[str]) -> Callable[[str | None], str | None]:
    """A callback that refuses names outside a registry and names the nearest."""

    def check(value: str | None) -> str | None:
        if value is not None:
            try:
                check_choice(what, value, names)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
        return value

    return check


def choice(what: str, names: Iterable[str]) -> dict[str, Any]:
    """An option with a name of a registry: others are refused, and shells complete it."""
    known = tuple(names)
    return {"callback": one_of(what, known), "autocompletion": lambda incomplete: _starting(known, incomplete)}


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
