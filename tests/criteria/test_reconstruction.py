"""The criterion "reconstruction": what refitted consumers cannot give any more, against plain least squares."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.network.forward.calibration import Calibration
from shaprune.network.layers.normal_equations import design_rows
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")


class Two(nn.Module):
    """A convolution read by a grouped convolution, with a bias, and by another without one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3)
        self.a, self.b = nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(6, 3, 1, bias=False)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.cat([self.a(x).mean((2, 3)), self.b(x).mean((2, 3))], 1))


def lost(layer: nn.Conv2d, x: Tensor, gone: list[int]) -> float:
    """Share of what a convolution gives that is lost when it is fitted anew without some input channels."""
    y = layer(x)
    error = 0.0
    for i, (inputs, targets) in enumerate(zip(*next(design_rows(layer, x, y)), strict=True)):
        each = layer.in_channels // layer.groups
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        kept = [f for c in range(each) if c + i * each not in gone for f in range(c * kernel, (c + 1) * kernel)]
        if layer.bias is not None:
            kept.append(each * kernel)
        fitted = torch.linalg.lstsq(inputs[:, kept].double(), targets.double()).solution
        error += float((targets.double() - inputs[:, kept].double() @ fitted).square().sum())
    return error / float(y.double().square().sum())


def test_values_are_the_losses_of_least_squares_refits_when_the_cheapest_leaves_first() -> None:
    torch.manual_seed(0)
    model, inputs = Two().eval(), torch.randn(40, 2, 6, 6)
    players = sp.find_players(model, inputs[:2], include="first")
    value = criterion_scores(model, players, Calibration(model, [(inputs, None)]), "reconstruction")["first"].value
    owned = [[0, 3], [1, 4], [2, 5]]  # a slot of the grouped convolution each
    gone: list[int] = []
    before, highest = 0.0, 0.0
    for _ in range(2):
        channels = {p: [c for q in (*gone, p) for c in owned[q]] for p in set(range(3)) - set(gone)}
        with torch.no_grad():
            x = torch.relu(model.first(inputs))
            after = {p: sum(lost(c, x, channels[p]) for c in (model.a, model.b)) for p in channels}
        cheapest = min(after, key=lambda p: after[p])
        highest = max(highest, after[cheapest] - before)
        assert value[cheapest] == pytest.approx(highest, rel=0.05)
        gone.append(cheapest)
        before = after[cheapest]
    assert np.argsort(value)[:2].tolist() == gone


def test_a_copied_channel_costs_nothing_and_its_twin_costs_more_afterwards() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[1], model[0].bias[1]
    data = [(torch.randn(100, 5), None)]
    players = sp.find_players(model, torch.randn(2, 5))
    value = sp.score(model, players, data, "fidelity", method="reconstruction")["0"].value
    assert int(np.argmin(value)) in (1, 3)
    assert value[[1, 3]].min() < 1e-2 * value[[1, 3]].max()


@pytest.mark.parametrize("criterion", ["reconstruction", "activation_mean", "apoz", "sensitivity"])
def test_padding_does_not_count(criterion: str) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            y = self.b(torch.relu(self.a(tokens))) * attention_mask[..., None]
            return y.sum(1)

    torch.manual_seed(0)
    model, tokens = Sequence().eval(), torch.randn(30, 6, 3)
    mask = (torch.arange(6) < 4).expand(30, 6).float()
    noisy = tokens + 100 * (1 - mask[..., None]) * torch.randn(30, 6, 3)

    def values(x: Tensor) -> np.ndarray:
        inputs = {"tokens": x, "attention_mask": mask}
        players: Players = sp.find_players(model, inputs)
        calibration = Calibration(model, [(inputs, torch.zeros(30, 2))])
        return criterion_scores(model, players, calibration, criterion, worth="squared_error")["a"].value

    np.testing.assert_allclose(values(noisy), values(tokens), rtol=1e-6)
    if criterion == "activation_mean":
        with torch.no_grad():
            real = torch.relu(model.a(tokens))[mask.bool()]
        np.testing.assert_allclose(values(tokens), real.mean(0).numpy(), rtol=1e-5)


def test_what_cannot_be_refitted_is_named() -> None:
    model = nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Conv3d(3, 2, 2), nn.Flatten(), nn.Linear(16, 2)).eval()
    inputs = torch.randn(4, 1, 4, 4, 4)
    players = sp.find_players(model, inputs[:2], include="0")
    with pytest.raises(sp.InputError, match="2 behind '0' is a Conv3d; exclude the group"):
        criterion_scores(model, players, Calibration(model, [(inputs, None)]), "reconstruction")


def test_curves_with_refitted_consumers_lose_less_and_each_group_starts_from_the_dense_network() -> None:
    torch.manual_seed(0)
    layers = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
    model, data = nn.Sequential(*layers).eval(), [(torch.randn(300, 6), None)]
    before = [p.clone() for p in model.parameters()]
    players = sp.find_players(model, torch.randn(2, 6))
    scores = sp.score(model, players, data, "fidelity", method="reconstruction")
    raw, fitted = (sp.sensitivity(model, players, scores, data, points=4, refit=refit) for refit in (False, True))
    for name in ("0", "2"):
        half = np.array([6])
        assert fitted[name].worth[0] == pytest.approx(0, abs=1e-9)  # fidelity to itself
        assert fitted[name].loss(half)[0] < 0.8 * raw[name].loss(half)[0]
    alone = sp.find_players(model, torch.randn(2, 6), include="2")
    again = sp.sensitivity(model, alone, scores, data, points=4, refit=True)
    np.testing.assert_allclose(again["2"].worth, fitted["2"].worth, rtol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
