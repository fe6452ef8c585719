"""Recovery: refit, batch-norm recalibration, fine-tuning; each helps, and borrowed models stay as they were."""

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.game.worths import fidelity
from shaprune.network.layers.normal_equations import NormalEquations
from shaprune.recovery.refit import refit
from shaprune.recovery.steps import Batchnorm, Finetune, Refit


def case(
    name: str, share: float = 0.4, seed: int = 0
) -> tuple[nn.Module, nn.Module, sp.Plan, list[tuple[Tensor, None]]]:
    """A dense network, its pruned version, the plan, and 64 unlabelled examples in two batches."""
    make, example = NETWORKS[name]
    model = make().eval()
    inputs = torch.randn(64, *example().shape[1:], generator=torch.Generator().manual_seed(1))
    players = sp.find_players(model, inputs[:2])
    rng = np.random.default_rng(seed)
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[rng.choice(group.indices, max(1, int(share * len(group))), replace=False)] = False
    plan = sp.Plan.from_coalition(players, kept)
    return model, sp.prune(model, plan, inputs[:2]), plan, [(inputs[:40], None), (inputs[40:], None)]


def distance(small: nn.Module, model: nn.Module, data: list[tuple[Tensor, None]]) -> float:
    with torch.no_grad():
        return -float(np.mean([fidelity(small(x), model(x)).mean() for x, _ in data]))


def divergence(small: nn.Module, model: nn.Module, data: list[tuple[Tensor, None]]) -> float:
    with torch.no_grad():
        logits = [(small(x).log_softmax(1), model(x).log_softmax(1)) for x, _ in data]
    return float(np.mean([nn.functional.kl_div(*pair, reduction="batchmean", log_target=True) for pair in logits]))


@pytest.mark.parametrize("name", NETWORKS)
def test_refit_brings_the_outputs_closer_to_the_dense_network(name: str) -> None:
    model, small, plan, data = case(name)
    refitted = sp.recover(small, model, plan, data, ("refit",))
    assert distance(refitted, model, data) < 0.7 * distance(small, model, data)
    assert [p.shape for p in refitted.parameters()] == [p.shape for p in small.parameters()]


def test_refit_recovers_everything_where_a_removed_channel_was_redundant() -> None:
    """Channels 2 and 3 copy 0 and 1, so what they gave can be given by the others: the refit is exact."""

    class Redundant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)
            with torch.no_grad():
                self.conv1.weight[2:] = self.conv1.weight[:2]
                self.conv1.bias[2:] = self.conv1.bias[:2]

        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(self.conv1(x).relu()).flatten(1)

    torch.manual_seed(0)
    model, inputs = Redundant().eval(), torch.randn(32, 1, 8, 8)
    players = sp.find_players(model, inputs[:2])
    plan = sp.Plan.from_coalition(players, [True, True, False, False])
    small = sp.prune(model, plan, inputs[:2])
    refitted = sp.recover(small, model, plan, [(inputs, None)], (Refit(ridge=1e-9),))
    assert distance(small, model, [(inputs, None)]) > 0.05
    assert distance(refitted, model, [(inputs, None)]) < 1e-6
    merged = model.conv2.weight[:, :2] + model.conv2.weight[:, 2:]
    torch.testing.assert_close(refitted.conv2.weight, merged, atol=1e-3, rtol=1e-3)


class Blocks(nn.Module):
    """Three residual blocks of linear layers; only their inner widths are pruned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleList(nn.Linear(12, 24) for _ in range(3))
        self.outer = nn.ModuleList(nn.Linear(24, 12) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(12) for _ in range(3))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        for inner, outer, norm in zip(self.inner, self.outer, self.norms, strict=True):
            x = x + norm(outer(inner(x).relu()))
        return self.fc(x)


def test_in_a_residual_block_the_sum_is_fitted_so_a_later_block_makes_up_for_an_earlier_one() -> None:
    model, inputs = Blocks().eval(), torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    players = sp.find_players(model, inputs[:2], include="inner.*")
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[group.indices[::2]] = False
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.prune(model, plan, inputs[:2])
    data: list[tuple[Tensor, None]] = [(inputs, None)]
    whole = sp.recover(small, model, plan, data, ("refit",))
    branches = sp.recover(small, model, plan, data, ("refit",), forward=lambda m, x: m(x))
    assert distance(whole, model, data) < 0.95 * distance(branches, model, data)
    assert distance(branches, model, data) < 0.5 * distance(small, model, data)


@pytest.mark.parametrize("name", ["plain", "flattened", "mlp", "grouped"])
def test_both_ways_through_the_network_give_the_same_refit_where_nothing_is_added(name: str) -> None:
    model, small, plan, data = case(name)
    lockstep = sp.recover(small, model, plan, data, ("refit",))
    alone = sp.recover(small, model, plan, data, ("refit",), forward=lambda m, x: m(x))
    for a, b in zip(lockstep.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_tight_memory_bound_takes_the_other_way_with_the_same_result() -> None:
    model, small, plan, data = case("plain")
    a, b = (sp.recover(small, model, plan, data, ()) for _ in range(2))
    batches = [x for x, _ in data]
    refit(a.eval(), model, plan, batches)
    refit(b.eval(), model, plan, batches, max_memory=1)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-4)


def test_equations_sum_over_batches_and_a_huge_ridge_keeps_the_old_weights() -> None:
    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(1, 50, 3, generator=rng), torch.randn(1, 3, 2, generator=rng)
    whole, parts = NormalEquations(), NormalEquations()
    whole.add(x, x @ w)
    parts.add(x[:, :20], (x @ w)[:, :20])
    parts.add(x[:, 20:], (x @ w)[:, 20:])
    start = torch.zeros(1, 3, 2)
    torch.testing.assert_close(whole.solve(start, 1e-9), parts.solve(start, 1e-9), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(whole.solve(start, 1e-9).float(), w, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.solve(start, 1e9), start.double(), atol=1e-6, rtol=0)


def test_recalibration_sets_batch_norm_statistics_to_those_of_the_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    inputs = torch.randn(100, 3) * 3 + 1
    players = sp.find_players(model, inputs[:2])
    plan = sp.Plan.from_coalition(players, [True, False, True, True])
    small = sp.prune(model, plan, inputs[:2])
    after = sp.recover(small, model, plan, [(inputs, None)], (Batchnorm(),), batch_size=100)
    hidden = after[0](inputs)
    torch.testing.assert_close(after[1].running_mean, hidden.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[1].running_var, hidden.var(0), atol=1e-4, rtol=1e-4)
    assert after[1].momentum == small[1].momentum == 0.1
    assert not after.training


@pytest.mark.usefixtures("one_thread")
def test_finetuning_by_distillation_needs_no_labels_and_helps() -> None:
    model, small, plan, data = case("mlp", share=0.6)
    tuned = sp.recover(small, model, plan, data, (Finetune(epochs=30, lr=1e-2),))
    assert divergence(tuned, model, data) < 0.5 * divergence(small, model, data)


@pytest.mark.filterwarnings("ignore:no epoch of the fine-tuning")
@pytest.mark.usefixtures("one_thread")
def test_the_pruned_network_and_the_teacher_are_untouched(untouched) -> None:  # type: ignore[no-untyped-def]
    model, small, plan, data = case("residual")
    before = [t.clone() for m in (model, small) for t in m.state_dict().values()]
    with untouched(model, small):
        sp.recover(small, model, plan, data, ("refit", "batchnorm", Finetune(epochs=1)))
    after = [t for m in (model, small) for t in m.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_bad_steps_and_bad_data_are_refused() -> None:
    model, small, plan, data = case("mlp")
    with pytest.raises(sp.InputError, match="did you mean 'refit'"):
        sp.recover(small, model, plan, data, ("refitt",))
    with pytest.raises(sp.InputError, match="give a tuple"):
        sp.recover(small, model, plan, data, "refit")
    with pytest.raises(sp.InputError, match="holds no example"):
        sp.recover(small, model, plan, [], ("refit",))
    with pytest.raises(sp.InputError, match="needs targets"):
        sp.recover(small, model, plan, data, (Finetune(loss="cross_entropy"),))
    with pytest.raises(sp.InputError, match="ridge is 0"):
        sp.recover(small, model, plan, data, (Refit(ridge=0),))
    frozen = sp.recover(small, model, plan, data, ()).requires_grad_(False)
    with pytest.raises(sp.InputError, match="no trainable parameter"):
        sp.recover(frozen, model, plan, data, ("finetune",))
