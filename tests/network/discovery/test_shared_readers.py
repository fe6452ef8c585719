"""Heads that share what they read: the queries of one key head, a table of positions. They leave, and it stays."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shaprune as sp

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


class MultiQuery(nn.Module):
    """Four query heads, one key and one value head; from layers of their own, or from one."""

    def __init__(self, *, fused: bool, table: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.fused = 4, 4, fused
        if fused:
            self.qkv = nn.Linear(16, 24)
        else:
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.places = nn.Embedding(6, 4) if table else None
        self.o = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            q, k, v = self.qkv(x).split((self.heads * self.size, self.size, self.size), -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q = q.view(*x.shape[:2], self.heads, self.size).transpose(1, 2)
        if self.places is not None:
            q = q + self.places(torch.arange(x.shape[1]))
        y = (q @ k[:, None].transpose(-1, -2)).softmax(-1) @ v[:, None]
        return x + self.o(y.transpose(1, 2).flatten(2))


def made(**options: bool) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(MultiQuery(**options), nn.LayerNorm(16), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("options", [{"fused": False}, {"fused": True}, {"fused": False, "table": True}])
def test_a_query_head_leaves_alone(options: dict[str, bool], tmp_path: Path) -> None:
    model = made(**options)
    players = sp.find_players(model, X, unit="head")
    name = "0.qkv" if options["fused"] else "0.q"
    assert [(g.name, len(g)) for g in players.groups] == [(name, 4)]
    assert {m.module for m in players.groups[0].members} == {name, "0.o"}
    stays = {s.name: (s.channels, s.reason) for s in players.skipped}
    for rest in ["0.qkv"] if options["fused"] else ["0.k", "0.v"]:
        assert stays[rest][1] == f"all players of '{name}' read it, so that it stays"
    if options["fused"]:
        assert stays["0.qkv"][0] == 8
    plan = sp.Plan.from_coalition(players, np.array([True, False, False, True]))
    small = sp.prune(model, plan, X)
    assert small[0].heads == 2
    by_hand = copy.deepcopy(model)
    by_hand[0].o.weight.data[:, 4:12] = 0
    with torch.no_grad():
        assert torch.allclose(small(X), by_hand(X), atol=1e-6)
        sp.save(small, plan, tmp_path / "small")
        assert torch.equal(sp.load(tmp_path / "small", build=lambda: made(**options))(X), small(X))


def _gemma(t: Any) -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 12, "head_dim": 8}
    return t.GemmaForCausalLM(t.GemmaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1))


def _bigcode(t: Any) -> nn.Module:
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 12}
    return t.GPTBigCodeForCausalLM(t.GPTBigCodeConfig(**sizes, multi_query=True))


def _falcon(t: Any) -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return t.FalconForCausalLM(t.FalconConfig(**sizes, multi_query=True, ffn_hidden_size=12))


def _roformer(t: Any) -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return t.RoFormerModel(t.RoFormerConfig(**sizes, intermediate_size=12, max_position_embeddings=16))


@pytest.mark.parametrize("make", [_gemma, _bigcode, _falcon, _roformer])
def test_query_heads_of_transformers_leave_alone(make: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, words = make(transformers).eval(), {"input_ids": torch.randint(3, 40, (2, 6))}
    players = sp.find_players(model, words, unit="head")
    assert [len(g) for g in players.groups] == [4, 4]
    kept = np.array([True, False, True, True, False, True, True, False])
    small = sp.prune(model, sp.Plan.from_coalition(players, kept), words)
    if make is _roformer:
        return
    with torch.no_grad():
        cache = small(**words, use_cache=True).past_key_values
        step = small(words["input_ids"][:, :1], past_key_values=cache).logits[:, -1]
        whole = small(torch.cat([words["input_ids"], words["input_ids"][:, :1]], 1)).logits[:, -1]
    assert (step - whole).abs().max() < 1e-5 * whole.abs().max()
