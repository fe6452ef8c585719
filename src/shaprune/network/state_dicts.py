"""State dicts as files hold them: tensors once each, what is no tensor as JSON, and the versions of the layers."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.errors import InputError

EXTRA = "_extra_state"  # torch: what the names of extra state end in
Place = tuple[int, torch.dtype, torch.Size, tuple[int, ...]]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict, by name."""
    return {name: found for name, found in model.state_dict().items() if isinstance(found, Tensor)}


def place_of(tensor: Tensor) -> Place | None:
    """What two names of one tensor have in common; None where there is nothing to share."""
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else None


def distinct(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and for each further name of it the name under which it is found.

    Views that overlap without being the same tensor count as tensors of their own.
    """
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[Place, str] = {}
    for name, tensor in tensors.items():
        place = place_of(tensor)
        if place is not None and place in names:
            tied[name] = names[place]
            continue
        if place is not None:
            names[place] = name
        kept[name] = tensor
    return kept, tied


def extras_of(model: nn.Module) -> dict[str, Any]:
    """What `get_extra_state` of layers returns, where it is no tensor, by its name in the state dict.

    Raises:
        InputError: JSON cannot hold it; the layer is named.
    """
    found = {name: state for name, state in model.state_dict().items() if not isinstance(state, Tensor)}
    for name, state in found.items():
        try:
            same = json.loads(json.dumps(state, allow_nan=False)) == state
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            layer = name.removesuffix(EXTRA).removesuffix(".")
            of = f"layer {layer!r}" if layer else "the model"
            raise InputError(
                f"the extra state of {of} is a {type(state).__name__} that JSON does not give back as it "
                "is; let get_extra_state return a tensor, or lists, numbers, texts and dictionaries with texts as keys"
            )
    return found


def versions_of(model: nn.Module) -> dict[str, int]:
    """The versions of layers in a state dict, by the layer's name, where they are not 1."""
    metadata: Mapping[str, Mapping[str, Any]] = getattr(model.state_dict(), "_metadata", {})
    found = {name: local.get("version", 1) for name, local in metadata.items()}
    return {name: version for name, version in found.items() if isinstance(version, int) and version != 1}


def as_saved(state: Mapping[str, Any], model: nn.Module, versions: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A state for ``model.load_state_dict``, with versions of its layers.

    Args:
        state: what is to be loaded.
        model: into which.
        versions: of the layers when it was saved, where they are not 1; None = those of ``model``.
    """
    metadata: Mapping[str, Mapping[str, Any]] = getattr(model.state_dict(), "_metadata", {})
    result: Any = OrderedDict(state)
    result._metadata = OrderedDict(
        (name, {**local, **({} if versions is None else {"version": versions.get(name, 1)})})
        for name, local in metadata.items()
    )
    return result  # type: ignore[no-any-return]


def separate(model: nn.Module) -> None:
    """Give every tensor whose entries share memory (an expanded one) memory of its own, so that it can be written."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if any(stride == 0 and n > 1 for stride, n in zip(tensor.stride(), tensor.shape, strict=True)):
                fresh = tensor.detach().clone(memory_format=torch.contiguous_format)
                parameter = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(fresh, tensor.requires_grad) if parameter else fresh)
