"""Models that torch.fx cannot trace: what comes before the mask runs once per example, with the worths of the whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.errors import ShapruneWarning
from shaprune.network.batches import call, length, transform
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.replay.dependence import DependenceTracker
from shaprune.network.forward.replay.replay_runner import ReplayRunner

pytestmark = pytest.mark.usefixtures("one_thread")
N = 9


class Counted(nn.Linear):
    """Knows how many rows it has computed."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return super().forward(x)


class Block(nn.Module):
    """Returns a tuple, whose second part nobody needs, and writes in place."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.act = nn.LayerNorm(6), Counted(6, 8), nn.Linear(8, 6), act

    def forward(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.act(self.up(self.norm(x)) * seen)
        out = self.down(hidden)
        out += x
        return out, hidden.square()


class Deep(nn.Module):
    """Its way depends on the data; ``act`` and ``mix`` are called before and behind every mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.act, self.mix = nn.Embedding(11, 6), nn.GELU(), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.blocks = nn.ModuleList([Block(self.act) for _ in range(3)])
        self.head = nn.Linear(6, 5)
        self.fails: type[BaseException] | None = None

    def forward(self, tokens: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """(N, 4) tokens, (N, 4) seen -> logits (N, 5)."""
        x = self.mix(self.embed(tokens))
        if float(seen.max()) > 1e9:
            x = x / 2
        for block in self.blocks:
            x, _ = block(x, seen[..., None])
        if self.fails is not None:
            raise self.fails("as asked")
        return {"logits": self.head(self.act(self.mix(x)).mean(1)) * self.scale}


def tokens(n: int = N) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    seen = (torch.rand(n, 4, generator=draw) < 0.8).float()
    return {"tokens": torch.randint(0, 11, (n, 4), generator=draw), "seen": seen}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


@pytest.fixture
def deep() -> Any:
    return seeded(Deep)


def whole(net: nn.Module, inputs: Any) -> Any:
    return call(net, inputs)


def both(model: nn.Module, players: sp.Players, x: Any, group: str | None, **options: Any) -> list[sp.NetworkGame]:
    """The game, which is replayed without a word, and the game that runs all of the model for every coalition."""
    replayed = sp.NetworkGame(model, players, [(x, None)], "fidelity", group, **options)
    with pytest.warns(ShapruneWarning, match="forward"):
        plain = sp.NetworkGame(model, players, [(x, None)], "fidelity", group, forward=partial(whole), **options)
    assert isinstance(replayed.runner, ReplayRunner)
    assert replayed.whole_because is None
    return [replayed, plain]


def assert_same_worths(games: list[sp.NetworkGame], rows: int = 30, near: float = 1e-5) -> None:
    rng = np.random.default_rng(0)
    n, examples = games[0].n_players, games[0].n_examples
    coalitions = rng.random((rows, n)) < rng.random((rows, 1))
    coalitions[0] = True
    who = rng.integers(0, examples, rows)
    orders = np.stack([rng.permutation(n) for _ in range(3)])
    asked: list[Callable[[sp.NetworkGame], NDArray[np.float64]]] = [
        lambda game: game(coalitions, who),
        lambda game: game(coalitions),
        lambda game: game.walk(orders, who[:3]),
    ]
    for ask in asked:
        ours, theirs = map(ask, games)
        assert np.ptp(theirs) > 1e-6
        np.testing.assert_allclose(ours, theirs, atol=near * np.abs(theirs).max())


# -- worths are those of the whole model -----------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["blocks.0.up", "blocks.2.up", None])
@pytest.mark.parametrize("max_memory", [1 << 30, 60_000])
def test_worths_are_those_of_the_whole_model(deep: Any, group: str | None, max_memory: int) -> None:
    x = tokens()
    assert_same_worths(both(deep, sp.find_players(deep, x), x, group, max_memory=max_memory))


@pytest.mark.parametrize("unit", ["block", "weight"])
def test_players_that_are_no_channels_are_replayed_too(deep: Any, unit: str) -> None:
    x = tokens()
    players = sp.find_players(deep, x, unit=unit, include="blocks*" if unit == "block" else "blocks.1.down")
    games = both(deep, players, x, None)
    assert_same_worths(games)
    assert set(games[0].runner.plan) >= {deep.embed, deep.mix}


class Table(nn.Module):
    """The same for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.unsqueeze(0).clone()


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Writes(nn.Module):
    """Writes, behind the mask, to what comes before it; one module before it also returns a state, batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.stem, self.rnn = nn.Linear(4, 64), nn.Linear(64, 6), nn.GRU(6, 6, batch_first=True)
        self.far, self.near, self.add = Table(), Table(), Add()
        self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 4) -> (N, 5)."""
        if float(x.abs().max()) > 1e9:
            x = x / 2
        x = self.add(self.stem(self.wide(x)), self.far(x))
        x = self.add(x, self.rnn(x)[0])
        table = self.near(x)
        hidden = self.down(torch.tanh(self.up(x)))
        table += 1
        x += hidden
        return self.head((x * table).mean(1))


def test_what_the_model_writes_to_is_fresh_in_every_run() -> None:
    model, x = seeded(Writes), torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(1))
    games = both(model, sp.find_players(model, x[:2], include="up"), x, None)
    assert_same_worths(games)
    runner = games[0].runner
    assert model.rnn not in runner.plan  # its state is one tensor for all examples, of a size that depends on them
    assert {model.stem, model.far, model.near, model.add, model.up} < set(runner.plan)
    assert len(runner._same) == 1  # of the two tables, one is needed
    assert games[0].evaluator.rows.row_bytes < games[1].evaluator.rows.row_bytes


class Attends(nn.Module):
    """Its attention is a function; what else it does before, and behind, the mask is told by ``way``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.qkv, self.up, self.down = nn.Linear(6, 18), nn.Linear(6, 8), nn.Linear(8, 6)
        self.gate, self.head = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 5)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """(N, 4, 6), (N, 4) -> (N, 5)."""
        if float(seen.max()) > 1e9:
            x = x / 2
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        mixed = self.attention(q, k, v, seen)
        if self.way == "several calls":
            parts = [torch.matmul(part, self.gate) for part in mixed.split(1)]
            mixed = torch.cat(parts)
        if self.way == "given a place":
            place = torch.empty_like(mixed)
            torch.matmul(mixed, self.gate, out=place)
            mixed = mixed + place
        if self.way == "one number" and float(torch.einsum("ntd,ntd->", x, x)) > 1e9:
            mixed = mixed / 2
        if self.way == "written to":
            mixed += x
        hidden = self.down(torch.relu(self.up(mixed)))
        if self.way == "written to":
            mixed *= 2
        if self.way == "called again":
            hidden = torch.matmul(hidden, self.gate)
        if self.way == "inputs again":
            hidden = hidden * x * seen[..., None]
        return self.head((hidden + mixed).mean(1))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None].bool())
        return mixed.transpose(1, 2).reshape(-1, 4, 6)


WAYS = ["plain", "several calls", "given a place", "one number", "written to", "called again", "inputs again"]


def sequences() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(4)
    seen = (torch.rand(N, 4, generator=draw) < 0.7).float()
    seen[:, 0] = 1
    return {"x": torch.randn(N, 4, 6, generator=draw), "seen": seen}


@pytest.mark.parametrize("way", WAYS)
def test_functions_before_the_mask_hand_out_what_they_gave(way: str) -> None:
    model, x = seeded(lambda: Attends(way)), sequences()
    games = both(model, sp.find_players(model, x, include="up"), x, None)
    assert_same_worths(games)
    runner = games[0].runner
    handed = {name for name in runner.plan if isinstance(name, str)}
    assert handed == (set() if way == "several calls" else {"scaled_dot_product_attention"})


def test_a_function_that_is_handed_out_does_not_run() -> None:
    model, x = seeded(lambda: Attends("plain")), sequences()
    game = sp.NetworkGame(model, sp.find_players(model, x, include="up"), [(x, None)], "fidelity")
    rows = np.random.default_rng(0).random((40, game.n_players)) < 0.5
    game(rows[:2])
    with _Counting() as counting:
        game(rows)
    assert counting.seen == 0
    kept = sorted(t[0].numel() for t in game.runner.prepare(torch.arange(N))["values"].values())
    assert kept == [4, 24, 32]  # who is seen (which Python reads), attention, what `down` reads


class Turned(nn.Module):
    """Gives its result in another order than it lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).transpose(1, 2)


class Turning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = Turned(), nn.Linear(18, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 4) -> (N, 5)."""
        assert len(x) > 0 or float(x.max()) > 0
        flat = self.stem(x).transpose(1, 2).view(-1, 18)
        return self.down(torch.relu(self.up(flat))) + flat[:, :5]


def test_what_is_handed_out_lies_in_memory_as_it_did() -> None:
    model, x = seeded(Turning), torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(1))
    assert_same_worths(both(model, sp.find_players(model, x[:2], include="up"), x, None))


class _Counting(TorchDispatchMode):
    """Counts attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += "attention" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2"])
@pytest.mark.parametrize("last", [False, True])
def test_models_of_transformers_are_replayed(family: str, last: bool) -> None:
    t = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    draw = torch.Generator().manual_seed(1)
    x: Any = {"input_ids": torch.randint(0, 90, (N, 7), generator=draw)}
    if family == "bert":
        model = seeded(lambda: t.BertModel(t.BertConfig(vocab_size=99, **small)))
        x["attention_mask"] = (torch.arange(7) < torch.randint(3, 8, (N, 1), generator=draw)).long()
    elif family == "vit":
        model = seeded(lambda: t.ViTForImageClassification(t.ViTConfig(image_size=8, patch_size=4, **small)))
        x = torch.randn(N, 3, 8, 8, generator=draw)
    else:
        ends = {"bos_token_id": 1, "eos_token_id": 1, "use_cache": True}
        config = t.GPT2Config(vocab_size=99, n_embd=16, n_layer=3, n_head=2, n_positions=16, **ends)
        model = seeded(lambda: t.GPT2LMHeadModel(config))
    players = sp.find_players(model, transform(x, lambda tensor: tensor[:2]))
    games = both(model, players, x, players.groups[-1 if last else 0].name)
    assert_same_worths(games)
    layers = [m for m in model.modules() if type(m).__name__ in ("BertLayer", "ViTLayer", "GPT2Block")]
    handed = [layer for layer in layers if layer in games[0].runner.plan]
    assert handed == (layers[:2] if last else [])


def test_derivatives_are_those_of_the_whole_model(deep: Any) -> None:
    x, targets = tokens(), torch.arange(N) % 5
    players = sp.find_players(deep, x, include="blocks.2.up")
    options: dict[str, Any] = {"worth": "cross_entropy", "method": "taylor"}
    ours = sp.score(deep, players, [(x, targets)], **options)["blocks.2.up"]
    with pytest.warns(ShapruneWarning):
        theirs = sp.score(deep, players, [(x, targets)], options=sp.options.Scoring(forward=partial(whole)), **options)[
            "blocks.2.up"
        ]
    assert np.abs(theirs.value).max() > 1e-6
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-4, atol=1e-7)


def test_bfloat16_is_near(deep: Any) -> None:
    x = tokens()
    players = sp.find_players(deep, x, include="blocks.2.up")
    assert_same_worths(both(deep, players, x, None, precision="bfloat16"), near=0.1)


def test_workers_replay_with_the_same_bits(deep: Any) -> None:
    x = tokens()
    players = sp.find_players(deep, x, include="blocks.2.up")
    here = Calibration(deep, [(x, None)])
    there = Calibration.received(deep, here.state())
    games = [sp.NetworkGame(deep, players, calibration, "fidelity") for calibration in (here, there)]
    assert all(isinstance(game.runner, ReplayRunner) for game in games)
    rows = np.random.default_rng(0).random((5, games[0].n_players)) < 0.5
    assert games[0](rows).tolist() == games[1](rows).tolist()


# -- what runs, and what is kept ---------------------------------------------------------------------------------------


def test_what_comes_before_the_mask_does_not_run_for_coalitions(deep: Any) -> None:
    x = tokens()
    game = sp.NetworkGame(deep, sp.find_players(deep, x, include="blocks.1.up"), [(x, None)], "fidelity")
    rows = np.random.default_rng(0).random((40, game.n_players)) < 0.5
    game(rows[:2])
    before = [block.up.rows for block in deep.blocks]
    game(rows)
    now = [block.up.rows for block in deep.blocks]
    assert [b - a for a, b in zip(before, now, strict=True)] == [0, 0, 40 * N]


def test_only_what_the_answer_needs_is_kept(deep: Any) -> None:
    x = tokens()
    game = sp.NetworkGame(deep, sp.find_players(deep, x, include="blocks.2.up"), [(x, None)], "fidelity")
    with torch.no_grad():
        state = game.runner.prepare(torch.arange(N))
    kept = {tuple(t.shape[1:]) for t in state["values"].values()}
    # what `down` reads, the input of the block for the shortcut, and the inputs (of which one is read)
    assert kept == {(1, 4, 8), (1, 4, 6), (1, 4)}
    assert len(state["values"]) == 4
    assert len(game.runner._unread) > 4
    seen = []
    handle = deep.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    game(np.zeros((1, game.n_players), dtype=bool))
    handle.remove()
    assert seen[-1][0].shape[1:] == (4, 6)
    assert torch.isnan(seen[-1][0]).all()


@pytest.mark.parametrize(
    ("use", "needed"),
    [
        (lambda x, y: (x + 1, y.relu()), {0}),
        (lambda x, y: (F.linear(y.argmax(1, keepdim=True).float(), torch.ones(2, 1)), None), {1}),
        (lambda x, y: (x if bool((y > 0).any()) else -x, None), {0, 1}),
        (lambda x, y: (x[y[:, 0] > 0].sum(0), None), {0, 1}),
        (lambda x, y: (torch.ones(2), y.add_(1)), {1}),
        (lambda x, y: (torch.zeros(2, 3).copy_(x), None), {0}),
        (lambda x, y: (x.shape[0] * torch.ones(2), y.detach()), set()),
        (lambda x, y: (torch.ones(len((y > 0).nonzero())), None), {1}),
        (lambda x, y: (y, x.tolist()), {0, 1}),
        (lambda x, y: (y, (x + 1).numpy()), {0, 1}),
        (lambda x, y: (y, np.asarray(x)), {0, 1}),
    ],
)
def test_what_an_answer_is_computed_from(use: Callable[..., Any], needed: set[int]) -> None:
    x, y, reading = torch.ones(2, 3), torch.ones(2, 3), DependenceTracker()
    reading.follow(x, 0)
    reading.follow(y, 1)
    with torch.no_grad(), reading:
        answer = use(x, y)[0]
    assert reading.needed(answer) == needed


# -- models that do not repeat themselves are run whole ----------------------------------------------------------------


class Chunked(nn.Module):
    """Takes its examples in parts in front of the mask."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 5)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 1e9:
            x = x / 2
        stem = torch.cat([self.stem(part) for part in x.split(self.size)])
        return self.down(torch.relu(self.up(torch.relu(stem))))


class Leaving(nn.Linear):
    """Leaves something behind for others."""

    def forward(self, x: Tensor) -> Tensor:
        self.left = super().forward(x)
        return self.left.clone()


class Stateful(Chunked):
    """What it answers depends on what a module before the mask has left behind."""

    def __init__(self) -> None:
        super().__init__(999)
        self.stem = Leaving(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.stem.left.sum(1, keepdim=True)


class Writing(Chunked):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return super().forward(x)


class Sorted(Chunked):
    """Its modules see the examples in the order of their first entry."""

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        if float(x.abs().max()) > 1e9:
            x = x / 2
        return self.down(torch.relu(self.up(self.stem(x[order]))))[order.argsort()]


def vectors(n: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Chunked(2), "depends on the number of examples"),
        (lambda: Writing(999), "it writes to its inputs"),
        (lambda: Sorted(999), "rows of a batch change places on the way"),
        (Stateful, "the model with recorded calls before the mask fails"),
    ],
)
def test_models_that_cannot_be_replayed_are_run_whole_and_say_why(make: Callable[[], nn.Module], reason: str) -> None:
    model, x = seeded(make), vectors(12)
    players = sp.find_players(model, x[:2], include="up")
    calibration = Calibration(model, [(x, None)])
    with pytest.warns(ShapruneWarning, match=reason) as said:
        game = sp.NetworkGame(model, players, calibration, "fidelity")
    assert len(said) == 1
    assert reason in str(game.whole_because)
    sp.NetworkGame(model, players, calibration, "fidelity")  # says it once
    with pytest.warns(ShapruneWarning):
        plain = sp.NetworkGame(model, players, [(x, None)], "fidelity", forward=partial(whole))
    assert_same_worths([game, plain])


@pytest.mark.parametrize("who", [None, np.array([3])])
def test_a_model_that_takes_many_examples_in_parts_is_run_whole_from_then_on(who: Any) -> None:
    model, x = seeded(lambda: Chunked(10)), vectors(12)
    replayed, plain = both(model, sp.find_players(model, x[:2], include="up"), x, None)
    with pytest.warns(ShapruneWarning, match="the whole model is run for every coalition.*called more often"):
        replayed(np.ones((1, 8), dtype=bool), who)
    assert replayed.whole_because is not None
    assert_same_worths([replayed, plain])


@pytest.mark.parametrize("criterion", ["taylor", "apoz", "activation_mean"])
def test_criteria_run_a_model_whole_that_takes_many_examples_in_parts(criterion: str) -> None:
    x, targets = vectors(12), torch.arange(12) % 5
    in_parts, at_once = (seeded(lambda size=size: Chunked(size)) for size in (10, 999))
    found = []
    for model in (at_once, in_parts):
        players = sp.find_players(model, x[:2], include="up")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            values = criterion_scores(model, players, Calibration(model, [(x, targets)]), criterion)
        assert [str(w.message) for w in said if "called more often" in str(w.message)] == [str(w.message) for w in said]
        assert len(said) == (model is in_parts)
        found.append(values["up"].value)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-7)


class Sparing(Chunked):
    """Leaves out a module where there are many rows."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.more = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 1e9:
            x = x / 2
        stem = self.stem(x)
        if len(x) <= self.size:
            stem = self.more(stem)
        return self.down(torch.relu(self.up(stem)))


class Unread(Chunked):
    """Nothing but its modules reads the inputs."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(part) for part in x.split(self.size)]
        return self.down(torch.relu(self.up(torch.cat(parts) if len(parts) > 1 else parts[0])))


@pytest.mark.parametrize("make", [Chunked, Sparing, Unread])
def test_rows_that_are_taken_another_way_are_run_whole(make: Callable[[int], nn.Module]) -> None:
    model, x = seeded(lambda: make(12)), vectors(12)
    replayed, plain = both(model, sp.find_players(model, x[:2], include="up"), x, None)
    few = np.random.default_rng(0).random((8, 8)) < 0.5
    who = np.arange(8)
    np.testing.assert_allclose(replayed(few, who), plain(few, who), rtol=1e-5)  # without a warning
    with pytest.warns(ShapruneWarning, match="run for some rows.*: (Diverged|Runtime)Error") as said:
        assert_same_worths([replayed, plain])
    assert len(said) == 1
    assert isinstance(replayed.runner, ReplayRunner)


# -- the model comes back untouched ----------------------------------------------------------------------------------


def traces(model: nn.Module) -> list[Any]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return [hooks, [sorted(vars(m)) for m in model.modules()], [vars(m).get("forward") for m in model.modules()]]


@pytest.mark.parametrize("fails", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_comes_back_untouched(deep: Any, fails: type[BaseException] | None, untouched: Any) -> None:
    x = tokens()
    deep.blocks[0].forward = partial(Block.forward, deep.blocks[0])  # somebody's own
    players = sp.find_players(deep, x, include="blocks.1.up")
    before = traces(deep)
    with untouched(deep):
        game = sp.NetworkGame(deep, players, [(x, None)], "fidelity")
        assert traces(deep) == before
        rows = np.random.default_rng(0).random((4, game.n_players)) < 0.5
        game(rows)
        assert traces(deep) == before
        deep.fails = fails
        if fails is not None:
            with warnings.catch_warnings(), pytest.raises(fails, match="as asked"):
                game(rows)
        deep.fails = None
        assert traces(deep) == before
    assert length(x) == N
