"""Worths of coalitions that need options, games that share a pass, and a log of worths for several estimators.

Worths without options are named by a string, such as ``worth="fidelity"``.
"""

from shaprune.network.game.shared_games import several
from shaprune.network.game.subset_worth import Only
from shaprune.network.game.worths import Evaluate, SetWorth, Worth
from shaprune.values.games.logged import LoggedGame

__all__ = ["Evaluate", "LoggedGame", "Only", "SetWorth", "Worth", "several"]
