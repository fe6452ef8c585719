"""Tracing leaves nothing on the user's model, whether it succeeds or not; what it knows stands in the trace."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.forward.fx_tracing import graph_of
from shaprune.network.forward.suffix import SuffixRunner
from shaprune.network.game.network_game import NetworkGame

pytestmark = pytest.mark.usefixtures("one_thread")


class Shifted(nn.Module):
    """Its code makes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x + torch.arange(4.0))))


class Untraceable(Shifted):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if float(x.sum()) < 1e9 else 0)


class Keeping(Shifted):
    """It keeps what it has computed in attributes, its own and of a layer."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x + 1
        self.a.seen = self.last  # type: ignore[assignment]
        return super().forward(x)


def attributes(model: nn.Module) -> dict[str, dict[str, object]]:
    return {name: dict(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("make", [Shifted, Untraceable, Keeping])
def test_tracing_leaves_no_attributes(make: type[nn.Module]) -> None:
    model = make().eval()
    before = attributes(model)
    for opened in (None, True):
        try:
            graph_of(model, opened)
        except TypeError:
            assert make is Untraceable
    after = attributes(model)
    assert {name: list(held) for name, held in after.items()} == {name: list(held) for name, held in before.items()}
    assert all(after[name][key] is value for name, held in before.items() for key, value in held.items())


def test_a_tensor_that_code_makes_is_read_from_the_trace() -> None:
    torch.manual_seed(0)
    model, x = Shifted().eval(), torch.randn(6, 4)
    players = sp.find_players(model, x)
    game = NetworkGame(model, players, [(x, torch.zeros(6))], lambda outputs, targets: outputs[:, 0])
    assert isinstance(game.runner, SuffixRunner)
    kept = np.arange(8) < 5
    small = sp.prune(model, sp.Plan.from_coalition(players, kept), x)
    with torch.no_grad():
        assert game(kept[None])[0] == pytest.approx(float(small(x)[:, 0].mean()), abs=1e-6)


def test_a_network_whose_code_makes_tensors_is_loaded_after_it_was_scored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Shifted().eval(), torch.randn(6, 4)
    players = sp.find_players(model, x)
    sp.score(model, players, [(x, torch.arange(6) % 3)], progress=False, max_evaluations=300)
    plan = sp.Plan.from_coalition(players, np.arange(8) < 5)
    sp.save(sp.prune(model, plan, x), plan, tmp_path / "small")
    assert not [name for name in vars(model) if "constant" in name]
    assert sp.load(tmp_path / "small", Shifted)(x).shape == (6, 3)
