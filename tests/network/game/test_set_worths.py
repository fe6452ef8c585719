"""Worths that are no means over examples: metrics and functions of all outputs, once per coalition."""

import copy
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn
from torchmetrics import MetricCollection, R2Score
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassHingeLoss,
)

from shaprune.errors import GameError, InputError, ShapruneWarning
from shaprune.network.discovery.find_players import find_players
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.worths import Evaluate, SetWorth
from shaprune.network.removal.surgery import remove_players
from shaprune.players.players import Players
from shaprune.values.estimate import estimate

pytestmark = pytest.mark.usefixtures("one_thread")

N = 40
Setting = tuple[nn.Module, Players, Tensor, Tensor]


def seeded_network(outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, outputs))
        for layer in (model[0], model[2], model[4]):
            layer.weight.data *= 3  # type: ignore[operator, union-attr]
    return model.eval()


@pytest.fixture
def classes() -> Setting:
    """Five classes whose labels the network half knows."""
    model = seeded_network(N_OUTPUTS)
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(N, N_OUTPUTS, generator=torch.Generator().manual_seed(2))
    targets = (model(x).detach() + noise).argmax(1)
    return model, find_players(model, x), x, targets


@pytest.fixture
def numbers() -> Setting:
    model = seeded_network(1)
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(N, generator=torch.Generator().manual_seed(2))
    return model, find_players(model, x), x, model(x).detach()[:, 0] + noise


def coalitions_of(players: Players, count: int = 8) -> NDArray[np.bool_]:
    kept = np.random.default_rng(4).random((count, players.n)) < np.linspace(0.4, 1, count)[:, None]
    for group in players.groups:
        kept[:, group.indices[0]] = True
    return kept


def after_surgery(model: nn.Module, players: Players, kept: NDArray[np.bool_], x: Tensor) -> list[NDArray[np.float64]]:
    with torch.no_grad():
        small = [remove_players(copy.deepcopy(model), players, row) for row in kept]
        return [net(x).double().numpy() for net in small]


def macro_f1(outputs: Any, labels: Any) -> float:
    return float(f1_score(labels, outputs.argmax(1), average="macro", labels=range(N_OUTPUTS), zero_division=0))


def test_a_metric_of_classes_is_scikit_learns_on_the_cut_network(classes: Setting) -> None:
    model, players, x, targets = classes
    kept = coalitions_of(players)
    expected = [macro_f1(o, targets.numpy()) for o in after_surgery(model, players, kept, x)]
    assert np.std(expected) > 0.05
    metric = MulticlassF1Score(num_classes=N_OUTPUTS, average="macro")
    game = NetworkGame(model, players, [(x[:30], targets[:30]), (x[30:], targets[30:])], metric)
    assert (game.separable, game.repeatable, game.n_examples) == (False, False, N)
    np.testing.assert_allclose(game(kept), expected, atol=1e-6)
    assert game(np.ones((1, game.n_players), dtype=bool))[0] == pytest.approx(
        macro_f1(model(x).detach().numpy(), targets.numpy())
    )


def test_metrics_of_numbers_and_of_two_classes_take_one_output_per_example(numbers: Setting) -> None:
    model, players, x, targets = numbers
    kept = coalitions_of(players)
    outputs = after_surgery(model, players, kept, x)
    expected = [r2_score(targets.numpy(), o[:, 0]) for o in outputs]
    np.testing.assert_allclose(NetworkGame(model, players, [(x, targets)], R2Score())(kept), expected, atol=1e-5)
    sign = (targets > targets.median()).long()
    expected = [roc_auc_score(sign.numpy(), o[:, 0]) for o in outputs]
    assert np.std(expected) > 0.02
    np.testing.assert_allclose(NetworkGame(model, players, [(x, sign)], BinaryAUROC())(kept), expected, atol=1e-6)


def test_a_metric_whose_lower_values_are_better_counts_negatively(classes: Setting) -> None:
    model, players, x, targets = classes
    metric = MulticlassHingeLoss(num_classes=N_OUTPUTS)
    everyone = np.ones((1, players.n), dtype=bool)
    game = NetworkGame(model, players, [(x, targets)], metric)
    assert game(everyone)[0] == pytest.approx(-float(metric(model(x).detach(), targets)))
    assert game(everyone)[0] < -0.01


def test_the_metric_itself_is_left_as_it_is(classes: Setting, untouched: Any) -> None:
    model, players, x, targets = classes
    metric = MulticlassAccuracy(num_classes=N_OUTPUTS)
    metric.update(torch.eye(N_OUTPUTS), torch.arange(N_OUTPUTS))
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with untouched(model):
        game = NetworkGame(model, players, [(x, targets)], metric)
        estimate(game, max_evaluations=10 * N * (players.n + 1))
    assert metric._update_count == 1
    assert float(metric.compute()) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_function_sees_all_examples_in_their_order_and_once_per_coalition(classes: Setting) -> None:
    model, players, x, targets = classes
    seen: list[tuple[Tensor, Tensor]] = []

    def function(outputs: Tensor, labels: Tensor) -> float:
        seen.append((outputs.clone(), labels.clone()))
        outputs.zero_(), labels.zero_()  # whatever is done to them is seen by nobody else
        return float(outputs.shape[0])

    game = NetworkGame(model, players, [(x, targets)], SetWorth("mine", function))
    seen.clear()
    kept = coalitions_of(players, 6)
    assert game(kept).tolist() == [N] * 6
    assert game(np.ones((1, game.n_players), dtype=bool)).tolist() == [N]
    for (outputs, labels), expected in zip(seen, after_surgery(model, players, kept, x), strict=False):
        np.testing.assert_allclose(outputs.numpy(), expected, atol=1e-6)
        assert torch.equal(labels, targets)
        assert targets.any()
    assert len(seen) == 7


def test_the_dense_outputs_may_be_the_reference(classes: Setting) -> None:
    model, players, x, _ = classes

    def agreement(outputs: Tensor, dense: Tensor) -> Tensor:
        return (outputs.argmax(1) == dense.argmax(1)).float().mean()

    game = NetworkGame(model, players, [x], SetWorth("agreement", agreement, reference="dense"))
    kept = coalitions_of(players)
    dense = model(x).argmax(1).numpy()
    expected = [(o.argmax(1) == dense).mean() for o in after_surgery(model, players, kept, x)]
    np.testing.assert_allclose(game(kept), expected, atol=1e-6)
    assert game(np.ones((1, players.n), dtype=bool))[0] == 1


@pytest.mark.parametrize("group", [None, "conv3"])
@pytest.mark.parametrize("whole", [False, True])
def test_set_worths_do_not_depend_on_the_memory_they_may_take(group: str | None, whole: bool) -> None:
    make, inputs = NETWORKS["plain"]
    model, x = make(), torch.cat([inputs(), -inputs(), inputs().flip(0) * 0.5])
    players, targets = find_players(model, x), torch.arange(12) % N_OUTPUTS
    largest: list[int] = []

    def spread(kept: Tensor, labels: Tensor) -> Tensor:
        return kept.double().std() + (kept.argmax(1) == labels).double().mean()

    def narrow(outputs: Tensor, labels: Tensor) -> Tensor:
        largest[-1] = max(largest[-1], len(outputs))
        return outputs[:, :2]

    worths = {"perplexity": "perplexity", "spread": SetWorth("spread", spread), "narrow": None}
    worths["narrow"] = SetWorth("narrow", lambda kept, labels: spread(kept, labels * 0), keep=narrow)  # type: ignore
    for worth in worths.values():

        def make(max_memory: int, worth: Any = worth) -> NetworkGame:
            options: dict[str, Any] = {"forward": (lambda net, a: net(a)) if whole else None, "max_memory": max_memory}
            with pytest.warns(ShapruneWarning) if whole else nullcontext():
                return NetworkGame(model, players, [(x, targets)], worth, group, **options)

        least = make(1 << 30).evaluator.rows.row_bytes
        answers = []
        for max_memory in (least, 5 * least, 1 << 30):
            largest.append(0)
            game = make(max_memory)
            largest[-1] = 0  # the dense network was asked about
            kept = np.random.default_rng(1).random((10, game.n_players)) < 0.6
            order = np.random.default_rng(2).permutation(game.n_players)[None, :4]
            answers.append((game(kept), game.walk(order)[:, -1]))
        for tiny in answers[:2]:
            np.testing.assert_allclose(tiny[0], answers[2][0], rtol=1e-5)
            np.testing.assert_allclose(tiny[1], answers[2][1], rtol=1e-5)
        assert np.std(answers[2][0]) > 1e-5
    assert largest[-3] == 1 <= largest[-2] < largest[-1]


def test_an_estimate_of_a_metric_is_an_estimate_with_one_order_for_all(classes: Setting) -> None:
    model, players, x, targets = classes
    group = players.groups[1]
    assert len(group) == 6
    game = NetworkGame(model, players, [(x, targets)], MulticlassF1Score(num_classes=N_OUTPUTS), group.name)
    exact = estimate(game, "exact")
    assert 2**6 * N <= exact.n_evaluations <= (2**6 + 1) * N  # one coalition may be asked again, to be sure
    assert exact.value.sum() == pytest.approx(exact.worth_all - exact.worth_none)
    near = estimate(game, max_evaluations=100 * 7 * N)
    assert np.all(np.abs(near.value - exact.value) < 5 * near.stderr + 1e-9)


# -- bad input -----------------------------------------------------------------------------------------------------


def test_single_examples_of_a_set_worth_are_refused(classes: Setting) -> None:
    model, players, x, targets = classes
    one, rows = np.zeros(1, dtype=np.int64), np.ones((1, players.n), dtype=bool)
    for worth, name in ((MulticlassF1Score(num_classes=5), "MulticlassF1Score"), (Evaluate(lambda net: 1.0), "eval")):
        game = NetworkGame(model, players, [(x, targets)], worth)
        assert not game.separable
        for ask in (lambda game=game: game(rows, one), lambda game=game: game.walk(np.arange(3)[None], one)):
            with pytest.raises(InputError, match=f"'{name}.*one number over all examples.*examples=None"):
                ask()


def test_a_metric_without_a_direction_says_how_to_give_it_one(classes: Setting) -> None:
    model, players, x, targets = classes
    for metric in (MeanMetric(), MetricCollection([MulticlassF1Score(num_classes=5)])):
        with pytest.raises(InputError, match=r"does not say whether higher is better; wrap it in sp\.worths\.SetWorth"):
            NetworkGame(model, players, [(x, targets)], metric)


def test_a_metric_on_wrong_targets_is_named_with_its_own_words(classes: Setting, numbers: Setting) -> None:
    model, players, x, targets = classes
    for wrong in (targets[:, None].float(), targets + 3):
        words = r"metric MulticlassF1Score cannot use outputs of shape \(40, 5\) and targets .*: .*sp\.worths\.SetWorth"
        with pytest.raises(InputError, match=words):
            NetworkGame(model, players, [(x, wrong)], MulticlassF1Score(num_classes=N_OUTPUTS))
    with pytest.raises(InputError, match="'R2Score' needs targets"):
        NetworkGame(model, players, [x], R2Score())
    model, players, x, targets = numbers
    with pytest.raises(InputError, match=r"metric R2Score cannot use outputs of shape \(40, 1\) .* \(40, 2\)"):
        NetworkGame(model, players, [(x, torch.stack([targets, targets], 1))], R2Score())


@pytest.mark.parametrize(
    ("worth", "words"),
    [
        (MulticlassF1Score(num_classes=5, average=None), r"'MulticlassF1Score' returned a tensor of shape \(5,\)"),
        (MulticlassConfusionMatrix(num_classes=5), "MulticlassConfusionMatrix does not say|returned a tensor"),
        (SetWorth("mine", lambda o, t: None), "'mine' returned NoneType for 40 examples"),
        (SetWorth("mine", lambda o, t: o), r"'mine' returned a tensor of shape \(40, 5\)"),
        (SetWorth("mine", lambda o, t: {"f1": 1.0}), "'mine' returned dict"),
    ],
)
def test_a_set_worth_that_is_not_one_number_is_refused_by_name(classes: Setting, worth: Any, words: str) -> None:
    model, players, x, targets = classes
    with pytest.raises((GameError, InputError), match=words) as caught:
        NetworkGame(model, players, [(x, targets)], worth)
    assert isinstance(caught.value, GameError) or "higher" in str(caught.value)


def test_a_set_worth_that_is_nan_names_worth_and_coalition(numbers: Setting) -> None:
    model, players, x, targets = numbers
    with torch.no_grad():
        model[4].bias.zero_()  # type: ignore[index, operator, union-attr]

    def correlation(outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.corrcoef(torch.stack([outputs[:, 0], labels]))[0, 1]

    game = NetworkGame(model, players, [(x, targets)], SetWorth("correlation", correlation), "2")
    kept = np.ones((2, 6), dtype=bool)
    assert game(kept)[0] > 0.5
    kept[1] = False  # constant outputs correlate with nothing
    with pytest.raises(
        GameError, match=r"'correlation' is nan for the empty coalition of 2; wrap it in sp\.worths\.SetWorth"
    ):
        game(kept)


def test_metrics_are_recognised_without_importing_torchmetrics() -> None:
    code = "import sys, shaprune.network.game.shared_games; assert 'torchmetrics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
