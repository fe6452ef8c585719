"""Worths that are large beside their differences: what rounding leaves is told, and standard errors count it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))


def network(offset: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[2].bias += offset
    return model


def scored(model: nn.Module, worth: object, targets: Tensor | None = None) -> sp.Values:
    players = sp.find_players(model, X[:2])
    data = [(X, targets if targets is not None else torch.zeros(len(X)))]
    return sp.score(model, players, data, worth, method="exact", progress=False)["0"]  # type: ignore[arg-type]


def test_a_worth_with_a_large_offset_in_float32_is_told_and_its_errors_count_it() -> None:
    plain = scored(network(), lambda outputs, _: outputs[:, 0])
    with pytest.warns(
        sp.errors.ShapruneWarning, match=r"worths of about 1e\+06 are rounded to 0.06, which leaves 0 digits"
    ):
        offset = scored(network(), lambda outputs, _: 1e6 + outputs[:, 0])
    assert (plain.stderr == 0).all()
    assert (np.abs(offset.value - plain.value) < 2 * offset.stderr).all()
    assert offset.diagnostics["rounding"] == pytest.approx(0.06, rel=0.1)
    wide = scored(network(), lambda outputs, _: 1e6 + outputs[:, 0].double())
    np.testing.assert_allclose(wide.value, plain.value, atol=1e-6)
    assert (wide.stderr == 0).all()


def test_values_that_are_all_lost_are_told_too() -> None:
    with pytest.warns(sp.errors.ShapruneWarning, match=r"0 digits of the values \(the largest is 0\)"):
        values = scored(network(), lambda outputs, _: 1e9 + outputs[:, 0])
    assert (values.value == 0).all()
    assert (values.stderr > 1).all()
    with pytest.warns(sp.errors.ShapruneWarning, match="rounded to 1,"):
        sp.estimate(sp.Game.from_function(lambda kept: 1e16 + kept.sum(1), 5), "exact")


def test_outputs_with_a_large_offset_are_told_and_targets_far_away_lose_nothing() -> None:
    with pytest.warns(sp.errors.ShapruneWarning, match="of the values"):
        scored(network(1e6), "squared_error", network(1e6)(X).detach() + 1)
    near, far = (scored(network(), "squared_error", network()(X).detach() + by) for by in (1e3, 1e6))
    np.testing.assert_allclose(far.value / 1e3, near.value, rtol=2e-2)  # linear in the distance, but for squares
    assert (far.stderr == 0).all()


def test_squares_beyond_float32_are_worths_all_the_same() -> None:
    model = network()
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter *= 1e21
    values = scored(model, "fidelity")
    assert np.isfinite(values.value).all()
    assert np.abs(values.value).max() > 1e38


def test_nothing_is_told_where_worths_are_of_the_size_of_their_differences() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for worth in ("fidelity", "kl"):
            scored(network(), worth)
        scored(network(), "cross_entropy", torch.randint(2, (40,), generator=torch.Generator().manual_seed(0)))
        sp.estimate(sp.Game.from_function(lambda kept: np.zeros(len(kept)), 5), "exact")
