"""Units that are no coupled channels: blocks, experts, single weights, and groups that the user names."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.deploy.measure import count
from shaprune.network.removal.blocks import PassThrough
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")

N_COALITIONS = 20
TOLERANCE = 1e-5  # relative to the largest output, float32
N_OUTPUTS = 5


class Block(nn.Module):
    """A residual block; ``halved`` changes the shape."""

    def __init__(self, n_in: int, n_out: int, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.relu = nn.Conv2d(n_out, n_out, 3, padding=1), nn.ReLU(inplace=inplace)
        self.short = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)  # in place, the input of the block is written to
        return self.conv2(F.relu(self.bn(self.conv1(x)))) + self.short(x)


class Residual(nn.Module):
    """Six blocks that keep the shape and one that does not, and parts that are no block."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.layer1 = nn.Sequential(*(Block(6, 6, inplace=inplace) for _ in range(3)))
        self.layer2 = nn.ModuleList([Block(6, 8), *(Block(8, 8, inplace=inplace) for _ in range(3))])
        self.fc = nn.Linear(8, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        for block in self.layer2:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class Step(nn.Module):
    """A layer that takes and returns more than it changes, as older transformers do."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.number, self.fc = number, nn.Linear(width, width)

    def forward(self, *, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        y = hidden + torch.tanh(self.fc(hidden))
        return y, None, y.mean()


class Steps(nn.Module):
    """Layers that return tuples, that are called by keyword, and whose settings are read from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Step(6, i) for i in range(4))
        self.head = nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(hidden=x, mask=None)[0] * (1 + step.number)
        return self.head(x)


class Folded(nn.Module):
    """Two layers that see every position as a row of its own, or all examples at one position as a row."""

    def __init__(self, *, moved: bool = False) -> None:
        super().__init__()
        self.layers, self.moved = nn.ModuleList(nn.Linear(3, 3) for _ in range(3)), moved
        self.head = nn.Linear(3, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1) if self.moved else x.flatten(0, 1)
        for layer in self.layers:
            y = torch.tanh(layer(y))
        return self.head(y.mean(0) if self.moved else y.view(x.shape).mean(1))


class Mixture(nn.Module):
    """Tokens are shared out by a softmax over all experts, or over the top k."""

    def __init__(self, top_k: int | None, n: int = 4, width: int = 6) -> None:
        super().__init__()
        self.num_experts = n
        if top_k is not None:
            self.top_k = top_k
        self.gate = nn.Linear(width, n, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, width)) for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.gate(tokens)
        if not hasattr(self, "top_k"):
            share = logits.softmax(-1)
            y = sum(share[:, i : i + 1] * expert(tokens) for i, expert in enumerate(self.experts))
            return y.view(x.shape)
        best, which = logits.topk(self.top_k, -1)
        share, y = best.softmax(-1), torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            token, place = torch.nonzero(which == i, as_tuple=True)
            y.index_add_(0, token, share[token, place, None] * expert(tokens[token]))
        return y.view(x.shape)


class Mixed(nn.Module):
    """Two mixtures over sequences, each added to its input."""

    def __init__(self, top_k: int | None) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(3, 6), Mixture(top_k), Mixture(top_k, n=5)
        self.head = nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.first(x)
        return self.head((x + self.second(x)).mean(1))


class LeNet(nn.Module):
    """Convolutions (one in groups, one depthwise, one circular) and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, stride=2)
        self.conv2 = nn.Conv2d(4, 6, 2, groups=2, padding=1, padding_mode="circular")
        self.depth = nn.Conv2d(6, 6, 2, groups=6, bias=False)
        self.fc1, self.fc2 = nn.Linear(6 * 3 * 3, 8), nn.Linear(8, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(F.relu(self.conv2(torch.tanh(self.conv1(x)))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with random batch-norms, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


IMAGES, SEQUENCES = drawn(4, 3, 6, 6), drawn(4, 5, 3)
NAMES = {"mine": ["conv1[0]", "fc1[1?]"], "edge": "conv1[3]", "rest": ["fc1[2]", "fc1[4]"]}


class Named(nn.Module):
    """A convolution and a linear layer with twelve neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.fc1 = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 12)
        self.fc2 = nn.Linear(12, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.sigmoid(self.fc1(F.relu(self.bn(self.conv1(x))).mean((2, 3)))))


# name -> (network, inputs, unit, include)
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, Any, Any]] = {
    "blocks": (Residual, IMAGES, "block", None),
    "blocks-inplace": (lambda: Residual(inplace=True), IMAGES, "block", None),
    "blocks-tuple": (Steps, drawn(4, 6), ["block"], None),
    "blocks-folded": (Folded, SEQUENCES, "block", None),
    "experts-all": (lambda: Mixed(None), SEQUENCES, "expert", None),
    "experts-top2": (lambda: Mixed(2), SEQUENCES, "expert", None),
    "weights": (LeNet, drawn(4, 1, 8, 8), "weight", None),
    "weights-of-one": (LeNet, drawn(4, 1, 8, 8), "weight", "fc1"),
    "weights-transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Tanh(), nn.Conv2d(2, 4, 3), nn.Flatten()),
        IMAGES,
        "weight",
        None,
    ),
    "named": (Named, IMAGES, NAMES, None),
}


def made(name: str) -> tuple[nn.Module, Tensor, Players]:
    make, inputs, unit, include = CASES[name]
    model = seeded(make)
    return model, inputs, sp.find_players(model, inputs, unit=unit, include=include)


def coalitions_of(players: Players, seed: int = 0) -> NDArray[np.bool_]:
    """Random rows of all densities that can be cut."""
    rng = np.random.default_rng(seed)
    rows = rng.random((N_COALITIONS, players.n)) < np.linspace(0, 1, N_COALITIONS)[:, None]
    for row in rows:
        while players.too_narrow(row):
            row[rng.choice(np.flatnonzero(~row))] = True
    assert not rows[0].all()
    return rows


def under_masks(model: nn.Module, players: Players, rows: NDArray[np.bool_], inputs: Any) -> Tensor:
    """Outputs of examples whose i-th is masked by the i-th row."""
    sites = mask_sites(players, players.groups, torch.device("cpu"))
    with torch.no_grad(), masked(model, sites, torch.from_numpy(rows).float()):
        return first(model(**inputs) if isinstance(inputs, dict) else model(inputs))


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def assert_masked_is_removed(model: nn.Module, players: Players, inputs: Any) -> None:
    """Every example under a coalition of its own, against networks after surgery; and the predicted costs."""
    is_dict = isinstance(inputs, dict)
    n = len(next(iter(inputs.values())) if is_dict else inputs)
    rows = coalitions_of(players)
    outputs = []
    for row in rows:
        small = remove_players(copy.deepcopy(model), players, row)
        with torch.no_grad():
            outputs.append(first(small(**inputs) if is_dict else small(inputs)))
        assert (sum(p.numel() for p in small.parameters()), *count(small, inputs)[1:]) == players.cost(row)
    scale = max(float(y.abs().max()) for y in outputs)
    assert torch.stack(outputs).std(0).max() > 20 * TOLERANCE * scale, "the coalitions make no difference"
    for start in range(0, len(rows), n):
        some = rows[start : start + n]
        theirs = torch.stack([outputs[start + i][i] for i in range(len(some))])
        assert (under_masks(model, players, some, inputs) - theirs).abs().max() <= TOLERANCE * scale
        one = under_masks(model, players, rows[start : start + 1], inputs)  # one coalition for all examples
        assert (one - outputs[start]).abs().max() <= TOLERANCE * scale


# -- all units --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_is_masked_is_what_is_removed_and_costs_are_exact(name: str) -> None:
    model, inputs, players = made(name)
    assert_masked_is_removed(model, players, inputs)
    assert (players.model_params, players.model_macs) == count(model, inputs)


@pytest.mark.parametrize("name", CASES)
def test_the_game_gives_the_worths_of_the_networks_after_surgery(name: str) -> None:
    model, inputs, players = made(name)
    data = [(inputs, torch.arange(len(inputs)) % 4)]
    game = sp.NetworkGame(model, players, data, lambda outputs, targets: outputs.gather(1, targets[:, None])[:, 0])
    rows = coalitions_of(players, seed=1)
    theirs = []
    with torch.no_grad():
        for row in rows:
            y = remove_players(copy.deepcopy(model), players, row)(inputs)
            theirs.append(y.gather(1, data[0][1][:, None])[:, 0].numpy())
    expected = np.array(theirs)  # (coalitions, examples)
    scale = np.abs(expected).max()
    assert np.abs(game(rows) - expected.mean(1)).max() <= TOLERANCE * scale
    examples = np.arange(len(rows)) % len(inputs)
    assert np.abs(game(rows, examples) - expected[np.arange(len(rows)), examples]).max() <= TOLERANCE * scale
    assert np.isfinite(game(np.zeros((1, players.n), dtype=bool))).all()
    assert game.whole_because is None


@pytest.mark.parametrize("name", CASES)
def test_plans_of_these_players_prune_and_come_back_from_files(name: str, tmp_path: Path, untouched: Any) -> None:
    model, inputs, players = made(name)
    again = Players.from_json(json.loads(json.dumps(players.to_json())))
    assert again.to_json() == players.to_json()
    assert again.names == players.names
    scores = sp.score(model, again, [inputs[:2]], "fidelity")
    plan = sp.plan(scores, sp.Budget(players=max(2, round(0.7 * players.n))))
    with untouched(model):
        small = sp.prune(model, plan, inputs)
    assert small.training == model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    with torch.no_grad():
        for parameter in small.parameters():  # as fine-tuning would: the file, not the dense weights, must be used
            parameter.mul_(1.01)
    sp.save(small, plan, tmp_path / "out")
    loaded = sp.load(tmp_path / "out", build=lambda: seeded(CASES[name][0]))
    assert torch.equal(loaded(inputs), small(inputs))
    assert not torch.equal(small(inputs), model(inputs))
    small.train()(inputs).square().sum().backward()
    if "weights" not in name:
        with pytest.raises(sp.InputError, match="does not belong to this model"):
            sp.save(model, plan, tmp_path / "dense")
        with pytest.raises(sp.InputError, match="belongs to another model"):
            sp.prune(small, plan, inputs)


@pytest.mark.parametrize("name", CASES)
def test_games_are_told_apart_by_their_players(name: str) -> None:
    model, inputs, players = made(name)
    if len(players.groups) < 2:
        game = sp.NetworkGame(model, players, [inputs], "fidelity")
        assert game.fingerprint == sp.NetworkGame(model, players, [inputs], "fidelity").fingerprint
        return
    prints = [sp.NetworkGame(model, players, [inputs], "fidelity", g.name).fingerprint for g in players.groups]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", [n for n in CASES if n != "named"])
@pytest.mark.parametrize("criterion", ["weight_norm", "taylor", "second_order", "apoz", "hessian", "lamp"])
def test_criteria_of_channels_refuse_other_players(name: str, criterion: str) -> None:
    model, inputs, players = made(name)
    with pytest.raises(sp.InputError, match=rf"'{criterion}' needs channels, and the players of group '[\w.]+' are"):
        sp.score(model, players, [(inputs, torch.zeros(len(inputs), dtype=torch.long))], method=criterion)


def test_recovery_refuses_what_it_cannot_do() -> None:
    model, inputs, players = made("blocks")
    plan = sp.Plan.from_coalition(players, np.arange(players.n) > 0)
    small = sp.prune(model, plan, inputs)
    with pytest.raises(sp.InputError, match="a refit needs channels, and the players of group 'blocks' are blocks"):
        sp.recover(small, model, plan, [inputs])
    sp.recover(small, model, plan, [inputs], steps=("batchnorm",))
    model, inputs, players = made("weights-of-one")
    plan = sp.Plan.from_coalition(players, np.arange(players.n) > 0)
    with pytest.raises(sp.InputError, match="single weights of fc1 grow back"):
        sp.recover(sp.prune(model, plan, inputs), model, plan, [inputs], steps=("finetune",))


def test_scoring_backwards_refuses_players_that_are_no_channels() -> None:
    model, inputs, players = made("experts-all")
    with pytest.raises(sp.InputError, match="output-to-input' needs channels"):
        sp.score(model, players, [inputs], "fidelity", options=sp.options.Scoring(layers="output-to-input"))


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("blocks", "unknown unit 'blocks'; did you mean 'block'"),
        (["channel", "block"], "'block' goes with no other unit, only channel, neuron, .*, recurrent go together"),
        (["weight", "expert"], "'weight' goes with no other unit"),
        ([], "unit is empty"),
        ({}, "unit is an empty mapping"),
        ({"a": []}, "unit 'a' is"),
        ({"a": [3]}, "unit 'a' is"),
        ({"": "fc1[0]"}, "unit '' is"),
        ({"a": "fc2[0]"}, r"unit 'a': 'fc2\[0\]' matches no player and no group; did you mean 'fc1\[0\]'"),
        ({"a": "fc1[12]"}, "matches no player"),
        ({"a": "fc1[0]", "b": "fc1[?]"}, r"player fc1\[0\] is in units 'a' and 'b'"),
        ({"a": "fc1[0]", "b": "conv1"}, "without unit 'b' layer 'conv1' would have 0 channels"),
        ({"a": "fc1[0]", "b": "conv1[*]"}, "without unit 'b' layer 'conv1' would have 0 channels"),
    ],
)
def test_units_that_cannot_be_are_refused(unit: Any, words: str) -> None:
    with pytest.raises(sp.InputError, match=words):
        sp.find_players(seeded(Named), IMAGES, unit=unit)


def test_a_model_without_such_players_is_refused_with_the_reason() -> None:
    flat = nn.Linear(3, 2)
    with pytest.raises(sp.InputError, match=r"no nn\.Sequential or nn\.ModuleList"):
        sp.find_players(flat, drawn(2, 3), unit="block")
    with pytest.raises(sp.InputError, match=r"no nn\.ModuleList or nn\.ModuleDict of experts beside"):
        sp.find_players(flat, drawn(2, 3), unit="expert")
    with pytest.raises(sp.InputError, match="no convolution or linear layer"):
        sp.find_players(nn.Identity(), drawn(2, 3), unit="weight")


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_are_the_outermost_parts_that_keep_the_shape() -> None:
    model, _, players = made("blocks")
    assert [g.name for g in players.groups] == ["blocks"]
    assert players.names == ("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer2.3")
    reasons = {s.name: s.reason for s in players.skipped}
    assert set(reasons) == {"stem.0", "layer2.0"}
    assert "turns (6, 6, 6) into (8, 6, 6)" in reasons["layer2.0"]
    assert "stem.0: it turns" in players.summary()
    for name, params, macs in zip(players.names, players.params, players.macs, strict=True):
        own = [p.numel() for p in model.get_submodule(name).parameters()]
        assert params == sum(own)
        width = 6 if "layer1" in name else 8
        assert macs == 2 * 9 * width * width * 36
    whole = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)))
    assert sp.find_players(whole, drawn(4, 6), unit="block").names == ("0", "1")
    assert sp.find_players(whole, drawn(4, 6), unit="block", include="1.*").names == ("1.0", "1.2")
    assert sp.find_players(whole, drawn(4, 6), unit="block", exclude="0").names == ("1",)


def test_all_coalitions_of_six_blocks_are_one_exact_game() -> None:
    model, inputs, players = made("blocks")
    game = sp.NetworkGame(model, players, [inputs], "fidelity", "blocks")
    values = sp.estimate(game, "exact")
    rows = (np.arange(64)[:, None] >> np.arange(6) & 1).astype(bool)
    worths = game(rows)
    for player in range(6):  # by hand: the mean gain over all coalitions of each size
        gains = [[] for _ in range(6)]
        for row, worth in zip(rows, worths, strict=True):
            if not row[player]:
                code = sum(1 << i for i in np.flatnonzero(row)) | 1 << player
                gains[row.sum()].append(worths[code] - worth)
        assert values.value[player] == pytest.approx(np.mean([np.mean(g) for g in gains]), abs=1e-6)
    plan = sp.plan(sp.Scores(players, {"blocks": values}), sp.Budget(params=0.5))
    small = sp.prune(model, plan, inputs)
    assert [n for n, m in small.named_modules() if isinstance(m, PassThrough)] == list(plan.removed)
    assert set(small.state_dict()) == {
        key for key in model.state_dict() if not any(key.startswith(f"{gone}.") for gone in plan.removed)
    }
    assert count(small, inputs) == (plan.cost["params"], plan.cost["macs"])


def test_all_blocks_may_leave() -> None:
    model, inputs, players = made("blocks")
    small = sp.prune(model, sp.Plan.from_coalition(players, np.zeros(6, dtype=bool)), inputs)
    assert len(small.layer1) == 3
    assert len(small.layer2) == 4


def test_a_network_without_some_blocks_is_an_ordinary_one() -> None:
    model, inputs, players = made("blocks")
    small = sp.prune(model, sp.Plan.from_coalition(players, np.arange(6) % 2 > 0), inputs)
    channels = sp.find_players(small, inputs)
    assert channels.n
    game = sp.NetworkGame(small, channels, [inputs], "fidelity")
    assert game.whole_because is None  # torch.fx follows what passes
    exported = torch.export.export(small, (inputs,)).module()
    assert torch.allclose(exported(inputs), small(inputs), atol=1e-6)


def test_a_block_that_stands_in_several_places_leaves_them_all() -> None:
    shared = nn.Linear(6, 6)
    model = seeded(lambda: nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 5)))
    players = sp.find_players(model, drawn(4, 6), unit="block")
    assert players.names == ("0", "4")
    assert players.macs.tolist() == [72, 36]
    assert_masked_is_removed(model, players, drawn(4, 6))


class Answering(nn.Module):
    """A layer with an answer of another kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return {"x": y} if self.kind == "dict" else y.double()


class Odd(nn.Module):
    """A list of layers, the first of which is odd in some way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layers = kind, nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        if kind == "shared":
            self.layers[0].weight = self.layers[1].weight
        self.hidden = [self.layers[0]]
        if kind in ("dict", "double"):
            self.layers[0] = Answering(kind)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "listed":  # no place in the module tree
            y = self.hidden[0](x)
        elif self.kind == "functional":
            y = F.linear(x, self.layers[0].weight)
        elif self.kind == "written":
            y = self.layers[0](x.relu_()) + x
        else:
            y = self.layers[0](x)
        y = y["x"] if self.kind == "dict" else y.float()
        return self.layers[2](torch.tanh(self.layers[1](y)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shared", "layers.0.weight is also layers.1.weight, which would stay"),
        ("functional", "not called on the example inputs"),
        ("dict", "it returns a dict"),
        ("double", "it turns torch.float32 into torch.float64"),
        ("listed", "masking and removing disagree"),
    ],
)
def test_a_block_that_cannot_be_passed_by_is_skipped_with_the_reason(kind: str, words: str) -> None:
    players = sp.find_players(seeded(lambda: Odd(kind)), drawn(4, 6), unit="block")
    reasons = {s.name: s.reason for s in players.skipped}
    assert words in reasons["layers.0"]
    assert "layers.2" in players.names


def test_blocks_that_see_the_batch_elsewhere_leave_in_whole_batches_only() -> None:
    found = sp.find_players(seeded(lambda: Folded(moved=True)), SEQUENCES, unit="block")
    assert found.names == ("layers.0", "layers.1", "layers.2")
    model, _, players = made("blocks-folded")
    moved = seeded(lambda: Folded(moved=True))
    moved.load_state_dict(model.state_dict())
    with pytest.raises(
        sp.errors.GameError, match=r"at layers\.0 the batch dimension is 5, which is no multiple of 4 rows"
    ):
        under_masks(moved, players, np.zeros((4, 3), dtype=bool), SEQUENCES)


# -- transformers -----------------------------------------------------------------------------------------------------


def _transformers() -> Iterator[tuple[str, Callable[[Any], nn.Module]]]:
    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}
    yield "bert", lambda t: t.BertModel(t.BertConfig(**small, num_attention_heads=2))
    yield (
        "llama",
        lambda t: t.LlamaForCausalLM(
            t.LlamaConfig(**small, num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
        ),
    )
    yield (
        "gpt2",
        lambda t: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
        ),
    )


@pytest.mark.parametrize(("name", "make"), list(_transformers()))
def test_layers_of_transformers_are_blocks(name: str, make: Callable[[Any], nn.Module]) -> None:
    transformers = pytest.importorskip("transformers")
    model = seeded(lambda: make(transformers))
    ids = torch.randint(0, 40, (4, 7), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][0, 5:] = 0
    players = sp.find_players(model, inputs, unit="block")
    assert len(players.names) == 3
    rows = np.array([[i >> k & 1 for k in range(3)] for i in (1, 6, 4, 3)], dtype=bool)
    smalls = [remove_players(copy.deepcopy(model), players, row) for row in rows]
    with torch.no_grad():
        theirs = torch.stack([first(small(**inputs))[i] for i, small in enumerate(smalls)])
    ours = under_masks(model, players, rows, inputs)
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
    assert [sum(p.numel() for p in small.parameters()) for small in smalls] == [players.cost(r)[0] for r in rows]
    if name == "bert":
        return
    small = smalls[1]  # without the first layer, whose entry of the cache tells the positions
    with torch.no_grad():
        cache = small(ids, use_cache=True).past_key_values
        step = small(ids[:, :1], past_key_values=cache).logits[:, -1]
        whole = small(torch.cat([ids, ids[:, :1]], 1)).logits[:, -1]
    assert (step - whole).abs().max() <= TOLERANCE * whole.abs().max()


def _heads_of(t: Any, kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "t5":
        return t.T5EncoderModel(t.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)), {
            "input_ids": ids
        }
    if kind == "mpnet":
        return t.MPNetModel(t.MPNetConfig(**small, intermediate_size=24)), {"input_ids": ids}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "cls_token_id": 0, "sep_token_id": 1}
    return t.ModernBertModel(t.ModernBertConfig(**small, intermediate_size=192, **ends)), {"input_ids": ids}


@pytest.mark.parametrize(("kind", "groups"), [("t5", 1), ("mpnet", 1), ("modernbert", 2)])
def test_heads_are_those_of_attention(kind: str, groups: int) -> None:
    """Each with its column of position biases; neurons that come in runs, with their gates, are none."""
    transformers = pytest.importorskip("transformers")
    model, inputs = _heads_of(transformers, kind)
    seeded(lambda: model)
    heads = sp.find_players(model, inputs, unit="head")
    assert [len(g) for g in heads.groups] == [4] * groups
    kept = np.ones(heads.n, dtype=bool)
    kept[[0, 2]] = False
    small = sp.prune(model, sp.Plan.from_coalition(heads, kept), inputs)
    assert small.training is False
    neurons = sp.find_players(model, inputs, unit="ffn")
    assert not {g.name for g in neurons.groups} & {g.name for g in heads.groups}
    assert len(neurons.groups) == 2


# -- experts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_left"), [("experts-all", 1), ("experts-top2", 2)])
def test_experts_leave_their_list_and_the_router(name: str, n_left: int) -> None:
    model, inputs, players = made(name)
    assert [(g.name, len(g)) for g in players.groups] == [("first.experts", 4), ("second.experts", 5)]
    assert players.names[1] == "first.experts[1]"
    kept = np.array([False, True, True, False, True, True, False, True, True])
    small = sp.prune(model, sp.Plan.from_coalition(players, kept), inputs)
    assert (len(small.first.experts), small.first.gate.out_features, small.first.num_experts) == (2, 2, 2)
    assert torch.equal(small.first.experts[0][0].weight, model.first.experts[1][0].weight)
    assert torch.equal(small.second.gate.weight, model.second.gate.weight[[0, 1, 3, 4]])
    values = {g.name: sp.estimate(sp.NetworkGame(model, players, [inputs], "fidelity", g.name)) for g in players.groups}
    few = sp.plan(sp.Scores(players, values), sp.Budget(players=2 * n_left), limits=sp.options.Limits(min_players=0))
    assert [int(few.kept[g.indices].sum()) for g in players.groups] == [n_left, n_left]
    kept[:] = np.arange(9) >= 5 - n_left  # one less than there must be
    with pytest.raises(sp.SurgeryError, match=rf"'first.experts' would be left with {n_left - 1} experts"):
        sp.prune(model, sp.Plan.from_coalition(players, kept), inputs)


def test_a_mixture_without_experts_adds_nothing() -> None:
    model, inputs, players = made("experts-top2")
    rows = np.zeros((len(inputs), players.n), dtype=bool)
    rows[1, 0] = True  # one of two that are picked
    ours = under_masks(model, players, rows, inputs)
    with torch.no_grad():
        x = model.embed(inputs)
        assert torch.allclose(ours[[0, 2, 3]], model.head(x.mean(1))[[0, 2, 3]], atol=1e-6)
        alone = x[1] + model.first.experts[0](x[1])
        assert torch.allclose(ours[1], model.head(alone.mean(0)), atol=1e-6)


class Scores(nn.Module):
    """A router that is no linear layer and has none."""

    def __init__(self, gate: nn.Linear) -> None:
        super().__init__()
        self.weight = gate.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class OddMixture(Mixture):
    """A mixture that is odd in some way, beside a sound one."""

    def __init__(self, kind: str) -> None:
        super().__init__(4 if kind == "all" else None)
        self.kind, self.sound = kind, Mixture(None)
        if kind == "sizes":
            self.experts[1] = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
        if kind == "two":
            self.gate_too = nn.Linear(6, 4)
        if kind == "none":
            self.gate = Scores(self.gate)
        if kind == "tied":
            self.experts[1] = self.experts[0]
        if kind == "nested":
            for i in range(4):
                self.experts[i] = Mixture(None)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mixing":  # the example with the largest sum of shares decides for all
            return self.sound(x) + super().forward(x).flip(0)
        if self.kind == "counts":
            return self.sound(x) + super().forward(x) * self.gate.weight.abs().sum()
        return self.sound(x) + super().forward(x)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("all", "picks the top 4 of 4 experts"),
        ("sizes", "differ in size"),
        ("two", "gate and gate_too could all be its router"),
        ("none", "no such router stands beside it"),
        ("tied", "share parameters"),
        ("counts", "masking and removing disagree"),
    ],
)
def test_a_mixture_that_cannot_be_cut_is_skipped_with_the_reason(kind: str, words: str) -> None:
    players = sp.find_players(seeded(lambda: OddMixture(kind)), drawn(4, 6), unit="expert")
    assert [g.name for g in players.groups] == ["sound.experts"]
    assert words in {s.name: s.reason for s in players.skipped}["experts"]


def test_a_mixture_inside_an_expert_is_skipped() -> None:
    players = sp.find_players(seeded(lambda: OddMixture("nested")), drawn(4, 6), unit="expert")
    assert [g.name for g in players.groups] == ["experts", "sound.experts"]
    assert {s.reason for s in players.skipped} == {"it stands inside an expert of another mixture"}


def test_the_model_itself_may_be_the_mixture_and_a_list_of_layers_is_none() -> None:
    players = sp.find_players(seeded(lambda: Mixture(2)), drawn(4, 6), unit="expert")
    assert [g.name for g in players.groups] == ["experts"]
    assert_masked_is_removed(seeded(lambda: Mixture(2)), players, drawn(4, 6))
    with pytest.raises(sp.InputError, match=r"no nn\.ModuleList or nn\.ModuleDict of experts"):
        sp.find_players(seeded(Steps), drawn(4, 6), unit="expert")


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_become_zeros_and_cost_nothing() -> None:
    model, inputs, players = made("weights")
    assert {g.name: len(g) for g in players.groups} == {
        name: m.weight.numel() for name, m in model.named_modules() if hasattr(m, "weight")
    }
    assert not players.params.any()
    assert not players.macs.any()
    kept = np.random.default_rng(0).random(players.n) < 0.5
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.prune(model, plan, inputs)
    assert plan.cost["params"] == players.model_params
    for group in players.groups:
        ours, theirs = small.get_submodule(group.name).weight, model.get_submodule(group.name).weight
        assert torch.equal(ours, torch.from_numpy(kept[group.indices]).view(theirs.shape) * theirs)
    assert players.names[players.group("fc2").indices[9]] == "fc2[9]"
    games = {g.name: sp.NetworkGame(model, players, [inputs], "fidelity", g.name) for g in players.groups}
    values = {name: sp.estimate(game, max_evaluations=999) for name, game in games.items()}
    with pytest.raises(sp.InputError, match=r"no player costs any macs here.*Budget\(players"):
        sp.plan(sp.Scores(players, values), sp.Budget(macs=0.5))


def test_many_weights_are_refused_unless_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(120, 90), nn.ReLU(), nn.Linear(90, 3))
    with pytest.raises(sp.InputError, match=r"11,070 players here \(10,800 in 0\), more than 10,000; .*include='2'"):
        sp.find_players(model, drawn(2, 120), unit="weight")
    assert sp.find_players(model, drawn(2, 120), unit="weight", include="0").n == 10_800
    players = sp.find_players(model, drawn(2, 120), unit="weight", exclude="0")
    assert players.n == 270
    assert [(s.name, s.reason) for s in players.skipped] == [("0", "excluded by '0'")]


def test_weights_that_are_shared_or_computed_are_skipped() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5))
    model[1].weight = model[0].weight
    nn.utils.parametrizations.weight_norm(model[2])
    players = sp.find_players(model, drawn(2, 6), unit="weight")
    assert [g.name for g in players.groups] == ["3"]
    reasons = {s.name: s.reason for s in players.skipped}
    assert "shares its weight" in reasons["0"]
    assert "shares its weight" in reasons["1"]
    assert "parametrized" in reasons["2"]


# -- named units ------------------------------------------------------------------------------------------------------


def test_a_named_unit_owns_the_channels_of_its_players() -> None:
    model, inputs, players = made("named")
    assert [g.name for g in players.groups] == ["named"]
    assert players.names == ("mine", "edge", "rest")
    owned = {(m.module, m.role): m.channels for m in players.groups[0].members}
    assert owned["conv1", "out"] == ((0,), (3,), ())
    assert owned["fc1", "in"] == ((0,), (3,), ())
    assert owned["fc1", "out"] == owned["fc2", "in"] == ((10, 11), (), (2, 4))
    reasons = {s.name: (s.channels, s.reason) for s in players.skipped}
    assert reasons["conv1"] == (3, "no unit names them")
    assert reasons["fc1"] == (8, "no unit names them")
    channels = sp.find_players(model, inputs)
    alone = [channels.names.index(name) for name in ("conv1[0]", "fc1[10]", "fc1[11]")]
    assert players.cost(np.array([False, True, True])) == channels.cost(~np.isin(np.arange(channels.n), alone))


def test_units_of_heads_tell_their_modules_how_many_are_left() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    model = seeded(lambda: transformers.BertModel(transformers.BertConfig(**small, num_attention_heads=8)))
    inputs = {"input_ids": torch.randint(0, 40, (4, 7), generator=torch.Generator().manual_seed(1))}
    one, two = (f"encoder.layer.{i}.attention.self.query" for i in range(2))
    units = {"a": [f"{one}[0]", f"{one}[2]"], "b": [f"{one}[6]", f"{two}[8]"], "c": "*.1.intermediate.dense[1?]"}
    players = sp.find_players(model, inputs, unit=units)
    assert_masked_is_removed(model, players, inputs)
    pruned = sp.prune(model, sp.Plan.from_coalition(players, np.array([False, True, False])), inputs)
    attention = [layer.attention.self for layer in pruned.encoder.layer]
    assert [(a.num_attention_heads, a.all_head_size, a.query.out_features) for a in attention] == [
        (6, 12, 12),
        (8, 16, 16),
    ]


def test_units_that_together_empty_a_layer_are_refused_when_they_leave() -> None:
    model = seeded(Named)
    units = {"a": ["conv1[2]", "conv1[3]", "conv1[4]"], "b": ["conv1[0]", "conv1[1]"], "c": "fc1[0]"}
    players = sp.find_players(model, IMAGES, unit=units)
    plan = sp.Plan.from_coalition(players, np.array([False, False, True]))
    with pytest.raises(sp.SurgeryError, match=r"'conv1' would be left with 0 channels"):
        sp.prune(model, plan, IMAGES)
