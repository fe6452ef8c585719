"""Our values inside torch-pruning's own pruners."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from testkit.networks import NETWORKS
from torch import nn

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.criteria.torch_pruning_importance import ShapleyImportance
from shaprune.players.players import Players, number_groups

pytestmark = pytest.mark.usefixtures("one_thread")


def scored(name: str, include: str | None = None) -> tuple[nn.Module, Players, sp.Scores]:
    """A network with random values: no two alike, and nothing that weights could tell."""
    make, inputs = NETWORKS[name]
    model = make()
    players = sp.find_players(model, inputs(), include=include)
    return model, players, sp.Scores(players, criterion_scores(model, players, criterion="random", seed=5), "random")


def pruner(model: nn.Module, name: str, importance: Any, **options: Any) -> Any:
    """torch-pruning's pruner, with dictionaries of its own: the defaults are shared between pruners, and written to."""
    own = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}
    return tp.pruner.BasePruner(model, (NETWORKS[name][1](),), importance, **own, **options)


def least(players: Players, scores: sp.Scores, ratio: float) -> np.ndarray:  # type: ignore[type-arg]
    """(n,) kept, when in every group the least valuable players leave as torch-pruning counts them."""
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        n = len(group)
        kept[group.indices[scores[group.name].ranking()[: n - int(n * (1 - ratio))]]] = False
    return kept


@pytest.mark.parametrize(
    "name", ["plain", "flattened", "residual", "concatenated", "depthwise", "grouped", "mlp", "conv1d"]
)
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_torch_pruning_removes_exactly_our_least_valuable_players(name: str, ratio: float) -> None:
    model, players, scores = scored(name)
    x = NETWORKS[name][1]()
    expected = sp.prune(model, sp.Plan.from_coalition(players, least(players, scores, ratio)), x)
    tool = pruner(model, name, ShapleyImportance(scores, model), pruning_ratio=ratio)
    tool.step()
    for (key, ours), theirs in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key
    assert torch.equal(expected(x), model(x))


def test_a_global_pruner_compares_values_across_groups() -> None:
    model, players, scores = scored("mlp")
    value = np.concatenate([scores[g.name].value for g in players.groups])
    kept = np.ones(players.n, dtype=bool)
    kept[np.argsort(value)[: players.n // 2]] = False
    expected = sp.prune(model, sp.Plan.from_coalition(players, kept), NETWORKS["mlp"][1]())
    pruner(model, "mlp", ShapleyImportance(scores, model), global_pruning=True, pruning_ratio=0.5).step()
    for ours, theirs in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_layers_without_values_are_left_alone() -> None:
    model, _, scores = scored("plain", include="conv2")
    assert ShapleyImportance(sp.Scores(scores.players, {}, "nothing"), model)(_root(model, "conv2")) is None
    pruner(model, "plain", ShapleyImportance(scores, model), pruning_ratio=0.5).step()
    assert [model.conv1.out_channels, model.conv2.out_channels, model.conv3.out_channels] == [8, 6, 10]
    assert model.fc.out_features == 5


def _root(model: nn.Module, layer: str) -> Any:
    graph = tp.DependencyGraph().build_dependency(model, (torch.randn(2, 3, 8, 8),))
    module = model.get_submodule(layer)
    return graph.get_pruning_group(module, tp.prune_conv_out_channels, list(range(module.out_channels)))


def test_values_stand_in_the_order_of_the_channels() -> None:
    model, _, scores = scored("plain")
    importance = ShapleyImportance(scores, model)
    group = _root(model, "conv2")
    assert importance(group).tolist() == scores["conv2"].value.tolist()
    some = group._DG.get_pruning_group(model.conv2, tp.prune_conv_out_channels, [7, 2, 5])
    assert importance(some).tolist() == scores["conv2"].value[[7, 2, 5]].tolist()


def test_a_consumer_of_several_groups_has_the_values_of_all_of_them() -> None:
    model, _, scores = scored("concatenated")  # merge reads left, right and stem, in this order
    graph = tp.DependencyGraph().build_dependency(model, (torch.randn(2, 3, 8, 8),))
    group = graph.get_pruning_group(model.merge, tp.prune_conv_in_channels, list(range(21)))
    expected = np.concatenate([scores[name].value for name in ("left", "right", "stem")])
    assert ShapleyImportance(scores, model)(group).tolist() == expected.tolist()


def test_pruning_in_several_steps_is_refused() -> None:
    model, _, scores = scored("plain")
    tool = pruner(model, "plain", ShapleyImportance(scores, model), pruning_ratio=0.5, iterative_steps=2)
    tool.step()
    with pytest.raises(sp.InputError, match=r"'conv.' had .* channels when it was scored and has .*iterative_steps=1"):
        tool.step()


def test_another_model_is_refused() -> None:
    model, _, scores = scored("plain")
    with pytest.raises(sp.InputError, match="another model object"):
        pruner(copy.deepcopy(model), "plain", ShapleyImportance(scores, model)).step()
    with pytest.raises(sp.InputError, match="another model"):
        ShapleyImportance(scores, NETWORKS["mlp"][0]())


def test_channels_without_a_value_are_never_given_one() -> None:
    model, players, scores = scored("plain", include="conv2")
    members = [replace(m, channels=m.channels[:-1]) for m in players.groups[0].members]
    fewer = replace(players, groups=number_groups([("conv2", members)]))
    values = {"conv2": scores["conv2"].part(np.arange(11))}
    with pytest.raises(sp.InputError, match=r"1 of 12 channels of layer 'conv2' have no value; .* ignored_layers"):
        ShapleyImportance(sp.Scores(fewer, values, "random"), model)(_root(model, "conv2"))
