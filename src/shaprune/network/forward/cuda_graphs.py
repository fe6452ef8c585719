"""The operations of a batch recorded once and then started together (CUDA graphs), where that was measured faster.

To start an operation takes Python and the driver some microseconds; on a small batch, a GPU is done sooner than that.
What was recorded is started by one call. It reads and writes always the same memory: what is given is copied to where
the recorded values lay, and what comes out is copied from there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from shaprune.network.batches import tensors, transform
from shaprune.network.tolerance import relative_difference, tolerance_for

USES_BEFORE_RECORDING = (
    3  # uses of one shape before it is tried: what is asked only once or twice is not worth recording
)
RECORDING_TOLERANCE = 1e-5  # relative, float32: how well a recording must reproduce what it was made of
_TIMED_TRIALS = 3
_KEPT_BELOW_SHARE = 0.95  # of the time, below which a recording is kept


class Recorder(Protocol):
    """Records operations of a device."""

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """What ``run`` gives, and what makes its operations again, in the same memory."""

    def wait(self) -> None:
        """Return when everything that was started is done."""


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on this device, or None where nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """Records by `torch.cuda.graph`. Its test has never run: no machine so far had a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        ours = torch.cuda.current_stream(self.device)
        # a capture that fails leaves torch on its stream; this brings it back to ours
        with torch.cuda.device(self.device), torch.cuda.stream(ours):
            aside = torch.cuda.Stream(self.device)
            aside.wait_stream(ours)
            with torch.cuda.stream(aside):  # libraries get ready in the first run, which must not be recorded
                run()
            ours.wait_stream(aside)
            with torch.cuda.graph(graph, stream=aside):
                output = run()
        return output, graph.replay

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


@dataclass(frozen=True, eq=False)
class Recording:
    """Operations that were recorded.

    Attributes:
        places: the tensors that they read.
        output: a structure of the tensors that they write.
        again: makes them again.
        held: tensors that they read as well, which must not be freed.
    """

    places: Sequence[Tensor]
    output: Any
    again: Callable[[], None]
    held: Sequence[Tensor]

    def run(self, given: Sequence[Tensor]) -> Any:
        """What comes out for these tensors."""
        for place, tensor in zip(self.places, given, strict=True):
            place.copy_(tensor)
        self.again()
        return transform(self.output, torch.clone)


class Recordings:
    """Runs functions of tensors, by a recording where there is one.

    Args:
        recorder: of the device; None = nothing is recorded.
        max_bytes: that all recordings together may hold.
        held: tensors that the functions read without being given them, such as weights.
    """

    def __init__(self, recorder: Recorder | None, max_bytes: int, held: Sequence[Tensor] = ()) -> None:
        self.recorder, self.room, self.held = recorder, max_bytes, held
        self._uses: Counter[Hashable] = Counter()
        self._kept: dict[Hashable, Recording] = {}

    def run(self, function: Callable[..., Any], given: Sequence[Any], name: Hashable, bytes_: int) -> Any:
        """``function(*given)``.

        Args:
            function: gives a structure of tensors; it depends on nothing but the tensors that it is given, which it may
                write to, and those that are held.
            given: structures of tensors; what else is in them is always the same for one ``name``.
            name: of the function.
            bytes_: that it takes while it runs.
        """
        if self.recorder is None:
            return function(*given)
        flat = tensors(list(given))
        key = name, *((tuple(t.shape), t.stride(), t.dtype) for t in flat)
        kept = self._kept.get(key)
        if kept is not None:
            return kept.run(flat)
        self._uses[key] += 1
        if self._uses[key] == USES_BEFORE_RECORDING and bytes_ <= self.room:
            found = self._tried(self.recorder, function, given)
            if found is not None:
                self._kept[key] = found
                self.room -= bytes_
        return function(*given)

    def _tried(self, recorder: Recorder, function: Callable[..., Any], given: Sequence[Any]) -> Recording | None:
        """A recording, if it gives the same and is faster."""
        spare, places = (transform(list(given), torch.clone) for _ in range(2))
        others = transform(list(given), _rows_rotated)
        flat = tensors(others)
        seconds = _seconds(recorder, lambda: function(*spare))
        try:
            recording = Recording(tensors(places), *recorder.record(lambda: function(*places)), self.held)
            again = tensors(recording.run(flat))
        except RuntimeError:  # it asks the host something on its way, or there is no memory for it
            return None
        plain = tensors(function(*others))
        same = all(
            relative_difference(a, b) <= tolerance_for(a.dtype, RECORDING_TOLERANCE)
            for a, b in zip(again, plain, strict=True)
        )
        return (
            recording
            if same and _seconds(recorder, lambda: recording.run(flat)) < _KEPT_BELOW_SHARE * seconds
            else None
        )


def _rows_rotated(tensor: Tensor) -> Tensor:
    """A copy with every row in the place of another."""
    return tensor.roll(1, 0) if tensor.ndim else tensor.clone()


def _seconds(recorder: Recorder, run: Callable[[], Any]) -> float:
    """What a run takes: the median of some."""
    found = []
    for _ in range(_TIMED_TRIALS):
        recorder.wait()
        clock = time.perf_counter()
        run()
        recorder.wait()
        found.append(time.perf_counter() - clock)
    return median(found)
