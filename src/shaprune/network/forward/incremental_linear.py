"""Incremental coalitions of one linear consumer: players are added instead of recomputed.

The output of a linear layer (or convolution) is a sum of one contribution per player. All contributions cost about one
run of the layer; any coalition is then a sum, and a walk a cumulative sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from shaprune.network.batches import main_output
from shaprune.network.forward.cached_state import CachedState, as_environment
from shaprune.network.forward.coalition_grid import CoalitionGrid
from shaprune.network.forward.coalition_masks import Masks
from shaprune.network.forward.trace import Segment, Trace, has_hooks
from shaprune.network.removal.masks import ConsumerInputMask

MAX_CUMSUM_OUTPUTS = 64  # outputs of the layer up to which one cumulative sum beats a sum for every step


@dataclass(frozen=True, eq=False)
class IncrementalLinear:
    """A linear layer (or plain convolution) as the only reader of a mask.

    Attributes:
        node: the layer's operation; source: what it reads.
        n_players: n.
        columns: (n * channels per player,) the players' channels in player order.
        others: channels that no player owns.
        rest: what follows the layer.
    """

    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    node: fx.Node
    source: fx.Node
    n_players: int
    columns: Tensor
    others: Tensor
    rest: Segment

    def contributions(self, state: CachedState) -> Tensor:
        """What each player adds to the layer's output, and last what is there without any player.

        Returns:
            (E, n + 1, out, ...), channels right after the players; `finish` puts them where the layer has them.
        """
        x = state[self.source]
        weight = self._weight()
        n, out, per_player = weight.shape[:3]
        if isinstance(self.layer, nn.Linear):
            shape = x.shape[1:-1]
            x = x.movedim(-1, 1).reshape(len(x), x.shape[-1], -1)  # (E, features, P)
            ours = x[:, self.columns].view(len(x), n, per_player, -1)
            parts = torch.einsum("encp,noc->enop", ours, weight)
            base = torch.einsum("ecp,oc->eop", x[:, self.others], self.layer.weight[:, self.others])
            if self.layer.bias is not None:
                base = base + self.layer.bias[:, None]
            return torch.cat([parts, base[:, None]], 1).reshape(len(x), n + 1, out, *shape)
        conv = _CONVOLUTIONS[x.ndim - 2]
        options: dict[str, Any] = {
            "stride": self.layer.stride,
            "padding": self.layer.padding,
            "dilation": self.layer.dilation,
        }
        parts = conv(x[:, self.columns], weight.flatten(0, 1), None, groups=n, **options)
        parts = parts.unflatten(1, (n, out))
        if len(self.others):
            base = conv(x[:, self.others], self.layer.weight[:, self.others], self.layer.bias, **options)
        else:
            base = torch.zeros_like(parts[:, 0])
            if self.layer.bias is not None:
                base += self.layer.bias.view(1, -1, *[1] * (base.ndim - 2))
        return torch.cat([parts, base[:, None]], 1)

    def _weight(self) -> Tensor:
        """(n, out, channels per player, *kernel): the layer's weights as they are now, player by player."""
        columns = self.layer.weight.detach()[:, self.columns]
        weight: Tensor = columns.unflatten(1, (self.n_players, -1)).transpose(0, 1).contiguous()
        return weight

    def leftover(self, state: CachedState) -> CachedState:
        """What of a state is still needed behind the layer."""
        return {node: value for node, value in state.items() if node in self.needed}

    def finish(self, leftover: CachedState, output: Tensor) -> Tensor:
        """Run what follows the layer, given its ``output`` (rows, out, ...) and the `leftover` of the same rows."""
        env = as_environment(leftover)
        env[self.node] = output.movedim(1, -1) if isinstance(self.layer, nn.Linear) else output
        return main_output(self.rest.run(env))

    @cached_property
    def needed(self) -> set[fx.Node]:
        """Inlets that what follows the layer reads."""
        return {source for node in self.rest.nodes for source in node.all_input_nodes}


_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def find_incremental_linear(
    trace: Trace, consumers: Sequence[fx.Node], input_masks: dict[str, ConsumerInputMask], suffix: Segment
) -> IncrementalLinear | None:
    """The incremental form, where one plain linear layer or convolution reads the mask and players own alike."""
    if len(consumers) != 1 or len(consumers[0].args) != 1 or consumers[0].kwargs:
        return None
    node = consumers[0]
    layer, input_mask = trace.modules[str(node.target)], input_masks[str(node.target)]
    source = node.args[0]
    plain = type(layer) is nn.Linear or (
        type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.groups == 1 and layer.padding_mode == "zeros"
    )
    if not plain or has_hooks(layer) or not isinstance(source, fx.Node) or source in suffix.nodes:
        return None
    n = input_mask.n_players
    owned = [torch.nonzero(input_mask.owners == player).flatten() for player in range(n + 1)]
    per_player = {len(channels) for channels in owned[:-1]}
    if len(per_player) != 1 or 0 in per_player:
        return None
    columns = torch.cat(owned[:-1])
    rest = Segment(trace, [x for x in suffix.nodes if x is not node])
    return IncrementalLinear(layer, node, source, n, columns, owned[-1], rest)


def sums_of_coalitions(parts: Tensor, masks: Masks, grid: CoalitionGrid | None) -> Callable[[slice], Tensor]:
    """What the layer answers to some of the coalitions, from `IncrementalLinear.contributions` (E, n + 1, ...)."""
    flat = parts.flatten(2)
    tables = None if grid is None else grid.tables(flat)

    def sums(part: slice) -> Tensor:
        if grid is not None and tables is not None and grid.holds(part):
            found = grid.sums(tables, part.start, part.stop)
        else:
            found = torch.matmul(with_empty(masks[part]).to(flat), flat)
        return found.reshape(-1, *parts.shape[2:])

    return sums


def sums_along_walks(parts: Tensor, orders: Tensor, start: Tensor | None) -> Tensor:
    """What the layer answers along walks: contributions (W, n + 1, ...), orders (W, m) -> (m + 1, W, ...).

    ``start`` (n,) is where players leave from; None = all players, of whom none stays.
    """
    walks, steps = orders.shape
    base = parts[:, -1]  # without the players of the walk
    if start is not None:
        staying = with_empty(start.repeat(walks, 1).scatter_(1, orders, 0.0))
        base = torch.matmul(staying[:, None].to(parts), parts.flatten(2)).view(base.shape)
    every = torch.arange(walks, device=parts.device)
    if base[0].numel() <= MAX_CUMSUM_OUTPUTS:
        return torch.cat([base[None], parts[every, orders.T.flip(0)]]).cumsum_(0).flip(0)
    sums = parts.new_empty((steps + 1, *base.shape))
    sums[steps] = base
    for step in reversed(range(steps)):
        torch.add(sums[step + 1], parts[every, orders[:, step]], out=sums[step])
    return sums


def with_empty(masks: Tensor) -> Tensor:
    """(..., n) -> (..., n + 1): what is there without any player always counts."""
    return F.pad(masks, (0, 1), value=1.0)
