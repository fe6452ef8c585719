"""Pieces of the protocols of Ancona et al. 2020: their statistic, their order of cutting, their low-data regime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shaprune.builtin.splits import Split
from shaprune.errors import InputError
from shaprune.experiments.removal_curves import Curve
from shaprune.network.batches import Inputs
from shaprune.network.discovery.find_players import find_players
from shaprune.pipeline.prune import prune
from shaprune.planning.plan import Plan
from shaprune.players.players import Players

Keep = Callable[[nn.Module, Players], NDArray[np.bool_]]


def mean_increase(curves: Sequence[Curve]) -> float:
    """Mean increase of the loss per removed unit, over the curves of all layers.

    As the notebook of Ancona et al. 2020 computes it: the loss above that of the dense network, summed over the removal
    of 1, 2, ... and all units of every layer (each layer alone, the others whole), divided by the number of units of
    all layers. Points that were not measured are interpolated linearly.

    Raises:
        InputError: no curve, or one that does not run from the dense network to a layer without units.
    """
    if not curves:
        raise InputError("mean_increase needs at least one curve, one for each layer")
    increase = 0.0
    for c in curves:
        if c.removed[0] != 0 or c.removed[-1] != c.n_players:
            raise InputError(
                f"a curve runs from {c.removed[0]} to {c.removed[-1]} of {c.n_players} units removed; "
                "measure it from none to all"
            )
        increase += float(np.interp(np.arange(c.n_players + 1), c.removed, c.loss - c.loss[0]).sum())
    return increase / sum(c.n_players for c in curves)


def cut_backwards(
    model: nn.Module, example_inputs: Inputs, groups: Sequence[str], keep: Keep, *, sweeps: int = 1
) -> nn.Module:
    """Cut one group after another, from the output to the input; each is judged in the network cut so far.

    The procedure of Ancona et al. 2020 with a rule of your own, such as "units with negative values leave".

    Args:
        model: the dense network; it comes back untouched.
        example_inputs: as for `find_players`.
        groups: names of the groups, in order of execution; the last is cut first.
        keep: ``(network so far, players of one group) -> (players of the group,) bool``, True = stays. One player must
            stay.
        sweeps: how often to go from the output to the input.

    Returns:
        A smaller network; ``model`` itself where everybody stays.

    Raises:
        InputError: a group would lose all players, ``keep`` answers in another shape, or as `find_players` and `prune`.
    """
    if sweeps < 1:
        raise InputError(f"sweeps is {sweeps}; it must be at least 1")
    small = model
    for name in [*reversed(groups)] * sweeps:
        part = find_players(small, example_inputs, include=[name])
        kept = np.asarray(keep(small, part))
        if kept.shape != (part.n,) or kept.dtype != bool or not kept.any():
            raise InputError(
                f"keep answered {kept.dtype} of shape {kept.shape} with {np.count_nonzero(kept)} of {part.n} players "
                f"of {name} staying; it must be one boolean for each, and at least one must stay"
            )
        if not kept.all():
            small = prune(small, Plan.from_coalition(part, kept), example_inputs)
    return small


def few_per_class(data: Split, n: int, *, seed: int = 0) -> Split:
    """A random ``n`` examples of every class, shuffled; targets are class indices (N,).

    Raises:
        InputError: ``n`` below 1, or above what some class has.
    """
    if n < 1:
        raise InputError(f"n is {n}; take at least 1 example of each class")
    labels = data.targets.numpy()
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < n:
        raise InputError(f"class {classes[counts.argmin()]} has {counts.min()} examples, fewer than {n}")
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), n, replace=False) for c in classes])
    picked = torch.from_numpy(rng.permutation(rows))
    return Split(data.inputs[picked], data.targets[picked])
