"""Channels that code splits: parts that go different ways leave with the numbers that the code keeps of them."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(n_in: int, n_out: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    norm = nn.BatchNorm2d(n_out)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, groups=groups), norm, nn.SiLU())


class Split(nn.Module):
    """Eight channels go through ``a``, four through ``b``; subclasses cut them in their ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest, self.sizes, self.cut_at = 8, 4, (8, 4), [0, 8, 12]
        self.stem, self.a, self.b, self.out = conv(3, 12), conv(8, 8, 3), conv(4, 4, 3), nn.Conv2d(12, 3, 1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split((self.first, self.rest), 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.parts(self.stem(x))
        return self.out(torch.cat((self.a(a), self.b(b)), 1)).mean((2, 3))  # type: ignore[no-any-return]


class Listed(Split):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(list(self.sizes), 1)


class Sliced(Split):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x[:, : self.first], x[:, self.first :]


class Equal(nn.Module):
    """A C2f block: the halves of ``first`` go different ways, and one number is the size of both."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.first, self.inner, self.second = conv(3, 12), nn.ModuleList(conv(6, 6, 3) for _ in range(2)), conv(24, 5)
        self.out = nn.Linear(5, 3)

    def halves(self, x: Tensor) -> list[Tensor]:
        return list(x.split((self.width, self.width), 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.halves(self.first(x))
        for layer in self.inner:
            y.append(y[-1] + layer(y[-1]))
        return self.out(self.second(torch.cat(y, 1)).mean((2, 3)))  # type: ignore[no-any-return]


class Chunked(Equal):
    def halves(self, x: Tensor) -> list[Tensor]:
        return list(x.chunk(2, 1))


class CrossStage(Equal):
    """As in timm: half of a kept width; one half passes to the concatenation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.expanded = 12

    def halves(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.expanded // 2, 1))


class Scales(nn.Module):
    """Res2Net: each part is added to what the one before gives."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.first, self.convs, self.out = conv(3, 12), nn.ModuleList(conv(4, 4, 3) for _ in range(2)), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x).split(self.width, 1)
        a = self.convs[0](parts[0])
        return self.out(torch.cat((a, self.convs[1](a + parts[1]), parts[2]), 1).mean((2, 3)))  # type: ignore[no-any-return]


class Kernels(nn.Module):
    """MixNet: depthwise kernels of several sizes, each over its part."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = [6, 3, 3]
        self.stem = conv(3, 12)
        self.convs = nn.ModuleList(conv(n, n, k, groups=n) for n, k in zip(self.splits, (3, 5, 1), strict=True))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.stem(x).split(self.splits, 1)
        y = torch.cat([layer(part) for layer, part in zip(self.convs, parts, strict=True)], 1)
        return self.out(y.mean((2, 3)))  # type: ignore[no-any-return]


class Untouched(nn.Module):
    """FasterNet: blocks that convolve a quarter of a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.touched, self.untouched, self.conv, self.mlp = 3, 9, nn.Conv2d(3, 3, 3, padding=1), conv(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([self.touched, self.untouched], 1)
        return x + self.mlp(torch.cat((self.conv(a), b), 1))  # type: ignore[no-any-return]


class Unread(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read, self.out = conv(3, 12), 8, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.stem(x)[:, : self.read].mean((2, 3)))  # type: ignore[no-any-return]


class Padded(nn.Module):
    """An option-A shortcut: zeros stand in front of the stream and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.zeros, self.out = conv(3, 6), conv(6, 12, 3), 3, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv(x) + F.pad(x, (0, 0, 0, 0, self.zeros, self.zeros))
        return self.out(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class PaddedByFunction(nn.Module):
    """The same with a number that a function has taken from around it, as in many a ResNet for CIFAR."""

    def __init__(self) -> None:
        super().__init__()
        planes = 12
        self.stem, self.conv, self.out = conv(3, 6), conv(6, planes, 3), nn.Linear(planes, 3)
        self.shortcut = Called(lambda x: F.pad(x, (0, 0, 0, 0, planes // 4, planes // 4)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(F.relu(self.conv(x) + self.shortcut(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Fused(nn.Module):
    """One projection for a gate, what it gates, and features beside them: all of one kept width."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.fused, self.out = 6, nn.Linear(3, 18), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value, beside = self.fused(x.mean((2, 3))).split(self.width, -1)
        return self.out(torch.cat((F.silu(gate) * value, beside.relu()), -1))  # type: ignore[no-any-return]


class Shuffled(nn.Module):
    """ShuffleNet: half passes, half is convolved, both are interleaved; the first block has no half that passes."""

    def __init__(self, width: int, n_in: int) -> None:
        super().__init__()
        half = width // 2
        self.passes = nn.Identity() if n_in == width else conv(n_in, half)
        self.branch, self.whole = conv(half if n_in == width else n_in, half), n_in != width

    def forward(self, x: Tensor) -> Tensor:
        a, b = (x, x) if self.whole else x.chunk(2, 1)
        y = torch.cat((self.passes(a), self.branch(b)), 1)
        return y.unflatten(1, (2, y.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


def shuffle(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        *(Shuffled(width, n) for n in (3, width, width)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
    )


def staged(block: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(3, 12), block(), block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))


# name -> (network, layer that is split, channels of it that its players own)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, list[int]]] = {
    "sizes of two names": (Split, "stem.0", [1] * 12),
    "sizes in a tuple": (Listed, "stem.0", [1] * 12),
    "slices": (Sliced, "stem.0", [1] * 12),
    "halves of one size": (Equal, "first.0", [2] * 6),
    "chunks": (Chunked, "first.0", [2] * 6),
    "half of a width": (CrossStage, "first.0", [2] * 6),
    "three parts, added": (Scales, "first.0", [3] * 4),
    "sizes in a list": (Kernels, "stem.0", [1] * 12),
    "a stream of two blocks": (staged(Untouched), "0.0", [1] * 12),
    "an end that is not read": (Unread, "stem.0", [1] * 12),
    "padded with zeros": (Padded, "conv.0", [1] * 6 + [2] * 3),
    "padded by a function": (PaddedByFunction, "conv.0", [1] * 6 + [2] * 3),
    "three parts, gated": (Fused, "fused", [3] * 6),
    "shuffled": (shuffle(16), "0.passes.0", [4] * 2),
    "shuffled, of odd halves": (shuffle(20), "0.passes.0", [4] * 2),
}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def owned(players: Players, layer: str) -> list[int]:
    members = [m for group in players.groups for m in group.members if (m.module, m.role) == (layer, "out")]
    return sorted(n for m in members for n in m.widths.tolist() if n)


def by_mask(model: nn.Module, players: Players, kept: np.ndarray) -> Tensor:  # type: ignore[type-arg]
    dense = copy.deepcopy(model)
    sites = mask_sites(players, players.groups, torch.device("cpu"))
    with torch.no_grad(), masked(dense, sites, torch.from_numpy(kept[None]).float()):
        return dense(X)  # type: ignore[no-any-return]


def coalitions(players: Players) -> list[np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    rows = [rng.random(players.n) < share for share in (0.8, 0.6, 0.5, 0.5, 0.4, 0.3)]
    return [row for row in rows if not (row.all() or players.too_narrow(row))]


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_of_a_split_leave(name: str, tmp_path: Path) -> None:
    build, layer, expected = NETWORKS[name]
    model = seeded(build)
    with torch.no_grad():
        before = model(X)
    players = sp.find_players(model, X)
    assert owned(players, layer) == expected
    again = Players.from_json(players.to_json())
    rows = coalitions(players)
    assert rows
    for kept in rows:
        plan = sp.Plan.from_coalition(again, kept)
        small = sp.prune(model, plan, X)
        assert (small(X) - by_mask(model, players, kept)).abs().max() < 1e-5
        assert sum(p.numel() for p in small.parameters()) == players.cost(kept)[0]
        sp.save(small, plan, tmp_path / "small", overwrite=True)
        assert torch.equal(sp.load(tmp_path / "small", build=lambda: seeded(build))(X), small(X))
    assert torch.equal(model(X), before)  # its numbers are as they were


def picked(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("name", ["halves of one size", "half of a width", "padded with zeros", "shuffled"])
def test_games_ask_what_is_left_after_surgery(name: str) -> None:
    model = seeded(NETWORKS[name][0])
    players = sp.find_players(model, X)
    data = [(X, torch.tensor([k, (k + 1) % 3])) for k in range(3)]
    game = NetworkGame(model, players, data, picked)
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(players.n), (3, 1)), axis=1)[:, : players.n // 3]
    walks = game.walk(orders, np.arange(3))
    for order, example, worths in zip(orders, range(3), walks, strict=True):
        kept = np.ones(players.n, dtype=bool)
        for player, worth in zip(order, worths[1:], strict=True):
            kept[player] = False
            if players.too_narrow(kept):
                break
            small = remove_players(copy.deepcopy(model), players, kept)
            x, target = data[example // 2][0][example % 2], data[example // 2][1][example % 2]
            with torch.no_grad():
                assert abs(float(small(x[None])[0, target]) - worth) < 1e-5


@pytest.mark.parametrize("name", ["halves of one size", "padded with zeros", "shuffled"])
def test_pruned_by_a_criterion_and_refitted(name: str) -> None:
    model = seeded(NETWORKS[name][0])
    x = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = [(x, torch.arange(48) % 3)]
    result = sp.compress(model, data, sp.Budget(params=0.7), example_inputs=X, method="second_order")
    assert result.model(X).shape == (2, 3)
    assert sum(p.numel() for p in result.model.parameters()) <= 0.7 * sum(p.numel() for p in model.parameters())


def test_sizes_in_the_code_are_refused_by_their_place() -> None:
    class Literal(Split):
        def parts(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.split([8, 4], 1)

    players = sp.find_players(seeded(Literal), X)
    reasons = [s.reason for s in players.skipped if s.name == "stem.0"]
    assert len(reasons) == 2
    assert all("removal breaks the network at" in why and '"return x.split([8, 4], 1)"' in why for why in reasons)
    assert not owned(players, "stem.0")


def test_a_kind_that_cannot_go_at_once_keeps_one() -> None:
    class Passed(Split):
        """The second part may shrink, and must not be nothing, for there are two names for the parts."""

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.stem(x).split(8, 1)
            return self.out(torch.cat((self.a(a), b), 1)).mean((2, 3))  # type: ignore[no-any-return]

    players = sp.find_players(seeded(Passed), X)
    assert owned(players, "stem.0") == [1] * 3
    stays = [(s.name, s.channels) for s in players.skipped if s.reason.startswith("one must stay: ")]
    assert stays == [("stem.0", 1)]
