"""Surgery by plan: a plain module, the borrowed one untouched, and a clear refusal where it cannot be done."""

import copy

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS
from torch import nn

import shaprune as sp
from shaprune.deploy.measure import count
from shaprune.network.removal.surgery import remove_players


def half(players: sp.Players, seed: int = 0) -> sp.Plan:
    """A plan that removes about half of the players, at least one and never all of a group."""
    rng = np.random.default_rng(seed)
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[rng.choice(group.indices, max(1, len(group) // 2), replace=False)] = False
    return sp.Plan.from_coalition(players, kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pruned_network_is_plain_smaller_trainable_and_costs_what_the_plan_predicts(name: str) -> None:
    make, example = NETWORKS[name]
    model, inputs = make(), example()
    plan = half(sp.find_players(model, inputs))
    small = sp.prune(model, plan, inputs)
    assert type(small) is type(model)
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert count(small, inputs) == (plan.cost["params"], plan.cost["macs"])
    assert count(small, inputs) < count(model, inputs)
    for module in small.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.modules.conv._ConvNd):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
    small.train()
    small(inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters() if p.requires_grad)


def test_training_and_requires_grad_flags_are_those_of_the_model() -> None:
    make, example = NETWORKS["residual"]
    model = make()
    model.train()
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.weight.requires_grad_(False)
    small = sp.prune(model, half(sp.find_players(model, example())), example())
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


def test_the_model_is_untouched(untouched) -> None:  # type: ignore[no-untyped-def]
    make, example = NETWORKS["concatenated"]
    model = make()
    plan = half(sp.find_players(model, example()))
    with untouched(model):
        sp.prune(model, plan, example())


def test_a_plan_that_removes_nothing_gives_a_copy_of_the_dense_network_with_a_note() -> None:
    make, example = NETWORKS["mlp"]
    model = make()
    players = sp.find_players(model, example())
    with pytest.warns(sp.errors.ShapruneWarning, match="removes nothing: the network comes back as it is"):
        same = sp.prune(model, sp.Plan.from_coalition(players, np.ones(players.n, dtype=bool)), example())
    assert same is not model
    with torch.no_grad():
        assert torch.equal(same(example()), model(example()))


def test_a_plan_of_another_model_is_refused_naming_the_layer() -> None:
    make, example = NETWORKS["mlp"]
    plan = half(sp.find_players(make(), example()))
    other_make, other_example = NETWORKS["plain"]
    with pytest.raises(sp.InputError, match="belongs to another model: layer"):
        sp.prune(other_make(), plan, other_example())
    already = sp.prune(make(), plan, example())
    with pytest.raises(sp.InputError, match=r"belongs to another model: layer '\w+' has"):
        sp.prune(already, plan, example())


def test_a_network_that_no_longer_runs_after_surgery_is_a_surgery_error_and_the_model_stays() -> None:
    class Fixed(nn.Module):
        """Its forward insists on the dense width once `strict` is set: surgery cannot know that."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.strict = nn.Linear(4, 6), nn.Linear(6, 2), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.a(x).relu()
            if self.strict and hidden.shape[1] != 6:
                raise ValueError("six, please")
            return self.b(hidden)

    model = Fixed()
    plan = half(sp.find_players(model, torch.randn(2, 4)))
    model.strict = True
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sp.SurgeryError, match="six, please"):
        sp.prune(model, plan, torch.randn(2, 4))
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_a_layer_that_cannot_be_cut_is_named() -> None:
    make, example = NETWORKS["mlp"]
    model = make()
    players = sp.find_players(model, example())
    name = players.groups[0].members[0].module
    setattr(model, name, nn.Identity())
    with pytest.raises(sp.SurgeryError, match=f"layer '{name}' could not be cut"):
        remove_players(model, players, np.arange(players.n) > 0)


def test_a_plan_by_hand_may_leave_one_player() -> None:
    make, example = NETWORKS["mlp"]
    model, inputs = make().eval(), example()
    players = sp.find_players(model, inputs)
    kept = np.ones(players.n, dtype=bool)
    kept[players.groups[0].indices[1:]] = False
    small = sp.prune(model, sp.Plan.from_coalition(players, kept), inputs)
    assert small.get_submodule(players.groups[0].name).out_features == 1
