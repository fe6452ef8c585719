"""Masks at the consumers' inputs: a zero there is what removal does.

Behind a producer, batch-norm, bias and activation would turn a zero into something else, so the mask multiplies what
the consumers of a group read. Every row of a batch may carry its own coalition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import GameError
from shaprune.network.players import Group, Players


@dataclass(frozen=True, eq=False)
class Edge:
    """The input of one consumer: which mask column multiplies each of its channels.

    Attributes:
        module: name of the consumer.
        n_players: n, the number of players of the game.
        owners: (channels,) int64, the player (counted within the game) of each channel; n = nobody, never masked.
        last: the channels are the last dimension (linear layers), not the second (convolutions).
    """

    module: str
    n_players: int
    owners: Tensor
    last: bool

    def apply(self, x: Tensor, mask: Tensor) -> Tensor:
        """Multiply ``x`` (rows, channels, ...) or (rows, ..., channels) by ``mask`` (rows, n)."""
        if len(x) != len(mask):
            raise GameError(
                f"at the input of {self.module} the batch dimension is {len(x)} instead of {len(mask)} rows; "
                "this layer mixes examples or moves the batch, exclude its group"
            )
        columns = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1).to(x.dtype)[:, self.owners]
        return x * (columns.view(len(x), *[1] * (x.ndim - 2), -1) if self.last else _channels_second(columns, x))


def _channels_second(columns: Tensor, x: Tensor) -> Tensor:
    return columns.view(len(x), -1, *[1] * (x.ndim - 2))


def edges_of(players: Players, groups: Sequence[Group], device: torch.device) -> list[Edge]:
    """The edges of the game over the players of ``groups``, in that order."""
    n = sum(len(g) for g in groups)
    owners: dict[str, NDArray[np.int64]] = {}
    offset = 0
    for group in groups:
        for member in group.consumers:
            layer = players.layers[member.module]
            ours = member.owners(layer.n_in, offset, n)
            theirs = owners.setdefault(member.module, np.full(layer.n_in, n, dtype=np.int64))
            owners[member.module] = np.where(ours < n, ours, theirs)
        offset += len(group)
    return [
        Edge(name, n, torch.from_numpy(columns).to(device), players.layers[name].kind == "linear")
        for name, columns in owners.items()
    ]


@contextmanager
def masked(model: nn.Module, edges: Sequence[Edge], mask: Tensor) -> Iterator[None]:
    """Run ``model`` with masks: hooks on the consumers multiply their inputs by ``mask``.

    ``mask`` is (rows, n), or (1, n) for all rows alike. The hooks are removed on any exit.
    """
    handles = []

    def hook_of(edge: Edge) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            rows = mask.expand(len(args[0]), -1) if len(mask) == 1 else mask
            return (edge.apply(args[0], rows), *args[1:])

        return hook

    try:
        for edge in edges:
            handles.append(model.get_submodule(edge.module).register_forward_pre_hook(hook_of(edge)))
        yield
    finally:
        for handle in handles:
            handle.remove()
