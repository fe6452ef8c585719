"""shaprune: smaller, faster trained networks with cooperative game theory.

Names load on first use, so that ``import shaprune`` stays fast and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shaprune.budget import Budget as Budget
    from shaprune.compression import compress as compress
    from shaprune.costing import expected_cost as expected_cost
    from shaprune.errors import BudgetError as BudgetError
    from shaprune.errors import GameError as GameError
    from shaprune.errors import InputError as InputError
    from shaprune.errors import ShapruneError as ShapruneError
    from shaprune.errors import ShapruneWarning as ShapruneWarning
    from shaprune.errors import SurgeryError as SurgeryError
    from shaprune.exporting import export as export
    from shaprune.files import load as load
    from shaprune.files import save as save
    from shaprune.frontiers import frontier as frontier
    from shaprune.looking import look as look
    from shaprune.network.discovery import find_players as find_players
    from shaprune.network.game import NetworkGame as NetworkGame
    from shaprune.network.importance import ShapleyImportance as ShapleyImportance
    from shaprune.network.only import Only as Only
    from shaprune.network.players import Players as Players
    from shaprune.network.several import several as several
    from shaprune.network.worths import Evaluate as Evaluate
    from shaprune.network.worths import SetWorth as SetWorth
    from shaprune.planning import Plan as Plan
    from shaprune.planning import plan as plan
    from shaprune.pruning import prune as prune
    from shaprune.recovery.steps import recover as recover
    from shaprune.scores import Scores as Scores
    from shaprune.scoring import score as score
    from shaprune.search import decide as decide
    from shaprune.search import quality_on as quality_on
    from shaprune.sensing import layer_values as layer_values
    from shaprune.sensing import sensitivity as sensitivity
    from shaprune.sensitivities import Sensitivity as Sensitivity
    from shaprune.swaps import refine as refine
    from shaprune.values.estimate import estimate as estimate
    from shaprune.values.game import Game as Game
    from shaprune.values.log import LoggedGame as LoggedGame
    from shaprune.values.redundancy import redundancy as redundancy
    from shaprune.values.result import Values as Values

_HOMES = {
    "BudgetError": "shaprune.errors",
    "Sensitivity": "shaprune.sensitivities",
    "layer_values": "shaprune.sensing",
    "sensitivity": "shaprune.sensing",
    "refine": "shaprune.swaps",
    "frontier": "shaprune.frontiers",
    "quality_on": "shaprune.search",
    "decide": "shaprune.search",
    "Budget": "shaprune.budget",
    "Evaluate": "shaprune.network.worths",
    "Game": "shaprune.values.game",
    "GameError": "shaprune.errors",
    "InputError": "shaprune.errors",
    "LoggedGame": "shaprune.values.log",
    "NetworkGame": "shaprune.network.game",
    "Only": "shaprune.network.only",
    "Plan": "shaprune.planning",
    "Players": "shaprune.network.players",
    "Scores": "shaprune.scores",
    "SetWorth": "shaprune.network.worths",
    "ShapleyImportance": "shaprune.network.importance",
    "ShapruneError": "shaprune.errors",
    "ShapruneWarning": "shaprune.errors",
    "SurgeryError": "shaprune.errors",
    "Values": "shaprune.values.result",
    "compress": "shaprune.compression",
    "estimate": "shaprune.values.estimate",
    "expected_cost": "shaprune.costing",
    "export": "shaprune.exporting",
    "find_players": "shaprune.network.discovery",
    "load": "shaprune.files",
    "look": "shaprune.looking",
    "plan": "shaprune.planning",
    "prune": "shaprune.pruning",
    "recover": "shaprune.recovery.steps",
    "redundancy": "shaprune.values.redundancy",
    "save": "shaprune.files",
    "score": "shaprune.scoring",
    "several": "shaprune.network.several",
}

__all__ = sorted(_HOMES)


if TYPE_CHECKING:
    __version__: str
else:  # type checkers must not take any name for a public one

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("shaprune")
        if name not in _HOMES:
            from shaprune.errors import nearest

            raise AttributeError(f"shaprune has no {name!r}{nearest(name, _HOMES)}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
