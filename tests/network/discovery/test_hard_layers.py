"""Channels pass what they meet: gates of one channel, long tables, multipliers, layers on another axis, statistics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from testkit.removing import check_removal, made, reasons
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.network.discovery.proof import _drawn
from shaprune.planning.limits import Limits
from shaprune.planning.removal_sequences import removal_sequences
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")


class Gated(nn.Module):
    """Features times a map of one channel, and beside one."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.where = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.map, self.norm, self.bias = nn.Conv2d(5, 1, 1), nn.BatchNorm2d(1), nn.Linear(3, 1)
        self.mix, self.out = nn.Conv2d(7, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.norm(self.map(self.where(x).relu())).sigmoid()
        features = self.features(x).relu() * gate + self.bias(x.mean((2, 3)))[:, :, None, None]
        return self.out(self.mix(torch.cat([features, gate], 1)).relu())


class Placed(nn.Module):
    """A table of positions with room before and behind the example."""

    def __init__(self, before: int, room: int, learned: bool) -> None:
        super().__init__()
        self.embed, self.before = nn.Linear(5, 8), before
        table = torch.randn(room, 8)
        if learned:
            self.positions = nn.Parameter(table)
        else:
            self.register_buffer("positions", table)
        self.wide, self.narrow, self.out = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions[self.before : self.before + x.shape[1]]
        return self.out((x + self.narrow(self.wide(x).relu())).mean(1))


class Normed(nn.Module):
    """Instance norms with statistics of their own, over signals and images."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv1d(2, 6, 3), nn.InstanceNorm1d(6, affine=affine, track_running_stats=True)
        self.two, self.norm2 = nn.Conv2d(6, 7, 1), nn.InstanceNorm2d(7, affine=not affine, track_running_stats=True)
        self.out = nn.Conv2d(7, 2, 1)
        for norm in (self.norm, self.norm2):
            norm.running_mean, norm.running_var = torch.randn(norm.num_features), torch.rand(norm.num_features) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.one(x)))[..., None].expand(-1, -1, -1, 3)
        return self.out(F.leaky_relu(self.norm2(self.two(x))))


class Grouped(nn.Module):
    """Convolutions in groups: several channels per group, one on either side."""

    def __init__(self, layer: Callable[[], nn.Module], n_in: int, n_out: int) -> None:
        super().__init__()
        self.one, self.norm, self.groups = nn.Conv2d(3, n_in, 1), nn.BatchNorm2d(n_in), layer()
        self.norm2, self.two, self.out = nn.BatchNorm2d(n_out), nn.Conv2d(n_out, 4, 1), nn.Linear(4, 2)
        for norm in (self.norm, self.norm2):
            nn.init.normal_(norm.bias)
            norm.running_mean = torch.randn(norm.num_features)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm2(self.groups(F.silu(self.norm(self.one(x))))))
        return self.out(self.two(x).relu().mean((2, 3)))


class OverTime(nn.Module):
    """(batch, channels, time) through layers over time, channel by channel; a scale per channel, a weight per step."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.scale, self.steps = (
            nn.Conv1d(3, 9, 1),
            nn.Parameter(torch.randn(9, 1)),
            nn.Parameter(torch.randn(6)),
        )
        self.norm, self.time, self.again = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 5)
        self.two, self.out = nn.Conv1d(9, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x).relu() * self.scale + self.steps)
        x = self.again(self.time(x).relu()).tanh()
        return self.out(self.two(x).relu().mean(2))


class Mixer(nn.Module):
    """Patches mixed over tokens, then over features, with shortcuts and no norm over features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.tokens = nn.Linear(4, 8), nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5))
        self.features, self.out = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return self.out((x + self.features(x)).mean(1))


class OverSteps(nn.Module):
    """Batch-norm over steps, RMS-norm over the width of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(5, 7), nn.BatchNorm1d(4), nn.Linear(7, 6)
        self.rms, self.three, self.out = nn.RMSNorm(4), nn.Conv1d(6, 5, 1), nn.Linear(5, 2)
        self.norm.running_mean = torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.norm(self.one(x).relu())).relu()
        return self.out(self.three(self.rms(x.transpose(1, 2))).relu().mean(2))


class Glu(nn.Module):
    """Gate and value from one layer: side by side, or by turns."""

    def __init__(self, hidden: int, turns: bool) -> None:
        super().__init__()
        self.both, self.down, self.turns = nn.Linear(4, 2 * hidden), nn.Linear(hidden, 3), turns

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(x)
        gate, value = (y[..., ::2], y[..., 1::2]) if self.turns else y.chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Halves(nn.Module):
    """A chunk whose parts go different ways: to one layer in another order, or one of them through others first."""

    def __init__(self, parts: int, swapped: bool) -> None:
        super().__init__()
        self.stem, self.parts, self.swapped = nn.Conv2d(3, 5 * parts, 3, padding=1), parts, swapped
        self.a, self.b = nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.out, self.fc = nn.Conv2d(5 * parts if swapped else 5 * parts + 5, 7, 1), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.stem(x).relu().chunk(self.parts, 1))
        y = y[::-1] if self.swapped else [*y, y[-1] + self.b(self.a(y[-1]).relu())]
        return self.fc(self.out(torch.cat(y, 1)).relu().mean((2, 3)))


class Adapted(nn.Linear):
    """A low-rank adapter, a scale per output and a buffer as large as the weight, all in the layer itself."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.low, self.high = nn.Parameter(torch.randn(3, n_in)), nn.Parameter(torch.randn(n_out, 3))
        self.scale = nn.Parameter(torch.rand(n_out) + 0.5)
        self.register_buffer("fixed", torch.rand(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        return (F.linear(x, self.weight * self.fixed, self.bias) + x @ self.low.T @ self.high.T) * self.scale


class Rectified(nn.Module):
    """One slope for all channels, in one module for two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act, self.out = nn.Linear(5, 8), nn.Linear(8, 9), nn.PReLU(), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.two(self.act(self.one(x)))))


IMAGE, SIGNAL, STEPS = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 6), torch.randn(2, 4, 5)
MULTIPLIER = {"one": 4, "groups": 8, "two": 4}
CASES = {
    "gate of one channel": (Gated, IMAGE, {"features": 6, "where": 5, "mix": 4}),
    "table with room": (lambda: Placed(0, 30, True), STEPS, {"embed": 8, "wide": 10, "narrow": 8}),
    "table with an offset": (lambda: Placed(2, 11, True), STEPS, {"embed": 8, "wide": 10, "narrow": 8}),
    "table that is a buffer": (lambda: Placed(3, 7, False), STEPS, {"embed": 8, "wide": 10, "narrow": 8}),
    "statistics, affine": (lambda: Normed(True), torch.randn(2, 2, 9), {"one": 6, "two": 7}),
    "statistics alone": (lambda: Normed(False), torch.randn(2, 2, 9), {"one": 6, "two": 7}),
    "transposed in groups": (
        lambda: Grouped(lambda: nn.ConvTranspose2d(6, 9, 3, groups=3), 6, 9),
        IMAGE,
        {"one": 6, "groups": 9, "two": 4},
    ),
    "multiplier": (lambda: Grouped(lambda: nn.Conv2d(4, 8, 3, groups=4), 4, 8), IMAGE, MULTIPLIER),
    "transposed multiplier": (lambda: Grouped(lambda: nn.ConvTranspose2d(4, 8, 3, groups=4), 4, 8), IMAGE, MULTIPLIER),
    "one output per group": (
        lambda: Grouped(lambda: nn.Conv2d(8, 4, 3, groups=4), 8, 4),
        IMAGE,
        {"one": 8, "groups": 4, "two": 4},
    ),
    "transposed, one output per group": (
        lambda: Grouped(lambda: nn.ConvTranspose2d(8, 4, 3, groups=4, bias=False), 8, 4),
        IMAGE,
        {"one": 8, "groups": 4, "two": 4},
    ),
    "layers over time": (OverTime, SIGNAL, {"one": 9, "time": 7, "two": 8}),
    "mixer": (Mixer, torch.randn(2, 5, 4), {"embed": 8, "tokens.0": 6, "features.0": 10, "features.2": 8}),
    "norms on another axis": (OverSteps, STEPS, {"one": 7, "two": 6, "three": 5}),
    "halves that go different ways": (lambda: Halves(2, False), IMAGE, {"stem": 10, "a": 6, "b": 5, "out": 7}),
    "thirds that go different ways": (lambda: Halves(3, True), IMAGE, {"stem": 15, "out": 7}),
    "one slope for all": (Rectified, STEPS, {"one": 8, "two": 9}),
    "own parameters": (
        lambda: nn.Sequential(Adapted(5, 9), nn.ReLU(), Adapted(9, 8), nn.ReLU(), nn.Linear(8, 3)),
        torch.randn(3, 5),
        {"0": 9, "2": 8},
    ),
    "gates side by side": (lambda: Glu(96, False), torch.randn(3, 4), {"both": 192}),
    "gates by turns": (lambda: Glu(80, True), torch.randn(3, 4), {"both": 160}),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make().eval()


@pytest.mark.parametrize("name", CASES)
def test_channels_pass_what_they_meet(name: str) -> None:
    make, inputs, wanted = CASES[name]
    players = sp.find_players(seeded(make), inputs)
    assert made(players) == wanted
    check_removal(lambda: seeded(make), players, inputs)
    kept = np.arange(players.n) % 3 > 0
    small = sp.prune(seeded(make), sp.Plan.from_coalition(players, kept), inputs)
    assert sum(p.numel() for p in small.parameters()) == players.cost(kept)[0]


@pytest.mark.parametrize("turns", [False, True])
def test_every_neuron_leaves_with_its_gate_alone(turns: bool) -> None:
    group = sp.find_players(seeded(lambda: Glu(96, turns)), torch.randn(3, 4)).group("both")
    assert [m.widths.tolist() for m in group.consumers] == [[1] * 96]


def test_as_much_leaves_of_every_part_of_a_chunk() -> None:
    halves = sp.find_players(seeded(lambda: Halves(2, False)), IMAGE).group("stem")
    assert halves.producers[0].channels == ((0, 5), (1, 6), (2, 7), (3, 8), (4, 9))
    thirds = sp.find_players(seeded(lambda: Halves(3, True)), IMAGE).group("stem")
    assert thirds.producers[0].channels[0] == (0, 5, 10)


def test_what_stays_beside_other_channels_is_skipped_with_the_reason() -> None:
    skipped = reasons(sp.find_players(seeded(Gated), IMAGE))
    assert skipped["map"] == skipped["bias"] == "it has one channel"
    assert skipped["out"] == "it feeds the network's output"


class Pieces(nn.Module):
    """Features split by the widths of the layers behind: each piece has a layer of its own."""

    def __init__(self, first: int = 4) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(5, 9), nn.Linear(first, 6), nn.Linear(9 - first, 6)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).relu().split([self.a.in_features, self.b.in_features], -1)
        return self.out(torch.cat([self.a(one), self.b(two)], -1).relu())


def test_players_that_can_never_leave_are_no_players() -> None:
    players = sp.find_players(seeded(lambda: Pieces(1)), torch.randn(3, 5))
    assert not players.needed()
    assert made(players)["stem"] == 8
    assert reasons(players)["stem"] == "without it too little would be left of layer 'a'"


def test_a_plan_leaves_something_for_every_reader() -> None:
    players = sp.find_players(seeded(Pieces), torch.randn(3, 5))
    kept = np.ones(players.n, dtype=bool)
    for steps in removal_sequences(players, np.arange(players.n, dtype=float), Limits()):
        for step in steps:
            kept[step] = False
    assert not kept.all()
    assert players.too_narrow(kept) == {}


def test_verification_removes_every_player_once() -> None:
    class Narrow(nn.Module):
        """Two channels each, so that random halves leave nothing and are put back."""

        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList(nn.Linear(3, 2) for _ in range(6))
            self.out = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([stem(x).relu() for stem in self.stems], -1))

    players: Players = sp.find_players(seeded(Narrow), torch.randn(2, 3))
    assert players.n == 12
    for seed in range(20):
        rows, at_once = _drawn(players, np.random.default_rng(seed))
        assert at_once is None  # a stem of which both channels leave has none
        assert not rows.all(1).any()
        assert not rows.all(0).any()
        assert not any(players.too_narrow(row) for row in rows)
