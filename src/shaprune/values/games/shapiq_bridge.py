"""Bridge to shapiq (an optional package, imported in this file only): games for it, and its approximators here.

The other way needs no bridge: a shapiq game is a callable on boolean matrices, so
``Game.from_function(their_game, their_game.n_players)`` makes it ours. Their games subtract ``normalization_value``
from every worth; that shifts ``worth_all`` and ``worth_none`` and changes no value.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.games.checks import check_worths

if TYPE_CHECKING:
    import shapiq

    from shaprune.values.games.game import Game

    ShapiqGame: TypeAlias = shapiq.Game


def to_shapiq(game: Game, *, player_names: Sequence[str] | None = None) -> ShapiqGame:
    """Return a game for shapiq, for its interaction indices, approximators and plots.

    The worth of a coalition is our worth over all examples, not centred (``normalize=False``): the empty coalition
    keeps its worth. Every coalition that shapiq asks for costs ``game.n_examples`` evaluations.

    Args:
        game: any game of ours.
        player_names: a name per player, so that shapiq also takes coalitions of names.

    Raises:
        InputError: shapiq is not installed; names that are not one per player, each of its own.
    """
    theirs = _shapiq()
    names = None if player_names is None else [str(name) for name in player_names]
    if names is not None and not len(names) == len(set(names)) == game.n_players:
        raise InputError(
            f"player_names holds {len(names)} names, {len(set(names))} of them different; "
            f"give {game.n_players} different ones, one per player"
        )

    class ShapruneGame(theirs.Game):  # type: ignore[name-defined, misc]  # a base that is imported on use
        """A game of shaprune, as shapiq calls it."""

        def value_function(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
            """(R, n) bool or 0 and 1 -> (R,) worths over all examples."""
            rows = np.asarray(coalitions, dtype=bool)
            return check_worths(game(rows), rows)

    made: ShapiqGame = ShapruneGame(game.n_players, normalize=False, player_names=names)
    return made


def kernel_interactions(game: Game, coalitions: int, seed: int) -> NDArray[np.float64]:
    """Pairwise Shapley interactions by shapiq's KernelSHAP-IQ (Fumagalli et al. 2024), paired sampling.

    Args:
        game: at least two players.
        coalitions: how many different coalitions may be asked for.
        seed: of the sampling.

    Returns:
        (n, n) float64, symmetric, zero diagonal.

    Raises:
        InputError: shapiq is not installed.
    """
    n = game.n_players
    sampler = _shapiq().KernelSHAPIQ(n, max_order=2, index="SII", pairing_trick=True, random_state=seed)
    found = sampler.approximate(coalitions, to_shapiq(game))
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = found[(j, i)]
    return matrix


def _shapiq() -> ModuleType:
    try:
        import shapiq
    except ImportError as error:
        raise InputError(f"this needs shapiq: pip install 'shaprune[shapiq]' ({error})") from error
    return shapiq
