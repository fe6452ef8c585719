"""Buffers that a network writes to as it runs (counters, running ranges), saved and restored.

A copy of each buffer is kept as long as its owner lives, so that a later block makes no new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SMALL = 4096  # entries up to which a buffer on the CPU is compared: writes to `.data` leave no other trace
_LARGE = 1 << 24  # bytes from which a copy is not kept for the next block

_Copy = tuple[Tensor, int, Tensor]  # a buffer, its version at that time, and the copy
_copies: WeakKeyDictionary[nn.Module, dict[str, _Copy]] = WeakKeyDictionary()


@contextmanager
def kept_buffers(model: nn.Module, but: tuple[type[nn.Module], ...] = ()) -> Iterator[list[nn.Module]]:
    """Put back, on any exit, buffers of ``model`` that were written to or replaced, ``but`` those of some modules.

    The list holds, after the exit, a module per buffer that was.
    """
    owners = [module for module in model.modules() if module._buffers and not isinstance(module, but)]
    before = [(module, dict(module._buffers), _copied(module)) for module in owners]
    changed: list[nn.Module] = []
    try:
        yield changed
    finally:
        for module, buffers, copies in before:
            if [*map(id, module._buffers.values())] != [*map(id, buffers.values())]:
                module._buffers.clear()
                module._buffers.update(buffers)
                changed.append(module)
            changed += [module for copy in copies.values() if _put_back(*copy)]


def _copied(module: nn.Module) -> Mapping[str, _Copy]:
    """Copies of the buffers of a module itself; those of an earlier block where nothing has changed since."""
    known = _copies.get(module, {})
    found: dict[str, _Copy] = {}
    for name, buffer in module._buffers.items():
        if buffer is None or is_lazy(buffer) or buffer.is_inference():
            continue
        old = known.get(name)
        same = old is not None and old[0] is buffer and not _written(*old)
        found[name] = old if same and old is not None else (buffer, buffer._version, buffer.detach().clone())
    _copies[module] = {name: c for name, c in found.items() if c[0].numel() * c[0].element_size() < _LARGE}
    return found


def _written(buffer: Tensor, version: int, copy: Tensor) -> bool:
    if buffer._version != version:
        return True
    return buffer.device.type == "cpu" and buffer.numel() <= _SMALL and not torch.equal(buffer, copy)


def _put_back(buffer: Tensor, version: int, copy: Tensor) -> bool:
    written = _written(buffer, version, copy)
    if written:
        with torch.no_grad():
            buffer.copy_(copy)
    return written
