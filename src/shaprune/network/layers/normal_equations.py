"""Least squares for what a layer computes: rows of what it multiplies, and of what it should give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaprune.network.batches import Inputs
from shaprune.network.layers.kinds import is_transposed_linear

_MAX_UNFOLDED_ENTRIES = 1 << 24  # entries of unfolded inputs


@dataclass
class NormalEquations:
    """Normal equations of one layer, summed over batches in float64 (complex128 where numbers are complex).

    Attributes:
        gram: (groups, in, in); cross: (groups, in, out), ``in`` counting a last 1 for the intercept.
        energy: (), the sum of the squared targets.
        rows: how many.
    """

    gram: Tensor | None = None
    cross: Tensor | None = None
    energy: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    rows: int = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add rows: inputs (groups, rows, in), targets (groups, rows, out)."""
        gram = exact(torch.matmul(inputs.mH, inputs))
        cross = exact(torch.matmul(inputs.mH, targets))
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross
        self.energy = self.energy + exact(targets).abs().square().sum().cpu()
        self.rows += inputs.shape[1]

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """The equations of both sets of rows."""
        if self.gram is None or self.cross is None:
            return other
        if other.gram is None or other.cross is None:
            return self
        return NormalEquations(
            self.gram + other.gram, self.cross + other.cross, self.energy + other.energy, self.rows + other.rows
        )

    def without_intercept(self) -> NormalEquations:
        """The same for layers that cannot add a constant."""
        if self.gram is None or self.cross is None:
            return self
        return NormalEquations(self.gram[:, :-1, :-1], self.cross[:, :-1], self.energy, self.rows)

    def loss(self, weights: Tensor) -> float:
        """Sum of the squared differences between targets and what weights (groups, in, out) give."""
        assert self.gram is not None
        assert self.cross is not None
        weights = exact(weights)
        return float(self.energy) + float((weights.conj() * (self.gram @ weights - 2 * self.cross)).real.sum())

    def solve(self, start: Tensor, ridge: float) -> Tensor:
        """Weights (groups, in, out) nearest to ``start`` that explain the rows.

        Args:
            start: (groups, in, out).
            ridge: pull toward ``start``, relative to the mean squared input.
        """
        assert self.gram is not None
        assert self.cross is not None
        start = exact(start)
        change: Tensor = torch.linalg.solve(add_ridge(self.gram, ridge), self.cross - self.gram @ start)
        return start + change


def exact(tensor: Tensor) -> Tensor:
    """The same numbers in double precision, real or complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def add_ridge(gram: Tensor, ridge: float) -> Tensor:
    """(groups, in, in) a Gram matrix with a ridge relative to the mean of its diagonal."""
    strength = ridge * gram.diagonal(dim1=1, dim2=2).real.mean(1).clamp_min(1e-12)
    return gram + strength[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)


def can_solve(layer: nn.Module) -> bool:
    """Whether a layer's outputs are rows of inputs times weights, as `design_rows` writes them."""
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or is_transposed_linear(layer)


def has_bias(layer: nn.Module) -> bool:
    """Whether a layer adds a constant."""
    return isinstance(getattr(layer, "bias", None), Tensor)


def unpadded_positions(inputs: Inputs, x: Tensor) -> Tensor | None:
    """(rows of x, positions) or (rows of x,), True where an input is no padding; None where the inputs do not say.

    Sequences say it by an ``attention_mask``, as the models of transformers take it.

    Args:
        inputs: a batch.
        x: what a layer reads, an example or a position in each row.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    if x.shape[:-1] == mask.shape:
        return mask.bool()
    return mask.bool().flatten() if x.shape[:-1] == (mask.numel(),) else None


def as_batches(layer: nn.Module, *given: Tensor) -> tuple[Tensor, ...]:
    """What a layer reads or gives with an axis of the batch, also where it was called on one example without."""
    least = len(layer.kernel_size) + 2 if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 2
    return tuple(t[None] if t.ndim < least else t for t in given)


def design_rows(layer: nn.Module, x: Tensor, y: Tensor, real: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (groups, rows, in) that a layer multiplies, with a last 1, and targets (groups, rows, out), in parts.

    Args:
        layer: one that `can_solve`.
        x, y: what it reads, and what it should give.
        real: positions that count, see `unpadded_positions`.
    """
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        if real is not None:
            x, y = x[real], y[real]
        yield _with_ones(x.reshape(1, -1, x.shape[-1])), y.reshape(1, -1, y.shape[-1])
        return
    if isinstance(layer, nn.Conv1d):
        x, y = x[:, :, None], y[:, :, None]
    one = (1,) if isinstance(layer, nn.Conv1d) else ()
    size = x.shape[1] * y[0, 0].numel()
    for kernel in layer.kernel_size:
        size *= kernel
    some = max(1, _MAX_UNFOLDED_ENTRIES // max(1, size))
    for part, wanted in zip(x.split(some), y.split(some), strict=True):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padding = (*layer._reversed_padding_repeated_twice, *(0, 0) * len(one))
        padded = F.pad(part, padding, mode=mode) if any(padding) else part
        patches = F.unfold(
            padded, one + layer.kernel_size, dilation=one + layer.dilation, stride=one + layer.stride
        )  # (examples, channels x kernel, places)
        inputs = patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        targets = wanted.flatten(2).unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        yield _with_ones(inputs), targets


def _with_ones(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2)


def weights_with_bias(layer: nn.Module) -> Tensor:
    """(groups, in, out) the weights of a layer as `design_rows` counts them, its bias (or zeros) in the last row."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    groups = int(getattr(layer, "groups", 1))
    matrix = weight[None] if is_transposed_linear(layer) else weight.unflatten(0, (groups, -1)).flatten(2).mT
    last = bias.view(groups, 1, -1) if isinstance(bias, Tensor) else matrix.new_zeros(groups, 1, matrix.shape[2])
    return torch.cat([matrix, last], dim=1)


def write_weights(layer: nn.Module, weights: Tensor) -> Tensor:
    """Write weights (groups, in, out) into a layer, in place; returns the intercepts (out,).

    Without the last row, that of the intercepts, there are none: (0,).
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    n_in = weight.numel() // (weights.shape[0] * weights.shape[2])
    matrix, intercepts = weights[:, :n_in], weights[:, n_in:].reshape(-1)
    weight.copy_(matrix[0] if is_transposed_linear(layer) else matrix.mT.reshape(weight.shape))
    if isinstance(bias, Tensor):
        bias.copy_(intercepts)
    return intercepts
