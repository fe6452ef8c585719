"""Names and modules of earlier versions: importing or reading one raises an error that states the new one.

The table is ``moved.json``: names and modules without ``shaprune.``; CHANGELOG.md has the same rows.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class MovedModules:
    """A finder of modules that is asked last and raises ImportError for a module that has moved."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return None for what is not known here.

        Raises:
            ImportError: the module or name was moved; the message states where.
        """
        message = moved_message(fullname) if fullname.startswith("shaprune.") else None
        if message is not None:
            raise ImportError(message, name=fullname)  # no ModuleNotFoundError: ``from shaprune import x`` hides it
        return None


def install() -> None:
    """Put the finder behind all others, once."""
    if not any(getattr(finder, "__name__", "") == MovedModules.__name__ for finder in sys.meta_path):
        sys.meta_path.append(MovedModules)


@cache
def moved() -> dict[str, dict[str, str]]:
    """Return the table: ``names`` and ``modules``, each {old: new}."""
    import json
    from pathlib import Path

    table: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table


def moved_message(fullname: str) -> str | None:
    """Return the sentence that states where ``shaprune.x`` is now; None where it was never moved."""
    name, names, modules = fullname.removeprefix("shaprune."), moved()["names"], moved()["modules"]
    if name in names:
        return f"sp.{name} is now sp.{names[name]}"
    if name in modules:
        return f"{fullname} is now shaprune.{modules[name]}"
    inside = [f"{old} is now {new}" for old, new in modules.items() if old.startswith(f"{name}.")]
    return f"shaprune has no {name!r} any more: {', '.join(inside)}" if inside else None
