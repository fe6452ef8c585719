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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rnn is not refitted")
        done = sp.compress(model, [(x, None)], sp.Budget(macs=0.5), example_inputs=x, max_evaluations=500)
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
