"""Batches side by side on a CPU: every batch runs in a Python thread of its own, in which torch has one thread.

The operations on a batch that fits a core's caches are small. Where all cores share each of them they wait for each
other at its end, and long where another process takes one of the cores; whole batches need not wait.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")
P = TypeVar("P")
MAX_BATCH_THREADS = (
    8  # batches at a time: between operations, Python runs one thread only; beyond it, torch shares the cores again
)


def n_parallel_batches(batches: int) -> int:
    """How many of so many batches are run at a time; 1 on one core."""
    return max(1, min(torch.get_num_threads(), MAX_BATCH_THREADS, batches))


def run_in_threads(run: Callable[[P], T], parts: Iterable[P], threads: int) -> Iterator[tuple[P, Callable[[], T]]]:
    """Every part, in order, with a function that gives ``run(part)``, or raises what it raised.

    With one thread the function runs it. With several, parts begin before they are asked for, up to ``threads`` ahead,
    in the mode of autograd and of autocast that holds here; the number of torch's own threads is divided by as many,
    here and in them, until the iterator is exhausted, or closed. What ``run`` gives does not depend on ``threads``
    where torch's operations do not depend on the number of its own.
    """
    if threads < 2:
        for part in parts:
            yield part, partial(run, part)
        return
    each = max(1, torch.get_num_threads() // threads)
    as_here = _in_modes_of_caller(run)
    pool = ThreadPoolExecutor(threads, "shaprune", _begin_with, (each,))
    under_way: deque[tuple[P, Future[T]]] = deque()
    with torch_threads(each):
        try:
            for part in parts:
                under_way.append((part, pool.submit(as_here, part)))
                if len(under_way) > threads:
                    first, future = under_way.popleft()
                    yield first, future.result
            for part, future in under_way:
                yield part, future.result
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use ``number`` threads for what this thread computes; what other threads have, and get, stays."""
    before = torch.get_num_threads()
    put_back = _begin_with(number)
    try:
        yield
    finally:
        if put_back is None:
            torch.set_num_threads(before)
        else:
            put_back()


def _begin_with(number: int) -> Callable[[], None] | None:
    """Set torch's number of threads for the calling thread, where that can be done alone; what puts it back.

    torch keeps the number per thread, in OpenMP and in MKL, but `torch.set_num_threads` also writes the number that
    threads begin with which are born later. Where OpenMP cannot be reached, that is what remains, and None is given.
    """
    before = torch.get_num_threads()  # also makes torch enter its own number, which it does once in every thread
    if number == before:
        return lambda: None
    omp, mkl = _setters()
    if omp is not None:
        omp(number)
        if torch.get_num_threads() == number:
            local = mkl(number) if mkl is not None else 0

            def put_back() -> None:
                omp(before)
                if mkl is not None:
                    mkl(local)

            return put_back
    torch.set_num_threads(number)
    return None


@cache
def _setters() -> tuple[Callable[[int], Any] | None, Callable[[int], int] | None]:
    """The functions of OpenMP and MKL, among what torch has loaded, that set the calling thread's number."""
    try:
        library = ctypes.PyDLL(torch._C.__file__)
    except OSError:
        return None, None
    return getattr(library, "omp_set_num_threads", None), getattr(library, "MKL_Set_Num_Threads_Local", None)


def _in_modes_of_caller(run: Callable[[P], T]) -> Callable[[P], T]:
    """``run`` in the modes that belong to the thread that calls this."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    lower, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def as_here(part: P) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, lower):
            return run(part)

    return as_here
