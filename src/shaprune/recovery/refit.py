"""Closed-form recovery: refit the consumers of pruned channels by ridge least squares.

After channels have left, each consumer (a linear layer or convolution that read them) gets the weights that best
reproduce what it gave in the dense network, on unlabelled batches, layer by layer in order of execution, each on what
the *pruned and already refitted* network feeds it, in all its calls. Related: ThiNet (Luo et al. 2017) and channel
pruning (He et al. 2017), which fit to the dense network's inputs; here the pruned network's own inputs are used, so
errors of earlier layers are corrected too. The ridge pulls toward the surviving dense weights, not toward zero, and is
chosen for each layer on examples held out; where every ridge is worse there than the weights that the layer has, it
keeps them. In a residual block the *sum* is fitted, so that a block also makes up for what the blocks before it have
lost. A convolution without a bias gets an intercept where a batch-norm reads it: the running mean takes it up.

Both networks run in lock-step, operation by operation, so a whole refit costs one forward pass of each; where they
cannot be traced, or their activations would not fit in ``max_memory``, every consumer takes a forward pass of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.batches import Forward, Inputs, call, length
from shaprune.network.layers.normal_equations import (
    NormalEquations,
    as_batches,
    can_solve,
    design_rows,
    has_bias,
    unpadded_positions,
    weights_with_bias,
    write_weights,
)
from shaprune.planning.plan import Plan
from shaprune.players.players import check_channels
from shaprune.recovery.paired_forward import (
    CallPairs,
    norms_after,
    paired_bytes,
    paired_traces,
    stream_consumers,
    stream_consumers_one_by_one,
)

RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
_HOLD_OUT_EVERY = 5  # one of so many examples chooses the ridge
_RIDGE_WITHOUT_HOLD_OUT = 1e-2  # the ridge where no example can be held out


def refit(
    small: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    batches: Sequence[Inputs],
    *,
    ridge: float | None = None,
    forward: Forward | None = None,
    max_memory: int = 1 << 31,
) -> None:
    """Refit every consumer of removed players in ``small``, in place.

    Padded positions of sequences do not count, where the inputs are a dict with an ``attention_mask``.

    Args:
        small: the pruned network, in eval mode.
        teacher: the dense network, in eval mode; not changed.
        plan: who stays.
        batches: unlabelled inputs.
        ridge: pull toward the surviving weights, relative to the mean squared input; None = for each layer, the one of
            `RIDGES` with the smallest error on every fifth example, which is then fitted, too, or no refit of the layer
            where its own weights have a smaller one.
        forward: ``(model, inputs) -> outputs`` where the model is not simply called.
        max_memory: bytes of activations that the lock-step may hold.

    Raises:
        InputError: no batch, a ridge that is not above 0, players that are no channels, or activations that are NaN or
            infinite.

    Warns:
        ShapruneWarning: a layer has more than twice as many inputs as there are rows to fit it to, is of a kind that
            is not refitted, does not run on the data, or reads other rows than in the dense network.
    """
    if not batches:
        raise InputError("refit needs at least one batch of inputs; the data holds none")
    if ridge is not None and not ridge > 0:
        raise InputError(f"ridge is {ridge}; it must be above 0")
    check_channels(plan.players.groups, "a refit")
    kept = _consumers(small, plan)
    with torch.no_grad():
        pair = paired_traces(small, teacher, batches[0])
        norms = {} if pair is None else norms_after(pair[0])
        if pair is not None and forward is None and paired_bytes(pair, batches) <= max_memory:
            source = stream_consumers(pair, kept, batches)
        else:
            source = stream_consumers_one_by_one(small, teacher, kept, batches, forward or call)
        for name, pairs in source:
            layer = small.get_submodule(name)
            chosen, judged, apart = _equations(layer, pairs, batches)
            if apart:
                warnings.warn(
                    f"{name} reads other rows in the pruned network than in the dense one (routing, sorting) in "
                    f"{apart} of {len(batches)} batches, which are not fitted"
                    + ("" if chosen.rows else "; it keeps its weights: fine-tune or distill it"),
                    ShapruneWarning,
                    stacklevel=4,
                )
            if chosen.rows:
                _fit(name, layer, None if has_bias(layer) else norms.get(name), chosen, judged, ridge)
            elif not apart:
                warnings.warn(
                    f"{name} does not run on the calibration data, so it keeps its weights; add examples that take the "
                    "way through it",
                    ShapruneWarning,
                    stacklevel=4,
                )


def _equations(
    layer: nn.Module, pairs: Iterable[CallPairs | None], batches: Sequence[Inputs]
) -> tuple[NormalEquations, NormalEquations, int]:
    """Normal equations of the examples that fit, and of those held out, from all calls of a layer.

    The third is how many batches have no pairs.

    Every fifth example is held out, in all calls that it is in. Calls with fewer rows than the batch has examples
    (chunks, a loop over rows) are taken as one after the other.
    """
    chosen, judged = NormalEquations(), NormalEquations()
    before = apart = 0  # examples of the batches so far, and batches without pairs
    for calls, inputs in zip(pairs, batches, strict=True):
        size, first = length(inputs), 0
        apart += calls is None
        for x, y in calls or ():
            x, y = as_batches(layer, x, y)
            example = (first + torch.arange(len(x), device=x.device) // max(1, len(x) // size)) % size
            held_out = (before + example) % _HOLD_OUT_EVERY == _HOLD_OUT_EVERY - 1
            real = unpadded_positions(inputs, x)
            for part, which in ((chosen, ~held_out), (judged, held_out)):
                if which.any():
                    for rows in design_rows(layer, x[which], y[which], None if real is None else real[which]):
                        part.add(*rows)
            first += len(x)
        before += size
    return (chosen, judged, apart) if chosen.rows else (judged, chosen, apart)


def _fit(
    name: str,
    layer: nn.Module,
    norm: nn.modules.batchnorm._BatchNorm | None,
    chosen: NormalEquations,
    judged: NormalEquations,
    ridge: float | None,
) -> None:
    """Solve and write the layer's weights, unless its own are as good.

    Args:
        name, layer: the consumer.
        norm: takes up the intercept of a layer without a bias.
        chosen, judged: equations of the examples that fit, and of those held out, if any.
        ridge: see `refit`.
    """
    start, every = weights_with_bias(layer), chosen + judged
    if not has_bias(layer) and norm is None:
        start = start[:, :-1]
        chosen, judged, every = (e.without_intercept() for e in (chosen, judged, every))
    assert every.gram is not None
    if not torch.isfinite(every.gram).all() or not torch.isfinite(every.energy):
        raise InputError(f"what {name} reads or gives on the calibration data is NaN or infinite; check the data")
    if 2 * every.rows < start.shape[1]:
        warnings.warn(
            f"{name} has {start.shape[1]} inputs to refit and the data give {every.rows} rows; the ridge keeps its "
            f"weights near the dense ones, {-(-start.shape[1] // every.rows)} times as many examples would fit it",
            ShapruneWarning,
            stacklevel=5,
        )
    if ridge is None and judged.rows:
        losses = {judged.loss(chosen.solve(start, r)): r for r in reversed(RIDGES)}
        if min(losses) >= judged.loss(start):
            return  # on examples that they are not fitted to, no refitted weights are better than those of the layer
        ridge = losses[min(losses)]
    solved = every.solve(start, ridge or _RIDGE_WITHOUT_HOLD_OUT)
    if every.loss(solved) >= every.loss(start):
        return
    intercept = write_weights(layer, solved)
    if norm is not None:
        assert norm.running_mean is not None
        norm.running_mean.sub_(intercept.to(norm.running_mean.dtype))


def _consumers(small: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Layers to refit, in order of execution: name -> which of the dense layer's outputs it still has."""
    lost: set[str] = set()
    gone: dict[str, set[int]] = {}
    for group in plan.players.groups:
        for member in group.members:
            for player, channels in zip(group.indices, member.channels, strict=True):
                if not plan.kept[player]:
                    if member.role == "in":
                        lost.add(member.module)
                    elif member.role == "out":
                        gone.setdefault(member.module, set()).update(channels)
    result: dict[str, Tensor] = {}
    for name, layer in plan.players.layers.items():
        if name not in lost:
            continue
        if not can_solve(small.get_submodule(name)):
            warnings.warn(
                f"{name} is not refitted: only linear, 1D and 2D convolutions are", ShapruneWarning, stacklevel=4
            )
            continue
        result[name] = torch.tensor([c for c in range(layer.n_out) if c not in gone.get(name, ())])
    return result
