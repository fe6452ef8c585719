"""Multiply-adds of recurrent layers and torch's attention, against those by hand and torch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import shaprune as sp
from shaprune.deploy.measure import count
from shaprune.network.layers.compound_macs import compound_macs

STEPS = 7


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Sensor(nn.Module):
    """A recurrent layer between linear ones that can be pruned."""

    def __init__(self, recurrent: nn.Module, width: int) -> None:
        super().__init__()
        self.recurrent, self.hidden, self.out = recurrent, nn.Linear(width, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.recurrent(x)[0][:, -1]).relu())


RECURRENT: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # layer, width of its output, multiply-adds per step
    "gru": (lambda: nn.GRU(5, 8, batch_first=True), 8, 3 * 8 * (5 + 8)),
    "rnn": (lambda: nn.RNN(5, 8, batch_first=True, bias=False), 8, 8 * (5 + 8)),
    "lstm, two layers, both ways": (
        lambda: nn.LSTM(5, 8, num_layers=2, bidirectional=True, batch_first=True),
        16,
        2 * 4 * 8 * (5 + 8) + 2 * 4 * 8 * (16 + 8),
    ),
    "lstm with a projection": (
        lambda: nn.LSTM(5, 8, proj_size=3, batch_first=True),
        3,
        4 * 8 * (5 + 3) + 8 * 3,
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_count_as_by_hand_and_budgets_are_true(name: str) -> None:
    make, width, per_step = RECURRENT[name]
    model, x = Sensor(make(), width).eval(), torch.randn(2, STEPS, 5)
    want = STEPS * per_step + width * 6 + 6 * 2
    players = sp.find_players(model, x)
    assert players.model_macs == count(model, x)[1] == want
    plan = sp.plan(sp.score(model, players, None, method="weight_norm"), sp.Budget(macs=0.75))
    assert count(sp.prune(model, plan, x), x)[1] == plan.cost["macs"] <= 0.75 * want


def test_sequence_first_packed_and_cells() -> None:
    layer = nn.GRU(5, 8)
    packed = pack_padded_sequence(torch.randn(4, 3, 5), torch.tensor([4, 3, 1]))

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.cell = layer, nn.LSTMCell(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(self.layer(packed)[1][0])[0] + x

    found = compound_macs(Packed().eval(), torch.zeros(3, 4))
    assert found == {"layer": 8 * 3 * 8 * (5 + 8) / 3, "cell": 4 * 4 * (8 + 4)}


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_counts_its_projections_and_not_its_products(batch_first: bool) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=batch_first)

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            given = (x, y, z) if batch_first else (x.mT.movedim(2, 0), y.mT.movedim(2, 0), z.mT.movedim(2, 0))
            out = self.attend(given[0], value=given[2], key=given[1])[0]
            return out if batch_first else out.movedim(0, 1)

    inputs = torch.randn(2, 5, 8), torch.randn(2, 3, 4), torch.randn(2, 3, 6)
    want = 5 * 8 * 8 + 3 * 4 * 8 + 3 * 6 * 8 + 5 * 8 * 8
    assert count(Cross().eval(), inputs)[1] == want


def test_an_encoder_counts_what_torch_counts_less_the_products_of_attention() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    x = torch.randn(1, 10, 16)
    with FlopCounterMode(display=False) as counter:
        model.train()(x)  # fused attention, without dropout, torch does not count
    products = 2 * 2 * 10 * 10 * 16  # of two layers: queries with keys, and weights with values
    want = counter.get_total_flops() // 2 - products
    assert count(model.eval(), x)[1] == sp.find_players(model, x).model_macs == want


def test_blocks_cost_what_is_inside_and_a_subclass_that_calls_its_own_layers_counts_once() -> None:
    def layer() -> nn.Module:
        return nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)

    model = nn.Sequential(layer(), layer(), nn.Linear(16, 3)).eval()
    players = sp.find_players(model, torch.randn(2, 10, 16), unit="block")
    each = 10 * (4 * 16 * 16 + 2 * 16 * 24)
    assert [players.layers[name].positions for name in players.names] == [each, each]
    assert players.model_macs == 2 * each + 10 * 16 * 3

    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.out_proj(x)

    assert count(Own(16, 2).eval(), torch.randn(2, 10, 16))[1] == 10 * 16 * 16
