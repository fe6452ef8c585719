"""shaprune: smaller, faster trained networks with cooperative game theory.

Names load on first use, so that ``import shaprune`` stays fast and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shaprune.criteria.torch_pruning_importance import ShapleyImportance as ShapleyImportance
    from shaprune.deploy.export import export as export
    from shaprune.deploy.save import load as load
    from shaprune.deploy.save import save as save
    from shaprune.errors import BudgetError as BudgetError
    from shaprune.errors import GameError as GameError
    from shaprune.errors import InputError as InputError
    from shaprune.errors import ShapruneError as ShapruneError
    from shaprune.errors import ShapruneWarning as ShapruneWarning
    from shaprune.errors import SurgeryError as SurgeryError
    from shaprune.network.discovery.find_players import find_players as find_players
    from shaprune.network.game.network_game import NetworkGame as NetworkGame
    from shaprune.network.game.shared_games import several as several
    from shaprune.network.game.subset_worth import Only as Only
    from shaprune.network.game.worths import Evaluate as Evaluate
    from shaprune.network.game.worths import SetWorth as SetWorth
    from shaprune.pipeline.compress import compress as compress
    from shaprune.pipeline.cost_estimate import expected_cost as expected_cost
    from shaprune.pipeline.feature_maps import look as look
    from shaprune.pipeline.prune import prune as prune
    from shaprune.pipeline.score import score as score
    from shaprune.pipeline.search import decide as decide
    from shaprune.pipeline.search import quality_on as quality_on
    from shaprune.pipeline.sensitivity import layer_values as layer_values
    from shaprune.pipeline.sensitivity import sensitivity as sensitivity
    from shaprune.planning.budget import Budget as Budget
    from shaprune.planning.frontier import frontier as frontier
    from shaprune.planning.plan import Plan as Plan
    from shaprune.planning.plan import plan as plan
    from shaprune.planning.refine import refine as refine
    from shaprune.planning.scores import Scores as Scores
    from shaprune.planning.sensitivity_curves import Sensitivity as Sensitivity
    from shaprune.players.players import Players as Players
    from shaprune.recovery.steps import recover as recover
    from shaprune.values.estimate import estimate as estimate
    from shaprune.values.games.game import Game as Game
    from shaprune.values.games.logged import LoggedGame as LoggedGame
    from shaprune.values.redundancy import redundancy as redundancy
    from shaprune.values.result import Values as Values

_HOMES = {
    "BudgetError": "shaprune.errors",
    "Sensitivity": "shaprune.planning.sensitivity_curves",
    "layer_values": "shaprune.pipeline.sensitivity",
    "sensitivity": "shaprune.pipeline.sensitivity",
    "refine": "shaprune.planning.refine",
    "frontier": "shaprune.planning.frontier",
    "quality_on": "shaprune.pipeline.search",
    "decide": "shaprune.pipeline.search",
    "Budget": "shaprune.planning.budget",
    "Evaluate": "shaprune.network.game.worths",
    "Game": "shaprune.values.games.game",
    "GameError": "shaprune.errors",
    "InputError": "shaprune.errors",
    "LoggedGame": "shaprune.values.games.logged",
    "NetworkGame": "shaprune.network.game.network_game",
    "Only": "shaprune.network.game.subset_worth",
    "Plan": "shaprune.planning.plan",
    "Players": "shaprune.players.players",
    "Scores": "shaprune.planning.scores",
    "SetWorth": "shaprune.network.game.worths",
    "ShapleyImportance": "shaprune.criteria.torch_pruning_importance",
    "ShapruneError": "shaprune.errors",
    "ShapruneWarning": "shaprune.errors",
    "SurgeryError": "shaprune.errors",
    "Values": "shaprune.values.result",
    "compress": "shaprune.pipeline.compress",
    "estimate": "shaprune.values.estimate",
    "expected_cost": "shaprune.pipeline.cost_estimate",
    "export": "shaprune.deploy.export",
    "find_players": "shaprune.network.discovery.find_players",
    "load": "shaprune.deploy.save",
    "look": "shaprune.pipeline.feature_maps",
    "plan": "shaprune.planning.plan",
    "prune": "shaprune.pipeline.prune",
    "recover": "shaprune.recovery.steps",
    "redundancy": "shaprune.values.redundancy",
    "save": "shaprune.deploy.save",
    "score": "shaprune.pipeline.score",
    "several": "shaprune.network.game.shared_games",
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
