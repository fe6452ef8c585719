"""Inputs and outputs of a layer in each of its calls, and the residual branch that its output is added to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shaprune.network.hooks import AllSeenError, hooked
from shaprune.network.layers.layer_inputs import input_of
from shaprune.recovery.selected_rows import RowSelections

_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_PASSING = ("dropout", "dropout_", "feature_dropout")  # they do nothing in eval mode


@dataclass
class LayerCall:
    """One call of a layer.

    Attributes:
        read, given: what it read and gave.
        reordered: whether it reads other rows than the dense network's call, see `RowSelections`.
        added: the other summand of the first addition of its output; None where there is none, and where the layer is
            called more than once, as the other summand may be one of its own outputs.
    """

    read: Tensor
    given: Tensor
    reordered: bool = False
    added: Tensor | None = None


class _Calls(TorchFunctionMode):
    """Records the calls of a layer, and follows the output of a single one to its first addition."""

    def __init__(self, n_calls: int | None, selections: RowSelections | None) -> None:
        super().__init__()
        self._selections = selections
        self.calls: list[LayerCall] = []
        self._n_calls = n_calls
        self._followed: Tensor | None = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        read = input_of(args, kwargs)
        if read is None:
            return
        reordered = self._selections is not None and self._selections.is_reordered(read)
        self.calls.append(LayerCall(read.clone(), output.clone(), reordered))
        self._followed = output if len(self.calls) == 1 else None
        if 1 < len(self.calls) == self._n_calls:
            raise AllSeenError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        mine = self._followed is not None and any(a is self._followed for a in args)
        if mine and name in _ADDITIONS and len(args) == 2 and not kwargs:
            other = args[1] if args[0] is self._followed else args[0]
            if isinstance(other, Tensor) and other.shape == self.calls[0].given.shape:
                self.calls[0].added, self._followed = other.clone(), None
                if self._n_calls == 1:
                    raise AllSeenError
        output = func(*args, **(kwargs or {}))
        if self._selections is not None:
            self._selections.see(name, args, kwargs or {}, output)
        if mine and name in _PASSING:
            self._followed = output
        return output


def record_calls(
    layer: nn.Module, run: Callable[[], Any], n_calls: int | None = None, selections: RowSelections | None = None
) -> list[LayerCall]:
    """Run a model until all calls of its layer are over and the output of a single one is added, or to its end.

    Args:
        layer: a part of the model.
        run: runs the model.
        n_calls: how often the layer is called; None = unknown, the model is run to its end.
        selections: records, or compares, how rows are picked.
    """
    seen = _Calls(n_calls, selections)
    with suppress(AllSeenError), hooked([layer.register_forward_hook(seen.hook, with_kwargs=True)]), seen:
        run()
    if len(seen.calls) > 1:
        seen.calls[0].added = None
    return seen.calls


def count_calls(model: nn.Module, names: Iterable[str], run: Callable[[], Any]) -> Counter[str]:
    """How often each of some layers is called in one run of a model."""
    counts: Counter[str] = Counter()

    def counter(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: counts.update([name])

    with hooked(model.get_submodule(name).register_forward_hook(counter(name)) for name in names):
        run()
    return counts
