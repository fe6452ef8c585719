"""Pieces of the protocols of Ancona et al. 2020."""

import numpy as np
import pytest
import torch
from ancona_protocols import cut_backwards, few_per_class, mean_increase
from torch import nn

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.builtin.splits import Split
from shaprune.errors import InputError
from shaprune.experiments.removal_curves import Curve

pytestmark = pytest.mark.usefixtures("one_thread")


def curve(removed: list[int], loss: list[float], n_players: int) -> Curve:
    return Curve(np.array(removed), n_players, np.zeros(len(loss)), np.array(loss), 1)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return build_model("mlp").eval()


def widths(model: nn.Module) -> tuple[int, int]:
    return model.fc1.out_features, model.fc2.out_features


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_mean_increase_is_the_loss_above_dense_summed_over_removals_and_divided_by_all_units() -> None:
    first = curve([0, 1, 2], [1.0, 2.0, 4.0], 2)  # above dense: 0, 1, 3
    second = curve([0, 3], [1.0, 4.0], 3)  # interpolated: 0, 1, 2, 3
    assert mean_increase([first]) == pytest.approx(4 / 2)
    assert mean_increase([first, second]) == pytest.approx((4 + 6) / 5)


@pytest.mark.parametrize(("removed", "n"), [([1, 2], 2), ([0, 1], 2)])
def test_mean_increase_refuses_a_curve_that_is_not_whole(removed: list[int], n: int) -> None:
    with pytest.raises(InputError, match="measure it from none to all"):
        mean_increase([curve(removed, [1.0, 2.0], n)])


def test_mean_increase_needs_a_curve() -> None:
    with pytest.raises(InputError, match="at least one curve"):
        mean_increase([])


def test_each_group_is_judged_in_the_network_whose_later_groups_are_cut() -> None:
    model, seen = mlp(), []

    def keep(small: nn.Module, part: sp.Players) -> np.ndarray:
        seen.append((part.groups[0].name, widths(small)))
        return np.arange(part.n) % 4 == 0

    small = cut_backwards(model, X, ["fc1", "fc2"], keep, sweeps=2)
    assert seen == [("fc2", (64, 64)), ("fc1", (64, 16)), ("fc2", (16, 16)), ("fc1", (16, 4))]
    assert widths(small) == (4, 4)
    assert widths(model) == (64, 64)
    kept = torch.arange(0, 64, 16)  # the multiples of four among the multiples of four
    assert torch.equal(small.fc1.weight, model.fc1.weight[kept])
    assert torch.equal(small.fc3.weight, model.fc3.weight[:, kept])


def test_cutting_backwards_is_scoring_from_output_to_input() -> None:
    model = mlp()
    inputs = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = [(inputs, torch.arange(64) % 10)]

    def keep(small: nn.Module, part: sp.Players) -> np.ndarray:
        values = next(iter(sp.score(small, part, data, "cross_entropy").values()))
        return np.isin(np.arange(part.n), values.ranking()[16:])

    ours = cut_backwards(model, X, ["fc1", "fc2"], keep)
    players = sp.find_players(model, X)
    scores = sp.score(
        model, players, data, "cross_entropy", options=sp.options.Scoring(layers="output-to-input", remove=0.25)
    )
    theirs = sp.prune(model, sp.plan(scores, sp.Budget(players=0.75), "uniform"), X)
    assert widths(ours) == widths(theirs) == (48, 48)
    assert torch.equal(ours(inputs), theirs(inputs))


def test_where_everybody_stays_the_model_itself_comes_back() -> None:
    model = mlp()
    assert cut_backwards(model, X, ["fc1", "fc2"], lambda small, part: np.ones(part.n, dtype=bool)) is model


@pytest.mark.parametrize(
    "answer", [np.zeros(64, dtype=bool), np.ones(63, dtype=bool), np.ones(64)], ids=["nobody", "too few", "numbers"]
)
def test_an_answer_that_leaves_no_network_is_refused(answer: np.ndarray) -> None:
    with pytest.raises(InputError, match="players of fc2 staying"):
        cut_backwards(mlp(), X, ["fc1", "fc2"], lambda small, part: answer)


def test_no_sweep_is_refused() -> None:
    with pytest.raises(InputError, match="sweeps is 0"):
        cut_backwards(mlp(), X, ["fc1"], lambda small, part: np.ones(part.n, dtype=bool), sweeps=0)


def test_few_per_class_takes_as_many_of_each_class_and_no_example_twice() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    data = Split(torch.arange(100.0), labels)
    few = few_per_class(data, 7, seed=1)
    assert few.targets.bincount().tolist() == [7, 7, 7]
    assert torch.equal(labels[few.inputs.long()], few.targets)
    assert len(few_per_class(data, 20).inputs.unique()) == 60  # all of class 2, and none twice
    assert not torch.equal(few.targets, few.targets.sort().values)  # shuffled
    assert torch.equal(few_per_class(data, 7, seed=1).inputs, few.inputs)
    assert not torch.equal(few_per_class(data, 7, seed=2).inputs, few.inputs)


@pytest.mark.parametrize(("n", "message"), [(0, "n is 0"), (21, "class 2 has 20 examples, fewer than 21")])
def test_few_per_class_says_what_it_cannot_take(n: int, message: str) -> None:
    data = Split(torch.zeros(100), torch.tensor([0] * 50 + [1] * 30 + [2] * 20))
    with pytest.raises(InputError, match=message):
        few_per_class(data, n)
