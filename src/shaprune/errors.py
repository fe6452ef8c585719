"""The errors that shaprune raises: each names the thing that is wrong and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

__all__ = ["BudgetError", "GameError", "InputError", "ShapruneError", "ShapruneWarning", "SurgeryError"]


class ShapruneError(Exception):
    """Base of every error that shaprune raises on purpose."""


class InputError(ShapruneError, ValueError):
    """An argument cannot be used: an option, a batch, a file, a budget."""


class BudgetError(InputError):
    """A budget that cannot be met; ``reachable`` holds the least that can be reached, by resource."""

    def __init__(self, message: str, reachable: Mapping[str, float]) -> None:
        super().__init__(message)
        self.reachable = dict(reachable)


class GameError(ShapruneError, RuntimeError):
    """A game gave no usable worth: NaN, infinite, or of the wrong shape."""


class SurgeryError(ShapruneError, RuntimeError):
    """The network could not be cut, or the cut network does not run; the input model is as it was."""


class ShapruneWarning(UserWarning):
    """Something works, but not the way the caller may expect (slower, or with less certainty)."""


ALSO_CALLED = {  # what people call an option that has another name here, in lower case with hyphens
    "shapley": "permutation",
    "monte-carlo": "permutation",
    "sampling": "permutation",
    "shap": "permutation",
    "kernelshap": "regression",
    "kernel-shap": "regression",
    "banzhaf": "msr",
    "loo": "leave-one-out",
    "magnitude": "weight_norm",
    "l1": "weight_norm_l1",
    "l2": "weight_norm",
    "mse": "squared_error",
    "mae": "absolute_error",
    "loss": "cross_entropy",
    "nll": "cross_entropy",
}


def nearest(name: str, options: Iterable[str]) -> str:
    """Return the end of an error message: the option nearest to ``name``, and all of them."""
    known = sorted(options)
    meant = ALSO_CALLED.get(name.lower().replace("_", "-"))
    close = [meant] if meant in known else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"{hint} Known: {shown}."


def check_choice(what: str, name: str, options: Iterable[str]) -> None:
    """Raise `InputError` unless ``name`` is one of ``options``."""
    known = list(options)
    if name not in known:
        raise InputError(f"unknown {what} {name!r}{nearest(str(name), known)}")
