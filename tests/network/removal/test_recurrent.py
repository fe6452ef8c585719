"""Units of recurrent layers as players: one mask for all rows or one per row, surgery, costs, and what is refused."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import shaprune as sp
from shaprune.deploy.measure import count
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.players.players import Players

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning"),
]

KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm, time first, without biases": (nn.LSTM, {"bias": False, "batch_first": False}),
    "lstm, two layers, both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm with a projection, two layers, both ways": (
        nn.LSTM,
        {"num_layers": 2, "bidirectional": True, "proj_size": 5},
    ),
    "gru": (nn.GRU, {}),
    "gru, three layers": (nn.GRU, {"num_layers": 3}),
    "gru, time first, both ways": (nn.GRU, {"bidirectional": True, "batch_first": False}),
    "rnn": (nn.RNN, {}),
    "rnn with rectified units, two layers": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
}


class Tagger(nn.Module):
    """A layer in front, a recurrent layer, and readers of its outputs and of its last state."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.rnn = kind(6, 7, **{"batch_first": True, **options})  # type: ignore[call-arg]
        units = options.get("proj_size") or 7
        self.out = nn.Linear(units * (1 + options.get("bidirectional", False)), 4)
        self.last = nn.Linear(units, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        y, state = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        y = y if self.rnn.batch_first else y.transpose(0, 1)
        state = state[0] if isinstance(state, tuple) else state
        return self.out(y).mean(1) + self.last(state[-1])  # type: ignore[no-any-return]


def made(name: str) -> tuple[Tagger, Tensor, Players]:
    torch.manual_seed(0)
    kind, options = KINDS[name]
    model, x = Tagger(kind, **options).eval(), torch.randn(5, 4, 3)
    return model, x, sp.find_players(model, x)


def rows_of(players: Players, n: int) -> NDArray[np.bool_]:
    rows = np.random.default_rng(0).random((n, players.n)) < 0.6
    for group in players.groups:
        rows[:, group.indices[0]] = True
    return rows


@pytest.mark.parametrize("name", KINDS)
def test_units_and_their_inputs_are_players_and_every_row_is_removal(name: str) -> None:
    model, x, players = made(name)
    units = KINDS[name][1].get("proj_size") or 7
    assert {g.name: len(g) for g in players.groups} == {"stem": 6, "rnn": units}
    rows = rows_of(players, len(x))
    sites = mask_sites(players, players.groups, torch.device("cpu"))
    mask = torch.from_numpy(rows).float()
    first = KINDS[name][1].get("batch_first", True)
    with torch.no_grad():
        if first:
            with masked(model, sites, mask):
                together = model(x)
        for i, kept in enumerate(rows):
            small = remove_players(copy.deepcopy(model), players, kept)
            assert (small.rnn.input_size, type(small.rnn)) == (int(kept[:6].sum()), KINDS[name][0])
            with masked(model, sites, mask[i : i + 1]):
                torch.testing.assert_close(model(x), small(x), atol=1e-6, rtol=1e-5)
            if first:
                torch.testing.assert_close(together[i], small(x[i : i + 1])[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_costs_are_those_counted_after_surgery(name: str) -> None:
    model, x, players = made(name)
    kept = rows_of(players, 1)[0]
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.prune(model, plan, x)
    assert (players.model_params, players.model_macs) == count(model, x)[:2]
    assert (plan.cost["params"], plan.cost["macs"]) == count(small, x)[:2]


@pytest.mark.parametrize("name", ["lstm", "gru, three layers", "rnn"])
def test_games_walks_derivatives_and_criteria_see_what_is_read_inside(name: str) -> None:
    model, x, players = made(name)
    with torch.no_grad():
        model.out.weight[:, 0] = model.last.weight[:, 0] = 0  # unit 0 is read by the gates alone
    data = [(x, torch.tensor([0, 1, 2, 3, 0]))]

    def worth(network: nn.Module) -> Tensor:
        return -nn.functional.cross_entropy(network(x), data[0][1])

    unit = int(players.group("rnn").indices[0])
    without = remove_players(copy.deepcopy(model), players, np.arange(players.n) != unit)
    with torch.no_grad():
        gain = float(worth(model) - worth(without))
    found = sp.score(model, players, data, method="leave-one-out", worth="cross_entropy")
    assert gain != 0
    assert found["rnn"].value[0] == pytest.approx(gain, rel=2e-3)
    for method in ("permutation", "control-variate", "taylor_signed", "second_order", "weight_norm", "fpgm"):
        values = sp.score(model, players, data, method=method, worth="cross_entropy")["rnn"].value
        assert np.isfinite(values).all()
        assert values[0] != 0


@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights:UserWarning")  # of torch's, dense too
def test_a_budget_of_half_the_multiply_adds_is_met_and_saved(tmp_path: Path) -> None:
    model, x, _ = made("gru, three layers")
    few = sp.options.Compression(max_evaluations=500)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rnn is not refitted")
        done = sp.compress(model, [(x, None)], sp.Budget(macs=0.5), example_inputs=x, options=few)
    small = done.model
    assert count(small, x)[1] <= 0.5 * count(model, x)[1]
    sp.save(small, done.plan, tmp_path / "small")
    again = sp.load(tmp_path / "small", lambda: Tagger(nn.GRU, num_layers=3))
    torch.testing.assert_close(again(x), small(x))
    for ending in ("pt2", "onnx"):
        assert sp.export(small, x, tmp_path / f"small.{ending}").difference < 1e-5


def test_units_have_a_name_of_their_own() -> None:
    model, x, _ = made("gru")
    assert [g.name for g in sp.find_players(model, x, unit="recurrent").groups] == ["rnn"]
    assert [g.name for g in sp.find_players(model, x, unit="neuron").groups] == ["stem"]


def test_players_come_back_from_json() -> None:
    players = made("lstm with a projection, two layers, both ways")[2]
    again = Players.from_json(json.loads(json.dumps(players.to_json())))
    assert again.layers == players.layers
    assert np.array_equal(again.macs, players.macs)


class Started(nn.Module):
    """States at the start from code, parameters, another recurrent layer or a linear layer."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start, self.hidden = start, 5
        self.stem = nn.Linear(3, 6)
        if start == "encoder":
            self.first = nn.GRU(6, 5, batch_first=True)
        elif start == "linear":
            self.begin = nn.Linear(3, 5)
        elif start == "parameters":
            self.h, self.c = nn.Parameter(torch.randn(1, 1, 5)), nn.Parameter(torch.randn(1, 1, 5))
        self.lstm, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        read, n = self.stem(x), len(x)
        c = torch.zeros(1, n, self.hidden)
        if self.start == "zeros":
            state = c, c
        elif self.start == "parameters":
            state = self.h.expand(-1, n, -1).contiguous(), self.c.expand(-1, n, -1).contiguous()
        else:
            state = (self.first(read)[1] if self.start == "encoder" else self.begin(x.mean(1))[None].tanh()), c
        return self.out(self.lstm(read, hx=state)[0][:, -1])  # type: ignore[no-any-return]


class ByKeyword(nn.Module):
    """A layer that is given its states before what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gru, self.out = nn.Linear(3, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 4)
        self.h = nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.h.expand(-1, len(x), -1).contiguous()
        return self.out(self.gru(hx=h, input=self.stem(x))[0][:, -1])  # type: ignore[no-any-return]


class Packed(nn.Module):
    """Sequences of several lengths, as `pack_padded_sequence` makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(9, 6), nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.out = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x > 0).sum(1)
        packed = pack_padded_sequence(self.words(x), lengths, batch_first=True, enforce_sorted=False)
        found, (h, _) = self.lstm(packed)
        y = pad_packed_sequence(found, batch_first=True)[0]
        return self.out(y.sum(1)) + self.out(torch.cat([h[0], h[1]], 1))  # type: ignore[no-any-return]


class Cells(nn.Module):
    """A cell that a loop calls, in front of another."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.stem, self.cell, self.gru = nn.Linear(3, 6), kind(6, 5), nn.GRUCell(5, 4)  # type: ignore[call-arg]
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        state, last = None, None
        for step in self.stem(x).unbind(1):
            state = self.cell(step, state)
            last = self.gru(state[0] if isinstance(state, tuple) else state, last)
        return self.out(last)  # type: ignore[no-any-return]


WORDS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 1, 0], [2, 0, 0, 0], [3, 3, 4, 0]])
NETWORKS = {
    "zeros": (lambda: Started("zeros"), {"stem": 6, "lstm": 5}),
    "parameters": (lambda: Started("parameters"), {"stem": 6, "lstm": 5}),
    "encoder": (lambda: Started("encoder"), {"stem": 6, "first": 5}),
    "linear": (lambda: Started("linear"), {"stem": 6, "begin": 5}),
    "by keyword": (ByKeyword, {"stem": 6, "gru": 5}),
    "packed": (Packed, {"words": 6, "lstm": 5}),
    "lstm cell": (lambda: Cells(nn.LSTMCell), {"stem": 6, "cell": 5, "gru": 4}),
    "gru cell": (lambda: Cells(nn.GRUCell), {"stem": 6, "cell": 5, "gru": 4}),
    "rnn cell": (lambda: Cells(nn.RNNCell), {"stem": 6, "cell": 5, "gru": 4}),
}


@pytest.mark.filterwarnings("ignore:the whole model is run for every coalition")
@pytest.mark.parametrize("name", NETWORKS)
def test_states_at_the_start_packed_sequences_and_cells(name: str) -> None:
    torch.manual_seed(0)
    make, want = NETWORKS[name]
    model, x = make().eval(), WORDS if name == "packed" else torch.randn(5, 4, 3)
    players = sp.find_players(model, x)
    assert {g.name: len(g) for g in players.groups} == want
    kept = rows_of(players, 1)[0]
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.prune(model, plan, x)
    assert (plan.cost["params"], plan.cost["macs"]) == pytest.approx(count(small, x)[:2], abs=1)
    targets = torch.tensor([0, 1, 2, 3, 0])
    found = sp.score(model, players, [(x, targets)], method="leave-one-out", worth="cross_entropy")
    with torch.no_grad():
        for group in players.groups:
            for value, player in zip(found[group.name].value, group.indices, strict=True):
                without = remove_players(copy.deepcopy(model), players, np.arange(players.n) != player)
                losses = [nn.functional.cross_entropy(network(x), targets) for network in (without, model)]
                assert value == pytest.approx(float(losses[0] - losses[1]), abs=1e-6)
    walks = sp.score(model, players, [(x, targets)], max_evaluations=300, worth="cross_entropy")
    assert all(np.isfinite(walks[group.name].value).all() for group in players.groups)


def test_states_that_the_network_is_given_stay() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gru, self.out = nn.Linear(3, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.out(self.gru(self.stem(x), h.transpose(0, 1).contiguous())[0])  # type: ignore[no-any-return]

    players = sp.find_players(Given().eval(), (torch.randn(5, 4, 3), torch.randn(5, 1, 5)))
    assert [g.name for g in players.groups] == ["stem"]
    reasons = {s.name: s.reason for s in players.skipped}
    assert "its channels meet those of the network's input, which stay" in reasons["gru"]
