"""Networks that put the rows of a batch in another order, take them in chunks, or let examples meet.

Every worth is that of the network after surgery, on all examples and, where single examples have worths, on one.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.suffix import OneByOneRunner, SuffixRunner
from shaprune.network.game.network_game import NetworkGame

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::shaprune.errors.ShapruneWarning"),
]
N = 110


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x)))


class Sorted(Plain):
    """By an activation, and put back."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        order = h.sum(1).argsort()
        return self.o(h[order])[order.argsort()]


class Parted(Plain):
    """Rows with a positive entry first: a key that many examples share."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        first = x[:, 0] > 0
        order = torch.cat([torch.where(first)[0], torch.where(~first)[0]])
        out = h.new_zeros(len(h), 3)
        out[order] = self.o(h[order])
        return out


class ByLength(Plain):
    """Packed by how much of a row is no padding, which is all of it for most."""

    def forward(self, x: Tensor) -> Tensor:
        order = (x != 0).sum(1).argsort(stable=True)
        return self.o(torch.relu(self.a(x))[order])[order.argsort()]


class Chunks(Plain):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Chunks, self).forward(part) for part in x.split(self.size)])


class FirstHundred(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(FirstHundred, self).forward(part) for part in (x[:100], x[100:])])


class Padded(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, x.new_zeros(-len(x) % 8, 4)]))[: len(x)]


APART = {
    "sorted": Sorted,
    "parted": Parted,
    "by length": ByLength,
    "chunks of 8": lambda: Chunks(8),
    "chunks of 100": lambda: Chunks(100),
    "the first 100": FirstHundred,
    "padded": Padded,
}


def made(make: object, seed: int = 0) -> tuple[nn.Module, Tensor, sp.Players]:
    torch.manual_seed(seed)
    model: nn.Module = make().eval()  # type: ignore[operator]
    x = torch.randn(N, 4)
    x[::9, 2:] = 0
    return model, x, sp.find_players(model, x[:8])


def truth(model: nn.Module, players: sp.Players, x: Tensor, kept: np.ndarray) -> np.ndarray:
    small = [sp.prune(model, sp.Plan.from_coalition(players, row), x) for row in kept]
    with torch.no_grad():
        return np.array([net(x)[:, 0].numpy() for net in small])


def first(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0]


@pytest.mark.parametrize("name", APART)
def test_rows_that_cannot_be_masked_apart_are_run_one_coalition_at_a_time(name: str) -> None:
    for seed in range(4):
        model, x, players = made(APART[name], seed)
        game = NetworkGame(model, players, [(x, torch.zeros(N))], first)
        rng = np.random.default_rng(seed)
        kept = rng.random((12, 8)) < 0.6
        kept[:, :2] = True, False
        right = truth(model, players, x, kept)
        examples = rng.integers(0, N, 12)
        np.testing.assert_allclose(game(kept, examples), right[np.arange(12), examples], atol=1e-6)
        np.testing.assert_allclose(game(kept), right.mean(1), atol=1e-6)
        assert game.separable
        assert isinstance(game.runner, OneByOneRunner)


def test_chunks_larger_than_what_was_tried_are_seen_as_they_are_run() -> None:
    model, x, players = made(APART["chunks of 100"])
    plain = Plain().eval()
    plain.load_state_dict(model.state_dict())
    data, order = [(x, torch.arange(N) % 3)], np.arange(7)[None].repeat(30, 0)
    ours, theirs = (NetworkGame(net, players, data, "cross_entropy") for net in (model, plain))
    assert not isinstance(ours.runner, OneByOneRunner)
    np.testing.assert_allclose(ours.walk(order, np.arange(30)), theirs.walk(order, np.arange(30)), atol=1e-6)
    assert isinstance(ours.runner, OneByOneRunner)
    again = NetworkGame(model, players, data, "cross_entropy")
    kept = np.ones((N, 8), dtype=bool)
    np.testing.assert_allclose(
        again.derivatives(kept, np.arange(N)), theirs.derivatives(kept, np.arange(N)), rtol=1e-4, atol=1e-6
    )
    for criterion in ("taylor", "activation_mean"):
        found, right = (criterion_scores(net, players, Calibration(net, data), criterion) for net in (model, plain))
        np.testing.assert_allclose(found["a"].value, right["a"].value, rtol=1e-4)


class Standardised(Plain):
    """By statistics of the batch: one example alone has no standard deviation."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.o(torch.relu((h - h.mean(0)) / (h.std(0) + 1e-3)))


class BestHalf(Plain):
    """Only the rows of the upper half of a batch get something more."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.o(torch.relu(self.a(x)))
        best = x[:, 0].topk(max(1, len(x) // 2)).indices
        more = torch.zeros(len(x), 1).index_fill(0, best, 1.0)
        return out + more * x[:, :3]


class OnlyOne(Plain):
    """The largest row of a batch is changed."""

    def forward(self, x: Tensor) -> Tensor:
        top = (x[:, :1] == x[:, :1].max()).float()
        return self.o(torch.relu(self.a(x))) * (1 + top)


@pytest.mark.parametrize("make", [Standardised, BestHalf, OnlyOne])
def test_examples_that_meet_are_seen_whichever_they_are(make: type[nn.Module]) -> None:
    for seed in range(3):
        model, x, players = made(make, seed)
        game = NetworkGame(model, players, [(x, torch.zeros(N))], first)
        assert not game.separable
        kept = np.random.default_rng(seed).random((4, 8)) < 0.7
        kept[:, :2] = True, False
        np.testing.assert_allclose(game(kept), truth(model, players, x, kept).mean(1), atol=1e-5)


def test_a_plain_network_is_taken_apart() -> None:
    model, x, players = made(Plain)
    calibration = Calibration(model, [(x, torch.zeros(N))])
    assert not calibration.meet
    assert not calibration.order.uneven
    assert not calibration.order.moved
    assert isinstance(NetworkGame(model, players, calibration, first).runner, SuffixRunner)


class Graph(nn.Module):
    """Rows are the nodes of one graph: adjacency (N, N), as an input or in a buffer."""

    def __init__(self, adjacency: Tensor | None = None) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        near = self.adjacency if adjacency is None else adjacency
        return self.o(torch.relu(self.a(near @ x)))


@pytest.mark.parametrize("within", [False, True])
def test_the_nodes_of_one_graph_are_run_together(within: bool) -> None:
    torch.manual_seed(0)
    nodes, near = torch.randn(12, 4), torch.eye(12) + torch.rand(12, 12).round() / 12
    model = Graph(near if within else None).eval()
    x = nodes if within else (nodes, near)
    players = sp.find_players(model, x)
    game = NetworkGame(model, players, [(x, torch.zeros(12))], first)
    kept = np.arange(8) % 2 == 0
    small = sp.prune(model, sp.Plan.from_coalition(players, kept), x)
    with torch.no_grad():
        right = float((small(nodes) if within else small(nodes, near))[:, 0].mean())
    assert not game.separable
    assert game(kept[None])[0] == pytest.approx(right, abs=1e-6)
    scores = sp.score(model, players, [(x, None)], "fidelity", max_evaluations=500, progress=False)
    assert np.isfinite(scores["a"].value).all()
