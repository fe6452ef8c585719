"""Criteria of torch-pruning (norms, BN scale, FPGM, LAMP, Hessian), called there.

torch-pruning's importances take one of its groups. Ours are rebuilt as such from the verified members: nothing is
traced (so no example inputs are needed), and every channel counts for the player that owns it, also where
torch-pruning's own trace attributes a merged channel to one root only. Layers are private copies.

Choices, the same for all: ``normalizer=None`` (raw scores; ``lamp`` *is* a normalisation); only the filters of the
producing layers count, as in the papers, where torch-pruning's defaults add the consumers' input channels and
batch-norms; scores of coupled filters are summed (``bn_scale`` averages over batch-norms, torch-pruning's default).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from shaprune.criteria.gradients import check_differentiable, differentiable_worth, worth_reference
from shaprune.errors import InputError
from shaprune.network.batches import main_output
from shaprune.network.borrow import borrowed, copied
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.worths import AnyWorth, apply_row_worth
from shaprune.network.layers.recurrent import is_recurrent, rows_of_units
from shaprune.players.players import Group, Member, Players

_FILTERS = [nn.modules.conv._ConvNd, nn.Linear]


def weight_norms(model: nn.Module, players: Players, p: int) -> NDArray[np.float64]:
    """(n,) L1 or L2 norm of a player's filters in all producing layers."""
    importance = tp.importance.MagnitudeImportance(p, "sum", normalizer=None, target_types=_FILTERS)
    return _scores(model, players, importance, _filters) ** (1 / p)


def lamp(model: nn.Module, players: Players) -> NDArray[np.float64]:
    """(n,) squared norm of a player's filters over that of all players of its group that are not smaller."""
    return _scores(model, players, tp.importance.LAMPImportance(group_reduction="sum"), _filters)


def geometric_medians(model: nn.Module, players: Players) -> NDArray[np.float64]:
    """(n,) sum of Euclidean distances from a player's filters to all filters of the same layer.

    torch-pruning takes |w|^p before the distance, which confuses w with -w. Distances do not change when all weights
    of a layer grow by the same number, so they are made positive first, and with p = 1 the result is the paper's.
    """

    def shifted(layer: nn.Module) -> nn.Module:
        weight = cast(Tensor, layer.weight)
        weight.data -= weight.data.min()
        return layer

    importance = tp.importance.FPGMImportance(p=1, group_reduction="sum", normalizer=None)
    return _scores(model, players, importance, _filters, shifted)


def bn_scales(model: nn.Module, players: Players) -> NDArray[np.float64]:
    """(n,) mean over the group's batch-norms of |scale|, summed over the channels that a player owns in each.

    Raises:
        InputError: a group where a player passes no batch-norm with a scale.
    """
    names = {name for name, _ in model.named_modules()}  # the others are parameters

    def members(group: Group) -> list[Member]:
        layers = [(m, model.get_submodule(m.module)) for m in group.members if m.role == "both" and m.module in names]
        found = [m for m, layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine]
        bare = ~np.any([m.widths > 0 for m in found], axis=0) if found else np.ones(len(group), dtype=bool)
        if bare.any():
            raise InputError(
                f"criterion 'bn_scale' cannot score group {group.name!r}: {group.names[int(bare.argmax())]} passes no "
                "batch-norm with a scale; leave the group out (exclude=...) or take another criterion"
            )
        return found

    return _scores(model, players, tp.importance.BNScaleImportance(normalizer=None), members)


def hessian(calibration: Calibration, players: Players, worth: AnyWorth) -> NDArray[np.float64]:
    """(N, n) sum over a player's filter weights of weight^2 times squared gradient, of each example.

    Optimal brain damage (LeCun et al. 1989) on whole filters, with the diagonal of the empirical Fisher matrix in place
    of the Hessian: where the worth is a log-likelihood, about twice what it loses without the filters. The squared
    gradients are set here, one backward pass per example: `GroupHessianImportance.accumulate_grad` of torch-pruning
    1.6 keeps those of the last example only.

    Raises:
        InputError: the worth has no gradient, or a zero one at the dense network.
    """
    chosen = differentiable_worth(worth)
    reference = worth_reference(calibration, chosen)
    importance = tp.importance.GroupHessianImportance("sum", normalizer=None, target_types=_FILTERS)
    result = np.empty((calibration.n_examples, players.n))
    with borrowed(copied(calibration.model)) as copy, torch.enable_grad():
        copy.requires_grad_(True)
        groups = [_group(copy.get_submodule, _filters(g)) for g in players.groups]
        weights = _weights(copy, players)
        for row in torch.arange(calibration.n_examples, device=reference.device).split(1):
            outputs = main_output(calibration.forward(copy, calibration.rows(row)))
            gained = apply_row_worth(chosen, outputs, reference[row])
            check_differentiable(chosen, gained)
            gradients = torch.autograd.grad(gained.sum(), weights, materialize_grads=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.square()
            for group, built in zip(players.groups, groups, strict=True):
                result[int(row), group.indices] = _call(importance, built, group)
    return result


def _weights(model: nn.Module, players: Players) -> list[nn.Parameter]:
    """The weight of every producing layer, each once."""
    names = dict.fromkeys(member.module for group in players.groups for member in _filters(group))
    inside = next((name for name in names if is_recurrent(model.get_submodule(name))), None)
    if inside is not None:
        raise InputError(
            f"criterion 'hessian' knows filters of one weight, and {inside} has one per gate; exclude it, or take "
            "'second_order'"
        )
    return [cast(nn.Parameter, model.get_submodule(name).weight) for name in names]


def _scores(
    model: nn.Module,
    players: Players,
    importance: Any,
    members: Callable[[Group], Sequence[Member]],
    prepare: Callable[[nn.Module], nn.Module] = lambda layer: layer,
) -> NDArray[np.float64]:
    """(n,) an importance of every group, from private copies of its layers in double precision."""
    result = np.empty(players.n)
    for group in players.groups:
        built = _group(lambda name: prepare(_as_rows(copied(model.get_submodule(name)).double())), members(group))
        result[group.indices] = _call(importance, built, group)
    return result


def _as_rows(layer: nn.Module) -> nn.Module:
    """A layer, or in the place of one that torch-pruning cannot score a linear one with a row of weights per channel.

    A unit of a recurrent layer has the rows of all its gates in every layer inside.
    """
    if isinstance(layer, nn.Embedding):
        rows = layer.weight.mT
    elif is_recurrent(layer):
        rows = rows_of_units(layer)
    else:
        return layer
    linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False, dtype=rows.dtype, device="meta")
    linear.weight = nn.Parameter(rows.detach().contiguous())
    return linear


def _filters(group: Group) -> tuple[Member, ...]:
    """The producing layers.

    Raises:
        InputError: there are none: the players of the group only pass depthwise convolutions.
    """
    if not group.producers:
        raise InputError(
            f"group {group.name!r} has no filters of its own, only {group.members[0].module} which passes channels on "
            "one by one; leave it out (exclude=...) or take a criterion by activations"
        )
    return group.producers


def _group(layer_of: Callable[[str], nn.Module], members: Sequence[Member]) -> Any:
    """A torch-pruning group of layers that produce or pass on; its "root indices" are the players of our group."""
    registry = tp.DependencyGraph()  # knows the handlers of all kinds of layers
    built = tp.dependency.Group()
    for member in sorted(members, key=lambda m: -int(m.widths.sum())):  # the first one sizes torch-pruning's result
        layer = layer_of(member.module)
        handler = registry.get_pruner_of_module(layer).prune_out_channels
        node = tp.dependency.Node(layer, None, member.module)
        # in order of channels: some importances sort the channels and leave the players where they are
        owned = sorted((channel, player) for player, channels in enumerate(member.channels) for channel in channels)
        built.add_dep(tp.dependency.Dependency(handler, handler, node, node), [channel for channel, _ in owned])
        built[len(built) - 1].root_idxs = [player for _, player in owned]
    return built


def _call(importance: Any, built: Any, group: Group) -> NDArray[np.float64]:
    """(players of the group,) what torch-pruning answers; it sizes its answer by channels, the rest stays zero."""
    name = type(importance).__name__
    try:
        found = importance(built)
    except Exception as error:
        raise InputError(f"torch-pruning's {name} cannot score group {group.name!r}: {error}; exclude it") from error
    if found is None:
        raise InputError(f"torch-pruning's {name} knows no layer of group {group.name!r}; exclude it")
    return np.asarray(found.double().cpu().numpy()[: len(group)])
