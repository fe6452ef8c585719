"""Single weights of linear layers and convolutions as players: masked in the game, zeros after surgery.

Nothing gets smaller, so these players cost nothing: plan with ``Budget(players=...)``.
"""

from __future__ import annotations

import copy as copying
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shaprune.errors import InputError
from shaprune.network.batches import Inputs
from shaprune.network.removal.masks import MaskSite, each_row
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Skipped

MAX_WEIGHTS = 10_000  # players of layers that were not asked for by name
_MAX_WEIGHTS_HELD = 1 << 24  # weights that are held at a time, over all rows
_KINDS = ("conv", "depthwise", "linear")


@dataclass(frozen=True, eq=False)
class WeightMask(MaskSite):
    """A layer whose weights are masked, differently in every row: entry k is the k-th of ``weight.flatten()``."""

    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        kept = self.columns(mask)
        if bool(kept.all()):
            return []

        def behind(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            x = next(iter((*args, *kwargs.values())))
            weight = layer.weight
            assert isinstance(weight, Tensor)

            def run(row: Tensor, x: Tensor) -> Tensor:
                return _with_weight(layer, weight * row.view(weight.shape).to(weight.dtype), x)

            if len(kept) == 1:
                return run(kept[0], x)
            each = torch.vmap(
                lambda row, x: run(row, x[None])[0], chunk_size=max(1, _MAX_WEIGHTS_HELD // weight.numel())
            )
            result: Tensor = each(each_row(kept, len(x), self.module), x)
            return result

        return [model.get_submodule(self.module).register_forward_hook(behind, with_kwargs=True)]


def _with_weight(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What a layer gives with other weights, past its hooks."""
    other = copying.copy(layer)
    other._parameters = {**layer._parameters, "weight": weight}  # type: ignore[dict-item]
    result: Tensor = type(layer).forward(other, x)
    return result


def zero_weights(layer: nn.Module, entries: Sequence[int]) -> None:
    """Write zeros into a layer's weight, at positions of the flat tensor."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    gone = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    gone[list(entries)] = True
    weight.data = weight.data.masked_fill(gone.view(weight.shape), 0)  # the memory may be shared


def find_weights(
    copy: nn.Module, inputs: Inputs, layers: Mapping[str, Layer]
) -> tuple[list[Candidate], list[Skipped], dict[str, Layer]]:
    """Every linear layer and convolution that ran as a candidate, its players still to come by `enumerate_weights`.

    Args:
        copy: a private copy, in eval mode.
        inputs: not needed.
        layers: the costs of all layers that ran.

    Returns:
        Candidates; layers that are none, with the reason; and a costless layer for each candidate.
    """
    holders = Counter(id(p) for _, p in copy.named_parameters(remove_duplicate=False))
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    costs: dict[str, Layer] = {}
    for name, layer in layers.items():
        if layer.kind not in _KINDS:
            continue
        weight = copy.get_submodule(name)._parameters.get("weight")
        if weight is None:
            skipped.append(Skipped(name, 0, "its weight is computed (parametrized); remove the parametrization first"))
        elif holders[id(weight)] > 1:
            skipped.append(Skipped(name, 0, "it shares its weight with another layer"))
        else:
            costs[name] = Layer("weight", weight.numel(), weight.numel(), 1, 0, False, 0.0, least=0)
            found.append(Candidate(name, (Member(name, "weight", ()),)))
    return found, skipped, costs


def enumerate_weights(candidates: Sequence[Candidate], layers: Mapping[str, Layer], *, named: bool) -> list[Candidate]:
    """The candidates with one player per weight.

    Raises:
        InputError: more than `MAX_WEIGHTS` players in layers that were not asked for by name.
    """
    numbers = {c.name: layers[c.name].n_out for c in candidates}
    total = sum(numbers.values())
    if total > MAX_WEIGHTS and not named:
        largest = max(numbers, key=lambda name: numbers[name])
        raise InputError(
            f"unit='weight' makes {total:,} players here ({numbers[largest]:,} in {largest}), more than "
            f"{MAX_WEIGHTS:,}; name the layers, such as include={min(numbers, key=lambda name: numbers[name])!r}"
        )
    return [
        replace(c, members=(Member(c.name, "weight", tuple((i,) for i in range(numbers[c.name]))),)) for c in candidates
    ]
