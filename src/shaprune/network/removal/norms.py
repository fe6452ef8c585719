"""Norms over a stream: the mask of one is the norm of the channels that stay; surgery slices it, whatever its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.norm_forms import MeasuredNorm, NormForm, measure_norm
from shaprune.network.removal.masks import MaskSite, each_row, owners_in
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Group, Players


@dataclass(frozen=True, eq=False)
class NormMask(MaskSite):
    """A norm that answers as if it had the channels that stay alone.

    Attributes:
        form: what the norm computes.
    """

    form: NormForm

    @property
    def label(self) -> str:
        return f"{type(self).__name__} {self.form}"

    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        measured: list[MeasuredNorm] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            x = input_of(args, kwargs)
            assert x is not None
            if not measured:
                measured.append(measure_norm(module, self.form, len(self.owners), x.ndim, x.device))
            kept = self.columns(mask)
            if len(kept) > 1:
                kept = each_row(kept, len(x), f"the input of {self.module}")
            return measured[0](x, kept).to(output.dtype)

        return [model.get_submodule(self.module).register_forward_hook(hook, with_kwargs=True)]


def norm_masks(players: Players, groups: Sequence[Group], device: torch.device) -> list[NormMask]:
    """The masks of all norms over channels of players."""
    n = sum(len(g) for g in groups)
    return [
        NormMask(name, n, owners.to(device), norm_form(players.layers[name]))
        for name, owners in owners_in(players, groups, "norm").items()
    ]


def norm_form(layer: Layer) -> NormForm:
    """What a layer that is a norm over a stream computes."""
    return NormForm(layer.norm, layer.everywhere, layer.eps, layer.axis)


def slice_norm(module: nn.Module, gone: Sequence[int], width: int) -> None:
    """Channels of a norm of any class leave: entries of its vectors, and of the numbers that are its width."""
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        axes = [axis for axis, size in enumerate(tensor.shape) if size == width]
        if len(axes) == 1:
            keep_entries(module, name, axes[0], gone)
    left = width - len(gone)
    for key, value in list(vars(module).items()):
        if type(value) is int and value == width:
            setattr(module, key, left)
        elif type(value) in (tuple, list, torch.Size) and any(type(n) is int and n == width for n in value):
            setattr(module, key, type(value)([left if type(n) is int and n == width else n for n in value]))


def keep_entries(module: nn.Module, name: str, axis: int, gone: Sequence[int]) -> None:
    """Drop the entries ``gone`` of a parameter or buffer along an axis; None stays None."""
    tensor = getattr(module, name)
    if tensor is None:
        return
    left = np.setdiff1d(np.arange(tensor.shape[axis]), np.asarray(gone, dtype=np.int64))
    rest: Tensor = tensor.detach().index_select(axis, torch.from_numpy(left).to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(rest, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, rest)
