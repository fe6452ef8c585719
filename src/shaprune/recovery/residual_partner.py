"""What a layer reads and gives in one run of a model, and what its output is added to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shaprune.network.layers.layer_inputs import input_of

_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_PASSING = ("dropout", "dropout_", "feature_dropout")  # they do nothing in eval mode


class _AdditionFoundError(BaseException):
    """Everything has been seen; the rest of the run is not needed."""


class _FirstAddition(TorchFunctionMode):
    """Follows a layer's output to the first addition of a tensor of its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.read: Tensor | None = None
        self.given: Tensor | None = None
        self.added: Tensor | None = None
        self._followed: Tensor | None = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.read, self.given, self._followed = input_of(args, kwargs), output.clone(), output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        mine = self._followed is not None and any(a is self._followed for a in args)
        if mine and name in _ADDITIONS and len(args) == 2 and not kwargs:
            other = args[1] if args[0] is self._followed else args[0]
            if isinstance(other, Tensor) and self.given is not None and other.shape == self.given.shape:
                self.added = other
                raise _AdditionFoundError
        output = func(*args, **(kwargs or {}))
        if mine and name in _PASSING:
            self._followed = output
        return output


def run_to_addition(layer: nn.Module, run: Callable[[], Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a model until its layer's output is added to something, or to its end.

    Returns:
        What the layer read last, what it gave, and the other summand, or None where there is none.
    """
    summands = _FirstAddition()
    handle = layer.register_forward_hook(summands.hook, with_kwargs=True)
    try:
        with summands:
            run()
    except _AdditionFoundError:
        pass
    finally:
        handle.remove()
    assert summands.read is not None
    assert summands.given is not None
    return summands.read, summands.given, summands.added
