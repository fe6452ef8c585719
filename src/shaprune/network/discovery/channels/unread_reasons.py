"""Why nothing was found to read the channels of a layer: what is true of it, found by trying."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from shaprune.network.batches import all_equal, call, tensors, transform
from shaprune.network.discovery.channels.channel_links import Links
from shaprune.network.discovery.channels.nan_marking import OUTPUT, Marking
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import CONSUMERS, kind_of, widths_of
from shaprune.players.layer_costs import Layer

UNREAD = "its output reaches no other layer on the example inputs"


def unread_layers(marking: Marking, links: Links) -> set[str]:
    """Layers whose output was followed to no reader and not to the network's output."""
    read = {i for i, *_ in links.pairs} | {i for i, _, where in links.mixed if any(where)} | links.to_output
    return {s.name for i, s in enumerate(marking.sources) if s.is_layer and i not in read}


def why_unread(marking: Marking, layers: Mapping[str, Layer], name: str) -> str:
    """Why no layer was found to read the output of ``name``."""
    model = marking.model
    around = next((outer for outer in _around(name) if outer in layers), None)
    if around is not None:
        kind = type(model.get_submodule(around)).__name__
        return f"it stands inside {around} ({kind}), which is taken as one layer: only its own weight is cut"
    source = next((i for i, s in enumerate(marking.sources) if s.name == name and s.is_layer), None)
    if source is None:
        return UNREAD
    seen = marking.run({source: np.ones(marking.sources[source].width, dtype=bool)})
    reader = next((r for r, which in seen.items() if r != OUTPUT and which.any() and layers[r].kind in CONSUMERS), None)
    if reader is not None:
        return f"its channels stand on another axis than those of {reader}, which reads them, and cannot be cut there"
    if _matters(marking, name):
        return (
            "the network chooses by what it gives (argmax, topk, a comparison, whole numbers), and channels cannot be "
            "followed through a choice"
        )
    return UNREAD


def _around(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _matters(marking: Marking, name: str) -> bool:
    """Whether the network gives something else where a layer gives the negative of its output."""

    def negate(module: nn.Module, args: Any, output: Any) -> Any:
        return transform(output, torch.neg)

    def outputs() -> list[torch.Tensor]:
        return tensors(call(marking.model, transform(marking.inputs, torch.clone)))

    with torch.no_grad():
        before = outputs()
        try:
            with hooked([marking.model.get_submodule(name).register_forward_hook(negate)]):
                after = outputs()
        except Exception:  # the choice leads to what does not run
            return True
    return not all_equal(before, after)


def reader_without_a_mask(marking: Marking, producer: str, uncalled: Collection[str]) -> str | None:
    """A layer that may mix the channels of ``producer`` though no mask can stand before it, and the next step.

    Args:
        marking: what followed the channels.
        producer: a layer.
        uncalled: layers whose weight is used without calling them.
    """
    model, width = marking.model, marking.layers[producer].n_out
    for name in uncalled:
        module = model.get_submodule(name)
        if kind_of(module) in CONSUMERS and (widths_of(module) or (0,))[0] == width:
            return f"{name}, whose weight is used without calling it, mixes them; call it as a module"
    for path, module in _hidden(model):
        if (widths_of(module) or (0,))[0] == width:
            kind = type(module).__name__
            return (
                f"{path} ({kind}), which is in no nn.ModuleList and so no part of the model, mixes them; put it in one"
            )
    return None


def _hidden(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and linear layers that modules keep in plain lists, tuples or dicts."""
    known = set(model.modules())
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            for i, entry in () if key.startswith("_") else _entries(value):
                if isinstance(entry, nn.Module) and entry not in known and kind_of(entry) in CONSUMERS:
                    yield f"{prefix + '.' if prefix else ''}{key}[{i!r}]", entry


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()
