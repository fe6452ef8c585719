"""Dependence of outputs on earlier values: every operation of a run is observed and passes its sources on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shaprune.network.batches import tensors
from shaprune.network.dispatch_mode import DispatchMode

EXPORTING_METHODS = (
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.data_ptr,
)  # operations do not see it


class DependenceTracker(DispatchMode):
    """A context in which values are followed, by their storage, through all operations.

    A value counts as needed, whatever becomes of it, where something is written to it, where numbers are read from it
    (``.item()``, ``.tolist()``, ``.numpy()``), or where it decides how large a result is: Python code may go another
    way for another value.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[int, set[int]] = {}  # per storage: keys of the values that it was computed from
        self._needed: set[int] = set()
        self._held: list[Tensor] = []  # so that no storage is given away and taken for another
        self._leaving = _ExportTracker(self)

    def __enter__(self) -> DependenceTracker:
        self._leaving.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._leaving.__exit__(*error)

    def follow(self, tensor: Tensor, key: int) -> None:
        """Call a value ``key`` from here on."""
        self._enter(tensor, {key})

    def need(self, tensor: Tensor) -> None:
        """Whatever a value was computed from is needed."""
        self._needed |= self._read(tensor)

    def needed(self, answer: Any) -> set[int]:
        """Keys of all values that ``answer`` depends on, or that may have decided on the way to it."""
        return self._needed | self._read(answer)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        given = [*args, *kwargs.values()]
        sources = self._read(given)
        if sources:
            found = tensors(result)
            if func._schema.is_mutable or not found or torch.Tag.dynamic_output_shape in func.tags:
                self._needed |= sources
            for tensor in found if not func._schema.is_mutable else [*found, *tensors(given)]:
                self._enter(tensor, sources)
        return result

    def _read(self, values: Any) -> set[int]:
        return set().union(*(self._sources.get(_storage(t), ()) for t in tensors(values)))

    def _enter(self, tensor: Tensor, sources: set[int]) -> None:
        self._held.append(tensor)
        self._sources.setdefault(_storage(tensor), set()).update(sources)


class _ExportTracker(TorchFunctionMode):
    """Notes values that are passed to Python or NumPy."""

    def __init__(self, reading: DependenceTracker) -> None:
        super().__init__()
        self.reading = reading

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in EXPORTING_METHODS:
            self.reading.need(args[0])
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
