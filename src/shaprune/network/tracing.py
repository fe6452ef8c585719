"""torch.fx in one thread: its tracer patches `torch.nn.Module` for the whole process while it works.

Two traces at a time would leave the patch of one behind for good, and a module that another thread calls meanwhile
would be entered into the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from shaprune.network.turns import TRACING, turn


class _Tracer(fx.Tracer):
    """Follows what its own thread calls; modules that other threads call run as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def graph_of(model: nn.Module) -> fx.Graph:
    """Return the operations of a model; raises whatever torch.fx or the model's code raises."""
    with turn(TRACING):
        return _Tracer().trace(model)
