"""`torch.nn.MultiheadAttention`: open attention is the same function, and its heads are players that leave."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Untouched
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.network.forward.calibration import Calibration
from shaprune.network.layers.open_attention import OpenAttention, open_attention, opened_where_same

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:the whole model is run for every coalition"),  # torch's layers are not traced
]

WIDTH, HEADS, STEPS = 12, 3, 5
CAUSAL = torch.full((STEPS, STEPS), float("-inf")).triu(1)
PADDING = torch.tensor([[False] * 4 + [True], [False] * 5])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "causal": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "boolean mask": {"attn_mask": CAUSAL != 0},
    "mask for every head": {"attn_mask": CAUSAL.expand(2 * HEADS, STEPS, STEPS)},
    "padding": {"key_padding_mask": PADDING},
    "padding and mask": {"key_padding_mask": PADDING, "attn_mask": CAUSAL != 0, "need_weights": False},
}
EXAMPLES = torch.randn(6, STEPS, 7, generator=torch.Generator().manual_seed(3))


def same(ours: Any, theirs: Any) -> bool:
    return all((a is None and b is None) or torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_open_attention_is_the_same_function(name: str, first: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=first).eval()
    x = torch.randn(2, STEPS, WIDTH)
    x = x if first else x.transpose(0, 1)
    assert same(OpenAttention(theirs)(x, x, x, **OPTIONS[name]), theirs(x, x, x, **OPTIONS[name]))


@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_values_of_other_widths_and_examples_without_batch(bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, kdim=7, vdim=4, bias=bias, batch_first=True).eval()
    q, k, v = torch.randn(2, STEPS, WIDTH), torch.randn(2, 6, 7), torch.randn(2, 6, 4)
    assert same(OpenAttention(theirs)(q, k, v), theirs(q, k, v))
    assert same(OpenAttention(theirs)(q[0], k[0], v[0]), theirs(q[0], k[0], v[0]))


class Encoded(nn.Module):
    """Linear, encoder, mean over steps, linear."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 8, batch_first=first)
        self.first, self.embed, self.encoder = first, nn.Linear(7, WIDTH), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.first:
            return self.head(self.encoder(x).mean(1))  # type: ignore[no-any-return]
        return self.head(self.encoder(x.transpose(0, 1)).mean(0))  # type: ignore[no-any-return]


class Decoded(nn.Module):
    """A decoder of two sequences: attention to oneself, then to the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.other = nn.Linear(7, WIDTH), nn.Linear(7, WIDTH)
        self.decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, 8, batch_first=True)
        self.head = nn.Linear(WIDTH, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.embed(x), self.other(x.flip(1))).mean(1))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """One learnt query over all steps."""

    def __init__(self, **added: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=7, vdim=7, batch_first=True, **added)
        self.head = nn.Linear(WIDTH, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.query.expand(len(x), -1, -1), x, x)[0][:, 0])  # type: ignore[no-any-return]


NETWORKS = {"encoder": Encoded, "steps first": lambda: Encoded(False), "decoder": Decoded, "learnt query": Pooled}


def first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0]


def check_masked_is_removed(model: nn.Module, players: sp.Players, examples: Tensor) -> None:
    """Worths of three coalitions of every group are those of the pruned networks."""
    data, rng = [(examples, torch.zeros(len(examples)))], np.random.default_rng(0)
    for group in players.groups:
        kept = rng.random((3, len(group))) < 0.5
        kept[:, 0], kept[:, -1] = True, False
        worths = sp.NetworkGame(model, players, data, first_output, group.name)(kept)
        for row, worth in zip(kept, worths, strict=True):
            every = np.ones(players.n, dtype=bool)
            every[group.indices] = row
            small = sp.prune(model, sp.Plan.from_coalition(players, every), examples)
            with torch.no_grad():
                assert worth == pytest.approx(float(small(examples)[:, 0].mean()), abs=1e-5)


def test_the_copy_is_the_same_network_and_the_model_stays(untouched: Untouched) -> None:
    model = Encoded()
    with untouched(model), torch.no_grad():
        opened = open_attention(model)
        assert torch.allclose(opened(EXAMPLES), model(EXAMPLES), atol=1e-6)
        opened.get_parameter("head.weight").zero_()
    assert model.head.weight.abs().max() > 0
    assert isinstance(model.encoder.layers[0].self_attn, nn.MultiheadAttention)
    assert isinstance(opened.get_submodule("encoder.layers.0.self_attn"), OpenAttention)
    assert isinstance(open_attention(nn.MultiheadAttention(WIDTH, HEADS)), OpenAttention)


def test_without_it_the_heads_stay_and_the_way_is_said() -> None:
    players = sp.find_players(Encoded(), EXAMPLES)
    assert {group.name.rpartition(".")[2] for group in players.groups} == {"linear1"}
    reasons = [s.reason for s in players.skipped if s.name.endswith("self_attn.out_proj")]
    assert len(reasons) == 2
    assert all("shaprune.builtin.open_attention(model) gives a network whose heads can leave" in r for r in reasons)


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_are_players_and_masked_is_removed(name: str, untouched: Untouched) -> None:
    model = open_attention(NETWORKS[name]())
    with untouched(model):
        players = sp.find_players(model, EXAMPLES)
        heads = [group for group in players.groups if group.producers[0].module.endswith("q_proj")]
        attentions = [m for m in model.modules() if isinstance(m, OpenAttention)]
        assert [len(group) for group in heads] == [HEADS] * len(attentions)
        check_masked_is_removed(model, players, EXAMPLES)


def test_a_network_without_a_third_of_its_heads_is_scored_recovered_saved_and_loaded(tmp_path: Path) -> None:
    model = open_attention(Encoded())
    data = [(EXAMPLES, torch.arange(6) % 4)]
    players = sp.find_players(model, EXAMPLES, unit="head")
    assert players.n == 2 * HEADS
    calibration = Calibration(model, data)
    taylor = criterion_scores(model, players, calibration, "taylor", worth="cross_entropy")
    norms = criterion_scores(model, players, criterion="weight_norm")
    scores = sp.score(model, players, data, "kl", method="exact", progress=False)
    assert all(np.isfinite(v.value).all() for found in (taylor, norms, scores) for v in dict(found).values())
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[group.indices[np.argmin(scores[group.name].value)]] = False
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.recover(sp.prune(model, plan, EXAMPLES), model, plan, data, ("refit",))
    attention = small.get_submodule("encoder.layers.0.self_attn")
    assert isinstance(attention, OpenAttention)
    assert attention.num_heads == HEADS - 1
    assert sum(p.numel() for p in small.parameters()) == plan.cost["params"]
    sp.save(small, plan, tmp_path / "small")
    loaded = sp.load(tmp_path / "small", lambda: open_attention(Encoded()))
    with torch.no_grad():
        assert torch.equal(loaded(EXAMPLES), small(EXAMPLES))
    small(EXAMPLES).sum().backward()
    again = sp.find_players(small, EXAMPLES, unit="head")
    assert again.n == 2 * (HEADS - 1)


@pytest.mark.parametrize("added", [{"add_bias_kv": True}, {"add_zero_attn": True, "bias": False}])
def test_keys_and_values_that_are_added_leave_with_their_head(added: dict[str, bool]) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, kdim=7, vdim=7, batch_first=True, **added).eval()
    mask = CAUSAL.expand(6 * HEADS, STEPS, STEPS) != 0
    q, ours = torch.randn(6, STEPS, WIDTH), OpenAttention(theirs)
    padding = PADDING.repeat(3, 1)
    for options in ({}, {"attn_mask": mask}, {"attn_mask": mask, "key_padding_mask": padding, "need_weights": False}):
        assert same(ours(q, EXAMPLES, EXAMPLES, **options), theirs(q, EXAMPLES, EXAMPLES, **options))  # type: ignore[arg-type]
    model = open_attention(Pooled(**added))
    players = sp.find_players(model, EXAMPLES)
    heads = players.group("attention.q_proj")
    assert [m.module for m in heads.members if "bias" in m.module] == (
        ["attention.bias_k", "attention.bias_v"] if "add_bias_kv" in added else []
    )
    assert len(heads) == HEADS
    check_masked_is_removed(model, players, EXAMPLES)


class Padded(nn.Module):
    """An encoder of padded sequences as torch builds it, on nested tensors; padding is left out of the mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 8, batch_first=True)
        self.embed, self.encoder = nn.Embedding(9, WIDTH), nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(WIDTH, 4)
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        x = self.encoder(self.embed(tokens), src_key_padding_mask=padding)
        return self.head(x.masked_fill(padding[..., None], 0).mean(1))  # type: ignore[no-any-return]


TOKENS = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [3, 0, 0, 0, 0], [8, 1, 2, 4, 0]])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoders_that_run_on_nested_tensors_lose_heads() -> None:
    dense, data = Padded(), [(TOKENS, torch.zeros(4))]
    assert dense.encoder.use_nested_tensor
    model = open_attention(dense)
    players = sp.find_players(model, TOKENS)
    assert [len(g) for g in players.groups if g.producers[0].module.endswith("q_proj")] == [4]
    game = sp.NetworkGame(model, players, data, first_output)
    every = np.ones(players.n, dtype=bool)
    with torch.no_grad():
        assert game(every[None])[0] == pytest.approx(float(dense(TOKENS)[:, 0].mean()), abs=1e-6)
        every[[1, 2]] = False
        small = sp.prune(model, sp.Plan.from_coalition(players, every), TOKENS)
        assert game(every[None])[0] == pytest.approx(float(small(TOKENS)[:, 0].mean()), abs=1e-5)
    assert dense.encoder.use_nested_tensor


def test_hooks_and_attributes_of_the_attention_stay() -> None:
    model = Pooled()
    model.attention.register_forward_hook(lambda module, args, output: (output[0] * module.gain, output[1]))
    model.attention.gain = 3.0
    opened = open_attention(model)
    players = sp.find_players(opened, EXAMPLES)
    every = np.ones(players.n, dtype=bool)
    game = sp.NetworkGame(opened, players, [(EXAMPLES, torch.zeros(6))], first_output)
    with torch.no_grad():
        assert game(every[None])[0] == pytest.approx(float(model(EXAMPLES)[:, 0].mean()), abs=1e-6)
    assert len(model.attention._forward_hooks) == 1


def test_attention_whose_function_is_another_is_not_opened() -> None:
    computed = nn.MultiheadAttention(WIDTH, HEADS)
    nn.utils.parametrizations.weight_norm(computed.out_proj)
    assert not isinstance(open_attention(computed), OpenAttention)
    patched = nn.MultiheadAttention(WIDTH, HEADS)
    patched.forward = lambda q, k, v: (q, None)  # type: ignore[method-assign, assignment]
    assert not isinstance(open_attention(patched), OpenAttention)


class Scaled(nn.MultiheadAttention):
    """Calls what it is derived from, and has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, batch_first=True)
        self.gain = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0] * self.gain


class Functional(nn.MultiheadAttention):
    """Calls the function behind it, which reads steps first."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x.transpose(0, 1)
        weights = self.in_proj_weight, self.in_proj_bias, self.bias_k, self.bias_v, self.add_zero_attn, 0.0
        out = self.out_proj.weight, self.out_proj.bias
        return F.multi_head_attention_forward(x, x, x, WIDTH, self.num_heads, *weights, *out)[0].transpose(0, 1)


class Fused(nn.MultiheadAttention):
    """Multiplies with the joined weights."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        made = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in made)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Around(nn.Module):
    """A stream beside a subclass of torch's attention."""

    def __init__(self, kind: Callable[[], nn.MultiheadAttention]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.attention = nn.Linear(7, WIDTH), nn.LayerNorm(WIDTH), kind()
        self.head = nn.Linear(WIDTH, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.attention(self.norm(x))).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Scaled, Functional, Fused])
def test_heads_of_subclasses_leave_whatever_they_call(kind: Callable[[], nn.MultiheadAttention]) -> None:
    theirs = Around(kind)
    model = open_attention(theirs)
    assert torch.allclose(model(EXAMPLES), theirs(EXAMPLES), atol=1e-5)
    assert isinstance(model.attention, kind)  # type: ignore[arg-type]
    players = sp.find_players(model, EXAMPLES)
    assert [(group.name, len(group)) for group in players.groups] == [("embed", WIDTH), ("attention.q_proj", HEADS)]
    check_masked_is_removed(model, players, EXAMPLES)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(EXAMPLES), model(EXAMPLES))
    assert type(again.attention) is type(deepcopy(model).attention) is type(model.attention)


@pytest.mark.parametrize("make", [Encoded, Decoded, lambda: Around(Functional)])
def test_compress_opens_by_itself_and_load_does(
    make: Callable[[], nn.Module], tmp_path: Path, untouched: Untouched
) -> None:
    model = make()
    data = [(EXAMPLES.repeat(4, 1, 1), torch.zeros(24))]
    with untouched(model):
        units = sp.options.Units(unit="head")
        options = sp.options.Compression(units=units)
        done = sp.compress(
            model, data, sp.Budget(params=0.8), example_inputs=EXAMPLES, recover=(), progress=False, options=options
        )
    assert done.plan.players.n == HEADS * sum(isinstance(m, OpenAttention) for m in done.model.modules())
    assert done.measurements["pruned"].parameters < done.measurements["dense"].parameters
    sp.save(done.model, done.plan, tmp_path / "small")
    assert torch.equal(sp.load(tmp_path / "small", make)(EXAMPLES), done.model(EXAMPLES))
    with pytest.raises(sp.InputError, match=r"is missing here; model = shaprune\.builtin\.open_attention\(model\)"):
        sp.prune(model, done.plan, EXAMPLES)


def test_compress_leaves_attention_alone_where_no_head_plays() -> None:
    options = sp.options.Compression(units=sp.options.Units(unit="ffn"))
    data = [(EXAMPLES, torch.zeros(6))]
    done = sp.compress(
        Encoded(), data, sp.Budget(params=0.95), example_inputs=EXAMPLES, recover=(), progress=False, options=options
    )
    assert not any(isinstance(module, OpenAttention) for module in done.model.modules())


class AllOutputs(Padded):
    """The same with padding at the outputs: zeros in torch's encoder, not behind open attention."""

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=padding))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_is_not_opened_by_itself_where_that_gives_something_else() -> None:
    model = AllOutputs()
    assert opened_where_same(model, TOKENS) is model
    padded = Padded()
    assert opened_where_same(padded, TOKENS) is not padded


def test_weights_that_code_reads_are_there() -> None:
    theirs = nn.MultiheadAttention(WIDTH, HEADS)
    ours = OpenAttention(theirs)
    assert torch.equal(ours.in_proj_weight, theirs.in_proj_weight)  # type: ignore[arg-type]
    assert torch.equal(ours.in_proj_bias, theirs.in_proj_bias)  # type: ignore[arg-type]


def test_a_mask_made_for_more_heads_is_refused_by_name() -> None:
    x = torch.zeros(2, STEPS, WIDTH)
    attention = OpenAttention(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    with pytest.raises(ValueError, match="attn_mask has 8 entries for 2 examples of 3 heads"):
        attention(x, x, x, attn_mask=torch.zeros(8, STEPS, STEPS))
