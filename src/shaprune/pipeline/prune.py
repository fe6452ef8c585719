"""Apply a plan: a new, plain module; the input model is untouched."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from shaprune.errors import InputError, ShapruneWarning, SurgeryError
from shaprune.network.batches import Inputs, example_of, run, tensors
from shaprune.network.borrow import borrowed, copied
from shaprune.network.discovery.model_support import check_model
from shaprune.network.removal.hf_config import config_refusal, write_configs
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import check_fits, remove_players
from shaprune.network.tolerance import relative_difference, tolerance_for
from shaprune.planning.limits import check_hf_uniform
from shaprune.planning.plan import Plan

TOLERANCE = 1e-4  # relative, float32; deep networks round to about 1e-6


def prune(model: nn.Module, plan: Plan, example_inputs: Inputs, *, hf_uniform: bool = False) -> nn.Module:
    """Return a smaller network without the players that ``plan`` removes.

    The result is a deep copy with narrower layers: no hooks, no wrappers, ``out_channels`` and friends right,
    ``requires_grad`` and training flags as in ``model``. It is run once on ``example_inputs`` and must give what the
    dense network gives under the plan's mask.

    Where ``model`` is (or holds) a model of transformers and its configuration can say what is left, it does so in the
    result, which ``save_pretrained`` and ``from_pretrained`` then bring back; else it is left as it is, and `sp.save`
    keeps the network.

    Args:
        model: the dense network that the plan was made for; it is not changed.
        plan: who stays.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, batch first.
        hf_uniform: refuse a plan that such a configuration cannot say.

    Returns:
        The smaller network.

    Raises:
        InputError: the plan belongs to another model; ``hf_uniform``, and why it cannot be said.
        SurgeryError: the network cannot be cut, or the smaller network does not run or does not agree with the mask.

    Warns:
        ShapruneWarning: the plan removes nothing; a copy of the dense network comes back.
    """
    check_model(model)
    check_fits(model, plan.players)
    if plan.kept.all():
        warnings.warn(
            "the plan removes nothing: the network comes back as it is, as a copy; lower the budget to make it smaller",
            ShapruneWarning,
            stacklevel=2,
        )
        return copied(model)
    inputs, _ = example_of(model, example_inputs)
    sayable = _config_can_express(model, plan, hf_uniform)
    small = remove_players(copied(model), plan.players, plan.kept)
    if sayable:
        write_configs(small, plan.players, plan.kept)
    params = sum(p.numel() for p in small.parameters())
    if params != plan.cost["params"]:
        raise SurgeryError(f"surgery left {params} parameters where the plan predicts {plan.cost['params']:.0f}")
    device = tensors(inputs)[0].device
    mask = torch.from_numpy(plan.kept[None].astype("float32")).to(device)
    with torch.no_grad(), borrowed(model), borrowed(small):
        with masked(model, mask_sites(plan.players, plan.players.groups, device), mask):
            expected = tensors(run(model, inputs))
        try:
            answers = tensors(run(small, inputs))
        except Exception as error:
            raise SurgeryError(f"the pruned network does not run: {error}; exclude the group that breaks it") from error
    for ours, theirs in zip(answers, expected, strict=True):
        if not relative_difference(ours, theirs) < tolerance_for(ours.dtype, TOLERANCE):
            raise SurgeryError(
                "the pruned network does not agree with the masked one "
                f"(relative difference {relative_difference(ours, theirs):.1e}); exclude the group that breaks it"
            )
    return small


def _config_can_express(model: nn.Module, plan: Plan, required: bool) -> bool:
    """Whether the configurations of a Hugging Face model can say what a plan leaves; if ``required``, they must."""
    if required:
        check_hf_uniform(plan.players)
    elif plan.players.config is None:
        return False
    why = config_refusal(model, plan.players, plan.kept)
    if why is not None and required:
        raise InputError(
            f"hf_uniform=True: config.json cannot say what this plan leaves: {why}; make it by "
            "sp.plan(..., limits=sp.options.Limits(hf_uniform=True)), or leave it out and keep the network by sp.save"
        )
    return why is None
