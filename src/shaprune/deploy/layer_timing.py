"""Time per layer: which layers take as long as before in spite of fewer multiply-adds, and what may help."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from shaprune.network.batches import Inputs, run
from shaprune.network.borrow import borrowed, device_of
from shaprune.network.hooks import hooked
from shaprune.network.layers.kinds import WEIGHTED

KERNEL_WIDTH_MULTIPLE = 8  # the widths that kernels of CPUs (oneDNN) and GPUs (tensor cores) are written for
_FASTER_BELOW = 0.97  # a layer or network below this share of the dense one's time is faster
_MAXWEIGHTED_NAMED = 4


def layer_times(model: nn.Module, example_inputs: Inputs, *, timings: int = 5) -> dict[str, float]:
    """Milliseconds that each convolution and linear layer takes in one forward pass: the median over ``timings``."""
    layers: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, WEIGHTED)}
    started: dict[nn.Module, float] = {}
    found: dict[str, list[float]] = {name: [] for name in layers.values()}
    spent: dict[str, float] = {}
    device = device_of(model)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def before(module: nn.Module, args: Any) -> None:
        started[module] = now()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        spent[layers[module]] = spent.get(layers[module], 0.0) + now() - started[module]

    hooks = (hook for m in layers for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(after)))
    with borrowed(model), torch.no_grad(), hooked(hooks):
        for round_ in range(-1, timings):  # round -1 warms up
            spent.clear()
            run(model, example_inputs, device=device)
            if round_ >= 0:
                for name, seconds in spent.items():
                    found[name].append(1e3 * seconds)
    return {name: float(np.median(times)) for name, times in found.items() if times}


def speed_advice(dense: nn.Module, small: nn.Module, example_inputs: Inputs) -> str:
    """Which layers became narrower and not faster, and the next step."""
    old, new = dict(dense.named_modules()), dict(small.named_modules())
    narrower = {
        name: (_widths(old[name]), _widths(module))
        for name, module in new.items()
        if isinstance(module, WEIGHTED) and name in old and _widths(module) != _widths(old[name])
    }
    slow, fast = layer_times(dense, example_inputs), layer_times(small, example_inputs)
    stuck = [name for name in narrower if name in slow and name in fast and fast[name] >= _FASTER_BELOW * slow[name]]
    stuck.sort(key=lambda name: -fast[name])
    if not stuck:
        return "its layers are faster one by one: the time goes elsewhere; try more examples at once, or compiled=..."
    told = ", ".join(
        f"{n} ({_width_change(*narrower[n])}: {slow[n]:.2g} -> {fast[n]:.2g} ms)" for n in stuck[:_MAXWEIGHTED_NAMED]
    )
    more = f" and {len(stuck) - _MAXWEIGHTED_NAMED} more" if len(stuck) > _MAXWEIGHTED_NAMED else ""
    awkward = any(width % KERNEL_WIDTH_MULTIPLE for name in stuck for width in narrower[name][1])
    help_ = f"plan with round_to={KERNEL_WIDTH_MULTIPLE}" if awkward else "exclude these layers, or cut others further"
    return f"layers that are narrower and take as long: {told}{more}; {help_}"


def is_faster(dense: tuple[float, float], small: tuple[float, float]) -> bool:
    """Whether a timing (median, 10th percentile) is clearly below the dense network's, in one of the two at least."""
    return any(ours < _FASTER_BELOW * theirs for ours, theirs in zip(small, dense, strict=True))


def _widths(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _width_change(before: tuple[int, int], after: tuple[int, int]) -> str:
    return f"{before[0]}x{before[1]} -> {after[0]}x{after[1]}"
