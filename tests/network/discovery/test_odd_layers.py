"""Layers and mixtures that are odd in some way: found where they can leave, else skipped with a true reason."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.deploy.measure import count
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = {"input_ids": torch.randint(3, 40, (2, 8), generator=torch.Generator().manual_seed(0))}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, **ENDS}


def reasons(players: Players) -> dict[str, str]:
    return {s.name: s.reason for s in players.skipped}


class Pair(nn.Linear):
    """Returns its output and the largest entry."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, y.amax(-1)


class Odd(nn.Module):
    """A hidden layer that is used in some way, beside a sound one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.hidden = kind, Pair(4, 6) if kind == "tuple" else nn.Linear(4, 6)
        self.sound, self.out, self.spare = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "tuple":
            y, best = self.hidden(x)
            y = y + best[:, None]
        elif self.kind == "linear":
            y = F.linear(x, self.hidden.weight, self.hidden.bias)
        elif self.kind == "transposed":
            y = x @ self.hidden.weight.T
        else:
            y = self.hidden.weight.new_ones(len(x), 6) * x.sum(1, keepdim=True)
        return self.out(torch.tanh(self.sound(torch.tanh(y))))


USED = "its weight is used without calling it, so that no mask can stand at its input; call it in forward"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("tuple", "it is a Pair that gives a tuple, not one tensor"),
        ("linear", USED),
        ("transposed", USED),
        ("type", "it did not run on the example inputs"),
    ],
)
def test_a_layer_that_is_not_called_as_one_is_skipped_with_the_reason(kind: str, reason: str) -> None:
    torch.manual_seed(0)
    players = sp.find_players(Odd(kind).eval(), torch.randn(3, 4))
    assert [(g.name, len(g)) for g in players.groups] == [("sound", 5)]
    assert reasons(players)["hidden"] == reason
    assert reasons(players)["spare"] == "it did not run on the example inputs"


def test_layers_of_mamba_that_are_used_by_their_weights_are_said_to_be() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, **ENDS)).eval()
    players = sp.find_players(model, WORDS)
    assert [len(g) for g in players.groups] == [16]  # the stream
    lines = [s.name for s in players.skipped if "used without calling it" in s.reason]
    assert [name.rpartition(".")[2] for name in lines] == ["conv1d", "dt_proj"]


def test_a_router_that_returns_a_tuple_leaves_the_rest_to_be_found() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    experts = {"num_key_value_heads": 2, "intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.PhimoeConfig(**SIZES, **experts, max_position_embeddings=32)
    model = transformers.PhimoeForCausalLM(config).eval()
    players = sp.find_players(model, WORDS)
    assert [len(g) for g in players.groups] == [2]
    assert (
        reasons(players)["model.layers.0.mlp.router"] == "it is a PhimoeTopKRouter that gives a tuple, not one tensor"
    )
    assert sp.find_players(model, WORDS, unit="block").names == ("model.layers.0",)


def _mixtral() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    experts = {"num_key_value_heads": 2, "intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2}
    model: nn.Module = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **experts))
    return model.eval()


def test_experts_that_are_one_parameter_are_said_to_be() -> None:
    model, reason = _mixtral(), "its experts are fused parameters (4 x 24 x 32), one tensor for all; "
    found = reasons(sp.find_players(model, WORDS))
    assert found["model.layers.0.mlp.experts.gate_up_proj"].startswith(reason)
    with pytest.raises(sp.InputError) as refused:
        sp.find_players(model, WORDS, unit="expert")
    assert f"model.layers.0.mlp.experts: {reason}only experts that are modules can leave" in str(refused.value)


class Routed(nn.Module):
    """Experts in a dict, each of which sees the words that a router inside a module picks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Module()
        self.router.num_experts, self.router.classifier = 4, nn.Linear(6, 4)
        self.experts = nn.ModuleDict(
            {f"expert_{i}": nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6)) for i in range(4)}
        )

    def forward(self, x: Tensor) -> Tensor:
        share = self.router.classifier(x).softmax(-1)
        best, which = share.max(-1)
        y = torch.zeros_like(x)
        for i in range(self.router.num_experts):
            y[which == i] = self.experts[f"expert_{i}"](x[which == i])
        return y * best[..., None]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixture, self.head = nn.Linear(3, 6), Routed(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.mixture(x))


def network() -> nn.Module:
    torch.manual_seed(1)
    return Network().eval()


def test_experts_in_a_dict_leave_and_the_others_get_the_first_names(tmp_path: Any) -> None:
    model, x = network(), torch.randn(3, 5, 3)
    players = sp.find_players(model, x, unit="expert")
    assert [(g.name, len(g)) for g in players.groups] == [("mixture.experts", 4)]
    plan = sp.Plan.from_coalition(players, np.array([False, True, False, True]))
    small = sp.prune(model, plan, x)
    assert list(small.mixture.experts) == ["expert_0", "expert_1"]
    assert small.mixture.router.num_experts == small.mixture.router.classifier.out_features == 2
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.mixture.router.classifier.bias[[0, 2]] = -1e9
        assert torch.allclose(small(x), by_hand(x), atol=1e-6)
        sp.save(small, plan, tmp_path / "small")
        assert torch.equal(sp.load(tmp_path / "small", build=network)(x), small(x))
    assert sum(p.numel() for p in small.parameters()) == plan.cost["params"]


def test_experts_that_see_other_words_under_marks_do_not_stop_the_search() -> None:
    """Marks are NaN: a marked router sends all words to one expert, which then sees more rows than in a clean run."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 3), Network()).eval(), torch.randn(3, 5, 3)
    players = sp.find_players(model, x)
    assert "0" in {g.name for g in players.groups}
    kept = np.ones(players.n, dtype=bool)
    kept[players.group("0").indices[::2]] = False
    assert sp.prune(model, sp.Plan.from_coalition(players, kept), x)[0].out_features == 3


@pytest.mark.slow
def test_a_switch_transformer_is_searched_for_every_unit() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_heads": 4, "num_experts": 4, "num_layers": 2}
    sparse = {"num_sparse_encoder_layers": 1, "num_decoder_layers": 2, "num_sparse_decoder_layers": 1}
    config = transformers.SwitchTransformersConfig(**sizes, **sparse, decoder_start_token_id=0)
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    words = {**WORDS, "decoder_input_ids": WORDS["input_ids"][:, :5]}
    assert [len(g) for g in sp.find_players(model, words, unit="expert").groups] == [4, 4]
    names = {g.name for g in sp.find_players(model, words).groups}
    assert "encoder.block.0.layer.1.mlp.wi" in names
    assert sp.find_players(model, words, unit="block").names[0] == "encoder.block.1"
    assert count(model, words)[0] == sum(p.numel() for p in model.parameters())
