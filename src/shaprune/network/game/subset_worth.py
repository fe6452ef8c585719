"""A worth on one class, or on one group of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.worths import AnyWorth, Evaluate, worth_name


@dataclass(frozen=True, eq=False)
class Only:
    """A worth on some of the examples: those of some classes, those named, or those named that are of the classes.

    Attributes:
        worth: a name, a callable, a metric, `Worth` or `SetWorth`.
        classes: a class or several; targets must be one class index per example.
        examples: distinct indices into the data, or a boolean row over all of them; a NumPy array or a tensor, too.

    Raises:
        InputError: around `Evaluate`, which sees no examples; around another `Only`; neither classes nor examples.
    """

    worth: AnyWorth
    classes: int | Sequence[int] | None = None
    examples: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.worth, Evaluate):
            raise InputError("Only cannot stand around Evaluate, whose function chooses its own examples; choose there")
        if isinstance(self.worth, Only):
            raise InputError("Only stands around Only; give classes and examples to one of them")
        if self.classes is None and self.examples is None:
            raise InputError("Only needs classes=... or examples=...")

    @property
    def name(self) -> str:
        """What to call it in results: ``accuracy of class 3``."""
        name = worth_name(self.worth)
        if self.classes is not None:
            classes = np.atleast_1d(np.asarray(self.classes))
            name += f" of class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"
        return name if self.examples is None else f"{name} of some examples"

    def rows(self, calibration: Calibration) -> NDArray[np.int64]:
        """Indices of the examples that count.

        Raises:
            InputError: no example is left, a class that does not occur, or indices that do not fit the data.
        """
        rows = (
            np.arange(calibration.n_examples)
            if self.examples is None
            else _indices(self.examples, calibration.n_examples)
        )
        if self.classes is not None:
            rows = rows[np.isin(_labels(calibration)[rows], _classes(self.classes, calibration))]
        if not len(rows):
            both = self.classes is not None and self.examples is not None
            why = f"none of these examples is of class {self.classes}" if both else "examples is empty"
            raise InputError(f"{worth_name(self.worth)} on no example: {why}; choose others")
        return rows


def restrict_to_subset(calibration: Calibration, worth: AnyWorth | Only) -> tuple[Calibration, AnyWorth]:
    """The examples that a worth asks for, and the worth on them."""
    return (calibration.part(worth.rows(calibration)), worth.worth) if isinstance(worth, Only) else (calibration, worth)


def _indices(examples: Any, n: int) -> NDArray[np.int64]:
    given = np.asarray(examples.cpu() if hasattr(examples, "cpu") else examples)
    if given.dtype == np.bool_:
        if given.shape != (n,):
            raise InputError(f"examples has shape {given.shape}; a mask needs one entry for each of {n} examples")
        return np.flatnonzero(given)
    if given.size == 0:
        return np.zeros(0, dtype=np.int64)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise InputError(f"examples is {given.dtype} of shape {given.shape}; give a row of indices or a boolean mask")
    if given.min() < 0 or given.max() >= n:
        wrong = given[(given < 0) | (given >= n)][0]
        raise InputError(f"there is no example {wrong}; the data hold examples 0..{n - 1}")
    found, times = np.unique(given, return_counts=True)
    if len(found) < len(given):
        raise InputError(f"example {found[times > 1][0]} is named twice in examples; name each once")
    return given.astype(np.int64)


def _labels(calibration: Calibration) -> NDArray[np.int64]:
    labels = calibration.labels
    if labels is None:
        raise InputError("classes=... needs one class index per example as targets; use examples=... instead")
    return labels


def _classes(classes: int | Sequence[int], calibration: Calibration) -> NDArray[np.int64]:
    wanted, known = np.atleast_1d(np.asarray(classes)), np.unique(_labels(calibration))
    if wanted.size == 0:
        raise InputError("classes is empty; name a class")
    if wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
        raise InputError(f"classes is {classes!r}; give a class index or several")
    unknown = wanted[~np.isin(wanted, known)]
    if len(unknown):
        shown = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
        raise InputError(f"no example is of class {unknown[0]}; the data hold classes {shown}")
    return wanted.astype(np.int64)
