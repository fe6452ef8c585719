"""Masks at the consumers' inputs, where a zero is what removal does.

Behind a producer, batch-norm, bias and activation would turn a zero into something else, so the mask multiplies what
the consumers of a group read. Every row of a batch may carry its own coalition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shaprune.errors import GameError
from shaprune.network.hooks import hooked
from shaprune.network.layers.layer_inputs import Arguments, input_of, is_packed, with_input
from shaprune.network.model_turns import turn
from shaprune.players.players import Group, Players, check_channels
from shaprune.players.roles import Role


class UnevenRowsError(GameError):
    """A module has no whole number of rows per example, so that rows of a batch cannot have masks of their own."""


@dataclass(frozen=True, eq=False)
class MaskSite(ABC):
    """Where masks stand in one module.

    Attributes:
        module: name of the module.
        n_players: n, the number of players of the game.
        owners: (entries,) int64, the player (counted within the game) of each channel, block, expert or weight here;
            n = no player, never masked.
    """

    module: str
    n_players: int
    owners: Tensor

    @property
    def label(self) -> str:
        """The identity of this kind of site."""
        return type(self).__name__

    def columns(self, mask: Tensor) -> Tensor:
        """(rows, entries) of a mask (rows, n): which entries are kept."""
        if self.all_owned:
            return mask[:, self.owners]
        return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)[:, self.owners]

    @cached_property
    def all_owned(self) -> bool:
        """Whether every entry belongs to a player."""
        return bool((self.owners < self.n_players).all())

    @abstractmethod
    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        """Hang hooks that mask rows by ``mask``, (rows, n) or (1, n) for all rows alike."""


@dataclass(frozen=True, eq=False)
class ConsumerInputMask(MaskSite):
    """The input of one consumer: which mask column multiplies each of its channels.

    Attributes:
        last: the channels are the last dimension (linear layers), not the second (convolutions).
    """

    last: bool

    @property
    def label(self) -> str:
        return str(self.last)

    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
            x = input_of(args, kwargs)
            if x is None:
                raise GameError(f"layer {self.module} is given no tensor, so that no mask can stand there; exclude it")
            if len(mask) > 1 and is_packed(args, kwargs):
                raise UnevenRowsError(f"{self.module} is given a packed sequence, whose rows are no examples")
            return with_input(args, kwargs, self.apply(x, mask))

        return [model.get_submodule(self.module).register_forward_pre_hook(hook, with_kwargs=True)]

    def apply(self, x: Tensor, mask: Tensor) -> Tensor:
        """Multiply ``x`` (rows, channels, ...) or (rows, ..., channels) by ``mask`` (rows, n) or (1, n) for all alike.

        Where an example has become several rows side by side (windows), each of them has its mask. A mask for all
        alike does not ask which axis the batch is.
        """
        columns = self.columns(mask.to(x.dtype))
        if len(columns) == 1:
            return x * (columns[0] if self.last else _channels_second(columns, x))
        columns = each_row(columns, len(x), f"the input of {self.module}")
        return x * (columns.view(len(x), *[1] * (x.ndim - 2), -1) if self.last else _channels_second(columns, x))


def _channels_second(columns: Tensor, x: Tensor) -> Tensor:
    return columns.view(len(columns), -1, *[1] * (x.ndim - 2))


def consumer_input_masks(players: Players, groups: Sequence[Group], device: torch.device) -> list[ConsumerInputMask]:
    """The input masks of the game over the players of ``groups``, in that order.

    Raises:
        InputError: players that are no channels.
    """
    check_channels(groups, "a mask at the inputs of layers")
    return reader_masks(players, groups, device)


def reader_masks(players: Players, groups: Sequence[Group], device: torch.device) -> list[ConsumerInputMask]:
    """The input masks of all members that read channels of players, of any kind."""
    n = sum(len(g) for g in groups)
    return [
        ConsumerInputMask(name, n, owners.to(device), players.layers[name].kind != "conv")
        for name, owners in owners_in(players, groups, "in").items()
    ]


def owners_in(players: Players, groups: Sequence[Group], role: Role) -> dict[str, Tensor]:
    """By layer with members of a role: who owns each of the channels that it reads, see `MaskSite.owners`."""
    n = sum(len(g) for g in groups)
    owners: dict[str, NDArray[np.int64]] = {}
    offset = 0
    for group in groups:
        for member in group.members:
            if member.role == role:
                layer = players.layers[member.module]
                ours = member.owners(layer.n_in, offset, n)
                theirs = owners.setdefault(member.module, np.full(layer.n_in, n, dtype=np.int64))
                owners[member.module] = np.where(ours < n, ours, theirs)
        offset += len(group)
    return {name: torch.from_numpy(columns) for name, columns in owners.items()}


def each_row(kept: Tensor, rows: int, module: str) -> Tensor:
    """(rows, entries) from (examples, entries), or (1, entries) for all alike.

    Inside a network an example may have become several rows side by side (windows, tokens).

    Raises:
        UnevenRowsError: no whole number of rows per example.
    """
    if len(kept) == 1:
        return kept.expand(rows, -1)
    if rows % len(kept):
        raise UnevenRowsError(
            f"at {module} the batch dimension is {rows}, which is no multiple of {len(kept)} rows; exclude it"
        )
    return kept.repeat_interleave(rows // len(kept), 0)


@contextmanager
def masked(model: nn.Module, sites: Sequence[MaskSite], mask: Tensor) -> Iterator[None]:
    """Run ``model`` under ``mask``, (rows, n) or (1, n) for all rows alike; the hooks are removed on any exit."""
    with turn(model), hooked(handle for site in sites for handle in site.attach(model, mask)):
        yield
