"""Closed-form recovery: refit the consumers of pruned channels by ridge least squares.

After channels have left, each consumer (a linear layer or convolution that read them) gets the weights that best
reproduce
what it gave in the dense network, on unlabelled batches, layer by layer in order of execution, each on what the
*pruned and
already refitted* network feeds it. Related: ThiNet (Luo et al. 2017) and channel pruning (He et al. 2017), which fit
to the
dense network's inputs; here the pruned network's own inputs are used, so errors of earlier layers are corrected too.
The
ridge pulls toward the surviving dense weights, not toward zero. In a residual block the *sum* is fitted, so that a
block also
makes up for what the blocks before it have lost.

Both networks run in lock-step, operation by operation, so a whole refit costs one forward pass of each; where they
cannot be
traced, or their activations would not fit in ``max_memory``, every consumer takes a forward pass of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.batches import Forward, Inputs, call
from shaprune.network.players import check_channels
from shaprune.planning import Plan
from shaprune.recovery.lockstep import lockstep, lockstep_bytes, one_by_one, traces


@dataclass
class Equations:
    """Normal equations of one consumer, summed over batches in float64: (groups, in, in) and (groups, in, out)."""

    gram: Tensor | None = None
    cross: Tensor | None = None
    rows: int = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add rows: inputs (groups, rows, in), targets (groups, rows, out)."""
        gram = torch.matmul(inputs.mT, inputs).double()
        cross = torch.matmul(inputs.mT, targets).double()
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross
        self.rows += inputs.shape[1]

    def solve(self, start: Tensor, ridge: float) -> Tensor:
        """Weights (groups, in, out) nearest to ``start`` that explain the rows."""
        assert self.gram is not None
        assert self.cross is not None
        start = start.double()
        strength = ridge * self.gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        eye = torch.eye(self.gram.shape[1], dtype=torch.float64, device=self.gram.device)
        left = self.gram + strength[:, None, None] * eye
        change: Tensor = torch.linalg.solve(left, self.cross - self.gram @ start)
        return start + change


def refit(
    small: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    batches: Sequence[Inputs],
    *,
    ridge: float = 1e-3,
    forward: Forward | None = None,
    max_memory: int = 1 << 31,
) -> None:
    """Refit every consumer of removed players in ``small``, in place.

    Args:
        small: the pruned network, in eval mode.
        teacher: the dense network, in eval mode; not changed.
        plan: who stays.
        batches: unlabelled inputs.
        ridge: pull toward the surviving weights, relative to the mean squared input.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        max_memory: bytes of activations that the lock-step may hold.

    Raises:
        InputError: no batch, a ridge that is not above 0, or players that are no channels.
    """
    if not batches:
        raise InputError("refit needs at least one batch of inputs; the data holds none")
    if not ridge > 0:
        raise InputError(f"ridge is {ridge}; it must be above 0")
    check_channels(plan.players.groups, "a refit")
    kept = _consumers(small, plan)
    with torch.no_grad():
        pair = None if forward is not None else traces(small, teacher)
        if pair is not None and lockstep_bytes(pair, batches) <= max_memory:
            source = lockstep(pair, kept, batches)
        else:
            source = one_by_one(small, teacher, kept, batches, forward or call)
        for name, pairs in source:
            layer, equations = small.get_submodule(name), Equations()
            for inputs, wanted in pairs:
                equations.add(*_rows(layer, inputs, wanted))
            _install(layer, equations, ridge)


def _consumers(small: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Layers to refit, in order of execution: name -> which of the dense layer's outputs it still has."""
    lost: set[str] = set()
    gone: dict[str, set[int]] = {}
    for group in plan.players.groups:
        for member in group.members:
            for player, channels in zip(group.indices, member.channels, strict=True):
                if not plan.kept[player]:
                    if member.role == "in":
                        lost.add(member.module)
                    elif member.role == "out":
                        gone.setdefault(member.module, set()).update(channels)
    result: dict[str, Tensor] = {}
    for name, layer in plan.players.layers.items():
        if name not in lost:
            continue
        if not _can_refit(small.get_submodule(name)):
            warnings.warn(
                f"{name} is not refitted: only linear, 1D and 2D convolutions are", ShapruneWarning, stacklevel=4
            )
            continue
        result[name] = torch.tensor([c for c in range(layer.n_out) if c not in gone.get(name, ())])
    return result


def _can_refit(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))


def _rows(layer: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One batch: (groups, rows, in) what the layer multiplies, (groups, rows, out) what it should give."""
    if isinstance(layer, nn.Linear):
        inputs, targets = x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, y.shape[-1])
    else:
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        groups = layer.groups
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        one = (1,) if isinstance(layer, nn.Conv1d) else ()
        if one:
            x = x[:, :, None]
        patches = F.unfold(x, one + layer.kernel_size, dilation=one + layer.dilation, stride=one + layer.stride)
        inputs = patches.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        targets = y.flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    if layer.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2)
    return inputs, targets


def _install(layer: nn.Module, equations: Equations, ridge: float) -> None:
    """Solve and write the layer's weights."""
    assert isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.unflatten(0, (groups, -1)).flatten(2).mT  # (groups, in, out)
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.view(groups, 1, -1)], dim=1)
    solved = equations.solve(weight, ridge).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.copy_(solved[:, -1].reshape(-1))
        solved = solved[:, :-1]
    layer.weight.copy_(solved.mT.reshape(layer.weight.shape))
