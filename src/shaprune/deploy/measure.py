"""Measurements of a network: accuracy, latency with its spread, bytes, parameters, multiply-adds.

Every function borrows the model in eval mode without gradients and gives it back as it was.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from timeit import Timer
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.utils import benchmark

from shaprune.deploy.layer_timing import is_faster, speed_advice
from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.batches import (
    Inputs,
    call,
    copied_inputs,
    example_of,
    length,
    main_output,
    run,
    split_batch,
    tensors,
)
from shaprune.network.borrow import borrowed, copied, device_of, preserve_globals
from shaprune.network.collect_batches import check_data
from shaprune.network.forward.batch_threads import torch_threads
from shaprune.network.game.target_checks import (
    PROBABILITIES,
    class_last,
    class_targets,
    counted,
    looks_like_probabilities,
)
from shaprune.network.layers import kinds
from shaprune.network.layers.compound_macs import compound_macs
from shaprune.network.silence import silence
from shaprune.network.state_dicts import distinct, tensors_of
from shaprune.options.fields import moved_keywords

_FASTER_EXPECTED_BELOW = 0.9  # share of the multiply-adds from which a network is expected to be faster
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
    """The share of predictions that are their target's class. ``model(inputs)`` -> (N, classes), or logits in it.

    Targets may have any of the shapes in `shaprune.network.game.target_checks`, as for the worth ``"accuracy"``; what
    is -100 does not count.

    Raises:
        InputError: no batch, a batch without targets, or targets that are no classes of the outputs.
    """
    check_data(batches, "the labelled batches")
    right = total = 0
    probabilities: bool | None = None  # whether all outputs so far may be probabilities
    with borrowed(model), torch.no_grad():
        device = device_of(model)
        for batch in batches:
            inputs, given = split_batch(batch)
            if given is None:
                raise InputError("accuracy needs class indices as targets, and a batch has no targets")
            outputs = main_output(run(model, inputs, device=device)).cpu()
            if outputs.ndim < 1 or len(outputs) != len(given):
                raise InputError(
                    f"accuracy needs outputs (N, classes) for {len(given)} targets; "
                    f"the model returned shape {tuple(outputs.shape)}"
                )
            if not len(given):
                continue
            targets = class_targets("accuracy", given.cpu(), outputs, none=True)
            may_be = looks_like_probabilities(targets, outputs)
            probabilities = may_be and probabilities is not False
            right += int((class_last(outputs, targets).argmax(-1) == targets).sum())
            total += int(counted(targets).sum())
    if probabilities:
        raise InputError(f"accuracy {PROBABILITIES}")
    if not total:
        raise InputError(
            "the data hold no example with a target that counts; check the loader (an iterator can be read only once)"
        )
    return right / total


@moved_keywords({}, {"rounds": "timings=..."})
def latency(
    models: Mapping[str, nn.Module],
    example_inputs: Inputs,
    *,
    timings: int = 15,
    threads: int | None = None,
    compiled: str | None = None,
) -> dict[str, Latency]:
    """Time forward passes, interleaved round by round, so that a slow moment of the machine meets every model.

    Args:
        models: name -> model.
        example_inputs: one batch: a tensor, a tuple or a dict.
        timings: per model.
        threads: CPU threads; None for as many as torch uses now.
        compiled: time what `torch.compile` makes of the models with this backend (``"inductor"``); compiling itself is
            not counted.

    Raises:
        InputError: no model, a number below one, or a backend that does not work here.
    """
    if not models:
        raise InputError("latency needs at least one model, by name")
    for name, number in (("timings", timings), ("threads", threads)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    timers: dict[str, Timer] = {}
    repeats: dict[str, int] = {}
    used = threads or torch.get_num_threads()
    for name, model in models.items():
        inputs = copied_inputs(example_of(model, example_inputs)[0], device_of(model))
        how = _anew if _writes(model, inputs) else call
        timed = model if compiled is None else _compiled(name, model, inputs, compiled)
        given = {"call": how, "model": timed, "inputs": inputs}
        timers[name] = Timer("call(model, inputs)", timer=benchmark.timer, globals=given)  # a clock that awaits a GPU
    for round_ in range(-1, timings):  # round -1 warms up and sets the number of repeats
        for name in models if round_ % 2 else reversed(list(models)):
            with borrowed(models[name]), torch.no_grad(), torch_threads(used):
                taken = _timed(timers[name], repeats.get(name, 1))
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


def _anew(model: nn.Module, inputs: Inputs) -> Any:
    """Run a model that writes to its inputs: on a copy each time, which is timed with it."""
    return call(model, copied_inputs(inputs))


def _writes(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model writes to its inputs."""
    given = copied_inputs(inputs)
    with borrowed(model), torch.no_grad():
        call(model, given)
    return any(not torch.equal(a, b) for a, b in zip(tensors(given), tensors(inputs), strict=True))


def _timed(timer: Timer, repeats: int) -> float:
    """Seconds per run, after a few that warm up."""
    timer.timeit(max(repeats // 100, 2))
    return timer.timeit(repeats) / repeats


def _compiled(name: str, model: nn.Module, inputs: Inputs, backend: str) -> nn.Module:
    """What `torch.compile` makes of a copy of the model, run once."""
    try:
        with preserve_globals(), torch.no_grad(), silence():  # the compiler's warnings are about itself
            result: Any = torch.compile(copied(model).eval(), backend=backend)
            run(result, inputs)
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
    """Parameters, and multiply-adds per example as papers count them, see `shaprune.players.layer_costs`.

    A layer that runs twice counts twice; products between activations (attention scores) are not counted.
    """
    inputs = example_of(model, example_inputs)[0]
    on = copied_inputs(inputs, device_of(model))
    with borrowed(model), torch.no_grad():
        layers = kinds.measure_layers(model, on)
        macs = sum(layer.macs(layer.n_in, layer.n_out) for layer in layers.values())
        macs += sum(compound_macs(model, on, layers).values())
    return sum(p.numel() for p in model.parameters()), round(macs)


@dataclass(frozen=True)
class Measurement:
    """One network, measured; ``accuracy`` is None where no labelled examples were given."""

    accuracy: float | None
    parameters: int
    macs: int
    latency: Latency
    bytes: int


@moved_keywords({}, {"rounds": "timings=..."})
def compare(
    models: Mapping[str, nn.Module],
    example_inputs: Inputs,
    test: Sequence[Any] | None = None,
    *,
    timings: int = 15,
    threads: int | None = None,
    compiled: str | None = None,
) -> dict[str, Measurement]:
    """Measure networks side by side: latency interleaved on ``example_inputs``, accuracy on the batches ``test``.

    Warns where the last network does fewer multiply-adds than the first and is not faster, and names the layers.

    Args:
        models: name -> model, the dense network first.
        example_inputs: one batch.
        test: labelled batches; None = accuracy is not measured.
        timings, threads, compiled: see `latency`.
    """
    times = latency(models, example_inputs, timings=timings, threads=threads, compiled=compiled)
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
    if small.macs > _FASTER_EXPECTED_BELOW * dense.macs or a.low_ms < _TOO_SHORT_MS:
        return
    if is_faster((a.median_ms, a.low_ms), (b.median_ms, b.low_ms)):
        return
    warnings.warn(
        f"{last} does {small.macs / dense.macs:.0%} of {first}'s multiply-adds and is not faster: {b.median_ms:.2f} ms "
        f"({b.low_ms:.2f} to {b.high_ms:.2f}) against {a.median_ms:.2f} ms ({a.low_ms:.2f} to {a.high_ms:.2f}), "
        f"{a.examples} examples, {a.device}, threads: {a.threads}; "
        + speed_advice(models[first], models[last], example_inputs),
        ShapruneWarning,
        stacklevel=3,
    )
