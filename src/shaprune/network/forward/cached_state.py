"""Cached activations at the split point, one row per example: what the part behind the mask reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from shaprune.network.batches import to_device, transform
from shaprune.network.forward.trace import Env

CachedState = Any  # inputs of the model, or a dict of values at the cut


class SharedValue:
    """A value at the cut that is the same for every example; no part of it is taken for one of an example."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def as_environment(state: dict[fx.Node, Any]) -> Env:
    """A state as an environment to run operations in."""
    return {n: v.value if isinstance(v, SharedValue) else v for n, v in state.items()}


def gather_rows(state: CachedState, rows: Tensor) -> CachedState:
    """Rows of a state, on the device of ``rows``; an example may be taken several times."""
    return transform(state, lambda t: to_device(t.index_select(0, rows.to(t.device)), rows.device) if t.ndim else t)
