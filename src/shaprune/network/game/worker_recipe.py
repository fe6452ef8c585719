"""Recipes of games for other processes: what they are made of, and what their answers depend on."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.borrow import device_of
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.fingerprint import fingerprint_of, identity
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.subset_worth import Only
from shaprune.network.game.worths import AnyWorth, Evaluate
from shaprune.network.precision import RowPrecision
from shaprune.players.players import Players

ROW_PRECISION_KEY = "precision of rows"  # in what a run depends on
MAX_GAMES_KEPT = 2  # games that a worker keeps; each may hold as many activations as its memory bound allows


@dataclass(frozen=True, eq=False)
class GameRecipe:
    """Makes `NetworkGame`s by name where it is called; all of it can be pickled if the model, or ``build``, can.

    Attributes:
        model: the network; None where ``build`` makes it and ``weights`` are loaded into it.
        state: of the `Calibration`; None for `Evaluate`.
        groups: of every game, by its name; None = all.
        threads: of torch where it is called.
    """

    model: nn.Module | None
    build: Callable[[], nn.Module] | None
    weights: Mapping[str, torch.Tensor]
    players: Players
    state: dict[str, Any] | None
    worth: AnyWorth | Only | Evaluate
    groups: Mapping[str, str | None]
    max_memory: int
    precision: RowPrecision
    threads: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    matmul: str = field(default_factory=torch.get_float32_matmul_precision)

    def __call__(self) -> Callable[[str], NetworkGame]:
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul)
        model = self.model if self.build is None else self._built(self.build)
        assert model is not None
        calibration = None if self.state is None else Calibration.received(model, self.state)
        made: OrderedDict[str, NetworkGame] = OrderedDict()

        def game(name: str) -> NetworkGame:
            if name not in made:
                while len(made) >= MAX_GAMES_KEPT:
                    made.popitem(last=False)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ShapruneWarning)  # the driver has said it
                    how: dict[str, Any] = {"max_memory": self.max_memory, "precision": self.precision}
                    made[name] = NetworkGame(model, self.players, calibration, self.worth, self.groups[name], **how)
            made.move_to_end(name)
            return made[name]

        return game

    def _built(self, build: Callable[[], nn.Module]) -> nn.Module:
        model = build()
        if not isinstance(model, nn.Module):
            raise InputError(f"build returned a {type(model).__name__}; it must return a torch.nn.Module")
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"build made another network than the one that is scored: {reason}") from error
        return model.to(self.device).eval()


def worker_recipe(
    model: nn.Module,
    players: Players,
    calibration: Calibration | None,
    worth: AnyWorth | Only | Evaluate,
    groups: Mapping[str, str | None],
    *,
    build: Callable[[], nn.Module] | None,
    max_memory: int,
    precision: RowPrecision,
    workers: int,
) -> GameRecipe:
    """The recipe of these games; the threads of this process are shared out among the workers."""
    threads = max(1, torch.get_num_threads() // workers)
    weights = {} if build is None else model.state_dict()
    state = None if calibration is None else calibration.state()
    own, device = model if build is None else None, device_of(model)
    return GameRecipe(own, build, weights, players, state, worth, dict(groups), max_memory, precision, threads, device)


def answer_dependencies(games: Sequence[NetworkGame]) -> dict[str, str]:
    """What the answers of games of one network depend on, each part by its digest or in words."""
    first = games[0]
    nothing = nn.Identity()
    masks = [site for game in games for site in game.sites]
    parts = {
        "model": fingerprint_of(first.model, [], [], [], n_players=0),
        "masks": fingerprint_of(nothing, masks, [], [], n_players=sum(game.n_players for game in games)),
        ROW_PRECISION_KEY: first.precision,
    }
    if first.whole_model is not None:
        return {**parts, "worth": identity(first.whole_model), "precision": _precision(first.model)}
    calibration, worth = first.calibration, first.evaluator.worth
    data = [calibration.inputs] if calibration.targets is None else [calibration.inputs, calibration.targets]
    return {
        **parts,
        "data": fingerprint_of(nothing, [], data, [], n_players=0),
        "worth": identity(worth),
        "forward": identity(calibration.forward),
        "precision": _precision(first.model),
    }


def _precision(model: nn.Module) -> str:
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return f"{', '.join(kinds)} on {device_of(model).type}, {torch.get_float32_matmul_precision()}"
