"""Witness worths: a few answers that show whether a game is still the one whose answers are known.

What a worth depends on cannot all be seen: code, closures, attributes, hooks. Before known answers are used, the same
few worths are therefore asked anew and compared with what they were. Every row removes a player, and the examples are
spread over the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.games.arrays import Coalitions, Examples, Worths
from shaprune.values.games.checks import describe_coalition
from shaprune.values.games.game import Game, Question

ROWS = 128  # (coalition, example) rows that are asked, each of an example of its own where there are so many
LEAST = 16  # rows where there are fewer examples
WHOLE = 3  # coalitions that are asked where only all examples together have a worth
SHARES = (0.5, 0.9, 0.75, 0.25)  # of the players that stay
# What rounding explains on another machine, or with other batches: a share of the range of the worths, and of their
# size; in float32, and where fewer digits are kept.
FINE, ROUGH = (1e-4, 2.5e-7), (3e-2, 2e-3)
FLIPS = 64  # of a worth with few levels (accuracy), one row in so many may flip


@dataclass(frozen=True, eq=False)
class Witness:
    """What a game answered.

    Attributes:
        question: what was asked.
        worths: (R,) the answers.
        dense: (E,) how the whole network answers, see `Game.dense`.
        rough: whether they are rounded to few digits.
    """

    question: Question
    worths: Worths
    dense: NDArray[np.float64]
    rough: bool = False

    def to_json(self) -> dict[str, Any]:
        """What `difference` needs, JSON-ready."""
        return {"worths": self.worths.tolist(), "dense": self.dense.tolist(), "rough": self.rough}

    def changed(self, then: Any) -> str | None:
        """Return what has changed since an earlier witness of the same game (`to_json`), in words, or None.

        Raises:
            InputError: it is no witness.
        """
        found = difference(then, self.to_json())
        if found is None:
            return None
        what, row = found
        if what == "network":
            return (
                "the network answers otherwise on the same inputs with the same weights: its code, an attribute, a "
                "hook or an option of a layer has changed"
            )
        told = self.told(row, float(then["worths"][row])) if row < len(then["worths"]) else "it was asked otherwise"
        if len(self.dense):
            return f"the worth has changed (its code, its options, what it closes over), or is random: {told}"
        return f"the network, or what evaluates it, has changed in code, attributes, hooks or data: {told}"

    def told(self, row: int, other: float) -> str:
        """One of the worths beside another that was expected."""
        on = "" if self.question.examples is None else f" on example {self.question.examples[row]}"
        which = describe_coalition(self.question.rows[row])
        return f"{which}{on} is worth {self.worths[row]:.7g} here and {other:.7g} there"


def difference(then: Any, now: Any) -> tuple[Literal["network", "worth"], int] | None:
    """Return in what two witnesses of one game (`Witness.to_json`) differ, and at which row first; None = they agree.

    Raises:
        InputError: one of them is no witness.
    """
    try:
        rough = bool(then["rough"]) or bool(now["rough"])
        pairs = {
            name: [np.asarray(one[key], dtype=np.float64) for one in (then, now)]
            for name, key in (("network", "dense"), ("worth", "worths"))
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"worths that were kept for comparison are damaged ({error!r}); start elsewhere") from error
    rows = differing(*pairs["network"], rough=rough)
    if len(rows):
        return "network", int(rows[0])
    rows = differing(*pairs["worth"], rough=rough)
    return ("worth", int(rows[0])) if len(rows) else None


def question_for(game: Game) -> Question:
    """The few rows to ask of a game; always the same for as many players, examples and classes."""
    if not game.separable:
        return Question(_coalitions(game.n_players, WHOLE))
    examples = _examples(game)
    rows = max(len(examples), LEAST)
    return Question(_coalitions(game.n_players, rows), np.resize(examples, rows))


def differing(then: Worths, now: Worths, *, rough: bool) -> NDArray[np.int64]:
    """Indices at which two answers differ by more than rounding explains; all where they do not fit each other."""
    if then.shape != now.shape or then.ndim != 1:
        return np.arange(max(np.size(then), np.size(now), 1))
    if not len(then):
        return np.zeros(0, dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.flatnonzero(~(np.abs(now - then) <= tolerance(then, rough=rough)))
    levels = len(np.unique(then))
    few = levels <= max(2, len(then) // 8)
    return rows[:0] if few and levels > 1 and len(rows) <= len(then) // FLIPS else rows


def tolerance(worths: Worths, *, rough: bool) -> float:
    """The largest difference that rounding explains between two answers to a question about these."""
    share, digits = ROUGH if rough else FINE
    with np.errstate(over="ignore", invalid="ignore"):
        return float(share * (worths.max() - worths.min()) + digits * np.abs(worths).max())


def _examples(game: Game) -> Examples:
    """Up to `ROWS` examples: the first of every class, then the second, and so on; without classes, evenly spread."""
    n = game.n_examples
    if n <= ROWS:
        return np.arange(n)
    if game.labels is None:
        return np.linspace(0, n - 1, ROWS).astype(np.int64)
    order = np.argsort(game.labels, kind="stable")
    ordered = np.asarray(game.labels)[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    within = np.arange(n) - np.repeat(first, np.diff(np.append(first, n)))
    return np.sort(order[np.lexsort((order, within))][:ROWS])


def _coalitions(n_players: int, rows: int) -> Coalitions:
    """Coalitions that lack a player, and keep one where there are two."""
    leaving = np.argsort(np.random.default_rng(0).random((rows, n_players)), axis=1)
    shares = np.resize(SHARES, rows)
    kept = np.clip((shares * n_players).astype(np.int64), min(1, n_players - 1), n_players - 1)
    return np.take_along_axis(np.arange(n_players)[None] < kept[:, None], np.argsort(leaving, axis=1), axis=1)
