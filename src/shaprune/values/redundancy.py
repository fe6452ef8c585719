"""Redundancy: pairwise Shapley interactions (Grabisch and Roubens 1999); negative = one can replace the other.

I(i, j) = sum over S without i and j of [v(S+i+j) - v(S+i) - v(S+j) + v(S)] / ((n - 1) C(n - 2, |S|)). Below zero: each
is worth less where the other is there, they can replace each other. Above zero: they need each other. An additive game
has no interactions. The index belongs to the worth: what the loss calls redundant, accuracy may not.

Three ways to it:

- ``exact``: all 2^n coalitions.
- ``permutation``: two players that leave one after the other give one difference of the sum above, with |S| uniform, as
  it should be. n orders are drawn together as a randomly relabelled zigzag design (Williams 1949), in which every pair
  stands side by side exactly twice: 2 n^2 coalitions, two samples of every pair. Where single examples have worths and
  the budget pays for two such blocks each, every example has its own blocks; below, every order takes another example.
  The standard error comes from the spread between blocks.
- ``kernelshap-iq``: weighted regression by shapiq (Fumagalli et al. 2024), paired; no standard error.

Relative errors over all pairs (permutation / kernelshap-iq, means of 3 seeds) at budgets of so many coalitions over all
examples; hidden units of a digits network with 200 images (16 players), and sums of unanimity games:

    coalitions   cross-entropy   accuracy    fidelity    unanimity, 16 and 30 players
    2 n^2        .11 / .29       .63 / .76   .04 / .00   .63 / .47   .65 / .82
    8 n^2        .04 / .09       .31 / .27   .00 / .00   .34 / .14   .32 / .29

With n^2 coalitions, only twice its unknowns, kernelshap-iq's error mostly exceeds 1; so its least budget is 2 n^2.
shapiq's others are behind it: SVARM-IQ .28 and .51 in the last two fields, its permutation sampling .61 and .72.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError, check_choice
from shaprune.storage.tables import Table, Tabular
from shaprune.values.estimate import check_whole_number
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.games.repeatability import RepeatabilityCheck
from shaprune.values.games.shapiq_bridge import kernel_interactions
from shaprune.values.interactions import enumerated, sampled

MAX_PLAYERS = 30
MAX_ENUMERATED_BY_DEFAULT = 12  # up to so many players, all coalitions are the default
MAX_ENUMERATED = 24
METHODS = ("exact", "permutation", "kernelshap-iq")


@dataclass(frozen=True, eq=False, repr=False)
class Redundancy(Tabular):
    """Pairwise interactions of the players of a game.

    Attributes:
        matrix: (n, n) float64 in units of the worth, symmetric, zero diagonal. Negative = the two can replace each
            other.
        stderr: (n, n) float64, standard errors of ``matrix``; 0 where it is exact; None = unknown
            (`kernelshap-iq`; `permutation` on a small budget).
        n_evaluations: (coalition, example) rows paid; what a log answered is not among them.
        method: ``"exact"``, ``"permutation"`` or ``"kernelshap-iq"``.
        options: what it was asked for, JSON types only.
    """

    matrix: NDArray[np.float64]
    stderr: NDArray[np.float64] | None
    n_evaluations: int
    method: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in (self.matrix, self.stderr):
            if array is not None:
                array.setflags(write=False)

    @property
    def n(self) -> int:
        """Number of players."""
        return len(self.matrix)

    def pairs(self, k: int = 10) -> list[tuple[int, int, float]]:
        """The ``k`` most redundant pairs (i, j, interaction), i < j, the most negative first; ties in player order.

        All pairs where there are fewer than ``k``. A pair whose interaction is zero or above is not redundant.

        Raises:
            InputError: ``k`` below 1.
        """
        if k < 1:
            raise InputError(f"k is {k}; ask for at least one pair")
        first, second = np.triu_indices(self.n, 1)
        found = self.matrix[first, second]
        order = np.argsort(found, kind="stable")[:k]
        return [(int(first[p]), int(second[p]), float(found[p])) for p in order]

    def headline(self) -> str:
        """What was computed how, and what was paid."""
        return f"{self.n} players by {self.method}; {self.n_evaluations:,} evaluations"

    def table(self) -> Table:
        """The ten most redundant pairs."""
        return self._rows(self.pairs())

    def records(self) -> Table:
        """All pairs, the most redundant first."""
        return self._rows(self.pairs(max(1, self.n**2)))

    def _rows(self, pairs: list[tuple[int, int, float]]) -> Table:
        rows = [(i, j, x, None if self.stderr is None else float(self.stderr[i, j])) for i, j, x in pairs]
        return Table({"first": "", "second": "", "interaction": ".4g", "stderr": ".2g"}, rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "matrix": self.matrix.tolist(),
            "stderr": None if self.stderr is None else self.stderr.tolist(),
            "n_evaluations": self.n_evaluations,
            "method": self.method,
            "options": self.options,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Redundancy:
        """Inverse of `to_json`.

        Raises:
            InputError: a field is missing, or the matrices are not finite, square, symmetric and of one size.
        """
        try:
            stderr = None if data["stderr"] is None else np.asarray(data["stderr"], dtype=np.float64)
            matrix = np.asarray(data["matrix"], dtype=np.float64)
            read = Redundancy(matrix, stderr, int(data["n_evaluations"]), str(data["method"]), dict(data["options"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no redundancy written by shaprune: {error!r}") from error
        for name, found in (("matrix", read.matrix), ("stderr", read.stderr)):
            if found is None:
                continue
            square = found.ndim == 2 and found.shape == 2 * (len(read.matrix),)
            if not square or not np.isfinite(found).all() or np.diag(found).any() or (found != found.T).any():
                raise InputError(
                    f"this redundancy is damaged: {name} is not finite, symmetric and zero on its diagonal"
                )
        return read


def redundancy(
    game: Game, *, max_evaluations: int | None = None, method: str | None = None, seed: int = 0
) -> Redundancy:
    """Find which players of a game can replace each other.

    A game of one player has no pairs: a 1 x 1 matrix of zero, and nothing is evaluated.

    Args:
        game: any `Game` of at most 30 players.
        max_evaluations: budget in (coalition, example) rows; None = all coalitions up to 12 players, else 8 n^2
            coalitions over all examples.
        method: ``"exact"``, ``"permutation"`` or ``"kernelshap-iq"`` (needs shapiq). None = exact where the budget pays
            for all coalitions; else permutation where single examples have worths, and kernelshap-iq where not.
        seed: of the sampling; the same seed gives the same bits.

    Raises:
        InputError: no game, more than 30 players, an unknown method, a budget that is too small (the smallest that
            works is named), shapiq where it is needed and missing.
        GameError: a worth that is not finite, or a game that answers the same question in two ways.
    """
    if not isinstance(game, Game):
        raise InputError(
            f"game is a {type(game).__name__}; wrap a callable with Game.from_function(function, n_players)"
        )
    n = game.n_players
    if n > MAX_PLAYERS:
        raise InputError(
            f"redundancy compares at most {MAX_PLAYERS} players and this game has {n:,}; "
            "let one small group play: NetworkGame(model, players, data, group='NAME')"
        )
    check_whole_number("seed", seed, 0)
    if max_evaluations is not None:
        check_whole_number("max_evaluations", max_evaluations, 1)
    if method is not None:
        check_choice("method", method, METHODS)
    options = {"max_evaluations": max_evaluations, "seed": seed}
    if n == 1:
        return Redundancy(np.zeros((1, 1)), np.zeros((1, 1)), 0, "exact", options)
    chosen, budget = _method_and_budget(game, method, max_evaluations)
    answered = game.answered
    watched = RepeatabilityCheck(game)
    counted = CountingGame(watched)
    error: NDArray[np.float64] | None
    if chosen == "exact":
        matrix, error = enumerated(counted), np.zeros((n, n))
    elif chosen == "permutation":
        matrix, error = sampled(counted, budget, seed)
    else:
        matrix, error = kernel_interactions(counted, min(budget // game.n_examples, 1 << n), seed), None
    watched.ask_again(counted, None if max_evaluations is None else max_evaluations - counted.evaluations)
    return Redundancy(matrix, error, counted.evaluations - (game.answered - answered), chosen, options)


def _method_and_budget(game: Game, method: str | None, max_evaluations: int | None) -> tuple[str, int]:
    """The method and its budget.

    Raises:
        InputError: the budget is too small, or there are too many players to enumerate.
    """
    n, per_example = game.n_players, game.separable and game.n_examples > 1
    every = game.n_examples << n
    least = {
        "exact": every,
        "permutation": 2 * n * n * (1 if per_example else game.n_examples),
        "kernelshap-iq": min(2 * n * n * game.n_examples, every),  # a regression on fewer coalitions is far off
    }
    if method == "exact" and n > MAX_ENUMERATED:
        raise InputError(
            f"exact interactions of {n} players need 2^{n} coalitions; the limit is {MAX_ENUMERATED} players"
        )
    pays = (
        n <= MAX_ENUMERATED_BY_DEFAULT if max_evaluations is None else n <= MAX_ENUMERATED and every <= max_evaluations
    )
    sampler = "permutation" if per_example else "kernelshap-iq"
    chosen = method or ("exact" if pays else sampler)
    budget = max_evaluations or max(least[chosen], 8 * n * n * game.n_examples)
    if budget < least[chosen]:
        smallest = least[chosen] if method else min(least[chosen], every)
        raise InputError(
            f"max_evaluations={budget} is too small for the interactions of {n} players over {game.n_examples} "
            f"example(s){f' by method {method!r}' if method else ''}; the smallest that works is {smallest}"
        )
    return chosen, budget
