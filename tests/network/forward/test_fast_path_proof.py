"""Whatever is faster than the plain masked network is compared with it once per game: wrong ones are caught.

Each test plants a fast way that answers wrongly, and sees the game, or the criterion, answer as the networks after
surgery do, with a note that says which way is not used.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.errors import ShapruneWarning
from shaprune.network.forward import row_runner
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.fast_path_proof import ProofQuestion
from shaprune.network.forward.incremental_linear import IncrementalLinear
from shaprune.network.forward.replay.replay_runner import ReplayRunner
from shaprune.network.forward.suffix import OneByOneRunner, SuffixRunner, WholeRunner

pytestmark = pytest.mark.usefixtures("one_thread")
N = 6


class Net(nn.Module):
    """Convolutions and linear layers; ``opaque`` asks for a value, so that torch.fx cannot follow it."""

    def __init__(self, opaque: bool = False) -> None:
        super().__init__()
        self.opaque = opaque
        self.a, self.norm, self.b = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3)
        self.c, self.d = nn.Linear(5, 7), nn.Linear(7, 3)
        self.norm.running_mean, self.norm.running_var = torch.randn(6), torch.rand(6) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.opaque and float(x.abs().max()) > 1e9:
            x = x / 2
        x = torch.tanh(self.b(torch.sigmoid(self.norm(self.a(x)))))
        return self.d(F.silu(self.c(x.mean((2, 3)))))


def made(opaque: bool = False) -> tuple[nn.Module, Tensor, sp.Players]:
    torch.manual_seed(0)
    model = Net(opaque).eval()
    x = torch.randn(N, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    return model, x, sp.find_players(model, x[:2])


@pytest.fixture
def noted() -> Iterator[list[str]]:
    """The warnings of a test."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
        said += [str(w.message) for w in caught]


def score_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """A worth that sees every output."""
    flat = outputs.flatten(1)
    return flat @ torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype).cos()


def assert_right(game: sp.NetworkGame, model: nn.Module, x: Any, players: sp.Players, group: str) -> None:
    """Coalitions, on single examples, on all, and along walks, are worth what the networks after surgery are."""
    own = players.group(group).indices
    rng = np.random.default_rng(0)
    kept = rng.random((N, len(own))) < 0.6
    kept[:, 0] = True
    small = []
    for row in kept:
        every = np.ones(players.n, dtype=bool)
        every[own] = row
        plan = sp.Plan.from_coalition(players, every)
        small.append(sp.prune(model, plan, x) if not every.all() else model)
    with torch.no_grad():
        truth = np.array([score_of(first(net(*x) if isinstance(x, tuple) else net(x)), x).numpy() for net in small])
    scale = float(np.abs(truth).max())
    if game.separable:
        np.testing.assert_allclose(game(kept, np.arange(N)), truth[np.arange(N), np.arange(N)], atol=1e-5 * scale)
    np.testing.assert_allclose(game(kept), truth.mean(1), atol=1e-5 * scale)
    order = np.concatenate([np.flatnonzero(~kept[0]), np.flatnonzero(kept[0])])[None]
    examples = np.array([0]) if game.separable else None
    step = int((~kept[0]).sum())
    assert game.walk(order, examples)[0, step] == pytest.approx(
        float(truth[0, 0] if game.separable else truth[0].mean()), abs=1e-5 * scale
    )


def first(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else first(next(iter(outputs)))


# -- one wrong way of every sort -----------------------------------------------------------------------------------


def unmasked(self: SuffixRunner, mask: Tensor) -> Callable[..., Any]:
    return lambda node, args: args


def test_a_part_behind_the_mask_that_forgets_the_mask_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, players = made()
    monkeypatch.setattr(SuffixRunner, "_intercept", unmasked)
    monkeypatch.setattr("shaprune.network.forward.suffix.find_incremental_linear", lambda *_: None)
    game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, "a")
    assert isinstance(game.runner, ReplayRunner)
    assert_right(game, model, x, players, "a")


def test_recorded_calls_that_forget_the_mask_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, players = made(opaque=True)
    plain = ReplayRunner.replayed
    monkeypatch.setattr(ReplayRunner, "replayed", lambda self, state, mask: plain(self, state, torch.ones_like(mask)))
    with pytest.warns(ShapruneWarning, match="recorded calls before the mask does not answer as the plain masked"):
        game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, "b")
    assert type(game.runner) is WholeRunner
    assert_right(game, model, x, players, "b")


def test_a_whole_model_that_mixes_the_masks_of_rows_is_run_one_coalition_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, players = made(opaque=True)
    monkeypatch.setattr(ReplayRunner, "replayed", lambda self, state, mask: torch.zeros(len(mask), 3))
    plain = WholeRunner.run
    monkeypatch.setattr(WholeRunner, "run", lambda self, state, mask: plain(self, state, mask.roll(1, 0)))
    with pytest.warns(ShapruneWarning, match="one coalition at a time"):
        game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, "a")
    assert type(game.runner) is OneByOneRunner
    assert_right(game, model, x, players, "a")


@pytest.mark.parametrize("which", ["contributions", "finish", "walk"])
def test_players_that_are_added_wrongly_are_recomputed(
    monkeypatch: pytest.MonkeyPatch, noted: list[str], which: str
) -> None:
    model, x, players = made()
    if which == "walk":
        sums = row_runner.sums_along_walks
        monkeypatch.setattr(row_runner, "sums_along_walks", lambda *given: sums(*given).roll(1, 0))
    else:
        plain = getattr(IncrementalLinear, which)
        monkeypatch.setattr(IncrementalLinear, which, lambda self, *given: 1.01 * plain(self, *given))
    game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, "a")
    assert [what for what, _ in game.refuted] == [
        "players are not added one by one, the layer behind the mask is run again"
    ]
    assert isinstance(game.runner, SuffixRunner)
    assert_right(game, model, x, players, "a")


def test_batches_that_are_wrong_side_by_side_run_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, noted: list[str]
) -> None:
    model, x, players = made()
    beside = row_runner.run_in_threads
    wrong = lambda run, parts, threads: beside(run, list(parts)[::-1], threads)  # noqa: E731
    monkeypatch.setattr(row_runner, "run_in_threads", wrong)
    game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, "b")
    assert [what for what, _ in game.refuted] == ["batches are not run side by side"]
    assert not game.evaluator.rows.batches.divisible()
    assert_right(game, model, x, players, "b")


def test_a_layer_that_keeps_its_input_is_not_run_side_by_side(noted: list[str]) -> None:
    class Keeping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return super().forward(self.seen)

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Keeping(6, 3)).eval(), torch.randn(N, 4)
    players = sp.find_players(model, x[:2])
    game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of)
    ((what, why),) = game.refuted
    assert what == "batches are not run side by side"
    assert "layer '2' keeps something of what it is given in its seen" in why
    assert_right(game, model, x, players, "0")


def test_a_lower_precision_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, noted: list[str]) -> None:
    model, x, players = made()
    plain = row_runner.in_precision

    def wrong(run: Any, device: Any, precision: str) -> Any:
        run_in_precision = plain(run, device, precision)
        return run_in_precision if precision == "float32" else lambda *given: 1.2 * run_in_precision(*given)

    monkeypatch.setattr(row_runner, "in_precision", wrong)
    scores = sp.score(
        model,
        players,
        [(x, None)],
        "fidelity",
        progress=False,
        max_evaluations=600,
        options=sp.options.Scoring(precision="bfloat16"),
    )
    said = [note for note in scores.notes if "precision 'bfloat16' is not used, rows are run in float32" in note]
    assert len(said) == 1
    game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, "a", precision="bfloat16")
    assert_right(game, model, x, players, "a")


def test_derivatives_that_are_wrong_are_taken_through_the_whole_model(
    monkeypatch: pytest.MonkeyPatch, noted: list[str]
) -> None:
    model, x, players = made()
    coalitions = np.random.default_rng(0).random((N, 6)) < 0.6
    data = [(x, torch.arange(N) % 3)]
    truth = sp.NetworkGame(model, players, data, "cross_entropy", "a").derivatives(coalitions, np.arange(N))
    plain = SuffixRunner.run
    half = lambda self, state, mask: plain(self, state, (mask + mask.detach()) / 2)  # noqa: E731
    monkeypatch.setattr(SuffixRunner, "run", half)
    game = sp.NetworkGame(model, players, data, "cross_entropy", "a")
    np.testing.assert_allclose(game.derivatives(coalitions, np.arange(N)), truth, atol=1e-6)
    assert [what for what, _ in game.refuted] == ["derivatives are taken through the whole model"]


@pytest.mark.parametrize("criterion", ["taylor", "activation_mean", "sensitivity", "second_order"])
def test_criteria_do_not_read_where_no_mask_stands(monkeypatch: pytest.MonkeyPatch, criterion: str) -> None:
    model, x, players = made()
    data = [(x, torch.arange(N) % 3)]
    truth = criterion_scores(model, players, Calibration(model, data), criterion)
    monkeypatch.setattr(SuffixRunner, "_intercept", unmasked)
    found = criterion_scores(model, players, Calibration(model, data), criterion)
    for name in truth:
        np.testing.assert_allclose(found[name].value, truth[name].value, rtol=1e-4, atol=1e-7)


def test_a_mask_that_has_little_effect_is_missed_too() -> None:
    dense = torch.ones(1, 4)
    outputs = dense + 1e-3
    question = ProofQuestion(torch.zeros(1), torch.zeros(1, 2), outputs, dense)
    assert question.refuted(outputs + 1e-6) is None
    assert question.refuted(dense) is not None  # within 1e-3 of the outputs, but without any effect of the mask
    assert "NaN" in str(question.refuted(outputs * float("nan")))
    assert "shape" in str(question.refuted(outputs[:, :2]))


# -- layers of any class, at any depth; rows in any layout -----------------------------------------------------------


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class OwnLinear(nn.Linear):
    pass


class Wrapped(nn.Module):
    """A layer inside a module that does nothing else, handed its input by keyword."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, input: Tensor) -> Tensor:
        return self.inner(input)


class Subclassed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = OwnConv(2, 6, 3), OwnConv(6, 5, 3), OwnLinear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.sigmoid(self.a(x)))).mean((2, 3)))


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Wrapped(Wrapped(nn.Conv2d(2, 6, 3))), Wrapped(OwnConv(6, 5, 3))
        self.c = nn.ModuleDict({"last": Wrapped(nn.Linear(5, 3))})

    def forward(self, x: Tensor) -> Tensor:
        return self.c["last"](input=torch.tanh(self.b(input=torch.sigmoid(self.a(x)))).mean((2, 3)))


class Encoder(nn.Module):
    """torch's own transformer layer, with the batch in front or the sequence."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=batch_first)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.layer(x if self.batch_first else x.transpose(0, 1))
        return self.out(x.mean(1 if self.batch_first else 0))


class Folded(nn.Module):
    """Two views of an example lie in one batch, one after all the others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(10, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        both = torch.tanh(self.b(torch.sigmoid(self.a(torch.cat([left, right]))))).mean((2, 3))
        return self.c(torch.cat(both.chunk(2), 1))


class Listed(nn.Module):
    """Features of several sizes travel as a list, and the answer is one."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3, 2)

        def forward(self, x: Tensor) -> list[Tensor]:
            fine = torch.sigmoid(self.fine(x))
            return [fine, torch.tanh(self.coarse(fine))]

    def __init__(self) -> None:
        super().__init__()
        self.body = self.Body()
        self.one, self.two = nn.Conv2d(6, 4, 1), nn.Conv2d(5, 4, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = self.body(x)
        pooled = [layer(y).relu().mean((2, 3)) for layer, y in zip((self.one, self.two), found, strict=True)]
        return [self.last(pooled[0] + pooled[1]), self.last(pooled[0])]


IMAGES = (N, 2, 7, 7)
LAYOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], set[str]]] = {
    "own classes": (Subclassed, (IMAGES,), {"a", "b"}),
    "wrapped, by keyword": (Hidden, (IMAGES,), {"a.inner.inner", "b.inner"}),
    "batch first": (lambda: Encoder(True), ((N, 5, 4),), {"layer.linear1"}),
    "sequence first": (lambda: Encoder(False), ((N, 5, 4),), {"layer.linear1"}),
    "folded": (Folded, (IMAGES, IMAGES), {"a", "b"}),
    "lists": (Listed, (IMAGES,), {"body.fine", "body.coarse"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_game_asks_the_network_after_surgery_whatever_its_layers_and_its_layout(name: str, noted: list[str]) -> None:
    make, shapes, expected = LAYOUTS[name]
    torch.manual_seed(0)
    model = make().eval()
    drawn = torch.Generator().manual_seed(1)
    inputs = tuple(torch.randn(shape, generator=drawn) for shape in shapes)
    x: Any = inputs if len(inputs) > 1 else inputs[0]
    players = sp.find_players(model, x)
    assert expected <= {g.name for g in players.groups}, players.summary()
    for group in expected:
        game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, group)
        assert_right(game, model, x, players, group)
        values = sp.score(model, players, [(x, None)], "fidelity", "exact", progress=False)[group]
        assert np.abs(values.value).max() > 1e-6


@pytest.mark.parametrize("criterion", ["taylor", "activation_mean", "sensitivity"])
def test_criteria_are_the_same_in_every_layout(criterion: str, noted: list[str]) -> None:
    found = []
    for batch_first in (True, False):
        torch.manual_seed(0)
        model = Encoder(batch_first).eval()
        x = torch.randn(N, 5, 4, generator=torch.Generator().manual_seed(1))
        players = sp.find_players(model, x, include="layer.linear1")
        calibration = Calibration(model, [(x, torch.arange(N) % 3)])
        found.append(criterion_scores(model, players, calibration, criterion)["layer.linear1"].value)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert found[0].min() < found[0].max()


class Meeting(nn.Module):
    """Every example is centred by the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.b(torch.sigmoid(self.a(x))))
        return self.c(x - x.mean(0))


def test_where_the_examples_of_a_batch_meet_coalitions_are_asked_on_whole_batches(noted: list[str]) -> None:
    torch.manual_seed(0)
    model, x = Meeting().eval(), torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
    players = sp.find_players(model, x)
    for group in ("a", "b"):
        game = sp.NetworkGame(model, players, [(x, torch.zeros(N))], score_of, group)
        assert not game.separable
        assert_right(game, model, x, players, group)
    with pytest.raises(sp.InputError, match=r"examples of a batch meet in this model.*examples=None"):
        game(np.ones((1, 5), dtype=bool), np.array([0]))
    scores = sp.score(model, players, [(x, None)], "fidelity", max_evaluations=6000, progress=False)
    assert any("examples of a batch meet" in note for note in scores.notes)
    with pytest.raises(sp.InputError, match="a criterion looks at single examples"):
        criterion_scores(model, players, Calibration(model, [(x, torch.arange(N) % 3)]), "taylor")


# -- values that say nothing -----------------------------------------------------------------------------------------


def test_values_that_are_all_zero_are_questioned_with_the_likely_cause() -> None:
    torch.manual_seed(0)
    x = torch.randn(N, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)).eval()
    model[0].bias.data -= 100  # dead
    with pytest.warns(ShapruneWarning, match="all values of 0 are 0 with standard error 0: the output that is judged"):
        scores = sp.score(model, sp.find_players(model, x), [(x, None)], "fidelity", progress=False)
    assert any("units that are always zero?" in note for note in scores.notes)
    assert not scores["2"].flat
    constant = lambda outputs, targets: outputs[:, 0] * 0 + 1  # noqa: E731
    plain, images, players = made()
    with pytest.warns(ShapruneWarning, match="all values of a, b, c are 0 .*: the worth is 1 with and without"):
        sp.score(plain, players, [(images, torch.zeros(N))], constant, progress=False)
