"""Norms over a stream: the mask of one is the norm of the channels that stay; surgery slices it, whatever its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shaprune.network.batches import Inputs, call, transform
from shaprune.network.hooks import hooked
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.norm_forms import (
    RESPONSE,
    STATISTICS,
    Gone,
    HeldNorm,
    MeasuredNorm,
    NormForm,
    measure_norm,
)
from shaprune.network.removal.entries import keep_entries
from shaprune.network.removal.masks import MaskSite, each_row, owners_in
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Group, Players

_NOTHING = 1e-6


@dataclass(frozen=True, eq=False)
class NormMask(MaskSite):
    """A norm that answers as if it had the channels that stay alone.

    Attributes:
        form: what the norm computes.
        held: what stands in its statistic in the place of channels that leave; None = nothing.
    """

    form: NormForm
    held: Tensor | None = None

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
            return measured[0](x, kept, self.held).to(output.dtype)

        return [model.get_submodule(self.module).register_forward_hook(hook, with_kwargs=True)]


def norm_masks(players: Players, groups: Sequence[Group], device: torch.device) -> list[NormMask]:
    """The masks of all norms over channels of players."""
    n = sum(len(g) for g in groups)
    return [
        NormMask(name, n, owners.to(device), norm_form(players.layers[name]), _held(players.layers[name], device))
        for name, owners in owners_in(players, groups, "norm").items()
    ]


def _held(layer: Layer, device: torch.device) -> Tensor | None:
    return torch.tensor(layer.held, dtype=torch.float64, device=device) if layer.held else None


def norm_form(layer: Layer) -> NormForm:
    """What a layer that is a norm over a stream computes."""
    return NormForm(layer.norm, layer.everywhere, layer.eps, layer.axis)


def with_held(copy: nn.Module, inputs: Inputs, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Norms over streams whose statistics hold the means of channels that leave, over all that they read of ``inputs``.

    Norms that are not centred hold the root of the mean square. A norm stays as it is where its weights are no factor
    and no summand per channel.
    """
    norms = {name: layer for name, layer in layers.items() if layer.kind == "stream_norm" and layer.norm != RESPONSE}
    sums = {name: torch.zeros(layer.n_out, dtype=torch.float64) for name, layer in norms.items()}
    numbers = dict.fromkeys(norms, 0)

    def hook_of(name: str, layer: Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            assert x is not None
            flat = x.movedim(layer.axis, -1).flatten(0, -2).double().cpu()
            sums[name] += (flat if STATISTICS[layer.norm].centred else flat.square()).sum(0)
            numbers[name] += len(flat)

        return hook

    modules = {name: copy.get_submodule(name) for name in norms}
    hooks = (m.register_forward_pre_hook(hook_of(name, norms[name]), with_kwargs=True) for name, m in modules.items())
    with hooked(hooks), torch.no_grad():
        call(copy, transform(inputs, torch.clone))
    found = dict(layers)
    for name, layer in norms.items():
        if numbers[name] and _is_affine(modules[name], layer):
            mean = sums[name] / numbers[name]
            held = mean if STATISTICS[layer.norm].centred else mean.sqrt()
            found[name] = replace(layer, held=tuple(held.tolist()))
    return found


def _is_affine(module: nn.Module, layer: Layer) -> bool:
    """Whether a norm has as many vectors as it multiplies and adds."""
    known = _measured(module, layer)
    bias, residual = (float(t.abs().max()) > _NOTHING for t in (known.bias, known.residual))
    scaled = float((known.gain - 1).abs().max()) > _NOTHING
    return not residual and layer.kernel <= 2 and (layer.kernel == 2 or not bias) and (layer.kernel > 0 or not scaled)


def _measured(module: nn.Module, layer: Layer) -> MeasuredNorm:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return measure_norm(module, norm_form(layer), layer.n_out, layer.axes, device)


def hold_norm(model: nn.Module, name: str, layer: Layer, gone: Sequence[int]) -> None:
    """Channels of a norm leave, whose statistic holds something in their place from here on."""
    module = model.get_submodule(name)
    known, own = _measured(module, layer), next(module.parameters(), None)
    left = np.setdiff1d(np.arange(layer.n_out), np.asarray(gone, dtype=np.int64))
    values = np.array([layer.held[i] for i in gone])
    before = known.gone
    after = Gone(
        before.number + len(gone), before.total + float(values.sum()), before.square + float(np.square(values).sum())
    )
    kept = [t.to(t if own is None else own)[left].clone() for t in (known.gain, known.bias)]
    weight, bias = (t if layer.kernel > i else None for i, t in enumerate(kept))
    held = HeldNorm(norm_form(layer), weight, bias, after)
    for parameter in held.parameters():
        parameter.requires_grad_(own is None or own.requires_grad)
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, held.train(module.training))


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
