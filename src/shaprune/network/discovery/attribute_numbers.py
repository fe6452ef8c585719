"""Whole numbers that modules keep: attributes, in lists, in functions, or in plain objects such as a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, all_equal, call, tensors, transform
from shaprune.network.layers.kinds import kind_of
from shaprune.network.removal.kept_numbers import Entry, entries_of, entry_text, with_entry

_NO_OBJECTS = (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType, torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class AttributeNumber:
    """A number of an attribute of a module, or of a plain object that it keeps."""

    path: str
    owner: Any
    name: str
    entry: Entry = None

    @property
    def value(self) -> int:
        return dict(entries_of(getattr(self.owner, self.name)))[self.entry]

    @property
    def sort(self) -> tuple[str, str, Entry]:
        """The same for the same number of another layer."""
        return type(self.owner).__name__, self.name, self.entry

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Double it for a while; one more is often rounded away."""
        before = getattr(self.owner, self.name)
        setattr(self.owner, self.name, with_entry(before, self.entry, 2 * self.value))
        try:
            yield
        finally:
            setattr(self.owner, self.name, before)


def numbers_in(copy: nn.Module, names: Iterable[str], sizes: set[int], *, own: bool = False) -> list[AttributeNumber]:
    """Numbers among ``sizes`` that modules keep, or only those that are their ``own``; each once."""
    found = [number for name in names for number in _numbers(copy, name, sizes, own)]
    return list({(id(n.owner), n.name, n.entry): n for n in reversed(found)}.values())[::-1]


def _numbers(copy: nn.Module, name: str, sizes: set[int], own: bool) -> list[AttributeNumber]:
    module = copy.get_submodule(name)
    if kind_of(module) is not None:
        return []
    objects = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    kept = {key: o for key, o in objects.items() if hasattr(o, "__dict__") and not isinstance(o, _NO_OBJECTS)}
    prefix = f"{name}." if name else ""
    places: list[tuple[str, Any]] = [(prefix, module)]
    places += [] if own else [(f"{prefix}{key}.", o) for key, o in kept.items()]
    return [
        AttributeNumber(f"{place}{key}{entry_text(entry)}", owner, key, entry)
        for place, owner in places
        for key, held in vars(owner).items()
        if not key.startswith("__")
        for entry, value in entries_of(held)
        if value in sizes
    ]


def matters(copy: nn.Module, inputs: Inputs, number: AttributeNumber) -> bool:
    """Whether the dense network breaks, or gives something else, with another number."""
    with torch.no_grad():
        before = tensors(call(copy, transform(inputs, torch.clone)))
        try:
            with number.changed():
                after = tensors(call(copy, transform(inputs, torch.clone)))
        except Exception:
            return True
    return not all_equal(before, after)
