"""The closed-form refit: its ridge, its intercepts, sums behind untraceable code, padding, and too little data."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.layers.normal_equations import NormalEquations
from shaprune.recovery.steps import Refit

pytestmark = pytest.mark.usefixtures("one_thread")


def halved(model: nn.Module, inputs: object, include: str = "*") -> tuple[nn.Module, sp.Plan]:
    players = sp.find_players(model, inputs, include=include)
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[group.indices[::2]] = False
    plan = sp.Plan.from_coalition(players, kept)
    return sp.prune(model, plan, inputs), plan


def distance(small: nn.Module, model: nn.Module, inputs: dict[str, Tensor] | Tensor) -> float:
    with torch.no_grad():
        a, b = (m(**inputs) if isinstance(inputs, dict) else m(inputs) for m in (small, model))
    return float(F.mse_loss(a, b))


class Encoder(nn.Module):
    """Blocks of hidden neurons with a sum behind a dropout, which torch.fx cannot follow (a loop over a tensor)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(8, 16) for _ in range(4))
        self.outer = nn.ModuleList(nn.Linear(16, 8) for _ in range(4))
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.5)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for i in range(int(torch.tensor(4))):
            x = self.norm(self.drop(self.outer[i](torch.relu(self.inner[i](x)))) + x)
        return x if attention_mask is None else x * attention_mask[..., None]


def test_a_sum_that_torch_fx_cannot_see_is_fitted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, inputs = Encoder().eval(), torch.randn(400, 8)
    small, plan = halved(model, inputs[:2])
    whole = sp.recover(small, model, plan, [(inputs, None)], ("refit",))
    monkeypatch.setattr("shaprune.recovery.residual_partner._ADDITIONS", ())
    alone = sp.recover(small, model, plan, [(inputs, None)], ("refit",))
    assert distance(whole, model, inputs) < 0.9 * distance(alone, model, inputs) < distance(small, model, inputs)


def test_padding_is_not_fitted() -> None:
    torch.manual_seed(0)
    model, tokens = Encoder().eval(), torch.randn(60, 6, 8)
    mask = (torch.arange(6) < 3).float().expand(60, 6)
    noisy = tokens + 30 * (1 - mask[..., None]) * torch.randn(60, 6, 8)
    refits = []
    for x in (tokens, noisy):
        inputs = {"x": x, "attention_mask": mask}
        small, plan = halved(model, {key: t[:2] for key, t in inputs.items()})
        refits.append(sp.recover(small, model, plan, [(inputs, None)], ("refit",)))
    for a, b in zip(*(m.parameters() for m in refits), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_convolution_without_a_bias_gets_its_intercept_in_the_batch_norm_behind() -> None:
    torch.manual_seed(0)
    parts = nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten()
    model = nn.Sequential(*parts, nn.Linear(64, 3)).eval()
    with torch.no_grad():
        model[0].weight[::2] = 0  # these channels are constants, which only an intercept can give
        model[0].bias[::2] = 2.0
    inputs = torch.randn(50, 2, 6, 6)
    small, plan = halved(model, inputs[:2], "0")
    refitted = sp.recover(small, model, plan, [(inputs, None)], (Refit(ridge=1e-6),))
    assert distance(refitted, model, inputs) < 1e-6 * distance(small, model, inputs)
    assert [p.shape for p in refitted.parameters()] == [p.shape for p in small.parameters()]


def test_the_ridge_is_the_one_that_predicts_examples_held_out() -> None:
    """Many inputs, few noisy rows: the chosen ridge is better on fresh data than a tiny one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30)).eval()
    few, fresh = torch.randn(45, 40), torch.randn(2000, 40)
    small, plan = halved(model, few[:2])
    chosen = sp.recover(small, model, plan, [(few, None)], ("refit",))
    tiny = sp.recover(small, model, plan, [(few, None)], (Refit(ridge=1e-9),))
    assert distance(chosen, model, fresh) < 0.7 * distance(tiny, model, fresh)
    assert distance(chosen, model, fresh) < distance(small, model, fresh)


def test_far_too_few_examples_are_said_with_how_many_would_do() -> None:
    model = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 3)).eval()
    small, plan = halved(model, torch.randn(2, 4))
    with pytest.warns(
        sp.errors.ShapruneWarning, match=r"2 has 31 inputs to refit and the data give 6 rows.*6 times as many"
    ):
        sp.recover(small, model, plan, [(torch.randn(6, 4), None)], ("refit",))


def test_activations_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    small, plan = halved(model, torch.randn(2, 4))
    with pytest.raises(sp.InputError, match="what 2 reads or gives on the calibration data is NaN or infinite"):
        sp.recover(small, model, plan, [(torch.full((50, 4), 1e38), None)], ("refit",))


def test_the_loss_of_equations_is_the_squared_distance() -> None:
    torch.manual_seed(0)
    inputs, targets, weights = torch.randn(2, 50, 4), torch.randn(2, 50, 3), torch.randn(2, 4, 3)
    half = NormalEquations(), NormalEquations()
    half[0].add(inputs[:, :20], targets[:, :20])
    half[1].add(inputs[:, 20:], targets[:, 20:])
    expected = float((inputs @ weights - targets).double().square().sum())
    assert (half[0] + half[1]).loss(weights) == pytest.approx(expected, rel=1e-4)
    assert (half[0] + half[1]).rows == 50
