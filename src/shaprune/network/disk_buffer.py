"""Batches joined along their first dimension: in memory up to a bound, beyond it in a temporary file that is mapped.

The file has no name, so that the system removes it however the process ends. What is read of it stays in the system's
file cache, which gives way to whatever needs memory. The bits are the same in both places.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import IO, Any

import torch
from torch import Tensor

from shaprune.errors import InputError
from shaprune.network.batches import concatenate, entries, tensor_bytes, tensors, transform

DEFAULT_MAX_MEMORY = 1 << 30  # bytes, where nothing else is said
MEMORY_PARTS = (
    4  # examples, dense outputs and values at a cut may each take such a part of the memory; the rows have the rest
)


def join_batches(batches: Iterable[Any], max_bytes: int | None = None, n: int | None = None) -> Any:
    """The tensors of all batches one after the other, in the structure of the first batch.

    Args:
        batches: at least one; nested structures of tensors, see `shaprune.network.batches`. Drawn one by one.
        max_bytes: that are kept in memory; None = all.
        n: how many rows there will be, where that is known: their place is then made at once. (Small results kept one
            by one between large temporary tensors leave holes in the heap that are never filled.)

    Raises:
        InputError: batches that do not fit together; the folder of temporary files cannot hold them.
    """
    first: Any = None
    waiting: list[Any] = []
    columns: list[_DiskColumn] = []
    size = 0
    batches = iter(batches)
    with ExitStack() as files:
        for batch in batches:
            if first is None:
                first = batch
                if n is not None and (max_bytes is None or tensor_bytes(batch) * n <= max_bytes * _rows(batch)):
                    return _filled(chain([batch], batches), n)
            size += tensor_bytes(batch)
            waiting.append(batch)
            if max_bytes is None or size <= max_bytes:
                continue
            with _explain_errors(size):
                columns = columns or [_DiskColumn(t, files.enter_context(_unnamed())) for t in tensors(first)]
                for each in waiting:
                    for column, tensor in zip(columns, _aligned(first, each), strict=True):
                        column.append(tensor)
            waiting.clear()
        with _explain_errors(size):
            if not columns:
                return concatenate(waiting)
            mapped = iter([column.mapped() for column in columns])
    return transform(first, lambda _: next(mapped))


def _filled(batches: Iterable[Any], n: int) -> Any:
    """The tensors of all batches in tensors of ``n`` rows."""
    places: list[Tensor] = []
    first, done = None, 0
    for batch in batches:
        if first is None:
            first, places = batch, [t.new_empty((n, *t.shape[1:])) for t in tensors(batch)]
        with _explain_errors(0):
            for place, tensor in zip(places, _aligned(first, batch), strict=True):
                _check_alike(tensor, place.dtype, place.shape[1:])
                place[done : done + len(tensor)] = tensor
        done += _rows(batch)
    given = iter(places)
    return transform(first, lambda _: next(given))


def _rows(batch: Any) -> int:
    return len(tensors(batch)[0])


class _DiskColumn:
    """One tensor of every batch, on disk."""

    def __init__(self, like: Tensor, file: IO[bytes]) -> None:
        self.dtype, self.shape, self.rows, self.file = like.dtype, like.shape[1:], 0, file

    def append(self, tensor: Tensor) -> None:
        _check_alike(tensor, self.dtype, self.shape)
        self.rows += len(tensor)
        if tensor.numel():
            self.file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def mapped(self) -> Tensor:
        """All rows, on the CPU; the file lives as long as this tensor and its views."""
        self.file.flush()
        if self.file.tell() == 0:
            return torch.empty((self.rows, *self.shape), dtype=self.dtype)
        # shared, because a private map would count as memory that has been promised
        content = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_WRITE)
        return torch.frombuffer(content, dtype=self.dtype).view(self.rows, *self.shape)


def _check_alike(tensor: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if (tensor.dtype, tensor.shape[1:], tensor.ndim > 0) != (dtype, shape, True):
        raise RuntimeError(f"{tensor.dtype} {tuple(tensor.shape)} after {dtype} {('...', *shape)}")


def _unnamed() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="shaprune-")


@contextmanager
def _explain_errors(size: int) -> Iterator[None]:
    """Errors of the batches and of the disk say what to do."""
    try:
        yield
    except (RuntimeError, KeyError, IndexError) as error:
        raise InputError(f"the batches do not fit together: {error}") from error
    except OSError as error:
        raise InputError(
            f"{size:,} bytes of examples or activations do not go into {tempfile.gettempdir()} "
            f"({error.strerror or error}); free some space there, set TMPDIR to another folder, or raise max_memory"
        ) from error


def _aligned(first: Any, batch: Any) -> list[Tensor]:
    """The tensors of a batch in the order of those of the first."""
    if isinstance(first, Tensor):
        return [batch]
    if isinstance(first, (tuple, list)):
        return [t for i, value in enumerate(first) for t in _aligned(value, batch[i])]
    theirs = entries(batch)
    return [t for key, value in entries(first).items() for t in _aligned(value, theirs[key])]


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or the system, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
