"""What two games must have in common for the worths of one to be those of the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import tensors
from shaprune.network.masks import Site
from shaprune.network.metric import MetricFunction
from shaprune.network.turns import turn
from shaprune.network.worths import SetWorth, Worth


def fingerprint_of(
    model: nn.Module, sites: Sequence[Site], data: Sequence[Any], functions: Sequence[object], *, n_players: int
) -> str:
    """SHA-256 in hexadecimal over all that a worth depends on, as far as it can be seen.

    Seen: the model's layers with their settings, weights and buffers; which channels belong to which player; the
    tensors of ``data``; worths. Functions of the user are known by their qualified names only: one whose body has
    changed, and two lambdas of one function, look alike.

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
            _add(digest, name, tensor)
    for site in sites:
        _add(digest, f"{site.module} {site.label}", site.owners)
    for tree in data:
        for tensor in tensors(tree):
            _add(digest, "data", tensor)
    for function in functions:
        digest.update(f"|{identity(function)}".encode())
    return digest.hexdigest()


def identity(function: object) -> str:
    """What tells a worth or a function from others: names, and a metric's options; a text says it itself."""
    if isinstance(function, str):
        return function
    if isinstance(function, (Worth, SetWorth)):
        kept = identity(function.keep) if isinstance(function, SetWorth) else ""
        return f"{function.name}, {function.reference}, {identity(function.function)}, {kept}"
    if isinstance(function, MetricFunction):
        return _plain(function.identity)
    if isinstance(function, partial):
        return f"partial({identity(function.func)}, {_plain(repr((function.args, function.keywords)))})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '')}"


def _plain(text: str) -> str:
    """Text without memory addresses."""
    return re.sub(r"0x[0-9a-fA-F]+", "0x", text)


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"|{name}:{tensor.dtype}{tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
