"""Layers whose output no layer was found to read, and code that mixes channels: the reason is the true one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shaprune as sp

pytestmark = pytest.mark.usefixtures("one_thread")
CHOICE = "the network chooses by what it gives"


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.relu(self.b(torch.relu(self.a(x)))))

    def end(self, y: Tensor) -> Tensor:
        return self.o(y)


class RowsOfTruths(Three):
    def end(self, y: Tensor) -> Tensor:
        sums = y.sum(1)
        which = sums > sums.median()
        out = y.new_zeros(len(y), 3)
        out[which] = self.o(y[which])
        return out


class Classes(Three):
    def end(self, y: Tensor) -> Tensor:
        return self.o(y).argmax(1)


class ComplexNumbers(Three):
    def end(self, y: Tensor) -> Tensor:
        return torch.complex(self.o(y), self.o(-y))


class Dead(Three):
    def end(self, y: Tensor) -> Tensor:
        self.o(y)
        return y


class Adapted(nn.Linear):
    """A layer with layers of its own."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.down, self.up = nn.Linear(n_in, 2, bias=False), nn.Linear(2, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class WithAdapter(Three):
    def __init__(self) -> None:
        super().__init__()
        self.b = Adapted(8, 6)


class Direct(Three):
    """A layer's forward is called, and not the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.relu(self.b.forward(torch.relu(self.a(x)))))


class Listed(Three):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = {"x": [nn.Linear(8, 6)][0]}

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.o(torch.tanh(self.hidden["x"](h) + self.b(h)))


class Spatial(nn.Module):
    """A gate over positions, as in gMLP, in front of a mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.space, self.b, self.o = nn.Linear(4, 6), nn.Conv1d(5, 5, 1), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.o(self.b(h * self.space(h)).mean(1))


REASONS: dict[type[nn.Module], tuple[str, str]] = {
    RowsOfTruths: ("b", CHOICE),
    Classes: ("o", CHOICE),
    ComplexNumbers: ("o", "it feeds the network's output"),
    Dead: ("o", "its output reaches no other layer"),
    WithAdapter: ("b.down", r"it stands inside b (Adapted), which is taken as one layer"),
    Direct: ("a", "b, whose weight is used without calling it, mixes them; call it as a module"),
    Listed: ("a", "hidden['x'] (Linear), which is in no nn.ModuleList and so no part of the model, mixes them"),
    Spatial: ("space", "its channels stand on another axis than those of b, which reads them"),
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_no_layer_reads_is_said_truly(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4) if kind is Spatial else torch.randn(9, 4)
    name, reason = REASONS[kind]
    try:
        said = {s.name: s.reason for s in sp.find_players(kind().eval(), x).skipped}
    except sp.InputError as error:
        said = dict(line.strip().split(": ", 1) for line in str(error).splitlines()[1:])
    assert reason in said[name]


def test_more_examples_are_followed_where_an_expert_is_chosen_by_few() -> None:
    """All experts run on every example, and two of them are gathered: on the first two examples not all of them are."""

    class Gathered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.g = nn.ModuleList(nn.Linear(5, 6) for _ in range(4)), nn.Linear(5, 4)
            self.o = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            chosen = self.g(x).topk(2).indices
            each = torch.stack([e(x) for e in self.e], 1)
            return self.o(torch.relu((each.gather(1, chosen[..., None].expand(-1, -1, each.shape[-1]))).sum(1)))

    torch.manual_seed(0)
    model, x = Gathered().eval(), torch.randn(24, 5)
    players = sp.find_players(model, x)
    made = {m.module for m in players.groups[0].members if m.role == "out"}
    assert made == {"e.0", "e.1", "e.2", "e.3"}
    small = sp.prune(model, sp.Plan.from_coalition(players, np.arange(6) > 1), x)
    assert small.e[3].out_features == 4


class Answer:
    """A plain object, as some libraries return."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.note = logits, "no tensor"


class Answering(Three):
    def forward(self, x: Tensor) -> Answer:  # type: ignore[override]
        return Answer(super().forward(x))


def test_an_object_with_logits_is_an_output() -> None:
    torch.manual_seed(0)
    model, x, y = Answering().eval(), torch.randn(20, 4), torch.arange(20) % 3
    players = sp.find_players(model, x)
    assert [len(g) for g in players.groups] == [8, 6]
    plan = sp.Plan.from_coalition(players, np.arange(14) % 7 > 0)
    small = sp.prune(model, plan, x)
    game = sp.NetworkGame(model, players, [(x, y)], "cross_entropy")
    after = sp.recover(small, model, plan, [(x, y)], ("refit",))
    with torch.no_grad():
        loss = float(F.cross_entropy(small(x).logits, y))
    assert game(plan.kept[None].copy())[0] == pytest.approx(-loss, rel=1e-5)
    assert F.mse_loss(after(x).logits, model(x).logits) < F.mse_loss(small(x).logits, model(x).logits)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_depthwise_transposed_convolutions_lose_channels(dims: int) -> None:
    torch.manual_seed(0)
    conv, up = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
    model = nn.Sequential(conv(2, 6, 1), nn.ReLU(), up(6, 6, 2, 2, groups=6), nn.ReLU(), conv(6, 3, 1)).eval()
    x = torch.randn(2, 2, *[4] * dims)
    players = sp.find_players(model, x)
    assert [len(g) for g in players.groups] == [6]
    small = sp.prune(model, sp.Plan.from_coalition(players, np.arange(6) > 1), x)
    assert (small[2].in_channels, small[2].out_channels, small[2].groups) == (4, 4, 4)
    assert small[2].weight.shape == (4, 1, *[2] * dims)
