"""Norms over the channels of a stream, of any class: what they compute, as a formula in which channels may be absent.

Such a norm gives ``bias + residual * x + gain * z``, where z is x divided by a statistic over its channels. A form says
which statistic; bias, residual and gain per channel are measured: what the module gives for zeros and for two probes.
Where channels are absent, the statistic runs over the others alone, as in the norm that is cut to these.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Statistic:
    """A statistic: of what is left when the mean is taken off, or not; summed, or divided by their number less some."""

    centred: bool
    summed: bool = False
    less: int = 0
    inside: bool = True  # whether eps stands under the root


STATISTICS = {
    "mean square": _Statistic(centred=False),
    "variance": _Statistic(centred=True),
    "length": _Statistic(centred=False, summed=True, inside=False),
    "root mean square": _Statistic(centred=False, inside=False),
    "deviation": _Statistic(centred=True, less=1, inside=False),
    "root of the variance": _Statistic(centred=True, inside=False),
    "sum of squares": _Statistic(centred=False, summed=True),
}
RESPONSE = "response"  # each channel's length over all positions, divided by the mean of these (GRN)
OF_THE_TYPE = -1.0  # an eps that is not set
_TINY, _ROUNDING = 1e-24, 1.001


@dataclass(frozen=True)
class Gone:
    """Channels that have left a norm whose statistic holds something in their place: how many, sum, sum of squares."""

    number: int = 0
    total: float = 0.0
    square: float = 0.0


NONE_GONE = Gone()


@dataclass(frozen=True)
class NormForm:
    """What a norm divides by.

    Attributes:
        statistic: of `STATISTICS`, or `RESPONSE`.
        everywhere: whether it runs over all positions of an example, too.
        eps: the number that is added to it; `OF_THE_TYPE`: that of the input's type, as of `nn.RMSNorm`.
        axis: of the channels, 1 or -1.
    """

    statistic: str
    everywhere: bool
    eps: float
    axis: int

    def divided(self, x: Tensor, kept: Tensor, held: Tensor | None = None, gone: Gone = NONE_GONE) -> Tensor:
        """Z of ``x`` (rows, ..., channels).

        Args:
            x: what the norm reads.
            kept: (rows or 1, 1, ..., channels), 1.0 = there.
            held: (channels,) what stands in the statistic in the place of absent channels; None = it is narrower.
            gone: channels that have left the norm before, and what is held in their place.
        """
        if self.statistic == RESPONSE:
            length = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim - 1)), keepdim=True)
            mean = (kept * length).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
            answer: Tensor = x * (length / (mean + self._eps(x)))
            return answer
        how = STATISTICS[self.statistic]
        over = tuple(range(1, x.ndim)) if self.everywhere else (-1,)
        places = prod(x.shape[1:-1]) if self.everywhere else 1
        absent = torch.zeros_like(kept) if held is None else 1 - kept
        stands = torch.zeros_like(kept) if held is None else held
        number = ((kept + absent).sum(-1, keepdim=True) + gone.number) * places
        mean = torch.zeros_like(number)
        if how.centred:
            others = (absent * stands).sum(-1, keepdim=True) + gone.total
            mean = ((kept * x).sum(over, keepdim=True) + others * places) / number.clamp(min=1)
            x = x - mean
        others = (absent * (stands - mean).square()).sum(-1, keepdim=True)
        others = others + (gone.square - 2 * mean * gone.total + gone.number * mean.square())
        energy = (kept * x.square()).sum(over, keepdim=True) + others * places
        most = torch.ones_like(number)  # no channel that is there can be larger, and no other one shall
        if not how.summed:
            energy, most = energy / (number - how.less).clamp(min=1), number.clamp(min=1)
        most = most.sqrt() * _ROUNDING
        inside, outside = (self._eps(x), 0.0) if how.inside else (0.0, self._eps(x))
        divisor = (energy + inside).clamp(min=_TINY).sqrt() + outside
        bounded: Tensor = (x / divisor).clamp(-most, most)
        return bounded

    def _eps(self, x: Tensor) -> float:
        return torch.finfo(x.dtype).eps if self.eps == OF_THE_TYPE else self.eps


@dataclass(frozen=True, eq=False)
class MeasuredNorm:
    """A norm's form with what it multiplies and adds per channel, (channels,) each."""

    form: NormForm
    bias: Tensor
    residual: Tensor
    gain: Tensor
    gone: Gone = NONE_GONE

    def __call__(self, x: Tensor, kept: Tensor, held: Tensor | None = None) -> Tensor:
        """What the norm of the channels ``kept`` (rows or 1, channels) alone gives for ``x``, in at least float32.

        Its statistic runs over these, and over what is ``held`` (channels,) in the place of the others.
        What stands at absent channels is what would be read if they were read, within the bounds of the others, so
        that nothing grows there from norm to norm.
        """
        wide = x.movedim(self.form.axis, -1).to(torch.promote_types(x.dtype, torch.float32))
        there = kept.to(wide.dtype).view(len(kept), *[1] * (wide.ndim - 2), -1)
        bias, residual, gain = (t.to(wide.dtype) for t in (self.bias, self.residual, self.gain))
        stands = None if held is None else held.to(wide.dtype)
        answer: Tensor = bias + residual * wide + gain * self.form.divided(wide, there, stands, self.gone)
        return answer.movedim(-1, self.form.axis)


@dataclass(frozen=True, eq=False)
class Responses:
    """What a module gives, in doubles, for zeros and two probes (1, ..., channels)."""

    probes: tuple[Tensor, Tensor]
    zero: Tensor
    given: tuple[Tensor, Tensor]

    def measured(self, form: NormForm) -> MeasuredNorm:
        """Solve for gain and residual of each channel, if the module has this form."""
        every = torch.ones_like(self.zero)
        (z1, z2), (p1, p2) = (form.divided(p, every[:1]) for p in self.probes), self.probes
        y1, y2 = (y - self.zero for y in self.given)
        det = z1 * p2 - z2 * p1
        gain, residual = (y1 * p2 - y2 * p1) / det, (z1 * y2 - z2 * y1) / det
        zero, residual, gain = (t.flatten(0, -2)[0] for t in (self.zero, residual, gain))
        return MeasuredNorm(form, zero, residual, gain)


def in_doubles(module: nn.Module) -> nn.Module:
    """A private copy of a module in doubles."""
    return deepcopy(module).double()


def give(module: nn.Module, x: Tensor, axis: int) -> Tensor:
    """What a module gives for ``x`` (..., channels), past all hooks; the channels last."""
    with torch.no_grad():
        y: Tensor = type(module).forward(module, x.movedim(-1, axis).contiguous())
    return y.movedim(axis, -1).double()


def responses(module: nn.Module, shape: tuple[int, ...], axis: int, device: torch.device) -> Responses:
    """Ask a module in doubles for zeros and two probes of this ``shape``, the channels last."""
    steps = torch.arange(shape[-1], device=device, dtype=torch.float64)
    first = (1.0 + 0.5 * (steps * 0.7548776662).frac()) * (1 - 2 * (steps % 2))
    probes = first.expand(1, *shape[1:]), (2 * first.flip(0) + 0.25).expand(1, *shape[1:])
    zero = give(module, torch.zeros_like(probes[0]), axis)
    return Responses(probes, zero, (give(module, probes[0], axis), give(module, probes[1], axis)))


def measure_norm(module: nn.Module, form: NormForm, channels: int, ndim: int, device: torch.device) -> MeasuredNorm:
    """Measure gain, bias and residual of a norm as its weights are now, for inputs of ``ndim`` axes."""
    if isinstance(module, HeldNorm):
        return module.measured(channels)
    shape = (1,) * (ndim - 1) + (channels,)
    return responses(in_doubles(module), shape, form.axis, device).measured(form)


class HeldNorm(nn.Module):
    """A norm whose statistic holds something in the place of channels that have left: plain operations.

    Args:
        form: what it divides by.
        weight, bias: (channels that are left,) each, or None.
        gone: those that have left.
    """

    def __init__(self, form: NormForm, weight: Tensor | None, bias: Tensor | None, gone: Gone) -> None:
        super().__init__()
        self.form, self.gone = form, gone
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, ..., channels, ...) -> the same."""
        wide = x.movedim(self.form.axis, -1).to(torch.promote_types(x.dtype, torch.float32))
        every = torch.ones((1,) * (wide.ndim - 1) + wide.shape[-1:], dtype=wide.dtype, device=x.device)
        z = self.form.divided(wide, every, None, self.gone)
        z = z if self.weight is None else z * self.weight
        z = z if self.bias is None else z + self.bias
        return z.movedim(-1, self.form.axis).to(x.dtype)

    def measured(self, channels: int) -> MeasuredNorm:
        """Itself, as other norms are measured."""
        given = next((p for p in (self.weight, self.bias) if p is not None), torch.ones(channels)).detach()
        zeros = torch.zeros_like(given)
        gain = torch.ones_like(given) if self.weight is None else self.weight.detach()
        return MeasuredNorm(self.form, zeros if self.bias is None else self.bias.detach(), zeros, gain, self.gone)
