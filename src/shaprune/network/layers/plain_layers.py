"""Plain layers in the place of those that compute their weight anew in every pass: standardised, parametrised.

A convolution that standardises its weight (Qiao et al. 2019; NF-ResNet) divides by a statistic over all of its inputs,
so that the weights of those that stay would change with those that leave. Here is the same function with the weight as
it came out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shaprune.network.batches import Inputs, call, copied_inputs
from shaprune.network.borrow import borrowed, copied
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import WEIGHTED
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.tolerance import relative_difference, tolerance_for

_FUNCTIONS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass
class _Calls:
    """What a layer was given and gave, and the weights and biases with which it computed."""

    given: list[tuple[Any, Any]] = field(default_factory=list)
    used: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)


class _Watched(TorchFunctionMode):
    """Notes the weights of linear layers and convolutions for the layer that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[_Calls] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.running and getattr(func, "__name__", "") in _FUNCTIONS:
            weight, bias = (args[i] if len(args) > i else kwargs.get(key) for i, key in ((1, "weight"), (2, "bias")))
            self.running[-1].used.append((weight, bias))
        return func(*args, **kwargs)


def plain_layers(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """A network of the same function in which layers that compute their weight anew are plain ones.

    Weights that are standardised, normalised or otherwise parametrised stay as they come out; what trained them
    (gains, directions, the parametrisation) is gone. Layers that differ from a plain one in another way stay as they
    are.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.

    Returns:
        A copy.
    """
    plain = copied(model)
    found = computing_layers(plain, example_inputs)
    for name, layer in found.items():
        parent, _, last = name.rpartition(".")
        if not name:
            return layer
        setattr(plain.get_submodule(parent), last, layer)
    return plain


def computing_layers(model: nn.Module, inputs: Inputs) -> dict[str, nn.Module]:
    """Layers that run with another weight than their own parameter: by name, a plain one that gives the same."""
    calls = {name: _Calls() for name, module in model.named_modules() if _base(module) is not None}
    watched = _Watched()

    def enter_of(of: _Calls) -> Any:
        return lambda module, args, kwargs: watched.running.append(of)

    def leave_of(of: _Calls) -> Any:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            watched.running.pop()
            of.given.append((input_of(args, kwargs), output))

        return leave

    modules = [(model.get_submodule(name), of) for name, of in calls.items()]
    hooks = [m.register_forward_pre_hook(enter_of(of), with_kwargs=True) for m, of in modules]
    hooks += [m.register_forward_hook(leave_of(of), with_kwargs=True) for m, of in modules]
    with torch.no_grad(), borrowed(model), hooked(hooks), watched:
        call(model, copied_inputs(inputs))
    plain = {name: _plain(model.get_submodule(name), of) for name, of in calls.items()}
    return {name: layer for name, layer in plain.items() if layer is not None}


def _base(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in WEIGHTED if isinstance(module, kind)), None)


def _plain(module: nn.Module, calls: _Calls) -> nn.Module | None:
    """A plain layer with the weight that a layer computed; None where it used its own, or a plain one differs."""
    own = module._parameters.get("weight")
    if not calls.used or len(calls.used) != len(calls.given) or any(weight is own for weight, _ in calls.used):
        return None
    weight, bias = calls.used[0]
    kind = _base(module)
    assert kind is not None
    layer: Any = kind.__new__(kind)
    nn.Module.__init__(layer)
    kept = {"_parameters", "_buffers", "_modules", *(key for key in vars(module) if "hooks" in key), "parametrizations"}
    layer.__dict__.update({key: value for key, value in vars(module).items() if key not in kept})
    learns = any(p.requires_grad for p in module.parameters())
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=learns)
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=learns)
    with torch.no_grad():
        try:
            errors = [relative_difference(layer(x), output) for x, output in calls.given]
        except Exception:  # it was given something else than one tensor
            return None
    return layer if max(errors) < tolerance_for(weight.dtype, 1e-5) else None
