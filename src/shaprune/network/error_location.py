"""Location of an error in a network: the module, and the line of its code."""

from __future__ import annotations

import linecache
import traceback

from torch import nn


def error_location(error: BaseException) -> str:
    """Where a forward pass broke, such as ``layer1.0 (BasicBlock), "return F.relu(x + y)"``; empty if in none.

    The module is the innermost that ran; the line is the last one outside torch and shaprune, where there is one.
    """
    names: dict[nn.Module, str] = {}
    place = line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            names = names or {m: name for name, m in module.named_modules()}  # of the outermost
            place = f"{names.get(module) or 'the network'} ({type(module).__name__})"
        if names and not str(frame.f_globals.get("__name__")).startswith(("torch.", "shaprune.")):
            line = linecache.getline(frame.f_code.co_filename, number).strip()
    return f'{place}, "{line}"' if line else place


def container_of(error: BaseException, model: nn.Module) -> str:
    """Name of the innermost module with others inside, around where a forward pass broke; empty for ``model``."""
    names = {module: name for name, module in model.named_modules()}
    ran = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    holding = [m for m in ran if isinstance(m, nn.Module) and m in names and next(m.children(), None) is not None]
    return names[holding[-1]] if holding else ""
