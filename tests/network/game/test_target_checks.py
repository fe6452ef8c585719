"""Class targets in every shape that people have mean the same to worths, measured accuracy and training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shaprune as sp
from shaprune.deploy.measure import accuracy
from shaprune.network.game.target_checks import class_targets
from shaprune.recovery.training import fit

N = 40
IGNORED = -100


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def classifier(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, classes)).eval()


def worth(model: nn.Module, x: Tensor, targets: Tensor, name: str) -> float:
    players = sp.find_players(model, x[:2])
    return float(sp.NetworkGame(model, players, [(x, targets)], name)(np.ones((1, players.n), bool))[0])


def all_of(model: nn.Module, x: Tensor, targets: Tensor) -> list[float]:
    """Measured accuracy in one batch and in two, and the worths of the dense network."""
    halves = [(x[:7], targets[:7]), (x[7:], targets[7:])]
    measured = [accuracy(model, [(x, targets)]), accuracy(model, halves)]
    return [
        *measured,
        *(worth(model, x, targets, name) for name in ("accuracy", "cross_entropy", "margin", "perplexity")),
    ]


CLASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "in a column": lambda y: y[:, None],
    "one-hot": lambda y: F.one_hot(y, 3),
    "one-hot floats": lambda y: F.one_hot(y, 3).float(),
    "one-hot booleans": lambda y: F.one_hot(y, 3).bool(),
    "int32": lambda y: y.int(),
}


@pytest.mark.parametrize("shape", CLASSES)
def test_classes_in_any_shape_are_the_same_classes(shape: str) -> None:
    model, x, y = classifier(), torch.randn(N, 5), torch.randint(3, (N,))
    assert all_of(model, x, CLASSES[shape](y)) == pytest.approx(all_of(model, x, y), abs=1e-9)


def test_what_is_ignored_does_not_count_and_costs_no_efficiency() -> None:
    model, x, y = classifier(), torch.randn(N, 5), torch.randint(3, (N,))
    some = torch.where(torch.arange(N) % 3 == 0, IGNORED, y)
    counted = some != IGNORED
    measured, in_two, right, loss, margin, perplexity = all_of(model, x, some)
    assert measured == in_two == pytest.approx(accuracy(model, [(x[counted], y[counted])]))
    assert right == pytest.approx(measured)
    assert loss == pytest.approx(-float(F.cross_entropy(model(x).detach(), some)), rel=1e-5)
    assert margin == pytest.approx(worth(model, x[counted], y[counted], "margin"), rel=1e-5)
    assert perplexity == pytest.approx(-float(F.cross_entropy(model(x).detach(), some).exp()), rel=1e-5)
    players = sp.find_players(model, x[:2])
    every = sp.options.Scoring(window=(0.0, 1.0))
    values = sp.score(model, players, [(x, some)], "cross_entropy", options=every)["0"]
    only = sp.score(model, players, [(x[counted], y[counted])], "cross_entropy", method="exact", options=every)["0"]
    assert values.efficiency_gap == pytest.approx(0, abs=1e-6)
    assert values.worth_all == pytest.approx(only.worth_all, rel=1e-5)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("targets", [lambda y: y, lambda y: y.long(), lambda y: y.float(), lambda y: y[:, None]])
def test_one_output_is_a_binary_logit(shape: tuple[int, ...], targets: Callable[[Tensor], Tensor]) -> None:
    net, x, y = classifier(1), torch.randn(N, 5), torch.rand(N) < 0.4
    model = net if len(shape) == 2 else nn.Sequential(net, nn.Flatten(0))
    logit = net(x)[:, 0].detach()
    right = float(((logit > 0) == y).double().mean())
    measured, in_two, worth_right, loss, margin, _ = all_of(model, x, targets(y))
    assert measured == in_two == worth_right == pytest.approx(right)
    assert loss == pytest.approx(-float(F.binary_cross_entropy_with_logits(logit, y.float())), rel=1e-5)
    assert margin == pytest.approx(float(torch.where(y, logit, -logit).mean()), rel=1e-5)


def test_class_maps_and_sequences_have_their_classes_on_the_second_axis() -> None:
    maps = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    x, y = torch.randn(6, 3, 5, 7), torch.randint(4, (6, 5, 7))
    y[:2, :3] = IGNORED
    want = float((maps(x).argmax(1) == y)[y != IGNORED].double().mean())
    loss = -float(F.cross_entropy(maps(x).detach(), y))
    for targets in (y, y[:, None]):
        assert accuracy(maps, [(x[:1], targets[:1]), (x[1:], targets[1:])]) == pytest.approx(want)
        assert worth(maps, x, targets, "accuracy") == pytest.approx(want, rel=1e-5)
        assert worth(maps, x, targets, "cross_entropy") == pytest.approx(loss, rel=1e-5)
    series = nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU(), nn.Conv1d(6, 4, 1)).eval()
    x, y = torch.randn(6, 3, 9), torch.randint(4, (6, 9))
    assert accuracy(series, [(x, y)]) == pytest.approx(float((series(x).argmax(1) == y).double().mean()))
    assert worth(series, x, y, "cross_entropy") == pytest.approx(
        -float(F.cross_entropy(series(x).detach(), y)), rel=1e-5
    )


def test_tokens_are_measured_by_their_last_axis_over_those_that_count() -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 20)).eval()
    x, y = torch.randint(20, (6, 5)), torch.randint(20, (6, 5))
    y[0], y[1, 3:] = IGNORED, IGNORED
    logits = model(x).detach()
    want = float((logits.argmax(-1) == y)[y != IGNORED].double().mean())
    loss = float(F.cross_entropy(logits.flatten(0, 1), y.flatten()))
    assert accuracy(model, [(x[:1], y[:1]), (x[1:], y[1:])]) == pytest.approx(want)
    assert worth(model, x, y, "cross_entropy") == pytest.approx(-loss, rel=1e-5)
    assert worth(model, x, y, "perplexity") == pytest.approx(-np.exp(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("outputs", "targets", "words"),
    [
        (
            torch.randn(4, 3),
            torch.tensor([True, False, True, True]),
            "class indices below 3, and the targets are torch.b",
        ),
        (torch.randn(4, 3), torch.ones(4, 3), "several classes are set, or none"),
        (torch.randn(4, 3), torch.tensor([0.0, 1, 2, 1]), r"give whole numbers \(targets.long\(\)\)"),
        (
            torch.randn(4),
            torch.tensor([0, 1, 2, 1]),
            "labels run from 0 to 2 and the model has one output, a binary logi",
        ),
        (torch.randn(4, 3, 5, 5), torch.full((4, 5, 5), 255), r"0\.\.2 \(and -100 where none counts\)"),
        (torch.randn(4, 3), torch.full((4,), IGNORED), "no target that counts"),
        (torch.randn(4, 3), torch.zeros(4, 2, dtype=torch.long), "one class index per prediction"),
    ],
)
def test_what_means_no_classes_is_refused_by_name(outputs: Tensor, targets: Tensor, words: str) -> None:
    with pytest.raises(sp.InputError, match=words) as refused:
        class_targets("accuracy", targets, outputs)
    assert str(refused.value).startswith(("accuracy", "labels"))


def test_probabilities_in_place_of_binary_logits_are_refused() -> None:
    model, x, y = nn.Sequential(classifier(1), nn.Sigmoid()), torch.randn(N, 5), torch.randint(2, (N,))
    for ask in (lambda: accuracy(model, [(x, y)]), lambda: worth(model, x, y, "accuracy")):
        with pytest.raises(sp.InputError, match="leave the sigmoid out"):
            ask()


def test_numbers_may_lack_an_axis_of_length_one_or_have_it() -> None:
    net, x = classifier(1), torch.randn(N, 5)
    y = net(x).detach() + 2.0
    flat = nn.Sequential(net, nn.Flatten(0))
    for model in (net, flat):
        for targets in (y, y[:, 0]):
            assert worth(model, x, targets, "squared_error") == pytest.approx(-4, rel=1e-5)
            assert worth(model, x, targets, "absolute_error") == pytest.approx(-2, rel=1e-5)


def test_a_regressor_with_one_axis_goes_through_compress() -> None:
    model, x = nn.Sequential(classifier(1), nn.Flatten(0)).eval(), torch.randn(N, 5)
    result = sp.compress(model, [(x, None)], sp.Budget(params=0.6), example_inputs=x[:4], progress=False)
    assert result.model(x).shape == (N,)
    assert result.measurements["pruned"].parameters < result.measurements["dense"].parameters


def test_training_takes_the_same_targets() -> None:
    x, y = torch.randn(N, 5), torch.randint(3, (N,))
    weights = []
    for targets in (y, y[:, None], F.one_hot(y, 3)):
        torch.manual_seed(1)
        model = classifier()
        fit(model, [(x, targets)], epochs=1, lr=1e-2)
        weights.append(model[0].weight.detach().clone())  # type: ignore[index, union-attr, operator]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    binary, logits = classifier(1), torch.randn(N, 5)
    fit(binary, [(logits, (logits[:, 0] > 0).float())], epochs=30, lr=3e-2)
    assert accuracy(binary, [(logits, logits[:, 0] > 0)]) >= 0.85
