"""Other code in the place of modules and functions for a while: how calls are recorded, marked and answered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Forward = Callable[..., Any]
Callee = nn.Module | str  # who is called: a module, or a function by its name


@contextmanager
def replace_forwards(called: Iterable[Callee], of: Callable[[Callee, Forward], Forward]) -> Iterator[None]:
    """Modules run ``of(module, their forward)`` instead of their forward, functions likewise; undone on any exit."""
    before: list[tuple[nn.Module, Forward | None]] = []
    names = {who for who in called if isinstance(who, str)}
    try:
        for module in called:
            if isinstance(module, nn.Module) and not isinstance(module, torch.jit.ScriptModule):  # its stays
                own = vars(module)  # as `nn.Module` would set it, without its search for parameters
                before.append((module, own.get("forward")))
                own["forward"] = of(module, module.forward)
        with _ReplacedFunctions(names, of):
            yield
    finally:
        for module, forward in before:
            if forward is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = forward


class _ReplacedFunctions(TorchFunctionMode):
    """A context in which functions of torch with these names are replaced."""

    def __init__(self, names: Collection[str], of: Callable[[Callee, Forward], Forward]) -> None:
        super().__init__()
        self.names, self.of = names, of

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        return (self.of(name, func) if name in self.names else func)(*args, **(kwargs or {}))
