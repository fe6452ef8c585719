"""Derivatives of a network's worth by its masks: those of autograd, within memory, journaled, refused where none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from testkit.networks import NETWORKS, labelled
from testkit.options import scoring
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import shaprune as sp
from shaprune.criteria.registry import criterion_scores
from shaprune.errors import GameError, InputError
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.worths import WORTHS, Worth
from shaprune.network.removal.masks import masked

pytestmark = pytest.mark.usefixtures("one_thread")
MAKE, EXAMPLE = NETWORKS["plain"]
N = 40


def play(name: str = "plain", worth: Any = "fidelity", group: str = "conv2", n: int = N, **options: Any) -> Any:
    make, example = NETWORKS[name]
    model = make().eval()
    players = sp.find_players(model, example())
    return sp.NetworkGame(model, players, [labelled(example(), n)], worth, group, **options)


def rows_of(game: sp.NetworkGame, n: int = 24) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.random((n, game.n_players)) < 0.6, rng.integers(0, game.n_examples, n)


@pytest.mark.parametrize("worth", ["fidelity", "kl", "cross_entropy", "margin"])
@pytest.mark.parametrize(("name", "group"), [("plain", "conv2"), ("residual", "conv1a"), ("flattened", "conv2")])
def test_they_are_what_autograd_says_of_the_masked_model(name: str, group: str, worth: str) -> None:
    game = play(name, worth, group)
    coalitions, examples = rows_of(game, 6)
    found = game.derivatives(coalitions, examples)
    assert_allclose(found[:, 0], game(coalitions, examples), rtol=1e-5, atol=1e-5)
    judged = WORTHS[worth]
    assert isinstance(judged, Worth)
    for row, example, coalition in zip(found, examples, coalitions, strict=True):
        mask = torch.from_numpy(coalition[None]).float().requires_grad_()
        with masked(game.model, game.sites, mask):
            outputs = game.model(game.calibration.inputs[example : example + 1])
        worths = judged.function(outputs, game.evaluator.reference[example : example + 1])
        (slopes,) = torch.autograd.grad(worths.sum(), mask)
        assert_allclose(row[1:], slopes[0].numpy(), rtol=1e-3, atol=1e-4 * float(slopes.abs().max()))


def test_models_that_are_replayed_or_run_whole_are_differentiated_as_well() -> None:
    class Asking(nn.Module):
        """torch.fx cannot follow a question about values, here of the inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 5)])

        def forward(self, x: Tensor) -> Tensor:
            bounded = x.abs().sum() < 1e9
            for layer in self.layers:
                x = torch.tanh(layer(x)) if bounded else layer(x)
            return x

    torch.manual_seed(0)
    model, inputs = Asking().eval(), torch.randn(20, 6)
    players = sp.find_players(model, inputs[:2])
    data = [(inputs, None)]
    replayed = sp.NetworkGame(model, players, data, "fidelity", "layers.1")
    assert type(replayed.runner).__name__ == "ReplayRunner"
    with pytest.warns(sp.errors.ShapruneWarning, match="forward=.* is given"):
        whole = sp.NetworkGame(model, players, data, "fidelity", "layers.1", forward=lambda m, x: m(x))
    coalitions, examples = rows_of(replayed)
    found = replayed.derivatives(coalitions, examples)
    assert np.abs(found[:, 1:]).max() > 0.01
    assert_allclose(found, whole.derivatives(coalitions, examples), rtol=1e-4, atol=1e-6)


def test_over_all_examples_they_are_means() -> None:
    game = play()
    coalitions, _ = rows_of(game, 3)
    every = np.arange(N)
    means = [game.derivatives(np.tile(row, (N, 1)), every).mean(0) for row in coalitions]
    assert_allclose(game.derivatives(coalitions), means, rtol=1e-5, atol=1e-6)


def test_the_model_comes_back_untouched() -> None:
    game = play()
    game.model.train()
    game.model.fc.requires_grad_(False)
    before = {name: t.clone() for name, t in game.model.state_dict().items()}
    game.derivatives(*rows_of(game))
    assert game.model.training
    assert not game.model.fc.weight.requires_grad
    assert game.model.conv1.weight.requires_grad
    assert all(p.grad is None for p in game.model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in game.model.state_dict().items())
    assert torch.is_grad_enabled()


def test_scores_agree_with_those_of_walks_within_their_doubt() -> None:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE(), include="conv[12]")
    data = [labelled(EXAMPLE(), 200)]
    plain, ours = (
        sp.score(
            model,
            players,
            data,
            "fidelity",
            method,
            max_evaluations=budget,
            options=sp.options.Scoring(window=(0.0, 1.0)),
        )
        for method, budget in (("permutation", 200 * 13 * 20), ("control-variate", 6_000))
    )
    for group in plain:
        a, b = plain[group], ours[group]
        assert (np.abs(a.value - b.value) <= 4.5 * np.hypot(a.stderr, b.stderr)).all()
        assert b.diagnostics["variance_left"] < 1


def test_the_same_bits_with_a_journal_when_resumed_and_with_workers(tmp_path: Path) -> None:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE(), include="conv[12]")
    data = [labelled(EXAMPLE(), N)]

    def bits(**options: Any) -> list[bytes]:
        scores = sp.score(model, players, data, "fidelity", "control-variate", progress=False, **scoring(**options))
        return [values.value.tobytes() + values.stderr.tobytes() for values in scores.by_group.values()]

    plain = bits()
    assert bits(run=tmp_path / "run") == plain
    resumed = sp.score(model, players, data, "fidelity", "control-variate", progress=False, run=tmp_path / "run")
    assert [values.value.tobytes() + values.stderr.tobytes() for values in resumed.by_group.values()] == plain
    assert bits(run=tmp_path / "workers", workers=2) == plain


def test_shards_share_the_work_and_merge_to_the_same_bits(tmp_path: Path) -> None:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE(), include="conv2")
    data = [labelled(EXAMPLE(), N)]
    options: dict[str, Any] = {"max_evaluations": 5_000, "progress": False}
    plain = sp.score(model, players, data, "fidelity", "control-variate", **options)
    for shard in ("1/2", "2/2"):
        sp.score(
            model,
            players,
            data,
            "fidelity",
            "control-variate",
            run=sp.options.RunOptions(tmp_path / "run", shard=shard),
            **options,
        )
    merged = sp.score(model, players, data, "fidelity", "control-variate", run=tmp_path / "run", **options)
    assert merged["conv2"].value.tobytes() == plain["conv2"].value.tobytes()


def test_batches_are_as_small_as_the_memory_asks_for() -> None:
    game = play(n=200)
    coalitions, examples = rows_of(game, 200)
    plain = game.derivatives(coalitions, examples)
    rows = game.evaluator.rows
    kept = game._slopes().row_bytes
    assert kept > rows.row_bytes
    seen: list[int] = []

    class Watching:
        def __init__(self, runner: Any) -> None:
            self.runner = runner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.runner, name)

        def run(self, state: Any, mask: Tensor) -> Tensor:
            seen.append(len(mask))
            return self.runner.run(state, mask)  # type: ignore[no-any-return]

    bound = 20 * kept
    small = play(n=200, max_memory=bound)
    small.derivatives(coalitions[:1], examples[:1])
    small.evaluator.rows.runner = Watching(small.evaluator.rows.runner)
    found = small.derivatives(coalitions, examples)
    assert max(seen) == 10  # half of the memory
    assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"one row with its derivatives takes [0-9,]+; give at least that"):
        sp.estimate(play(n=200, max_memory=kept - 1), "control-variate")


def test_bfloat16_is_near_float32() -> None:
    exact, lower = play(), play(precision="bfloat16")
    coalitions, examples = rows_of(exact)
    a, b = exact.derivatives(coalitions, examples), lower.derivatives(coalitions, examples)
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() <= 0.1 * np.abs(a).max()


def test_they_are_not_asked_of_all_examples_before_anything_is_scored() -> None:
    game = play()
    assert game.derivative_price == 2
    assert game.evaluator.rows._cache is None


def test_a_worth_that_is_not_finite_is_told_as_such() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum(1) / (outputs - outputs).sum(1)

    with pytest.raises(sp.errors.GameError, match="the worth is not finite for the full coalition of conv2"):
        sp.estimate(play(worth=broken), "control-variate")


def lazy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs.detach() - 1).square().sum(1)


@pytest.mark.parametrize(
    "worth",
    ["accuracy", lazy, "perplexity", sp.Evaluate(lambda model: 1.0)],
    ids=["accuracy", "detached", "perplexity", "evaluate"],
)
def test_worths_without_derivatives_are_refused_before_scoring_with_what_to_use(worth: Any) -> None:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE(), include="conv2")
    with pytest.raises(InputError, match=r"no derivatives .*(such as 'fidelity' or 'cross_entropy'), or method='perm"):
        sp.score(model, players, [labelled(EXAMPLE(), N)], worth, "control-variate", progress=False)


def test_players_whose_masks_choose_have_no_derivatives() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x).tanh()
            return x

    torch.manual_seed(0)
    model = Blocks().eval()
    inputs = torch.randn(20, 6)
    players = sp.find_players(model, inputs[:2], unit="block")
    with pytest.raises(InputError, match=r"has no derivatives by the masks of blocks; use"):
        sp.score(model, players, [(inputs, None)], "fidelity", "control-variate", progress=False)


def test_what_writes_in_place_is_differentiated_or_refused_never_wrong() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu_(self.first(x))
            x = self.second(x).sigmoid_().mul_(2)
            return self.third(x)

    torch.manual_seed(0)
    model = InPlace().eval()
    inputs = torch.randn(30, 6)
    players = sp.find_players(model, inputs[:2], include="first")
    game = sp.NetworkGame(model, players, Calibration(model, [(inputs, None)]), "fidelity", "first")
    with pytest.raises(InputError, match=r"behind the masks of first has no derivatives .*in-?place"):
        sp.estimate(game, "control-variate")


class Partly(nn.Module):
    """A branch that autograd may not see; torch.fx cannot follow a question about the inputs."""

    def __init__(self, how: str, opaque: bool) -> None:
        super().__init__()
        self.how, self.opaque = how, opaque
        self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)
        self.b = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.opaque and float(x.abs().max()) > 1e9:
            x = x / 2
        h = torch.tanh(self.a(x))
        if self.how in ("True", "False"):
            return self.o(h + checkpoint(self.b, h, use_reentrant=self.how == "True"))  # type: ignore[no-any-return]
        if self.how == "in place":
            b = self.b(h)
            return self.o(h.add_(b))  # type: ignore[no-any-return]
        return self.o(h + (self.b(h).detach() if self.how == "detached" else self.b(h)))  # type: ignore[no-any-return]


def partly(how: str, opaque: bool, group: str | None = None) -> Any:
    torch.manual_seed(0)
    model, x = Partly(how, opaque).eval(), torch.randn(9, 4)
    data = [(x, torch.arange(9) % 3)]
    players = sp.find_players(model, x)
    return model, players, data, NetworkGame(model, players, data, "cross_entropy", group)


UNREAD = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of torch's checkpoints


@UNREAD
@pytest.mark.parametrize("how", ["True", "False"])
def test_through_checkpoints_they_are_those_of_the_same_network_without(how: str) -> None:
    model, players, data, game = partly(how, False)
    plain, _, _, other = partly("plain", False)
    every = np.ones((1, game.n_players), dtype=bool)
    assert_allclose(game.derivatives(every), other.derivatives(every), rtol=1e-4, atol=1e-7)
    for criterion in ("taylor", "sensitivity"):
        found, right = (
            criterion_scores(net, players, Calibration(net, data), criterion)["b.0"].value for net in (model, plain)
        )
        assert_allclose(found, right, rtol=1e-4)


@UNREAD
@pytest.mark.filterwarnings("ignore:the whole model is run")
@pytest.mark.parametrize(("how", "opaque"), [("True", True), ("detached", False), ("detached", True)])
def test_what_autograd_does_not_see_is_refused(how: str, opaque: bool) -> None:
    for group, reason in ((None, "a part of the network hides from it"), ("a", "hides"), ("b.0", "does not reach")):
        model, players, data, game = partly(how, opaque, group)
        with pytest.raises(InputError, match=reason):
            game.derivatives(np.ones((1, game.n_players), dtype=bool))
    with pytest.raises(InputError, match=r"hides from it.*activation_mean"):
        criterion_scores(model, players, Calibration(model, data), "taylor")


@pytest.mark.parametrize("criterion", ["taylor", "sensitivity", "second_order"])
def test_criteria_of_networks_that_write_in_place_are_refused_with_the_reason(criterion: str) -> None:
    model, players, data, _ = partly("in place", False)
    with pytest.raises(InputError, match=r"no derivatives \(one of the variables .* has been modified by an inplace"):
        criterion_scores(model, players, Calibration(model, data), criterion)


def test_outputs_of_one_axis_have_derivatives_and_their_nan_is_named() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.b(torch.relu(self.a(x))))
            return self.o(h / h.sum(1, keepdim=True)).squeeze(-1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Single().eval(), torch.rand(9, 4)
    nn.init.constant_(model.a.bias, 3.0)
    nn.init.zeros_(model.b.bias)
    nn.init.uniform_(model.b.weight, 0.1, 1.0)
    players = sp.find_players(model, x, include="a")
    game = NetworkGame(model, players, [(x, torch.randn(9))], "squared_error")
    assert game.derivatives(np.ones((2, 8), dtype=bool), np.array([0, 1])).shape == (2, 9)
    with pytest.raises(GameError, match="not finite for the empty coalition"):
        game(np.zeros((1, 8), dtype=bool))
