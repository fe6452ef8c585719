"""The network, its weights and the data that a command line names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import typer
from safetensors import SafetensorError
from torch import Tensor, nn

from shaprune.builtin.datasets import Dataset, load_dataset
from shaprune.builtin.factories import call_factory
from shaprune.builtin.models import MODELS
from shaprune.builtin.splits import Split
from shaprune.cli.command import as_usage_error
from shaprune.cli.options.parse import shape_of
from shaprune.cli.options.shared import FOLDERS
from shaprune.errors import InputError, nearest
from shaprune.network.state_dicts import EXTRA, as_saved, tensors_of
from shaprune.options.preprocessing import AS_THEY_ARE, Preprocessing
from shaprune.report.comparison import latency_setting


def device_of(name: str | None) -> torch.device:
    """The device of this name; None for cuda where there is one, else cpu."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{name!r} cannot be used ({reason}); try cpu", param_hint="--device") from error
    return device


def setting_of(inputs: Tensor, threads: int | None = None, compiled: str | None = None) -> str:
    """Words for how latency is measured on these inputs."""
    words = latency_setting(len(inputs), str(inputs.device), threads or torch.get_num_threads())
    return words + (f", compiled by {compiled}" if compiled else "")


def read_data(spec: str, cache: Path | None = None, preprocessing: Preprocessing = AS_THEY_ARE) -> Dataset:
    """Load data by name; a name that means nothing is wrong usage, a damaged folder is not."""
    kind, _, rest = spec.partition(":")
    if kind in FOLDERS and rest:
        return load_dataset(spec, cache=cache, preprocessing=preprocessing)
    with as_usage_error("--data"):
        return load_dataset(spec, cache=cache, preprocessing=preprocessing)


def parts_of(held_out: Split, examples: int, *, floored: bool) -> tuple[Split, Split | None]:
    """What is scored and recovered on; and for a floor, what it is measured on: at least half of what is held out."""
    if not floored:
        return held_out.take(examples), None
    n = max(1, min(examples, len(held_out) // 2))
    return held_out.take(n), type(held_out)(held_out.inputs[n:], held_out.targets[n:])


def builder(spec: str) -> Callable[[], nn.Module]:
    """What makes the network named by ``spec``."""
    if spec in MODELS:
        return MODELS[spec].factory
    with as_usage_error("--model"):
        if ":" not in spec:
            known = nearest(spec, MODELS)
            raise InputError(f"unknown model {spec!r}{known} Or name a factory: package.module:factory.")

    def build() -> nn.Module:
        with as_usage_error("--model"):
            model = call_factory(spec, what="model")
            if not isinstance(model, nn.Module):
                raise InputError(f"{spec!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
        return model

    return build


def drawn_inputs(shapes: Sequence[str], device: torch.device, seed: int, examples: int = 2) -> tuple[Tensor, ...]:
    """Examples for every input of the network: normally distributed numbers, or zeros of a whole type."""
    torch.manual_seed(seed)
    drawn = []
    for text in shapes:
        shape, name = shape_of(text)
        dtype: torch.dtype = getattr(torch, name)
        example = torch.randn(examples, *shape) if dtype.is_floating_point else torch.zeros(examples, *shape)
        drawn.append(example.to(device, dtype))
    return tuple(drawn)


def read_model(
    spec: str, weights: Path | None, device: torch.device, seed: int, *, untrained: bool = False
) -> nn.Module:
    """Build the network, give it its weights, and put it in eval mode on the device.

    A built-in network without weights is wrong usage, unless it may be ``untrained``.
    """
    if weights is None and spec in MODELS and not untrained:
        raise typer.BadParameter(f"the built-in {spec!r} comes untrained; give its weights", param_hint="--weights")
    if weights is not None and weights.suffix not in _READERS:
        raise typer.BadParameter(
            f"{weights.name!r} is of no known kind; give .safetensors or .pt", param_hint="--weights"
        )
    torch.manual_seed(seed)
    model = builder(spec)()
    if weights is not None:
        _give(model, _READERS[weights.suffix](weights), weights)
    return model.to(device).eval()


def _give(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict that must fit; a tied tensor may be stored once."""
    own = tensors_of(model)
    extra = {name: found for name, found in state.items() if name not in own and name.endswith(EXTRA)}
    state = {name: tensor for name, tensor in state.items() if name not in extra}
    stored = {own[name].data_ptr() for name in state if name in own}
    missing = [name for name, tensor in own.items() if name not in state and tensor.data_ptr() not in stored]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        parts = [f"{path} does not fit the model"]
        if missing:
            parts.append(f"{_few(missing)} missing in the file")
        if unexpected:
            parts.append(f"{_few(unexpected)} unknown to the model")
        raise InputError("; ".join(parts) + "; is it another network's file?")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{path} does not fit the model: {name!r} has shape {tuple(tensor.shape)} in the file "
                f"and {tuple(own[name].shape)} in the model"
            )
    model.load_state_dict(as_saved({**state, **extra}, model), strict=False)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more} {'are' if more else 'is'}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors or is truncated: {error}") from error


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = next(iter(str(error).splitlines()), "")
        why = f" ({reason})" if " " in reason else ""  # a pickle may fail at a number
        raise InputError(
            f"{path} cannot be read as weights{why}; save them with torch.save(model.state_dict(), ...)"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(
        isinstance(tensor, Tensor) or str(name).endswith(EXTRA) for name, tensor in found.items()
    ):
        raise InputError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), ...)")
    return found


_READERS = {".safetensors": _read_safetensors, ".pt": _read_pt, ".pth": _read_pt}
