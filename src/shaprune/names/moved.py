"""Names and modules of earlier versions: importing or reading one raises an error that states the new one."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = {  # public name of an earlier version -> its new one
    "decide": "search_plan",
    "look": "feature_maps",
    "BudgetError": "errors.BudgetError",
    "GameError": "errors.GameError",
    "ShapruneWarning": "errors.ShapruneWarning",
    "LoggedGame": "worths.LoggedGame",
    "SetWorth": "worths.SetWorth",
    "several": "worths.several",
    "ShapleyImportance": "criteria.ShapleyImportance",
    "Sensitivity": "metrics.Sensitivity",
    "frontier": "metrics.frontier",
    "refine": "metrics.refine",
    "expected_cost": "metrics.expected_cost",
    "layer_values": "metrics.layer_values",
    "quality_on": "metrics.quality_on",
    "redundancy": "metrics.redundancy",
}


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


def moved_message(fullname: str) -> str | None:
    """Return the sentence that states where ``shaprune.x`` is now; None where it was never moved."""
    name = fullname.removeprefix("shaprune.")
    if name in NAMES:
        return f"sp.{name} is now sp.{NAMES[name]}"
    from shaprune.names.moved_modules import modules

    moved = modules()
    if name in moved:
        return f"{fullname} is now shaprune.{moved[name]}"
    inside = [f"{old} is now {new}" for old, new in moved.items() if old.startswith(f"{name}.")]
    return f"shaprune has no {name!r} any more: {', '.join(inside)}" if inside else None
