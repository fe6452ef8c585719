"""The refit of layers that are called more than once, on one row, in complex numbers, or not at all: never worse."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.network.batches import tensors

pytestmark = pytest.mark.usefixtures("one_thread")


class Branches(nn.Module):
    """Two branches that one layer ends; how it is called is up to ``end``."""

    def __init__(self, end: Callable[[nn.Module, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self.o, torch.tanh(self.a(x)), torch.tanh(self.b(x)) + 2)


def behind_a_loop(layer: nn.Module, a: Tensor, b: Tensor) -> object:
    for _ in range(int(torch.tensor(1))):  # which torch.fx cannot follow
        a = a * 1
    return layer(a), layer(b)


ENDS: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "two calls": lambda layer, a, b: (layer(a), layer(b)),
    "two calls behind a loop": behind_a_loop,
    "chunks": lambda layer, a, b: torch.cat([layer(part) for part in torch.cat([a, b]).chunk(5)]),
    "summed": lambda layer, a, b: layer(a) + layer(b),
    "rows": lambda layer, a, b: torch.stack([layer(row) for row in [*a, *b]]),
    "a keyword": lambda layer, a, b: (layer(input=a), layer(input=b)),
}


def pruned(model: nn.Module, inputs: object) -> tuple[nn.Module, sp.Plan]:
    players = sp.find_players(model, inputs)
    kept = np.ones(players.n, dtype=bool)
    kept[[0, 2, 5]] = False
    plan = sp.Plan.from_coalition(players, kept)
    return sp.prune(model, plan, inputs), plan


def error(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        pairs = zip(tensors(model(x)), tensors(dense(x)), strict=True)
        return sum(float((a - b).abs().square().mean()) for a, b in pairs)


@pytest.mark.parametrize("end", ENDS)
def test_every_call_of_a_layer_is_fitted(end: str) -> None:
    torch.manual_seed(0)
    model, x = Branches(ENDS[end]).eval(), torch.randn(100, 5)
    small, plan = pruned(model, x)
    after = sp.recover(small, model, plan, [(x, None)], ("refit",))
    with torch.no_grad():
        reads = torch.cat([torch.tanh(small.a(x)), torch.tanh(small.b(x)) + 2])
        wants = torch.cat([model.o(torch.tanh(model.a(x))), model.o(torch.tanh(model.b(x)) + 2)])
        weights = torch.linalg.lstsq(torch.cat([reads, torch.ones(200, 1)], 1), wants).solution
        best = float((reads @ weights[:-1] + weights[-1] - wants).square().mean())
        ours, before = (float((m.o(reads) - wants).square().mean()) for m in (after, small))
    assert best * (1 - 1e-4) <= ours < 1.05 * best < 0.5 * before


def test_a_layer_that_feeds_itself_is_never_worse() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer, self.head = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x + self.outer(torch.relu(self.inner(x)))
            return self.head(x)

    for seed in range(3):
        torch.manual_seed(seed)
        model, x = Recurrent().eval(), torch.randn(100, 6)
        small, plan = pruned(model, x)
        assert error(sp.recover(small, model, plan, [(x, None)], ("refit",)), model, x) < error(small, model, x)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_complex_layers_are_fitted_as_complex(kind: str) -> None:
    torch.manual_seed(0)
    linear = kind == "linear"
    sizes = ((5, 8), (8, 2)) if linear else ((2, 8, 3), (8, 2, 3))
    first, last = ((nn.Linear if linear else nn.Conv1d)(*size, dtype=torch.cfloat) for size in sizes)
    model = nn.Sequential(first, nn.Tanh(), last).eval()
    x = torch.randn(200, 5, dtype=torch.cfloat) if linear else torch.randn(60, 2, 9, dtype=torch.cfloat)
    small, plan = pruned(model, x)
    after = sp.recover(small, model, plan, [(x, None)], ("refit",))
    assert error(after, model, x) < 0.9 * error(small, model, x)
    assert after[2].weight.imag.abs().max() > 0.01


def test_the_reconstruction_of_complex_layers_is_a_loss() -> None:
    torch.manual_seed(0)
    first, last = (nn.Linear(*size, dtype=torch.cfloat) for size in ((5, 8), (8, 2)))
    model = nn.Sequential(first, nn.Tanh(), last).eval()
    with torch.no_grad():
        model[2].weight[:, 3] = 0
    x = torch.randn(50, 5, dtype=torch.cfloat)
    players = sp.find_players(model, x)
    scores = sp.score(model, players, [(x, None)], "fidelity", method="reconstruction", progress=False)
    assert int(np.argmin(scores["0"].value)) == 3
    assert scores["0"].value.min() < 0.01 * np.median(scores["0"].value)


def test_where_every_ridge_is_worse_on_examples_held_out_a_layer_keeps_its_weights() -> None:
    """The channel that leaves equals the one that stays, except on every fifth example, where it is minus that one."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.fill_(1)
    x = torch.linspace(-1, 1, 40)[:, None].repeat(1, 2)
    x[4::5, 1] *= -1
    players = sp.find_players(model, x)
    plan = sp.Plan.from_coalition(players, np.array([True, False]))
    small = sp.prune(model, plan, x)
    kept = sp.recover(small, model, plan, [(x, None)], ("refit",))
    assert torch.equal(kept[1].weight, small[1].weight)
    x[4::5, 1] *= -1
    fitted = sp.recover(small, model, plan, [(x, None)], ("refit",))
    assert fitted[1].weight.item() == pytest.approx(2, rel=1e-3)


def test_a_layer_that_the_data_do_not_run_keeps_its_weights_and_is_named() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o, self.p = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
            h = torch.relu(self.a(x))
            return self.o(h) if more is None else torch.cat([self.o(h), self.p(h)], 1)

    torch.manual_seed(0)
    model, x = Optional().eval(), torch.randn(30, 4)
    small, plan = pruned(model, {"x": x, "more": torch.ones(30)})
    with pytest.warns(
        sp.errors.ShapruneWarning, match="p does not run on the calibration data, so it keeps its weights"
    ):
        after = sp.recover(small, model, plan, [(x, None)], ("refit",))
    assert torch.equal(after.p.weight, small.p.weight)
    assert not torch.equal(after.o.weight, small.o.weight)


class Routed(nn.Module):
    """Rows go in an order that the network chooses, or to the expert that it chooses, and come back."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b, self.router = how, nn.Linear(5, 16), nn.Linear(16, 6), nn.Linear(6, 1)
        self.expert = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))
        self.head = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.tanh(self.a(x)))
        score = self.router(x)[:, 0]
        order, first = score.argsort(), score > score.median()
        if self.how == "sorted":
            y = self.expert(x[order])[order.argsort()]
        elif self.how == "gathered":
            places = order[:, None].expand_as(x)
            y = torch.zeros_like(x).scatter(0, places, self.expert(x.gather(0, places)))
        else:
            rows = first.nonzero()[:, 0]
            y = torch.zeros_like(x).index_add(0, rows, self.expert(x[rows]))
        return self.head(x + y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["sorted", "gathered", "experts"])
def test_rows_that_the_pruned_network_picks_otherwise_are_not_fitted(how: str) -> None:
    torch.manual_seed(0)
    model, x = Routed(how).eval(), torch.randn(60, 5)
    players = sp.find_players(model, x)
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[group.indices[len(group) // 3 :]] = False
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.prune(model, plan, x)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        after = sp.recover(small, model, plan, [(x, None)], ("refit",))
    named = {str(w.message).partition(" reads other rows")[0] for w in warned}
    assert {"expert.2"} <= named <= {"expert.0", "expert.2"}
    old, new = small.state_dict(), after.state_dict()
    assert torch.equal(old["expert.2.weight"], new["expert.2.weight"])
    assert not torch.equal(old["b.weight"], new["b.weight"])
    assert not torch.equal(old["head.2.weight"], new["head.2.weight"])


def test_rows_that_both_networks_pick_alike_are_fitted() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 16), nn.Linear(16, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x[x[:, 0].argsort()])))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Chosen().eval(), torch.randn(60, 5)
    small, plan = pruned(model, x)
    after = sp.recover(small, model, plan, [(x, None)], ("refit",))
    assert error(after, model, x) < 0.9 * error(small, model, x)
