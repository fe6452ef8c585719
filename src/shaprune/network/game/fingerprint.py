"""Fingerprints of games: worths of one may stand for those of another only where these are equal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.network.batches import named_leaves, tensors
from shaprune.network.borrow import device_of
from shaprune.network.game.torchmetrics_worth import MetricFunction
from shaprune.network.game.worths import SetWorth, Worth
from shaprune.network.model_turns import turn
from shaprune.network.removal.masks import MaskSite

DEPTH = 6  # of attributes and closures in which tensors are looked for
ENTRIES = 1 << 12  # of the outputs of an example that are looked at


def fingerprint_of(
    model: nn.Module, sites: Sequence[MaskSite], data: Sequence[Any], functions: Sequence[object], *, n_players: int
) -> str:
    """SHA-256 in hexadecimal over all that a worth depends on, as far as it can be seen.

    Seen: the model's layers with their settings, weights and buffers; which channels belong to which player; the
    tensors and other things of ``data``; worths, with the tensors that they hold. Of a user's functions the code is not
    seen, nor what else they depend on: there `shaprune.values.games.witness` asks anew.

    Args:
        model: the network.
        sites: where the players' masks stand.
        data: inputs and targets, nested structures of tensors.
        functions: worths, functions that run the model, and names of how it is run.
        n_players: number of players.
    """
    digest = hashlib.sha256(f"shaprune game 1, {n_players} players".encode())
    with turn(model):
        for name, module in model.named_modules():
            digest.update(f"|{name}:{type(module).__qualname__}({_plain(module.extra_repr())})".encode())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            add_tensor(digest, name, tensor)
    for site in sites:
        add_tensor(digest, f"{site.module} {site.label}", site.owners)
    for tree in data:
        for tensor in tensors(tree):
            add_tensor(digest, "data", tensor)
        for name, leaf in named_leaves(tree).items():
            if not isinstance(leaf, Tensor):
                digest.update(f"|{name}={_plain(repr(leaf))}".encode())
    for function in functions:
        digest.update(f"|{identity(function)}".encode())
    return digest.hexdigest()


def identity(function: object) -> str:
    """The identity of a worth or a function: names, options, and the tensors in it; a text says it itself."""
    if isinstance(function, str):
        return function
    held = list(_held(function, DEPTH, set()))
    if not held:
        return _named(function)
    digest = hashlib.sha256()
    for number, tensor in enumerate(held):
        add_tensor(digest, str(number), tensor)
    return f"{_named(function)}, tensors {digest.hexdigest()[:16]}"


def _named(function: object) -> str:
    if isinstance(function, (Worth, SetWorth)):
        kept = _named(function.keep) if isinstance(function, SetWorth) else ""
        return f"{function.name}, {function.reference}, {_named(function.function)}, {kept}"
    if isinstance(function, MetricFunction):
        return _plain(function.identity)
    if isinstance(function, partial):
        return f"partial({_named(function.func)}, {_plain(repr((function.args, function.keywords)))})"
    named = function if hasattr(function, "__qualname__") else type(function)
    module = str(getattr(named, "__module__", ""))
    ours = module.partition(".")[0] == "shaprune"  # files outlive the place of our modules
    return f"{'shaprune' if ours else module}.{getattr(named, '__qualname__', '')}"


def _held(thing: object, depth: int, seen: set[int]) -> Iterator[Tensor]:
    """Tensors that a function closes over or has as a default, or that stand among an object's attributes."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, np.ndarray):
        if thing.dtype.kind in "biufc":
            yield torch.from_numpy(np.ascontiguousarray(thing))
    elif depth and id(thing) not in seen:
        seen.add(id(thing))
        for inside in _inside(thing):
            yield from _held(inside, depth - 1, seen)


def _inside(thing: object) -> list[object]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple)):
        return list(thing)
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        return [*cells, thing.__defaults__, thing.__kwdefaults__]
    if isinstance(thing, (type, ModuleType)):
        return []
    return list(getattr(thing, "__dict__", {}).values())


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # the variable has no value yet
        return False


def told(outputs: Tensor) -> NDArray[np.float64]:
    """(N,) one number for each example of outputs (N, ...), to which many of its entries contribute."""
    flat = outputs.detach().reshape(len(outputs), -1)
    flat = flat[:, :: max(1, flat.shape[1] // ENTRIES)].cpu()
    parts = torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat
    weights = torch.cos(torch.arange(parts.shape[1], dtype=torch.float64)) + 0.1
    found: NDArray[np.float64] = (parts.to(torch.float64) @ weights).numpy()
    return found


def few_digits(model: nn.Module) -> bool:
    """Whether a network is computed in half precision, or on a GPU that rounds its products."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    rounded = device_of(model).type != "cpu" and torch.get_float32_matmul_precision() != "highest"
    return rounded or bool(dtypes & {torch.float16, torch.bfloat16})


def _plain(text: str) -> str:
    """Text without memory addresses."""
    return re.sub(r"0x[0-9a-fA-F]+", "0x", text)


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor, its type and its shape to a hashlib digest, under a name."""
    digest.update(f"|{name}:{tensor.dtype}{tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
