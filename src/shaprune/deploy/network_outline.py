"""Outline of a network as text: the settings of its layers and the steps of its forward pass.

Two networks with the same weights differ where an activation, a stride or a line of `forward` does. That is compared
without running them, from what torch.fx makes of the code, and from the attributes of layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import fx, nn

from shaprune.network.forward.fx_tracing import graph_of
from shaprune.network.shared_weights import NoWrites, sharing

NOT_SETTINGS = ("training", "name_or_path", "gradient_checkpointing")  # how it is used, or where it came from


class Outline(BaseModel):
    """A network in words.

    Attributes:
        layers: class and settings of every module, by name; of classes outside torch only where the steps are unknown.
        steps: what `forward` does, one operation each; None where torch.fx does not follow it.
        unsaved: type, shape and size of buffers that a state dict leaves out, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: dict[str, tuple[str, dict[str, str]]]
    steps: tuple[str, ...] | None
    unsaved: dict[str, tuple[str, list[int], list[float]]]


def outline_of(model: nn.Module) -> Outline:
    """Describe a network."""
    steps = _steps(model)
    modules = {name: module for name, module in model.named_modules() if steps is None or _from_torch(module)}
    layers = {name: (type(module).__qualname__, _settings(module)) for name, module in modules.items()}
    stored = set(model.state_dict())
    unsaved = {name: _sizes(buffer) for name, buffer in model.named_buffers() if name not in stored}
    return Outline(layers=layers, steps=steps, unsaved=unsaved)


def difference(saved: Outline, made: Outline) -> str | None:
    """Return in what a network that was made differs from one that was saved, in words, or None."""
    for name, (kind, settings) in saved.layers.items():
        if name not in made.layers:
            continue  # one of the two is followed, and the other is not: the steps say so
        other, others = made.layers[name]
        if kind != other:
            return f"layer {name!r} was a {kind} and is a {other}"
        for key in sorted({*settings, *others}):
            if settings.get(key) != others.get(key):
                return f"{key} of {name or 'the model'!r} was {settings.get(key)} and is {others.get(key)}"
    if saved.steps is not None and made.steps is not None and saved.steps != made.steps:
        pairs = zip(saved.steps, made.steps, strict=False)
        then, now = next(((a, b) for a, b in pairs if a != b), ("of another number", "of another number"))
        return f"a step of forward was {then} and is {now}"
    for name, (dtype, shape, sizes) in saved.unsaved.items():
        found = made.unsaved.get(name)
        if found is None or found[:2] != (dtype, shape) or not _near(sizes, found[2]):
            return f"buffer {name!r}, which is not part of a state dict (persistent=False), had other entries"
    return None


def _from_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _settings(module: nn.Module) -> dict[str, str]:
    """The attributes of a module that are plain options: numbers, texts, types, functions, and tuples of these."""
    found = {}
    for name, value in vars(module).items():
        if not name.startswith("_") and name not in NOT_SETTINGS:
            told = _told(value)
            if told is not None:
                found[name] = told
    return found


def _told(value: Any) -> str | None:
    if isinstance(value, (bool, int, float, str, torch.dtype, torch.Size, type(None))):
        return repr(value)
    if isinstance(value, (tuple, list)):
        parts = [_told(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if isinstance(value, nn.Module) or not callable(value):
        return None
    return _target(value)


def _steps(model: nn.Module) -> tuple[str, ...] | None:
    """The operations of `forward`, each with its operands; the model is left as it is."""
    try:
        private = sharing(model).eval()  # what the code writes to its buffers is computed in earnest, also here
        with NoWrites(private):
            graph = graph_of(private)
    except Exception:  # what a user's code makes of a proxy
        return None
    numbers = {node: f"%{number}" for number, node in enumerate(graph.nodes)}

    def operand(value: Any) -> Any:
        return _Bare(numbers[value]) if isinstance(value, fx.Node) else value

    return tuple(
        _plain(
            f"{node.op} {_target(node.target)}"
            f"({', '.join([repr(fx.node.map_aggregate(a, operand)) for a in node.args])}"
            f"{''.join(f', {k}={fx.node.map_aggregate(a, operand)!r}' for k, a in node.kwargs.items())})"
        )
        for node in graph.nodes
    )


class _Bare(str):
    """A text that is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _target(target: Any) -> str:
    if isinstance(target, str):
        return target
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return f"{getattr(target, '__module__', None) or 'torch'}.{name}"


def _plain(text: str) -> str:
    """Text without memory addresses."""
    return re.sub(r"0x[0-9a-fA-F]+", "0x", text)


def _sizes(buffer: torch.Tensor) -> tuple[str, list[int], list[float]]:
    """A fingerprint of a buffer: its sum, the sum of its sizes, and one in which places count."""
    flat = buffer.detach().cpu().reshape(-1)
    flat = torch.nan_to_num(torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat.to(torch.float64))
    flat = flat.to(torch.float64).clamp(-1e30, 1e30)
    places = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return str(buffer.dtype), list(buffer.shape), [float(flat.sum()), float(flat.abs().sum()), float(flat @ places)]


def _near(one: list[float], other: list[float]) -> bool:
    scale = max(map(abs, (*one, *other, 0.0)))
    return len(one) == len(other) and all(abs(a - b) <= 1e-5 * scale for a, b in zip(one, other, strict=True))


def dtypes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Types of tensors, by name."""
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
