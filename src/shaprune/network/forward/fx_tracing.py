"""torch.fx in one thread: its tracer patches `torch.nn.Module` for the whole process while it works.

Two traces at a time would leave the patch of one behind for good, and a module that another thread calls meanwhile
would be entered into the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from shaprune.network.layers.kinds import kind_of
from shaprune.network.model_turns import TRACING, turn

CONSTANT = "constant"  # of `fx.Node.meta`: a tensor that the model's code makes


class _Tracer(fx.Tracer):
    """Takes a network apart down to its layers, of whatever class they are; what other threads call runs as ever.

    Args:
        opened: whether modules of torch that contain layers, such as `nn.TransformerEncoderLayer`, are taken apart.
            None = torch.fx decides: its own modules are not, those of the user are.
    """

    def __init__(self, opened: bool | None) -> None:
        super().__init__()
        self.opened, self.thread = opened, threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf: bool = super().is_leaf_module(m, module_qualified_name)
        if self.opened is None:
            return leaf
        if kind_of(m) is not None:
            return True
        return leaf and not (self.opened and any(kind_of(inner) is not None for inner in m.modules()))

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


def graph_of(model: nn.Module, opened: bool | None = None) -> fx.Graph:
    """Return the operations of a model; raises whatever torch.fx or the model's code raises.

    Tensors that the model's code makes, which torch.fx would leave in attributes of the model, stand in ``meta`` of the
    operations that read them, as `CONSTANT`.

    Args:
        model: in eval mode.
        opened: whether modules of torch that contain layers are taken apart, down to layers of whatever class; None =
            as torch.fx does it.
    """
    with turn(TRACING), _attributes_kept(model):
        before = set(vars(model))
        graph = _Tracer(opened).trace(model)
        made = {name: value for name, value in vars(model).items() if name not in before}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in made:
            node.meta[CONSTANT] = made[node.target]
    return graph


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back, on any exit, the attributes of all modules, which the tracer and the traced code set."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            now = vars(module)
            if now.keys() != attributes.keys() or any(now[name] is not value for name, value in attributes.items()):
                now.clear()
                now.update(attributes)
