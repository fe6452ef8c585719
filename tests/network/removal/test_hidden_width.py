"""Hidden width: channels of a stream leave through norms of any class, masked as removed."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.network.discovery.channels.stream_norms import find_norms
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.players.subset import remaining_players

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 12


class Weighted(nn.Module):
    """A norm of the user's own, with a weight per channel and maybe a bias."""

    def __init__(self, width: int = WIDTH, bias: bool = False) -> None:
        super().__init__()
        self.g = nn.Parameter(0.5 + torch.rand(width))
        self.b = nn.Parameter(torch.randn(width)) if bias else None


class Root(Weighted):
    """RMSNorm as in Gemma, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return ((1 + self.g.float()) * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))).type_as(x)


class Annotated(Weighted):
    """LayerNorm of the annotated transformer: the unbiased deviation, eps outside."""

    def forward(self, x: Tensor) -> Tensor:
        return self.g * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


class Scaled(Weighted):
    """A length of one, times the root of a width that code keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = WIDTH**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.scale * self.g


class MapNorm(Weighted):
    """ConvNeXt's norm over the channels of maps."""

    def forward(self, x: Tensor) -> Tensor:
        y = x - x.mean(1, keepdim=True)
        y = y / torch.sqrt(y.pow(2).mean(1, keepdim=True) + 1e-6)
        assert self.b is not None
        return self.g[:, None, None] * y + self.b[:, None, None]


class Response(Weighted):
    """Global response normalisation (ConvNeXt v2)."""

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return x + self.g * x * (length / (length.mean(-1, keepdim=True) + 1e-6))


def _lively(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(0.5 + torch.rand_like(parameter))
    return norm


TOKENS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: _lively(nn.LayerNorm(WIDTH)),
    "layer, no weights": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "layer, no bias, large eps": lambda: _lively(nn.LayerNorm(WIDTH, eps=0.05, bias=False)),
    "rms": lambda: _lively(nn.RMSNorm(WIDTH)),
    "own rms": Root,
    "annotated": Annotated,
    "length": Scaled,
}
MAPS: dict[str, Callable[[], nn.Module]] = {
    "own": lambda: MapNorm(bias=True),
    "one group": lambda: _lively(nn.GroupNorm(1, WIDTH)),
}


class PreNorm(nn.Module):
    """Two blocks over a stream of tokens, a last norm, a linear layer."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norms = nn.Linear(5, WIDTH), nn.ModuleList(norm() for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 8) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(8, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            x = x + down(torch.relu(up(norm(x))))
        return self.head(self.norms[2](x)).mean(1)  # type: ignore[no-any-return]


class PostNorm(PreNorm):
    """The norms stand behind the additions, as in BERT: what they give at absent channels stays in the stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.stem(x))
        for norm, up, down in zip(self.norms[1:], self.up, self.down, strict=True):
            x = norm(x + down(torch.relu(up(x))))
        return self.head(x).mean(1)  # type: ignore[no-any-return]


class Maps(nn.Module):
    """A block over a stream of maps."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norms = nn.Conv2d(3, WIDTH, 3), nn.ModuleList(norm() for _ in range(2))
        self.deep, self.up = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Conv2d(WIDTH, 8, 1)
        self.down, self.head = nn.Conv2d(8, WIDTH, 1), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.up(self.norms[0](self.deep(x)))))
        return self.head(self.norms[1](x).mean((2, 3)))  # type: ignore[no-any-return]


def _cases() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    nets = {
        f"{how.__name__} {n}": (lambda how=how, norm=norm: how(norm), (6, 5))  # type: ignore[misc]
        for how in (PreNorm, PostNorm)
        for n, norm in TOKENS.items()
    }
    return nets | {f"Maps {n}": (lambda norm=norm: Maps(norm), (3, 6, 6)) for n, norm in MAPS.items()}  # type: ignore[misc]


CASES = _cases()
each_case = pytest.mark.parametrize("name", CASES)


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = CASES[name]
    return build().eval(), torch.randn(3, *shape)


def removed(model: nn.Module, players: sp.Players, kept: np.ndarray, x: Tensor) -> Tensor:
    with torch.no_grad():
        return remove_players(copy.deepcopy(model), players, kept)(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", ["slice", "compensated"])
@each_case
def test_masked_is_removed_for_rows_of_all_sizes(name: str, norm: str) -> None:
    model, x = made(name)
    players = sp.find_players(model, x, unit="hidden", norm=norm)
    assert all(bool(layer.held) is (norm == "compensated") for layer in players.layers.values() if layer.norm)
    assert [len(g) for g in players.groups] == [WIDTH]
    order = np.random.default_rng(0).permutation(WIDTH)
    least = max(layer.least for layer in players.layers.values())
    rows = np.array([np.isin(np.arange(WIDTH), order[:k]) for k in range(least, WIDTH + 1)])
    mask = torch.from_numpy(rows).float().repeat_interleave(len(x), 0)
    with torch.no_grad(), masked(model, mask_sites(players, players.groups, torch.device("cpu")), mask):
        by_mask = model(x.repeat(len(rows), 1, *[1] * (x.ndim - 2))).unflatten(0, (len(rows), len(x)))
    for kept, ours in zip(rows, by_mask, strict=True):
        theirs = removed(model, players, kept, x)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), kept.sum()
    assert (by_mask[WIDTH // 2] - by_mask[-1]).abs().max() > 1e-3 * by_mask.abs().max()


@pytest.mark.parametrize("norm", ["slice", "compensated"])
@each_case
def test_derivatives_are_those_of_the_worth_by_the_masks(name: str, norm: str) -> None:
    model, x = made(name)
    players = sp.find_players(model, x, unit="hidden", norm=norm)
    game = NetworkGame(model, players, [x], "fidelity")
    kept = np.ones((1, WIDTH), dtype=bool)
    kept[0, [2, 5, 7]] = False
    worth, *slopes = game.derivatives(kept)[0]
    assert worth == pytest.approx(game(kept)[0], rel=1e-5)
    assert np.isfinite(slopes).all()
    assert np.abs(slopes).min() > 0  # of those that are absent, too
    walk = game.walk(np.array([[2, 5, 7]]))[0]
    assert walk[-1] == pytest.approx(worth, rel=1e-5)


@pytest.mark.parametrize("norm", ["slice", "compensated"])
def test_a_pruned_stream_is_planned_cut_saved_and_refitted(norm: str, tmp_path: object) -> None:
    model, x = made("PreNorm layer")
    players = sp.find_players(model, x, unit="hidden", norm=norm)
    scores = sp.score(model, players, [x], "fidelity", method="control-variate")
    plan = sp.plan(scores, sp.Budget(params=0.7))
    small = sp.prune(model, plan, x)
    assert sum(p.numel() for p in small.parameters()) == plan.cost["params"]
    assert norm == "compensated" or small.norms[0].normalized_shape == (plan.kept.sum(),)
    sp.save(small, plan, f"{tmp_path}/small")
    assert torch.equal(sp.load(f"{tmp_path}/small", lambda: made("PreNorm layer")[0])(x), small(x))
    many = torch.randn(64, 6, 5)

    def lost(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(many) - model(many)).square().mean())

    fitted = sp.recover(small, teacher=model, plan=plan, data=[(many, None)], steps=("refit",))
    assert lost(fitted) < 0.5 * lost(small)


@pytest.mark.parametrize("norm", ["slice", "compensated"])
def test_channels_that_leave_in_two_rounds_are_those_that_leave_at_once(norm: str) -> None:
    model, x = made("PostNorm layer")
    players = sp.find_players(model, x, unit="hidden", norm=norm)
    order = np.arange(WIDTH)
    once = removed(model, players, order > 6, x)
    first = remove_players(copy.deepcopy(model), players, order > 3)
    rest = remaining_players(players, order > 3)
    game = NetworkGame(first, rest, [x], "fidelity")
    twice = removed(first, rest, np.arange(rest.n) > 2, x)
    assert (once - twice).abs().max() <= 1e-5 * once.abs().max()
    with torch.no_grad():
        dense = first(x)
    worth = game((np.arange(rest.n) > 2)[None])[0]
    assert worth == pytest.approx(-float((twice - dense).square().sum(1).mean()), rel=1e-4)
    again = sp.find_players(first, x, unit="hidden", norm=norm)  # the norms that are left are known
    assert [len(g) for g in again.groups] == [WIDTH - 4]


def test_compensation_is_nearer_to_the_dense_network_than_slicing() -> None:
    model, x = made("PreNorm rms")
    x = torch.randn(64, *x.shape[1:])
    errors = {}
    for norm in ("slice", "compensated"):
        players = sp.find_players(model, x, unit="hidden", norm=norm)
        rng, kept = np.random.default_rng(0), np.ones(WIDTH, dtype=bool)
        errors[norm] = 0.0
        for _ in range(20):
            kept[:] = True
            kept[rng.permutation(WIDTH)[:4]] = False
            with torch.no_grad():
                errors[norm] += float((removed(model, players, kept, x) - model(x)).square().mean())
    assert errors["compensated"] < 0.95 * errors["slice"]


def test_a_width_that_code_keeps_is_divided() -> None:
    """Every block reshapes to a width of its own; a head's size is an attribute, too."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dim, self.num_heads, self.head_dim = WIDTH, 3, 4
            self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * 12), nn.Linear(12, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            n, tokens, _ = x.shape
            q, k, v = self.qkv(self.norm(x)).view(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, -1)
            return x + self.out(y).view(n, tokens, self.dim)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), Block(), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)).eval()
    x = torch.randn(2, 6, 5)
    players = sp.find_players(model, x, unit="hidden")
    small = sp.prune(model, sp.Plan.from_coalition(players, np.arange(WIDTH) > 4), x)
    assert [block.dim for block in small[1:3]] == [7, 7]  # type: ignore[union-attr]


def test_heads_whose_size_follows_from_the_stream_refuse_it_with_the_place() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.q, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y = self.q(self.norm(x)).view(*x.shape[:2], 3, x.shape[2] // 3).softmax(-2)
            return x + self.out(y.reshape(*x.shape[:2], x.shape[2]))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)).eval()
    with pytest.raises(sp.InputError, match=r"1\.out: removal breaks the network at 1 \(Block\)"):
        sp.find_players(model, torch.randn(2, 6, 5), unit="hidden")


def test_what_norms_do_is_asked_by_name() -> None:
    model, x = made("PreNorm rms")
    with pytest.raises(sp.InputError, match="unknown norm 'sliced'; did you mean 'slice'"):
        sp.find_players(model, x, norm="sliced")


def test_norms_over_the_heads_channels_do_not_tie_the_heads() -> None:
    """As in Qwen 3: one norm of the size of a head for all of them stays whole, and heads leave one by one."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 20, "head_dim": 4}
    config = transformers.Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=4, use_cache=False)
    model, words = transformers.Qwen3ForCausalLM(config).eval(), {"input_ids": torch.arange(12).view(2, 6)}
    players = sp.find_players(model, words)
    assert [len(g) for g in players.groups] == [16, 4, 20]


def test_neurons_pass_a_norm_over_them() -> None:
    """Global response normalisation inside a feed-forward block: neurons leave, as they do without it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU(), Response(), nn.Linear(WIDTH, 5), nn.Linear(5, 3)).eval()
    x = torch.randn(2, 4, 4, 5)
    assert [(n, layer.norm) for n, layer in find_norms(model, x).items()] == [("2", "response")]
    players = sp.find_players(model, x, unit="ffn")
    assert [len(g) for g in players.groups] == [WIDTH]
    with pytest.raises(sp.InputError, match="it is no 'hidden'"):
        sp.find_players(model, x, unit="hidden")


def test_a_stream_that_is_the_output_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
    players = sp.find_players(model.eval(), torch.randn(2, 5))
    why = "it feeds the network's output; shaprune.builtin.map_back(model, example_inputs) puts a map behind it that a "
    assert [(s.name, s.reason) for s in players.skipped] == [("2", f"{why}refit fits")]


def test_a_stream_that_is_the_output_leaves_where_it_is_mapped_back() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))
    dense = dense.append(nn.LayerNorm(WIDTH)).eval()
    x = torch.randn(64, 5)
    model = sp.builtin.map_back(dense, x)
    assert torch.allclose(model(x), dense(x), atol=1e-6)
    players = sp.find_players(model, x, unit="hidden")
    assert [g.name for g in players.groups] == ["of.0", "of.4"]
    plan = sp.Plan.from_coalition(players, np.tile(np.arange(WIDTH) > 2, 2))
    small = sp.prune(model, plan, x)
    fitted = sp.recover(small, teacher=model, plan=plan, data=[(x, None)], steps=("refit",))
    with torch.no_grad():
        lost = [float((network(x) - dense(x)).square().mean()) for network in (small, fitted)]
    assert small(x).shape == (64, WIDTH)
    assert lost[1] < 0.5 * lost[0]


def test_what_is_mapped_back_keeps_its_names() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 20}
    config = transformers.BertConfig(**sizes, num_attention_heads=4)
    model, words = (
        transformers.BertModel(config, add_pooling_layer=False).eval(),
        {"input_ids": torch.ones(2, 6).long()},
    )
    mapped = sp.builtin.map_back(model, words)
    with torch.no_grad():
        assert torch.allclose(mapped(**words).last_hidden_state, model(**words).last_hidden_state, atol=1e-6)
    assert [len(g) for g in sp.find_players(mapped, words, unit="hidden").groups] == [16]
    with pytest.raises(sp.InputError, match="map_back needs an output with features"):
        sp.builtin.map_back(nn.Flatten(0), torch.randn(2, 3))


@pytest.mark.parametrize(
    "other", [nn.Softmax(-1), nn.GELU(), nn.GroupNorm(2, WIDTH), nn.LayerNorm([4, WIDTH]), nn.BatchNorm1d(4)]
)
def test_other_modules_are_no_norms_over_channels(other: nn.Module) -> None:
    x = torch.randn(3, WIDTH, 4) if isinstance(other, nn.GroupNorm) else torch.randn(3, 4, WIDTH)
    assert not find_norms(nn.Sequential(_lively(other)).eval(), x)


def test_a_tied_output_layer_is_tied_again() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.head = nn.Embedding(9, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 9, False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.norm(self.words(ids)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(8).view(2, 4)
    players = sp.find_players(model, ids)
    plan = sp.Plan.from_coalition(players, np.arange(WIDTH) > 4)
    small = sp.prune(model, plan, ids)
    assert small.head.weight is small.words.weight
    assert sum(p.numel() for p in small.parameters()) == plan.cost["params"] == 7 * (9 + 2)
