"""Norms over a stream: modules of any class that mix channels by a statistic over them and nothing else.

They are recognised by what they do. A module that takes and gives a tensor of one shape, and mixes the entries of an
axis, is asked for probes; where one of the forms of `shaprune.network.layers.norm_forms` answers random inputs, large
and small, as the module does, and answers with absent channels as the module does when it is sliced, it is that norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import kind_of
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.norm_forms import (
    OF_THE_TYPE,
    RESPONSE,
    STATISTICS,
    HeldNorm,
    NormForm,
    Responses,
    give,
    in_doubles,
    responses,
)
from shaprune.network.removal.norms import slice_norm
from shaprune.network.tolerance import relative_difference
from shaprune.players.layer_costs import Layer

_SIZE = 3  # entries of the axes beside the channels, on which modules are asked
_VECTORS = 4  # as long as the channels, that a norm may have
_NEAR, _EXACT = 1e-6, 1e-11  # of modules that compute in float32 whatever they are given; of others
_EPS = (0.0, 1e-5, 1e-6, 1e-8, 1e-12)  # that stand in code


def find_norms(copy: nn.Module, inputs: Inputs) -> dict[str, Layer]:
    """The norms over the channels of a stream that a network runs, by name.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs.
    """
    found: dict[str, Layer] = {}
    last: list[NormForm] = []  # forms that were found, the latest first
    for name, shape in _shape_keepers(copy, inputs).items():
        module = copy.get_submodule(name)
        layer = _recognised(module, shape, last)
        if layer is not None:
            found[name] = layer
    return found


def _shape_keepers(copy: nn.Module, inputs: Inputs) -> dict[str, torch.Size]:
    """Modules without modules inside whose one tensor has the shape of what they give, and that shape."""
    names = {module: name for name, module in copy.named_modules()}
    shapes: dict[str, torch.Size] = {}
    other: set[str] = set()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = input_of(args, kwargs)
        one = x is not None and isinstance(output, Tensor) and len(tensors((args, kwargs))) == 1
        if not one or x is None or x.shape != output.shape or not x.is_floating_point() or x.ndim < 2:
            other.add(names[module])
        elif shapes.setdefault(names[module], x.shape)[1:].numel() != x.shape[1:].numel():
            shapes[names[module]] = x.shape

    leaves = [m for m in copy.modules() if next(m.children(), None) is None and _may_be_norm(m)]
    with hooked(m.register_forward_hook(hook, with_kwargs=True) for m in leaves), torch.no_grad():
        call(copy, transform(inputs, torch.clone))
    return {name: shape for name, shape in shapes.items() if name not in other}


def _may_be_norm(module: nn.Module) -> bool:
    if isinstance(module, (nn.Identity, nn.Dropout)):
        return False
    return kind_of(module) is None or isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))


def _recognised(module: nn.Module, shape: torch.Size, last: list[NormForm]) -> Layer | None:
    """The norm that a module is; None where it is none over one axis, or cannot be sliced."""
    if sum(t.numel() for t in [*module.parameters(), *module.buffers()]) > _VECTORS * max(shape[1:]):
        return None
    device = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    if isinstance(module, HeldNorm):
        return _layer(module, module.form, True, shape[module.form.axis], len(shape))
    own = in_doubles(module)
    known = {n for p in module.parameters() for n in p.shape} or {v for v in vars(module).values() if type(v) is int}
    for axis in dict.fromkeys((-1, 1 - len(shape))):
        width = shape[axis]
        others = [n for i, n in enumerate(shape) if i != axis % len(shape)]
        if width < 2 or (width not in known and shape[1 - len(shape) if axis == -1 else -1] in known):
            continue
        for sizes in ([2, *(min(n, _SIZE) for n in others[1:])], others):
            try:
                found = _form(own, (*sizes, width), -1 if axis == -1 else 1, device, last)
            except Exception:  # a module that only takes some sizes, or no doubles
                continue
            if found is not None:
                return _layer(module, *found, width, len(shape))
            break
    return None


def _form(
    module: nn.Module, shape: tuple[int, ...], axis: int, device: torch.device, last: list[NormForm]
) -> tuple[NormForm, bool] | None:
    """The form of a module in doubles, and whether it answers in float32 only; None where it has none."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device) + 0.5
    other = x.clone()
    other[..., 0] += 1.0
    y = give(module, x, axis)
    if y.shape != x.shape or torch.equal(give(module, other, axis)[..., 1:], y[..., 1:]):
        return None
    asked = [(x, y), (0.01 * x, give(module, 0.01 * x, axis))]
    known = responses(module, shape, axis, device)
    cut, left = deepcopy(module), np.arange(1, shape[-1], 2) if shape[-1] > 3 else np.arange(1)
    slice_norm(cut, np.setdiff1d(np.arange(shape[-1]), left).tolist(), shape[-1])
    there = torch.zeros(1, shape[-1], dtype=torch.float64, device=device)
    there[0, left] = 1.0
    for form in _forms(module, axis, last):
        whole = max(_error(known, form, x, torch.ones_like(there), y) for x, y in asked)
        if whole > _NEAR:
            continue
        sliced = max(_error(known, form, x, there, give(cut, x[..., left], axis), left) for x, _ in asked)
        if sliced > _NEAR:
            continue
        last.insert(0, form)
        return form, max(whole, sliced) > _EXACT
    return None


def _error(known: Responses, form: NormForm, x: Tensor, kept: Tensor, wanted: Tensor, left: Any = slice(None)) -> float:
    """How far a form's answer lies from a module's, relative; inf where it is not finite."""
    ours = known.measured(form)(x.movedim(-1, form.axis), kept).movedim(form.axis, -1)[..., left]
    error = relative_difference(ours, wanted)
    return error if error == error else float("inf")  # NaN is no number


def _forms(module: nn.Module, axis: int, last: list[NormForm]) -> Iterator[NormForm]:
    """All forms that a module may have, those found before first."""
    yield from (form for form in dict.fromkeys(last) if form.axis == axis)
    numbers = (v for v in vars(module).values() if type(v) is float and 0 < v < 0.1)
    unset = [OF_THE_TYPE] if getattr(module, "eps", 0.0) is None else []
    for eps in dict.fromkeys((*unset, *numbers, *_EPS)):
        for everywhere in (False, True):
            yield from (NormForm(statistic, everywhere, eps, axis) for statistic in STATISTICS)
        yield NormForm(RESPONSE, True, eps, axis)


def _layer(module: nn.Module, form: NormForm, narrow: bool, width: int, axes: int) -> Layer:
    """A norm as a layer."""
    vectors = [p for p in module.parameters(recurse=False) if width in p.shape]
    return Layer(
        "stream_norm",
        width,
        width,
        1,
        sum(p.numel() for p in vectors) // width,
        False,
        0.0,
        form.axis,
        least=2 if form.statistic in STATISTICS and STATISTICS[form.statistic].less else 1,
        norm=form.statistic,
        everywhere=form.everywhere,
        eps=form.eps,
        axes=axes,
        narrow=narrow,
        itemsize=vectors[0].element_size() if vectors else 4,
    )
