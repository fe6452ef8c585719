"""Window attention: inside, an example is several rows of the batch, and every one of them has the example's mask."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.criteria.activations import activation_means
from shaprune.errors import GameError
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.suffix import SuffixRunner
from shaprune.network.removal.masks import each_row
from shaprune.network.removal.surgery import remove_players

pytestmark = pytest.mark.usefixtures("one_thread")
N, WINDOWS = 3, 2


class Windowed(nn.Module):
    """Positions of a sequence in windows of 4, side by side in the batch; neurons a inside, neurons b outside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(5, 3)
        self.to_b, self.end = nn.Linear(6, 5), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 8, 4) -> (N, 2)."""
        windows = x.reshape(-1, 4, 4)  # (2 N, 4, 4)
        inside = self.to_b(torch.relu(self.a(windows)) * windows.mean((1, 2), keepdim=True))
        outside = torch.relu(inside).reshape(-1, WINDOWS * 4, inside.shape[-1]).mean(1)
        return self.end(torch.relu(self.b(outside)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Windowed().eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(N, 8, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("group", ["a", "to_b", "b", None])
def test_a_worth_is_that_of_the_network_after_surgery(network: nn.Module, inputs: Tensor, group: str | None) -> None:
    players = sp.find_players(network, inputs)
    assert {g.name: len(g) for g in players.groups} == {"a": 6, "to_b": 5, "b": 3}
    targets = torch.randn(N, 2, generator=torch.Generator().manual_seed(2))
    indices = np.arange(players.n) if group is None else players.group(group).indices
    rng = np.random.default_rng(0)
    coalitions = rng.random((N, len(indices))) < 0.7
    coalitions[:, -1] = coalitions[:, 0] = coalitions[:, len(indices) // 2] = True

    def game() -> sp.NetworkGame:
        return sp.NetworkGame(network, players, [(inputs, targets)], worth="squared_error", group=group)

    taken_apart = isinstance(game().runner, SuffixRunner)
    assert taken_apart == (group not in ("a", None))  # of the others the mask stands outside
    worths = game()(coalitions, np.arange(N))
    for example, kept in enumerate(coalitions):
        everyone = np.ones(players.n, dtype=bool)
        everyone[indices] = kept
        small = remove_players(copy.deepcopy(network), players, everyone)
        with torch.no_grad():
            error = (small(inputs[example : example + 1]) - targets[example]).square()
        assert worths[example] == pytest.approx(-float(error.mean()), rel=1e-5)


def test_activations_belong_to_their_example(network: nn.Module, inputs: Tensor) -> None:
    players = sp.find_players(network, inputs)
    together = activation_means(Calibration(network, [(inputs, None)]), players)
    alone = [activation_means(Calibration(network, [(inputs[i : i + 1], None)]), players) for i in range(N)]
    assert together.shape == (N, players.n)
    assert together == pytest.approx(np.concatenate(alone), rel=1e-5, abs=1e-6)
    with torch.no_grad():
        windows = inputs.reshape(-1, 4, 4)
        read = (torch.relu(network.a(windows)) * windows.mean((1, 2), keepdim=True)).abs()
    by_hand = read.reshape(N, WINDOWS * 4, 6).mean(1)
    assert together[:, players.group("a").indices] == pytest.approx(by_hand.numpy(), rel=1e-5)


def test_rows_of_an_example_stand_side_by_side() -> None:
    kept = torch.tensor([[1, 0], [0, 1]])
    assert each_row(kept, 4, "layer").tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert each_row(kept[:1], 3, "layer").tolist() == [[1, 0]] * 3
    with pytest.raises(GameError, match="at layer the batch dimension is 3, which is no multiple of 2 rows"):
        each_row(kept, 3, "layer")
