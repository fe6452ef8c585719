"""Costs of a layer at a given width: parameters, multiply-adds, bytes, exactly as counted after surgery.

Multiply-adds are those of convolutions and linear layers, per example, as in the papers' tables, and of the weight
matrices of recurrent layers and torch's attention (see `shaprune.network.layers.compound_macs`); a norm, a bias, an
embedding and an activation count none, nor do the products between activations inside attention. Pure data, no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal[
    "conv",
    "depthwise",
    "linear",
    "norm",
    "stream_norm",
    "prelu",
    "embedding",
    "parameter",
    "unflatten",
    "block",
    "expert",
    "weight",
    "recurrent",
]
# Kinds whose weights belong to one channel each, and that count no multiply-adds.
PER_CHANNEL = ("norm", "stream_norm", "prelu", "embedding", "parameter", "unflatten")
WHOLE = ("block", "expert")  # they leave as they are, with everything inside


@dataclass(frozen=True)
class Layer:
    """One layer that pruning changes.

    Attributes:
        kind: what it is; a depthwise convolution has one filter per channel, ``norm`` is a normalisation with weights
            per channel, ``stream_norm`` one that divides by a statistic over the channels; ``parameter`` a parameter
            or buffer outside such layers; ``unflatten`` a module without weights that knows a width; ``block`` a
            submodule that can be passed by, ``expert`` the list of a mixture's experts, ``weight`` the single weights
            of a layer, which cost nothing because they stay, as zeros; ``recurrent`` an LSTM, GRU or RNN, whose
            ``n_out`` counts both directions.
        n_in, n_out: channels (features) in and out; of experts and weights their number, of a block 1.
        groups: groups of a convolution; directions of a recurrent layer; 1 elsewhere.
        kernel: weights per pair of channels (9 for a 3x3 kernel), 1 for a linear layer; weights per channel of a
            norm, an embedding or a parameter; gates of a recurrent layer; all parameters of a block, or of one expert.
        bias: whether there is a bias of ``n_out`` entries.
        positions: output positions per example at which the weights are used (input positions, where transposed);
            all multiply-adds of a block, or of one expert.
        axis: the axis of a parameter along which it is cut; of the channels, for a norm over a stream.
        least: channels (experts) that must stay for the network to run.
        heads: whether attention heads are its outputs (``"out"``) or its inputs (``"in"``).
        numbers: attributes, by their path from the network, that are divided as its outputs (or its inputs, by
            ``divided``) are; None for those of known names around heads. A plain object on the path is copied for its
            module.
        sizes: attributes that count some of its outputs, with these outputs: each loses the share of them that leaves.
        returns: entries of the tuple that a block returns; None for a bare tensor.
        passes: for each of these entries but the first, the input (position or keyword) that it is; None for another.
        itemsize: bytes of one parameter.
        buffers: bytes of buffers per output channel (running statistics), of a block, or of one expert.
        activation: bytes of its output per channel and example, over all times it runs; of a block or of one expert all
            outputs of the layers inside.
        depth: layers inside a recurrent layer, each as wide as the others.
        cells: hidden units of a recurrent layer whose outputs are projections of them; 0 where they are its outputs.
        tied: whether its weight is that of another layer, which counts it.
        norm, everywhere, eps: what a norm over a stream divides by, see `shaprune.network.layers.norm_forms.NormForm`.
        axes: axes of what it reads.
        held: what its statistic holds in the place of each channel that leaves; empty = it gets narrower.
        narrow: whether such a norm computes in float32 whatever it is given.
    """

    kind: Kind
    n_in: int
    n_out: int
    groups: int
    kernel: int
    bias: bool
    positions: float
    axis: int = 0
    least: int = 1
    heads: Literal["out", "in"] | None = None
    numbers: tuple[str, ...] | None = None
    divided: Literal["out", "in"] = "out"
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    returns: int | None = None
    passes: tuple[int | str | None, ...] = ()
    itemsize: int = 4
    buffers: float = 0
    activation: float = 0
    depth: int = 1
    cells: int = 0
    tied: bool = False
    norm: str = ""
    everywhere: bool = False
    eps: float = 0.0
    axes: int = 0
    held: tuple[float, ...] = ()
    narrow: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))  # a list, where it comes from JSON
        object.__setattr__(self, "held", tuple(self.held))
        object.__setattr__(self, "sizes", tuple((path, tuple(counted)) for path, counted in self.sizes))
        object.__setattr__(self, "numbers", None if self.numbers is None else tuple(self.numbers))

    def params(self, n_in: int, n_out: int) -> int:
        """Parameters when ``n_in`` and ``n_out`` channels are left."""
        if self.tied:
            return n_out if self.bias else 0
        if self.kind in PER_CHANNEL or self.kind in WHOLE:
            return self.kernel * n_out + (n_out if self.bias else 0)
        if self.kind == "recurrent":
            biases = 2 * self.depth * self.groups * self.kernel * self._cells(n_out)
            return self._matrices(n_in, n_out) + (biases if self.bias else 0)
        return self.kernel * self._fan_in(n_in) * n_out + (n_out if self.bias else 0)

    def macs(self, n_in: int, n_out: int) -> float:
        """Multiply-adds per example when ``n_in`` and ``n_out`` channels are left."""
        if self.kind in PER_CHANNEL:
            return 0.0
        if self.kind in WHOLE:
            return self.positions * n_out
        if self.kind == "recurrent":
            return self.positions * self._matrices(n_in, n_out)
        return self.positions * self.kernel * self._fan_in(n_in) * n_out

    @property
    def by_group(self) -> bool:
        """Whether whole groups of a convolution leave, because each of them has one channel on one side."""
        return self.groups > 1 and self.groups in (self.n_in, self.n_out)

    def groups_left(self, n_out: int) -> int:
        """Groups when ``n_out`` channels are left."""
        return n_out * self.groups // self.n_out if self.by_group else self.groups

    def _fan_in(self, n_in: int) -> int:
        return (self.n_in if self.by_group else n_in) // self.groups

    def _cells(self, n_out: int) -> int:
        return self.cells or n_out // self.groups

    def _matrices(self, n_in: int, n_out: int) -> int:
        """Entries of the weight matrices of a recurrent layer."""
        units, read = n_out // self.groups, n_in + (self.depth - 1) * n_out
        each = self.kernel * self._cells(n_out) * (read + self.depth * units) + self.depth * self.cells * units
        return self.groups * each

    def bytes(self, n_in: int, n_out: int) -> float:
        """Bytes of parameters and buffers when ``n_in`` and ``n_out`` channels are left."""
        return self.params(n_in, n_out) * self.itemsize + self.buffers * n_out

    def activations(self, n_in: int, n_out: int) -> float:
        """Bytes of its outputs per example when ``n_out`` channels are left, of ``n_in`` or any other number."""
        return self.activation * n_out

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `Layer(**data)` is the inverse."""
        return asdict(self)
