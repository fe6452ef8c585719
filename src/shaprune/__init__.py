"""shaprune: smaller, faster trained networks with cooperative game theory.

Names load on first use, so that ``import shaprune`` stays fast and needs no torch. Public are the names of ``__all__``
and the modules of `_NAMESPACES`: ``sp.stopping.seconds(60)``, ``from shaprune.recovery import Finetune``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shaprune.names.lazy import resolve_on_use
from shaprune.names.moved import install

if TYPE_CHECKING:
    from shaprune import builtin as builtin
    from shaprune import criteria as criteria
    from shaprune import errors as errors
    from shaprune import estimators as estimators
    from shaprune import metrics as metrics
    from shaprune import options as options
    from shaprune import recovery as recovery
    from shaprune import stopping as stopping
    from shaprune import worths as worths
    from shaprune.deploy.export import export as export
    from shaprune.deploy.save import load as load
    from shaprune.deploy.save import save as save
    from shaprune.errors import InputError as InputError
    from shaprune.errors import ShapruneError as ShapruneError
    from shaprune.errors import SurgeryError as SurgeryError
    from shaprune.network.discovery.find_players import find_players as find_players
    from shaprune.network.game.network_game import NetworkGame as NetworkGame
    from shaprune.network.game.subset_worth import Only as Only
    from shaprune.network.game.worths import Evaluate as Evaluate
    from shaprune.pipeline.compress import compress as compress
    from shaprune.pipeline.feature_maps import feature_maps as feature_maps
    from shaprune.pipeline.prune import prune as prune
    from shaprune.pipeline.score import score as score
    from shaprune.pipeline.search import search_plan as search_plan
    from shaprune.pipeline.sensitivity import sensitivity as sensitivity
    from shaprune.planning.budget import Budget as Budget
    from shaprune.planning.plan import Plan as Plan
    from shaprune.planning.plan import plan as plan
    from shaprune.planning.scores import Scores as Scores
    from shaprune.players.players import Players as Players
    from shaprune.recovery.steps import recover as recover
    from shaprune.values.estimate import estimate as estimate
    from shaprune.values.games.game import Game as Game
    from shaprune.values.result import Values as Values

_HOMES = {
    "Budget": "shaprune.planning.budget",
    "Evaluate": "shaprune.network.game.worths",
    "Game": "shaprune.values.games.game",
    "InputError": "shaprune.errors",
    "NetworkGame": "shaprune.network.game.network_game",
    "Only": "shaprune.network.game.subset_worth",
    "Plan": "shaprune.planning.plan",
    "Players": "shaprune.players.players",
    "Scores": "shaprune.planning.scores",
    "ShapruneError": "shaprune.errors",
    "SurgeryError": "shaprune.errors",
    "Values": "shaprune.values.result",
    "compress": "shaprune.pipeline.compress",
    "estimate": "shaprune.values.estimate",
    "export": "shaprune.deploy.export",
    "feature_maps": "shaprune.pipeline.feature_maps",
    "find_players": "shaprune.network.discovery.find_players",
    "load": "shaprune.deploy.save",
    "plan": "shaprune.planning.plan",
    "prune": "shaprune.pipeline.prune",
    "recover": "shaprune.recovery.steps",
    "save": "shaprune.deploy.save",
    "score": "shaprune.pipeline.score",
    "search_plan": "shaprune.pipeline.search",
    "sensitivity": "shaprune.pipeline.sensitivity",
}
_NAMESPACES = ("builtin", "criteria", "errors", "estimators", "metrics", "options", "recovery", "stopping", "worths")

__all__ = sorted(_HOMES)


if TYPE_CHECKING:
    __version__: str
else:  # type checkers must not take any name for a public one
    _resolve = resolve_on_use(__name__, _HOMES, _NAMESPACES)

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("shaprune")
        return _resolve(name)


install()


def __dir__() -> list[str]:
    return [*__all__, *_NAMESPACES]
