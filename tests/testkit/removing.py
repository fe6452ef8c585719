"""Networks after surgery against the same networks with zeros where channels are read; hooks of our own, in doubles."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.batches import Inputs, tensors, transform

Build = Callable[[], nn.Module]


def run(model: nn.Module, x: Inputs) -> list[Tensor]:
    """All tensors of the answer, in doubles."""
    model = copy.deepcopy(model).double()
    x = transform(x, lambda t: t.double() if t.is_floating_point() else t.clone())
    with torch.no_grad():
        answer = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
    return tensors(answer)


def zeroed(model: nn.Module, players: sp.Players, kept: NDArray[np.bool_]) -> nn.Module:
    """A copy in which what left is multiplied by zero where it is read."""
    dense, stays = copy.deepcopy(model), {}
    for group in players.groups:
        for member in group.consumers:
            row = stays.setdefault(member.module, torch.ones(players.layers[member.module].n_in))
            for i, channels in zip(group.indices, member.channels, strict=True):
                row[list(channels)] *= float(kept[i])
    for name, row in stays.items():
        layer = dense.get_submodule(name)
        behind = len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else 0

        def hook(module: nn.Module, args: Any, kwargs: Any, row: Tensor = row, behind: int = behind) -> Any:
            def masked(x: Any) -> Any:
                return x * row.to(x.dtype).view(-1, *[1] * behind) if isinstance(x, Tensor) else x

            return tuple(map(masked, args)), {name: masked(x) for name, x in kwargs.items()}

        layer.register_forward_pre_hook(hook, with_kwargs=True)
    return dense


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest difference over the largest entry."""
    assert [t.shape for t in a] == [t.shape for t in b]
    pairs = [(p.double(), q.double()) for p, q in zip(a, b, strict=True)]
    return max(float((p - q).abs().max() / q.abs().max().clamp(min=1e-30)) for p, q in pairs)


def coalition(players: sp.Players, seed: int) -> NDArray[np.bool_]:
    """About six of ten stay, enough for all layers to run, and not all."""
    rng = np.random.default_rng(seed)
    kept = rng.random(players.n) < 0.6
    while players.too_narrow(kept):
        kept[rng.choice(np.flatnonzero(~kept))] = True
    assert not kept.all()
    return kept


def check_removal(build: Build, players: sp.Players, *inputs: Inputs) -> None:
    """Three coalitions on all inputs: what `sp.prune` gives is what the zeroed network gives."""
    for seed in range(3):
        kept = coalition(players, seed)
        small = sp.prune(build(), sp.Plan.from_coalition(players, kept), inputs[0])
        for x in inputs:
            assert difference(run(small, x), run(zeroed(build(), players, kept), x)) < 1e-9


def made(players: sp.Players) -> dict[str, int]:
    """Per layer, how many of its output channels are players."""
    found: dict[str, int] = {}
    for group in players.groups:
        for member in group.members:
            if member.role == "out" or players.layers[member.module].kind == "depthwise":
                found[member.module] = found.get(member.module, 0) + int(member.widths.sum())
    return found


def reasons(players: sp.Players) -> dict[str, str]:
    """Why layers, or rests of layers, are skipped."""
    return {s.name: s.reason for s in players.skipped}
