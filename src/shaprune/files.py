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
from safetensors.torch import load_model, save_model
from torch import nn

from shaprune.atomic import new_directory, read_json
from shaprune.documents import check_schema
from shaprune.errors import InputError
from shaprune.network.borrow import copied
from shaprune.network.surgery import check_fits, cut, width_as_is
from shaprune.planning import Plan

SCHEMA = 1
WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
FILES = (WEIGHTS, MANIFEST)


class Manifest(BaseModel):
    """What stands beside the weights: enough to rebuild the narrow layers from the dense factory."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    kind: Literal["manifest"] = "manifest"
    schema_version: int = Field(SCHEMA, alias="schema")
    versions: dict[str, str]
    shapes: dict[str, list[int]]
    plan: dict[str, Any]


def save(model: nn.Module, plan: Plan, directory: str | Path, *, overwrite: bool = False) -> None:
    """Write ``model.safetensors`` and ``manifest.json`` into a new folder.

    Args:
        model: the pruned network, recovered or not.
        plan: the plan that made it.
        directory: a folder that does not exist yet or is empty.
        overwrite: replace an existing folder that holds nothing but what an earlier call wrote.

    Raises:
        InputError: the model was not made by this plan; the folder exists, holds something else, or cannot be
            written.
    """
    _check_made_by(model, plan)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    versions = {"shaprune": version("shaprune"), "torch": torch.__version__, "python": platform.python_version()}
    manifest = Manifest.model_validate({"versions": versions, "shapes": shapes, "plan": plan.to_json()})
    with new_directory(directory, files=FILES, overwrite=overwrite) as folder:
        try:
            save_model(model, str(folder / WEIGHTS))
        except SafetensorError as error:
            raise OSError(f"{WEIGHTS}: {error}") from error
        (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(by_alias=True)), encoding="utf-8")


def load(directory: str | Path, build: Callable[[], nn.Module], *, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a saved network.

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
    data = read_json(folder / MANIFEST)
    check_schema(data, "manifest", SCHEMA)
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{folder / MANIFEST} is damaged: {first['loc'][0]}: {first['msg']}") from error
    plan = Plan.from_json(manifest.plan)
    _check_tensors(folder / WEIGHTS, manifest.shapes)
    model = build()
    if not isinstance(model, nn.Module):
        raise InputError(f"build() returned a {type(model).__name__}; it must return the dense torch.nn.Module")
    check_fits(model, plan.players)
    small = cut(copied(model), plan.players, plan.kept)
    try:
        load_model(small, str(folder / WEIGHTS), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"the saved weights do not fit what build() makes: {error}") from error
    return small.to(device).eval()


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


def _check_tensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """Every tensor of the manifest must be in the file with its shape (a tied tensor is stored once)."""
    try:
        with safe_open(str(path), framework="pt") as weights:
            stored = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            tied = set(weights.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read or is truncated: {error}") from error
    for name, shape in shapes.items():
        if name not in stored and name not in tied:
            raise InputError(f"{path} is damaged: tensor {name!r} is missing")
        if name in stored and stored[name] != shape:
            raise InputError(f"{path} is damaged: tensor {name!r} has shape {stored[name]}, the manifest says {shape}")
