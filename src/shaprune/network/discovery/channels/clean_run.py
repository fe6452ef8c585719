"""One run without marks: what layers that make channels give in it, and how copies of its rows may stand side by side.

Many marked runs are asked as one whose rows are copies of the example, each with marks of its own. That needs rows that
do not meet: the first time, one of three copies is marked, which must show what a run of its own shows and nothing in
the other two; and every time, every layer must be called as often as in the clean run, on as many times the rows, or
on the same ones for all copies (positions).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.errors import InputError
from shaprune.network.batches import Inputs, call, tensor_bytes, tensors, transform
from shaprune.network.buffers import kept_buffers
from shaprune.network.discovery.channels.choices import Choices
from shaprune.network.hooks import hooked
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.layers.replaced_calls import replace_forwards

ATTENTION = ("scaled_dot_product_attention",)
_ROOM = 1 << 22  # bytes that the largest output of a layer may take in copies side by side: larger ones are slower
_MOST = 64  # copies


class UnevenCopies(Exception):
    """Copies of the example do not run side by side."""


@dataclass
class CleanRun:
    """What was seen in a run without marks.

    Attributes:
        outputs: per layer that makes channels, what each of its calls gave.
        given: per layer, the shape of what each of its calls was given.
        returned: shapes of the floating-point tensors that the network returned.
        attends: whether fused attention was called.
        writes: whether the network writes to its buffers.
        most: copies that may run side by side; 0 = not asked yet.
        shared: layers that are called once for all copies.
        choices: what was chosen by values, where regions are; None where none are pooled or suppressed.
    """

    outputs: dict[str, list[Any]]
    given: dict[str, list[torch.Size]]
    returned: list[torch.Size] = field(default_factory=list)
    attends: bool = False
    writes: bool = False
    most: int = 0
    shared: set[str] = field(default_factory=set)
    choices: list[Tensor] | None = None

    @property
    def room(self) -> int:
        """Copies whose largest output of a layer is not too large."""
        largest = max([1, *(tensor_bytes(o) for outputs in self.outputs.values() for o in outputs)])
        return min(_MOST, _ROOM // largest)

    def check_call(self, layer: str, number: int, x: Tensor, copies: int) -> int:
        """Check that the ``number``-th call of a layer was given ``copies`` times the clean rows, and return that.

        A layer that is called on the clean rows alone is `shared`: 1 is returned.

        Raises:
            UnevenCopies: it was given neither.
        """
        clean = self.given[layer][number] if number < len(self.given[layer]) else None
        if clean is None or x.shape not in (clean, times(clean, copies)):
            raise UnevenCopies(layer)
        if x.shape != clean:
            return copies
        self.shared |= {layer} if copies > 1 else set()
        return 1

    def check_calls(self, calls: Counter[str]) -> None:
        """Check that every layer was called as often as in the clean run.

        Raises:
            UnevenCopies: one was not.
        """
        uneven = [layer for layer, given in self.given.items() if calls[layer] != len(given)]
        if uneven:
            raise UnevenCopies(uneven[0])

    def marked_copies(self, output: Tensor, number: int, copies: int) -> NDArray[np.bool_]:
        """(copies, 1) whether the rows of each copy are marked in the ``number``-th tensor of the network's output.

        Raises:
            UnevenCopies: it is not made of the rows of the copies.
        """
        nan = torch.isnan(output)
        if copies == 1:
            return np.array([[bool(nan.any())]])
        clean = self.returned[number] if number < len(self.returned) else None
        if clean is not None and output.shape == clean and not nan.any():  # the same for all rows
            return np.zeros((copies, 1), dtype=bool)
        if clean is None or output.shape != times(clean, copies):
            raise UnevenCopies("the output")
        return nan.reshape(copies, -1).any(1, keepdim=True).cpu().numpy()


def record(model: nn.Module, inputs: Inputs, makers: Iterable[str], layers: Iterable[str], max_memory: int) -> CleanRun:
    """Run a model once without marks.

    Args:
        model: a private copy, in eval mode.
        inputs: example inputs.
        makers: layers and modules whose outputs are kept.
        layers: those whose inputs' shapes are.
        max_memory: bytes that the outputs may take.

    Raises:
        InputError: they take more.
    """
    clean = CleanRun({name: [] for name in makers}, {name: [] for name in layers})
    room = max_memory

    def output_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal room
            room -= tensor_bytes(output)
            if room < 0:
                raise MemoryError
            clean.outputs[name].append(transform(output, lambda t: t.detach().clone()))

        return hook

    def input_to(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            clean.given[name].append(torch.Size() if x is None else x.shape)

        return hook

    def attention(_: Any, own: Any) -> Any:
        clean.attends = True
        return own

    into = ((model.get_submodule(name), input_to(name)) for name in clean.given)
    out = ((model.get_submodule(name), output_of(name)) for name in clean.outputs)
    before = hooked(module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in into)
    after = hooked(module.register_forward_hook(hook) for module, hook in out)
    attends = replace_forwards(ATTENTION, attention)
    try:
        with torch.no_grad(), kept_buffers(model) as written, before, after, attends, Choices() as choices:
            returned = tensors(call(model, transform(inputs, torch.clone)))
    except MemoryError as error:
        raise InputError(
            f"the activations of this model take more than {max_memory:,} bytes; give smaller "
            "example_inputs, or raise max_memory"
        ) from error
    clean.writes = bool(written)
    if choices.selects:
        clean.choices, clean.most = choices.noted, 1
    clean.returned = [t.shape for t in returned if can_be_marked(t)]
    return clean


def times(shape: torch.Size, copies: int) -> tuple[int, ...]:
    """A shape with as many times the rows."""
    return (copies * shape[0], *shape[1:]) if shape else ()


def copied(tensor: Tensor, copies: int) -> Tensor:
    """New memory with the rows of a tensor several times."""
    return tensor.repeat(copies, *[1] * (tensor.ndim - 1)) if copies > 1 and tensor.ndim else tensor.clone()


def by_copy(tensor: Tensor, copies: int) -> Tensor:
    """(copies, rows of each, ...) of a tensor whose rows are those of all copies."""
    return tensor[None] if copies == 1 else tensor.reshape(copies, -1, *tensor.shape[1:])


def with_marks(tensor: Tensor, axis: int, channels: NDArray[np.bool_], *, copies: int = 1) -> Tensor:
    """A copy of a tensor, of as many copies of rows, in which ``channels`` (copies, width) of ``axis`` are NaN."""
    marked = tensor.clone()
    if copies == 1:
        which = torch.from_numpy(np.flatnonzero(channels)).to(tensor.device)
        return marked.index_fill_(axis, which, float("nan"))
    for own, which in zip(by_copy(marked, copies), channels, strict=True):
        if which.any():
            own.index_fill_(axis, torch.from_numpy(np.flatnonzero(which)).to(tensor.device), float("nan"))
    return marked


def can_be_marked(tensor: Tensor) -> bool:
    """Whether entries of a tensor can be NaN."""
    return tensor.is_floating_point() or tensor.is_complex()
