"""What a network costs and how well it does: accuracy, latency with its spread, bytes, parameters, multiply-adds.

Every function borrows the model in eval mode without gradients and gives it back as it was.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.batches import Inputs, call, length, main_output, split_batch, transform
from shaprune.network.borrow import borrowed, copied, device_of, kept_globals
from shaprune.network.stored import distinct, tensors_of
from shaprune.speed import advice, is_faster

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FEWER = 0.9  # share of the multiply-adds from which a network is expected to be faster
_TOO_SHORT_MS = 1.0
_SECONDS_PER_ROUND = 0.02  # a timing shorter than this is repeated within a round


@dataclass(frozen=True)
class Latency:
    """Milliseconds per forward pass over rounds: the median, and the 10th and 90th percentile.

    Attributes:
        threads: CPU threads.
        device: where it ran.
        examples: examples per forward pass.
        compiled: the backend of `torch.compile`; None = not compiled.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    threads: int = 1
    device: str = "cpu"
    examples: int = 1
    compiled: str | None = None


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
    models: Mapping[str, nn.Module],
    example_inputs: Inputs,
    *,
    rounds: int = 15,
    threads: int | None = None,
    compiled: str | None = None,
) -> dict[str, Latency]:
    """Time forward passes, interleaved round by round, so that a slow moment of the machine meets every model.

    Args:
        models: name -> model.
        example_inputs: one batch: a tensor, a tuple or a dict.
        rounds: timings per model.
        threads: CPU threads; None for as many as torch uses now.
        compiled: time what `torch.compile` makes of the models with this backend (``"inductor"``); compiling itself is
            not counted.

    Raises:
        InputError: no model, a number below one, or a backend that does not work here.
    """
    if not models:
        raise InputError("latency needs at least one model, by name")
    for name, number in (("rounds", rounds), ("threads", threads)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    timers: dict[str, Timer] = {}
    repeats: dict[str, int] = {}
    used = threads or torch.get_num_threads()
    for name, model in models.items():
        inputs = _on(device_of(model), example_inputs)
        timed = model if compiled is None else _compiled(name, model, inputs, compiled)
        timers[name] = Timer(
            "call(model, inputs)", globals={"call": call, "model": timed, "inputs": inputs}, num_threads=used
        )
    for round_ in range(-1, rounds):  # round -1 warms up and sets the number of repeats
        for name in models if round_ % 2 else reversed(list(models)):
            with borrowed(models[name]), torch.no_grad():
                taken = timers[name].timeit(repeats.get(name, 1)).median
            if round_ < 0:
                repeats[name] = max(1, min(1000, math.ceil(_SECONDS_PER_ROUND / max(taken, 1e-6))))
            else:
                seconds[name].append(taken)
    result = {}
    for name, times in seconds.items():
        median, low, high = (float(np.percentile(times, q)) * 1e3 for q in (50, 10, 90))
        where = str(device_of(models[name]))
        result[name] = Latency(median, low, high, used, where, length(example_inputs), compiled)
    return result


def _compiled(name: str, model: nn.Module, inputs: Inputs, backend: str) -> nn.Module:
    """What `torch.compile` makes of a copy of the model, run once."""
    try:
        with kept_globals(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, about itself
            result: Any = torch.compile(copied(model).eval(), backend=backend)
            call(result, inputs)
    except Exception as error:  # compilers fail in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name} cannot be compiled with backend {backend!r} ({reason}); leave compiled out to time it as it is"
        ) from error
    return cast(nn.Module, result)


def size_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters and buffers as a safetensors file; shared tensors count once."""
    kept, _ = distinct(tensors_of(model))
    whole = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in kept.items()}
    return len(safetensors.torch.save(whole))


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
    threads: int | None = None,
    compiled: str | None = None,
) -> dict[str, Measurement]:
    """Measure networks side by side: latency interleaved on ``example_inputs``, accuracy on the batches ``test``.

    Warns where the last network does fewer multiply-adds than the first and is not faster, and names the layers.

    Args:
        models: name -> model, the dense network first.
        example_inputs: one batch.
        test: labelled batches; None = accuracy is not measured.
        rounds, threads, compiled: see `latency`.
    """
    times = latency(models, example_inputs, rounds=rounds, threads=threads, compiled=compiled)
    result = {}
    for name, model in models.items():
        parameters, macs = count(model, example_inputs)
        right = None if test is None else accuracy(model, test)
        result[name] = Measurement(right, parameters, macs, times[name], size_bytes(model))
    warn_if_not_faster(models, result, example_inputs)
    return result


def warn_if_not_faster(
    models: Mapping[str, nn.Module], measurements: Mapping[str, Measurement], example_inputs: Inputs
) -> None:
    """Warn where the last network does fewer multiply-adds than the first and is not faster.

    Where a pass of the first takes less than a millisecond, calls cost more than multiplications, and nothing is said.
    """
    (first, dense), (last, small) = (list(measurements.items())[i] for i in (0, -1))
    a, b = dense.latency, small.latency
    if small.macs > _FEWER * dense.macs or a.low_ms < _TOO_SHORT_MS:
        return
    if is_faster((a.median_ms, a.low_ms), (b.median_ms, b.low_ms)):
        return
    warnings.warn(
        f"{last} does {small.macs / dense.macs:.0%} of {first}'s multiply-adds and is not faster: {b.median_ms:.2f} ms "
        f"({b.low_ms:.2f} to {b.high_ms:.2f}) against {a.median_ms:.2f} ms ({a.low_ms:.2f} to {a.high_ms:.2f}), "
        f"{a.examples} examples, {a.device}, threads: {a.threads}; "
        + advice(models[first], models[last], example_inputs),
        ShapruneWarning,
        stacklevel=3,
    )
