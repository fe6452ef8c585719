"""Apply a plan: a new, plain module; the input model is untouched."""

from __future__ import annotations

import torch
from torch import nn

from shaprune.errors import InputError, SurgeryError
from shaprune.network.acceptable import check_model
from shaprune.network.agreement import limit_for, relative_difference
from shaprune.network.batches import Inputs, call, tensors, transform
from shaprune.network.borrow import borrowed, copied
from shaprune.network.masks import masked
from shaprune.network.sites import sites_of
from shaprune.network.surgery import check_fits, cut
from shaprune.planning import Plan

TOLERANCE = 1e-4  # relative, float32; deep networks round to about 1e-6


def prune(model: nn.Module, plan: Plan, example_inputs: Inputs) -> nn.Module:
    """Return a smaller network without the players that ``plan`` removes.

    The result is a deep copy with narrower layers: no hooks, no wrappers, ``out_channels`` and friends right,
    ``requires_grad`` and training flags as in ``model``. It is run once on ``example_inputs`` and must give what the
    dense network gives under the plan's mask.

    Args:
        model: the dense network that the plan was made for; it is not changed.
        plan: who stays.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.

    Raises:
        InputError: the plan removes nothing, or belongs to another model.
        SurgeryError: the network cannot be cut, or the smaller network does not run or does not agree with the mask.
    """
    if plan.kept.all():
        raise InputError("the plan removes nothing; lower the budget, or remove at least one player")
    check_model(model)
    check_fits(model, plan.players)
    inputs = tuple(example_inputs) if isinstance(example_inputs, list) else example_inputs
    small = cut(copied(model), plan.players, plan.kept)
    params = sum(p.numel() for p in small.parameters())
    if params != plan.cost["params"]:
        raise SurgeryError(f"surgery left {params} parameters where the plan predicts {plan.cost['params']:.0f}")
    device = tensors(inputs)[0].device
    mask = torch.from_numpy(plan.kept[None].astype("float32")).to(device)
    with torch.no_grad(), borrowed(model), borrowed(small):
        with masked(model, sites_of(plan.players, plan.players.groups, device), mask):
            expected = tensors(call(model, transform(inputs, torch.clone)))  # a model may write to its input
        try:
            answers = tensors(call(small, transform(inputs, torch.clone)))
        except Exception as error:
            raise SurgeryError(f"the pruned network does not run: {error}; exclude the group that breaks it") from error
    for ours, theirs in zip(answers, expected, strict=True):
        if not relative_difference(ours, theirs) < limit_for(ours.dtype, TOLERANCE):
            raise SurgeryError(
                "the pruned network does not agree with the masked one "
                f"(relative difference {relative_difference(ours, theirs):.1e}); exclude the group that breaks it"
            )
    return small
