"""An importance for torch-pruning's pruners that is computed from values."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.layers.kinds import widths_of
from shaprune.network.removal.surgery import check_fits
from shaprune.players.players import Players, check_channels
from shaprune.values.result import Values


class Scored(Protocol):
    """Values by group name, with the players they belong to: what `sp.score` returns."""

    @property
    def players(self) -> Players: ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> Values: ...


class ShapleyImportance:
    """An importance for torch-pruning's pruners that ranks by our values.

        importance = sp.criteria.ShapleyImportance(scores, model)
        tp.pruner.BasePruner(model, example_inputs, importance=importance, pruning_ratio=0.5).step()

    A group of torch-pruning gets the value of the player that owns each of its root channels. Groups without values
    (such as the classifier's outputs) are answered with None, and torch-pruning leaves them alone.

    Values belong to the dense network, so pruning must happen in one step (``iterative_steps=1``, the default); score
    again and make another pruner for the next.

    Args:
        scores: from `sp.score` on ``model``.
        model: the module that is given to the pruner; layers are found in it by identity.

    Raises:
        InputError: scores of another model, or of players that are no channels.
    """

    def __init__(self, scores: Scored, model: nn.Module) -> None:
        check_fits(model, scores.players)
        check_channels(scores.players.groups, "ShapleyImportance")
        self._names = {module: name for name, module in model.named_modules()}
        self._values = _by_channel(scores)

    def __call__(self, group: Any) -> Tensor | None:
        """(channels,) values of the root channels of a torch-pruning group; None = leave it alone.

        Raises:
            InputError: a layer of another model, one that has already been pruned, or one where some channels have no
                value.
        """
        root = group[0]
        module, consumes = root.dep.target.module, root.dep.handler.__name__ == "prune_in_channels"
        if module not in self._names:
            raise InputError(
                "ShapleyImportance was made for another model object (a copy?); make it with the model that the pruner "
                "gets"
            )
        name = self._names[module]
        values = self._values.get((name, consumes))
        if values is None:
            return None
        width = widths_of(module)
        if width is not None and width[0 if consumes else 1] != len(values):
            raise InputError(
                f"layer {name!r} had {len(values)} channels when it was scored and has "
                f"{width[0 if consumes else 1]} now; use iterative_steps=1, and score again before pruning further"
            )
        found = values[list(root.idxs)]
        if np.isnan(found).any():
            raise InputError(
                f"{int(np.isnan(found).sum())} of {len(found)} channels of layer {name!r} have no value; "
                "put it into the pruner's ignored_layers"
            )
        return torch.from_numpy(found)


def _by_channel(scores: Scored) -> dict[tuple[str, bool], NDArray[np.float64]]:
    """(layer, consumed or produced) -> value of the player that owns each channel, NaN where none does."""
    result: dict[tuple[str, bool], NDArray[np.float64]] = {}
    players = scores.players
    for group in players.groups:
        if group.name not in scores:
            continue
        padded = np.append(scores[group.name].value, np.nan)
        for member in group.members:
            layer = players.layers[member.module]
            for consumes in (True, False):
                if member.role != ("out" if consumes else "in"):
                    width = layer.n_in if consumes else layer.n_out
                    values = padded[member.owners(width, 0, len(group))]
                    known = result.setdefault((member.module, consumes), np.full(width, np.nan))
                    known[:] = np.where(np.isnan(values), known, values)
    return result
