"""What a network costs and how well it does: accuracy, latency with its spread, bytes, parameters, multiply-adds.

Every function borrows the model in eval mode without gradients and gives it back as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, call, length, main_output, split_batch, transform
from shaprune.network.borrow import borrowed, device_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SECONDS_PER_ROUND = 0.02  # a timing shorter than this is repeated within a round


@dataclass(frozen=True)
class Latency:
    """Milliseconds per forward pass over rounds: the median, and the 10th and 90th percentile."""

    median_ms: float
    low_ms: float
    high_ms: float


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """The share of examples whose largest output is their target's. ``model(inputs)`` -> (N, classes), or logits in it.

    Raises:
        InputError: no batch, a batch without targets, or targets that are not class indices.
    """
    right = total = 0
    with borrowed(model), torch.no_grad():
        device = device_of(model)
        for batch in batches:
            inputs, targets = split_batch(batch)
            if targets is None or targets.is_floating_point():
                what = "no targets" if targets is None else f"targets of type {targets.dtype}"
                raise InputError(f"accuracy needs class indices as targets, and a batch has {what}")
            outputs = main_output(call(model, _on(device, inputs)))
            if outputs.ndim < 2 or len(outputs) != len(targets):
                raise InputError(
                    f"accuracy needs outputs (N, classes) for {len(targets)} targets; "
                    f"the model returned shape {tuple(outputs.shape)}"
                )
            hits = outputs.argmax(1).cpu() == targets.cpu()
            right += int(hits.sum())
            total += hits.numel()
    if not total:
        raise InputError("the data holds no example; check the loader (an iterator can be read only once)")
    return right / total


def latency(
    models: Mapping[str, nn.Module], example_inputs: Inputs, *, rounds: int = 15, threads: int | None = None
) -> dict[str, Latency]:
    """Time forward passes, interleaved round by round, so that a slow moment of the machine meets every model.

    Args:
        models: name -> model.
        example_inputs: one batch: a tensor, a tuple or a dict.
        rounds: timings per model.
        threads: CPU threads; None for as many as torch uses now.

    Raises:
        InputError: no model, or a number below one.
    """
    if not models:
        raise InputError("latency needs at least one model, by name")
    for name, number in (("rounds", rounds), ("threads", threads)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    timers: dict[str, Timer] = {}
    repeats: dict[str, int] = {}
    for name, model in models.items():
        inputs = _on(device_of(model), example_inputs)
        timers[name] = Timer(
            "call(model, inputs)",
            globals={"call": call, "model": model, "inputs": inputs},
            num_threads=threads or torch.get_num_threads(),
        )
    for round_ in range(-1, rounds):  # round -1 warms up and sets the number of repeats
        for name in models if round_ % 2 else reversed(list(models)):
            with borrowed(models[name]), torch.no_grad():
                taken = timers[name].timeit(repeats.get(name, 1)).median
            if round_ < 0:
                repeats[name] = max(1, min(1000, math.ceil(_SECONDS_PER_ROUND / max(taken, 1e-6))))
            else:
                seconds[name].append(taken)
    return {
        name: Latency(*(float(np.percentile(times, q)) * 1e3 for q in (50, 10, 90))) for name, times in seconds.items()
    }


def size_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers as a safetensors file; shared tensors count once."""
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if not tensor.numel() or place not in seen:
            seen.add(place)
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return len(safetensors.torch.save(tensors))


def count(model: nn.Module, example_inputs: Inputs) -> tuple[int, int]:
    """Parameters, and multiply-adds per example of the convolutions and linear layers, as papers count them.

    A layer that runs twice counts twice; products outside such layers (attention scores) are not counted.
    """
    macs = 0
    n_examples = length(example_inputs)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Linear):
            per_output = module.in_features
            macs += output.numel() * per_output
        elif isinstance(module, _CONVOLUTIONS):
            per_pair = math.prod(module.kernel_size)
            if module.transposed:  # each input value meets a kernel of every output channel of its group
                macs += args[0].numel() * per_pair * (module.out_channels // module.groups)
            else:
                macs += output.numel() * per_pair * (module.in_channels // module.groups)

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, *_CONVOLUTIONS))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with borrowed(model), torch.no_grad():
            call(model, _on(device_of(model), example_inputs))
    finally:
        for handle in handles:
            handle.remove()
    return sum(p.numel() for p in model.parameters()), macs // n_examples


def _on(device: torch.device, inputs: Inputs) -> Inputs:
    return transform(inputs, lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Measurement:
    """One network, measured; ``accuracy`` is None where no labelled examples were given."""

    accuracy: float | None
    parameters: int
    macs: int
    latency: Latency
    bytes: int


def compare(
    models: Mapping[str, nn.Module],
    example_inputs: Inputs,
    test: Sequence[Any] | None = None,
    *,
    rounds: int = 15,
) -> dict[str, Measurement]:
    """Measure networks side by side: latency interleaved on ``example_inputs``, accuracy on the batches ``test``."""
    times = latency(models, example_inputs, rounds=rounds)
    result = {}
    for name, model in models.items():
        parameters, macs = count(model, example_inputs)
        right = None if test is None else accuracy(model, test)
        result[name] = Measurement(right, parameters, macs, times[name], size_bytes(model))
    return result
