"""Save a pruned network and rebuild it elsewhere: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shaprune.deploy.network_outline import Outline, difference, dtypes_of, outline_of
from shaprune.errors import InputError
from shaprune.network.borrow import copied
from shaprune.network.layers.open_attention import opened_for
from shaprune.network.removal.surgery import check_fits, remove_players, width_as_is
from shaprune.network.state_dicts import as_saved, distinct, extras_of, separate, tensors_of, versions_of
from shaprune.planning.plan import Plan
from shaprune.storage.atomic_files import replacing_directory
from shaprune.storage.schema import check_schema, read_document

SCHEMA = 2
WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
FILES = (WEIGHTS, MANIFEST)


class Manifest(BaseModel):
    """What stands beside the weights: enough to rebuild the narrow layers from the dense factory, and to check it.

    Attributes:
        versions: of what wrote it.
        shapes: of every tensor of the state dict.
        dtypes: of every tensor; empty = not known (schema 1).
        extra: what `get_extra_state` of layers returned, where it is no tensor.
        state_versions: versions of layers in the state dict, where they are not 1; None = not known (schema 1).
        outline: what the network computes; None = not known (schema 1).
        plan: the plan that made it.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    kind: Literal["manifest"] = "manifest"
    versions: dict[str, str]
    shapes: dict[str, list[int]]
    dtypes: dict[str, str] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)
    state_versions: dict[str, int] | None = None
    outline: Outline | None = None
    plan: dict[str, Any]


def save(model: nn.Module, plan: Plan, directory: str | Path, *, overwrite: bool = False) -> None:
    """Write ``model.safetensors`` and ``manifest.json`` into a new folder.

    Args:
        model: the pruned network, recovered or not.
        plan: the plan that made it.
        directory: a folder that does not exist yet or is empty.
        overwrite: replace an existing folder that holds nothing but what an earlier call wrote.

    Raises:
        InputError: the model was not made by this plan, or has extra state that JSON cannot hold; the folder exists,
            holds something else, or cannot be written.
    """
    _check_made_by(model, plan)
    tensors = tensors_of(model)
    manifest = Manifest(
        schema=SCHEMA,
        versions={"shaprune": version("shaprune"), "torch": torch.__version__, "python": platform.python_version()},
        shapes={name: list(tensor.shape) for name, tensor in tensors.items()},
        dtypes=dtypes_of(tensors),
        extra=extras_of(model),
        state_versions=versions_of(model),
        outline=outline_of(model),
        plan=plan.to_json(),
    )
    kept, tied = distinct(tensors)
    whole = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in kept.items()}
    with replacing_directory(directory, files=FILES, overwrite=overwrite) as folder:
        try:
            save_file(whole, str(folder / WEIGHTS), metadata=tied or None)
        except SafetensorError as error:
            raise OSError(f"{WEIGHTS}: {error}") from error
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{WEIGHTS} cannot hold a tensor of this model: {error}") from error
        (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(by_alias=True)), encoding="utf-8")


def load(directory: str | Path, build: Callable[[], nn.Module], *, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a saved network.

    What ``build`` makes is compared with what was saved, without running it: types of tensors, settings of layers, the
    steps of `forward` where torch.fx follows it, and buffers that are not saved. Attention that was open
    (see `shaprune.builtin.open_attention`) is opened in it first.

    Args:
        directory: what `save` wrote.
        build: makes the dense network (its weights do not matter).
        device: where the result lives.

    Returns:
        The pruned network in eval mode.

    Raises:
        InputError: a missing, damaged or newer file, or a factory that builds another network.
    """
    folder = Path(directory)
    manifest = _manifest(folder / MANIFEST)
    plan = Plan.from_json(manifest.plan)
    tensors = _tensors(folder / WEIGHTS, manifest)
    model = build()
    if not isinstance(model, nn.Module):
        raise InputError(f"build() returned a {type(model).__name__}; it must return the dense torch.nn.Module")
    _check_has_weights(model)
    model = opened_for(model, plan.players.layers)
    check_fits(model, plan.players)
    small = remove_players(copied(model), plan.players, plan.kept)
    separate(small)
    _check_types(small, manifest)
    try:
        small.load_state_dict(as_saved({**tensors, **manifest.extra}, small, manifest.state_versions))
    except Exception as error:  # load_state_dict and set_extra_state of a user's layers raise whatever they like
        reason = " ".join(str(error).split())
        raise InputError(f"the saved weights do not fit what build() makes: {reason}") from error
    _check_outline(small, manifest)
    for name, tensor in tensors_of(small).items():
        if name in tensors and not torch.equal(_bits(tensor.cpu()), _bits(tensors[name])):
            raise InputError(
                f"tensor {name!r} does not take what was saved: in what build() makes it shares memory with another "
                "tensor, or its layer changes it; build the network that was saved"
            )
    return small.to(device).eval()


def _check_has_weights(model: nn.Module) -> None:
    """Refuse lazy layers, which have no weights before a first run."""
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise InputError(
            f"build() makes {lazy!r} without a shape (a lazy layer that has not run); run the model once on an example "
            "inside build, def build(): model = make(); model(example); return model"
        )


def _checked_manifest(data: Any) -> Any:
    check_schema(data, "manifest", SCHEMA)
    return data


def _manifest(path: Path) -> Manifest:
    data = read_document(path, _checked_manifest)
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][:3]))
        raise InputError(f"{path} is damaged: {where}: {first['msg']}") from error


def _check_types(small: nn.Module, manifest: Manifest) -> None:
    """Refuse a network that computes in other types than the one that was saved."""
    own = dtypes_of(tensors_of(small))
    for name, dtype in manifest.dtypes.items():
        if own.get(name, dtype) != dtype:
            raise InputError(
                f"build() makes {name!r} in {own[name]}, and {dtype} was saved; build the network in that type, "
                f"build=lambda: make().to(torch.{dtype})"
            )


def _check_outline(small: nn.Module, manifest: Manifest) -> None:
    """Refuse a network that computes other things than the one that was saved."""
    if manifest.outline is None or _release(manifest.versions.get("torch", "")) != _release(torch.__version__):
        return  # another release of torch may say it otherwise
    wrong = difference(manifest.outline, outline_of(small))
    if wrong is not None:
        raise InputError(f"build() makes another network than was saved: {wrong}; build the same")


def _release(version: str) -> list[str]:
    return version.split(".")[:2]


def _bits(tensor: Tensor) -> Tensor:
    """A tensor as bytes, so that NaN is NaN."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _check_made_by(model: nn.Module, plan: Plan) -> None:
    modules = dict(model.named_modules())
    for name, expected in plan.players.widths(plan.kept).items():
        layer = plan.players.layers[name]
        if layer.kind == "parameter":
            continue  # their shapes stand in the manifest
        if name not in modules:
            raise InputError(f"the plan does not belong to this model: layer {name!r} is missing")
        width = width_as_is(modules[name], layer)
        if width is not None and width != expected:
            raise InputError(
                f"the plan does not belong to this model: layer {name!r} is {width[0]} -> {width[1]}, "
                f"the plan makes it {expected[0]} -> {expected[1]}; save the pruned network, not the dense one"
            )


def _tensors(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Every tensor of the manifest, which must be in the file with its shape and type (one with two names once)."""
    try:
        with safe_open(str(path), framework="pt") as weights:
            stored = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
            tied = weights.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read or is truncated: {error}") from error
    found = {}
    for name, shape in manifest.shapes.items():
        source = name if name in stored else tied.get(name, name)
        if source not in stored:
            raise InputError(f"{path} is damaged: tensor {name!r} is missing")
        tensor = found[name] = stored[source]
        if list(tensor.shape) != shape:
            raise InputError(
                f"{path} is damaged: tensor {name!r} has shape {list(tensor.shape)}, the manifest says {shape}"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if manifest.dtypes.get(name, dtype) != dtype:
            raise InputError(
                f"{path} is damaged: tensor {name!r} is {dtype}, the manifest says {manifest.dtypes[name]}"
            )
    return found
