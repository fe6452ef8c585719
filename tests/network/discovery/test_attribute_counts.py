"""Numbers that code keeps of heads and widths, under whatever name: found by trying, and divided as players leave."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Four heads of four; their number has a name of its own, and the size of a head is four, too."""

    def __init__(self, name: str, width: int = 16) -> None:
        super().__init__()
        setattr(self, name, 4)
        self.name, self.d_k = name, 4
        self.q, self.k, self.v, self.o = (nn.Linear(a, b) for a, b in ((width, 16),) * 3 + ((16, width),))

    def heads(self) -> int:
        return int(getattr(self, self.name))

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads(), self.d_k).transpose(1, 2)

    def join(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(len(y), -1, self.heads() * self.d_k)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        return self.o(self.join((q @ k.transpose(-1, -2) / self.d_k**0.5).softmax(-1) @ v))


class Wide(Attention):
    """Keeps the width of all heads together, too."""

    def __init__(self) -> None:
        super().__init__("h")
        self.total = 16

    def join(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(len(y), -1, self.total)


@dataclass
class Settings:
    n: int = 4
    layers: int = 2


class Reading(Attention):
    """Reads the number of heads from settings that all layers share."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("unused")
        self.settings = settings

    def heads(self) -> int:
        return self.settings.n


class Splitting(nn.Module):
    """Has no weights; the number of heads is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = 4

    def forward(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.parts, -1).transpose(1, 2)


class Nested(Attention):
    def __init__(self) -> None:
        super().__init__("count")
        self.splitting = Splitting()

    def split(self, x: Tensor) -> Tensor:
        return self.splitting(x)

    def join(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2).flatten(2)


class Stack(nn.Module):
    def __init__(self, *attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.layers, self.out = nn.Linear(5, 16), nn.ModuleList(attention), nn.Linear(16, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in attention)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.out(x.mean(1))


class Folded(nn.Module):
    """A convolution whose width is kept as a number to fold its output by."""

    def __init__(self) -> None:
        super().__init__()
        self.planes, self.conv, self.out = 6, nn.Conv1d(6, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x)).flatten()
        return self.out(y.view(len(x), self.planes, -1).mean(2))


def _shared() -> nn.Module:
    settings = Settings()
    return Stack(Reading(settings), Reading(settings))


# name -> (network, players per group, inputs)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[int], Tensor]] = {
    **{
        name: (lambda name=name: Stack(Attention(name)), [4], X)
        for name in ("num_heads", "h", "nhead", "num_attn_heads")
    },
    "wide": (lambda: Stack(Wide(), Wide()), [4, 4], X),
    "shared settings": (_shared, [4, 4], X),
    "nested": (lambda: Stack(Nested()), [4], X),
    "width": (Folded, [6], torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name][0]().eval()


def masked_by_hand(model: nn.Module, players: Players, kept: np.ndarray[Any, Any], x: Tensor) -> Tensor:
    """Zeros in the columns of what reads the heads that left."""
    dense = copy.deepcopy(model).double()
    for group in players.groups:
        for member in group.consumers:
            for player, own in zip(group.indices, member.channels, strict=True):
                if not kept[player]:
                    dense.get_submodule(member.module).weight.data[:, list(own)] = 0
    with torch.no_grad():
        return dense(x.double())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_players_leave_whatever_their_number_is_called(name: str, tmp_path: Path) -> None:
    model, (_, sizes, x) = made(name), NETWORKS[name]
    players = sp.find_players(model, x, unit="channel" if name == "width" else ("head", "neuron"))
    assert [len(g) for g in players.groups] == sizes
    again = Players.from_json(json.loads(json.dumps(players.to_json())))
    assert again.to_json() == players.to_json()
    rng = np.random.default_rng(0)
    for _ in range(3):
        kept = rng.random(players.n) < 0.6
        for group in players.groups:
            kept[rng.choice(group.indices, 2, replace=False)] = [True, False]
        plan = sp.Plan.from_coalition(again, kept)
        small = sp.prune(model, plan, x)
        with torch.no_grad():
            ours = copy.deepcopy(small).double()(x.double())
        assert (ours - masked_by_hand(model, players, kept, x)).abs().max() < 1e-9
        sp.save(small, plan, tmp_path / "small", overwrite=True)
        loaded = sp.load(tmp_path / "small", build=lambda: made(name))
        assert torch.equal(loaded(x), small(x))


def test_settings_that_layers_share_are_copied_for_the_layer_that_loses_heads() -> None:
    model = made("shared settings")
    players = sp.find_players(model, X, unit="head")
    small = sp.prune(model, sp.Plan.from_coalition(players, np.arange(8) > 1), X)
    assert [layer.settings.n for layer in small.layers] == [2, 4]
    assert [layer.settings.n for layer in model.layers] == [4, 4]
    assert small.layers[1].settings.layers == 2


def test_only_the_numbers_that_must_are_divided() -> None:
    model = made("h")
    players = sp.find_players(model, X, unit="head")
    assert players.layers["layers.0.q"].numbers == ("layers.0.h",)
    small = sp.prune(model, sp.Plan.from_coalition(players, np.arange(4) > 0), X)
    assert (small.layers[0].h, small.layers[0].d_k) == (3, 4)
    assert sp.find_players(made("num_heads"), X).layers["layers.0.q"].numbers is None


def test_named_units_divide_them_too() -> None:
    model = made("shared settings")
    units = {"a": "layers.0.q[0]", "b": ["layers.0.q[4]", "layers.1.q[8]"]}
    players = sp.find_players(model, X, unit=units)
    small = sp.prune(model, sp.Plan.from_coalition(players, np.array([True, False])), X)
    assert [layer.settings.n for layer in small.layers] == [3, 3]


def _phi3(t: Any) -> nn.Module:
    sizes = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 13}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return t.Phi3ForCausalLM(t.Phi3Config(**sizes, num_attention_heads=4, num_key_value_heads=4, **ends))


def test_heads_of_phi_3_leave_which_reads_their_number_from_the_configuration(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, words = _phi3(transformers).eval(), {"input_ids": torch.randint(3, 30, (2, 6))}
    players = sp.find_players(model, words, unit="head")
    assert [len(g) for g in players.groups] == [4, 4]
    kept = np.array([True, True, False, True, True, True, True, True])
    small = sp.prune(model, sp.Plan.from_coalition(players, kept), words)
    assert small.config.num_attention_heads == model.config.num_attention_heads == 4
    assert [layer.self_attn.config.num_attention_heads for layer in small.model.layers] == [3, 4]
    with torch.no_grad():
        cache = small(**words, use_cache=True).past_key_values
        step = small(words["input_ids"][:, :1], past_key_values=cache).logits[:, -1]
        whole = small(torch.cat([words["input_ids"], words["input_ids"][:, :1]], 1)).logits[:, -1]
    assert (step - whole).abs().max() < 1e-5


def test_a_number_of_the_whole_network_that_stands_in_the_way_is_named() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.BloomConfig(vocab_size=30, hidden_size=16, n_layer=2, n_head=4, **ends)
    players = sp.find_players(transformers.BloomForCausalLM(config).eval(), {"input_ids": torch.randint(3, 30, (2, 6))})
    reasons = {s.name: s.reason for s in players.skipped}
    for i in range(2):
        why = reasons[f"transformer.h.{i}.self_attention.query_key_value"]
        assert why.endswith("transformer.num_heads = 4 is read, too, one number for all layers")


@pytest.mark.parametrize("counted", ["by the width", "by a private number"])
def test_read_only_head_counts_follow_what_they_are_computed_of(counted: str) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
            self._number = 4

        @property
        def num_heads(self) -> int:
            return self.q.out_features // 4 if counted == "by the width" else self._number

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(y.transpose(1, 2).flatten(2)).sum(1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = nn.Sequential(Attention()).eval(), torch.randn(3, 5, 16)
    players = sp.find_players(model, x)
    assert [len(group) for group in players.groups] == [4]
    small = sp.prune(model, sp.Plan.from_coalition(players, np.array([True, False, True, False])), x)
    assert small.get_submodule("0").num_heads == 2
