"""Layers that only some inputs take: channels are followed through all of them, and those never taken are said."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.errors import ShapruneWarning
from shaprune.network.discovery.few_examples import few_examples

pytestmark = pytest.mark.usefixtures("one_thread")


class Experts(nn.Module):
    """Each example takes the expert that its second input names."""

    def __init__(self, n: int = 3) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 8), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 6) for _ in range(n))

    def forward(self, x: Tensor, way: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        y = h.new_empty(len(h), 6)
        for i, expert in enumerate(self.experts):
            if (way == i).any():
                y[way == i] = expert(h[way == i])
        return self.o(torch.relu(y))


class Heads(nn.Module):
    """A second head on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o, self.p = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        h = torch.relu(self.a(x))
        y = self.o(torch.relu(self.b(h)))
        return y if more is None else torch.cat([y, self.p(h)], 1)


def without_first(players: sp.Players) -> sp.Plan:
    return sp.Plan.from_coalition(players, np.arange(players.n) > 0)


@pytest.mark.parametrize("ways", [[0, 1, 2] * 3, [0] * 7 + [1, 2], [2, 2, 1, 1, 0]])
def test_all_experts_lose_a_channel_that_all_of_them_read(ways: list[int]) -> None:
    torch.manual_seed(0)
    model, inputs = Experts().eval(), (torch.randn(len(ways), 4), torch.tensor(ways))
    players = sp.find_players(model, inputs)
    readers = {m.module for m in players.groups[0].consumers}
    assert readers == {"experts.0", "experts.1", "experts.2"}
    small = sp.prune(model, without_first(players), inputs)
    assert small(torch.randn(6, 4), torch.tensor([2, 0, 1, 1, 0, 2])).shape == (6, 3)


def test_few_examples_are_as_few_as_run_all_layers() -> None:
    model = Experts().eval()
    for ways, few in ([0, 1, 2], 3), ([0, 1, 2, 0, 0, 0, 0, 0], 4), ([0] * 16, 2):
        x, _ = few_examples(model, (torch.randn(len(ways), 4), torch.tensor(ways)))
        assert len(x) == few


def test_a_group_that_an_expert_reads_which_no_example_takes_is_refused() -> None:
    torch.manual_seed(0)
    model = Experts().eval()
    why = "experts.2 does not run on the example inputs, and experts.0 beside it reads these channels; give example"
    with pytest.raises(sp.InputError, match=f"a: {why}"):
        sp.find_players(model, (torch.randn(6, 4), torch.tensor([0, 1] * 3)))


def test_norms_of_domains_are_experts_too() -> None:
    class Domains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.o = nn.Conv1d(2, 6, 3), nn.Conv1d(6, 2, 3)
            self.norms = nn.ModuleDict({"photo": nn.BatchNorm1d(6), "sketch": nn.BatchNorm1d(6)})

        def forward(self, x: Tensor, domain: str = "photo") -> Tensor:
            return self.o(self.norms[domain](self.c(x)))

    with pytest.raises(sp.InputError, match=r"c: norms.sketch does not run on the example inputs, and norms.photo"):
        sp.find_players(Domains().eval(), torch.randn(2, 2, 9))


def test_a_layer_that_never_runs_and_may_read_players_is_warned_of() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(8, 4)
    with pytest.warns(ShapruneWarning, match=r"do not run on the example inputs may read.*: p \(perhaps a\)"):
        players = sp.find_players(model, x)
    assert [g.name for g in players.groups] == ["a", "b"]
    players = sp.find_players(model, {"x": x, "more": torch.ones(8)})
    small = sp.prune(model, without_first(players), {"x": x, "more": torch.ones(8)})
    assert small(x, torch.ones(8)).shape == (8, 6)


def test_what_lies_inside_a_part_that_never_runs_is_not_taken_for_a_reader() -> None:
    """The second layer of an unused head reads the first, although a group is as wide."""

    class Unused(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    players = sp.find_players(Unused().eval(), torch.randn(8, 4))
    assert [g.name for g in players.groups] == ["a", "b"]


@pytest.mark.filterwarnings("ignore:the whole model is run")
@pytest.mark.parametrize("method", ["activation_mean", "apoz", "sensitivity", "reconstruction"])
def test_a_criterion_says_that_nothing_reads_a_group_on_the_data(method: str) -> None:
    torch.manual_seed(0)

    class Aside(Heads):
        def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
            y = self.o(torch.relu(self.b(torch.relu(x.repeat(1, 2)))))
            return y if more is None else y + self.p(torch.relu(self.a(x)))

    model, x, more = Aside().eval(), torch.randn(8, 4), torch.ones(8)
    players = sp.find_players(model, {"x": x, "more": more}, include="a")
    with pytest.raises(sp.InputError, match=r"p does not run|p behind 'a' does not run"):
        sp.score(model, players, [(x, torch.arange(8) % 3)], "cross_entropy", method=method, progress=False)


@pytest.mark.filterwarnings("ignore:the whole model is run")
@pytest.mark.parametrize("method", ["activation_mean", "sensitivity"])
def test_rows_that_take_another_way_count_as_zeros(method: str) -> None:
    torch.manual_seed(0)

    class Sometimes(Experts):
        def forward(self, x: Tensor, way: Tensor) -> Tensor:
            y = self.experts[0](x.repeat(1, 2))
            if (way == 1).any():
                y = y + (way == 1)[:, None] * self.experts[1](torch.relu(self.a(x)))
            return self.o(y)

    model, x, way = Sometimes(2).eval(), torch.randn(8, 4), torch.tensor([0, 1] * 4)
    players = sp.find_players(model, (x, way), include="a")
    scores = sp.score(model, players, [((x, way), torch.arange(8) % 3)], "cross_entropy", method=method, progress=False)
    assert np.isfinite(scores["a"].value).all()
    assert (scores["a"].value > 0).any()


@pytest.mark.parametrize("sums", [True, False])
def test_experts_that_get_no_rows_where_the_router_is_marked_are_found(sums: bool) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.head = nn.Linear(5, 1), nn.Linear(5, 2)
            self.expert = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 5))

        def forward(self, x: Tensor) -> Tensor:
            rows = (self.router(x)[:, 0] > 0).nonzero()[:, 0]
            y = torch.zeros_like(x)
            if sums:
                return self.head(x + y.index_add(0, rows, self.expert(x[rows])))  # type: ignore[no-any-return]
            y[rows] = self.expert(x[rows])
            return self.head(x + y)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    assert [len(group) for group in sp.find_players(Routed().eval(), torch.randn(20, 5)).groups] == [12]
