"""Witnesses of network games, taken on a few examples, without keeping anything for long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shaprune.network.game.network_game import NetworkGame
from shaprune.values.games.witness import Witness, question_for


def witness_of(game: NetworkGame) -> Witness:
    """Ask a game the few rows of `question_for`.

    Raises:
        GameError: one of the worths is not finite.
    """
    question = question_for(game)
    small, asked = game, question
    if question.examples is not None:
        examples, rows = np.unique(question.examples, return_inverse=True)
        small, asked = game.part(examples), replace(question, examples=rows.reshape(-1))
    elif game.whole_model is None:
        small = game.at(game.precision)  # the activations that it keeps go with it
    return Witness(question, asked.of(small), game.dense, game.rough)
