"""Sources of marks: what makes channels of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from shaprune.network.layers.kinds import kind_of
from shaprune.network.layers.recurrent import is_recurrent


@dataclass(frozen=True)
class Source:
    """Channels that may be marked: of a layer's output, or of one axis of a parameter or buffer outside layers."""

    name: str
    width: int
    axis: int | None = None  # of a parameter; None for a layer
    alone: bool = True  # no other axis of the same parameter is a source

    @property
    def is_layer(self) -> bool:
        """Whether these are the outputs of a layer."""
        return self.axis is None


def outside_layers(model: nn.Module, norms: Collection[str]) -> Iterator[Source]:
    """The axes of floating-point parameters and buffers that no known layer owns."""
    for prefix, module in model.named_modules():
        if is_recurrent(module) or prefix in norms:  # their own weights; of the former whether or not it runs
            continue
        own = set() if kind_of(module) is None else {"weight", "bias", "running_mean", "running_var"}
        tensors_here = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors_here:
            if name in own or not tensor.is_floating_point():
                continue
            axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
            for axis in axes:
                full = f"{prefix}.{name}" if prefix else name
                yield Source(full, tensor.shape[axis], axis, alone=len(axes) == 1)


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name."""
    owner, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), attribute)
    assert isinstance(tensor, Tensor)
    return tensor
