"""What a layer costs at a given width: parameters and multiply-adds, exactly as counted after surgery.

Multiply-adds are those of convolutions and linear layers, per example, as in the papers' tables; a norm, a bias, an
embedding and an activation count none, nor do the products inside attention. Pure data, no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["conv", "depthwise", "linear", "norm", "prelu", "embedding", "parameter"]
PER_CHANNEL = ("norm", "prelu", "embedding", "parameter")  # weights that belong to one channel each; no multiply-adds


@dataclass(frozen=True)
class Layer:
    """One layer that pruning changes.

    Attributes:
        kind: what it is; a depthwise convolution has one filter per channel, ``norm`` is a normalisation with weights
            per channel, ``parameter`` a parameter or buffer outside such layers.
        n_in, n_out: channels (features) in and out.
        groups: groups of a convolution; 1 elsewhere.
        kernel: weights per pair of channels (9 for a 3x3 kernel), 1 for a linear layer; weights per channel of a
            norm, an embedding or a parameter.
        bias: whether there is a bias of ``n_out`` entries.
        positions: output positions per example at which the weights are used (input positions, where transposed).
        axis: the axis of a parameter along which it is cut.
    """

    kind: Kind
    n_in: int
    n_out: int
    groups: int
    kernel: int
    bias: bool
    positions: float
    axis: int = 0

    def params(self, n_in: int, n_out: int) -> int:
        """Parameters when ``n_in`` and ``n_out`` channels are left."""
        if self.kind in PER_CHANNEL or self.kind == "depthwise":
            return self.kernel * n_out + (n_out if self.bias else 0)
        return self.kernel * (n_in // self.groups) * n_out + (n_out if self.bias else 0)

    def macs(self, n_in: int, n_out: int) -> float:
        """Multiply-adds per example when ``n_in`` and ``n_out`` channels are left."""
        if self.kind in PER_CHANNEL:
            return 0.0
        fan_in = 1 if self.kind == "depthwise" else n_in // self.groups
        return self.positions * self.kernel * fan_in * n_out

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `Layer(**data)` is the inverse."""
        return asdict(self)
