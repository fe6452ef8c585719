"""What a network game says of itself, and walks that leave from any coalition."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassF1Score

from shaprune.errors import GameError, InputError, ShapruneWarning
from shaprune.network.discovery.find_players import find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.network.forward.replay.replay_runner import ReplayRunner
from shaprune.network.forward.trace import Segment, Trace
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.subset_worth import Only
from shaprune.network.game.worths import WORTHS, Evaluate, SetWorth
from shaprune.network.removal.surgery import remove_players
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")

Setting = tuple[nn.Module, Players, Tensor]
LABELS = torch.tensor([0, 1, 2, 4])


@pytest.fixture
def plain() -> Setting:
    make, inputs = NETWORKS["plain"]
    return make(), find_players(make(), inputs()), inputs()


def first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0]


def second_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 1]


# -- walks that leave from a coalition -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["part", "whole", "little memory", "over all", "metric"])
@pytest.mark.parametrize(("name", "group"), [("plain", "conv2"), ("flattened", "fc1"), ("residual", None)])
def test_walks_from_a_coalition_are_those_of_networks_after_surgery(name: str, group: str | None, way: str) -> None:
    model, x = NETWORKS[name][0](), NETWORKS[name][1]()
    players = find_players(model, x)
    playing = np.arange(players.n) if group is None else players.group(group).indices
    mean = SetWorth("mean", lambda o, t: o[:, 0].double().mean())
    make = partial(NetworkGame, model, players, [(x, LABELS)], mean if way == "metric" else first_output, group)
    if way == "whole":
        with pytest.warns(ShapruneWarning):
            game = make(forward=lambda net, images: net(images))
    else:
        game = make(max_memory=11_000 if way == "little memory" else 1 << 30)
    rng, n = np.random.default_rng(0), len(playing)
    present = rng.permutation(n)[: n - 3]
    start = np.isin(np.arange(n), present)
    scale = float(model(x).detach().abs().max())
    for steps in (0, 3, n - 4, n - 3):  # the last one to leave empties the coalition
        orders = rng.permuted(np.tile(present, (3, 1)), axis=1)[:, :steps]
        examples = np.array([3, 0, 2])
        worths = game.walk(orders, None if way in ("over all", "metric") else examples, start)
        assert worths.shape == (3, steps + 1)
        for order, example, row in zip(orders, examples, worths, strict=True):
            for step in {0, steps // 2, min(steps, n - 4)}:
                kept = np.ones(players.n, dtype=bool)
                kept[playing] = start
                kept[playing[order[:step]]] = False
                for g in players.groups:
                    if not kept[g.indices].any():
                        break
                else:
                    with torch.no_grad():
                        outputs = remove_players(copy.deepcopy(model), players, kept)(x)[:, 0]
                    expected = outputs.mean() if way in ("over all", "metric") else outputs[example]
                    assert row[step] == pytest.approx(float(expected), abs=1e-5 * scale)
        assert steps == 0 or np.ptp(worths) > 1e-6 * scale


def test_walks_from_everybody_are_walks_and_go_the_short_way(plain: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    model, players, x = plain
    game = NetworkGame(model, players, [(x, LABELS)], "cross_entropy", "conv2")
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(12), (4, 1)), axis=1)[:, :7]
    everybody, rest = np.ones(12, dtype=bool), np.isin(np.arange(12), orders[0])
    expected = game(np.array([rest & ~np.isin(np.arange(12), orders[0, :k]) for k in range(8)]), np.full(8, 2))
    game.runner.run = None  # type: ignore[assignment, method-assign]  # only the incremental path is left
    examples = np.array([2, 0, 1, 1])
    assert game.walk(orders, examples, everybody).tolist() == game.walk(orders, examples).tolist()
    np.testing.assert_allclose(game.walk(orders[:1], examples[:1], rest)[0], expected, rtol=1e-5)


def test_a_start_that_does_not_fit_is_refused(plain: Setting) -> None:
    model, players, x = plain
    everybody = np.ones(12, dtype=bool)
    for worth in ("kl", "perplexity"):
        game = NetworkGame(model, players, [(x, LABELS)], worth, "conv2")
        with pytest.raises(InputError, match=r"start has shape \(11,\); this game needs \(12,\)"):
            game.walk(np.array([[0, 1]]), None, everybody[1:])
        with pytest.raises(InputError, match="player 5 is to leave and is not in start"):
            game.walk(np.array([[0, 1], [2, 5]]), None, np.arange(12) != 5)


def test_a_nan_on_a_walk_from_a_coalition_names_the_coalition(plain: Setting) -> None:
    model, players, x = plain

    def fragile(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(outputs),), torch.nan)

    game = NetworkGame(model, players, [(x, LABELS)], fragile, "conv2")
    start = np.isin(np.arange(12), [2, 5, 7])
    with pytest.raises(GameError, match="coalition with only players 2, 5, 7 of conv2 on example 3; worth 'fragile'"):
        game.walk(np.array([[5, 2]]), np.array([3]), start)


@pytest.mark.parametrize("worth", ["cross_entropy", "perplexity", MulticlassF1Score(num_classes=N_OUTPUTS)])
def test_means_and_set_worths_add_contributions_instead_of_running_the_layer(plain: Setting, worth: Any) -> None:
    model, players, x = plain
    game = NetworkGame(model, players, [(x, LABELS)], worth, "conv2")
    kept = np.random.default_rng(0).random((5, 12)) < 0.5
    expected = game(kept)
    game.runner.run = None  # type: ignore[assignment, method-assign]
    assert game(kept).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_floating_types_are_played(dtype: torch.dtype) -> None:
    model, x = NETWORKS["plain"][0]().to(dtype), NETWORKS["plain"][1]().to(dtype)
    game = NetworkGame(model, find_players(model, x), [(x, LABELS)], first_output, "conv2")
    rng, examples = np.random.default_rng(0), np.array([2, 0, 1])
    orders = rng.permuted(np.tile(np.arange(12), (3, 1)), axis=1)[:, :7]
    rows = np.array([~np.isin(np.arange(12), order[:step]) for order in orders for step in range(8)])
    codes = np.arange(256)[:, None] >> np.arange(12) & 1 == 1  # a grid: pairs of half sums
    expected = [game(rows, np.repeat(examples, 8)).reshape(3, 8), game(rows[3:4]), game(codes[7:8])]
    game.runner.run = None  # type: ignore[assignment, method-assign]  # only the incremental path is left
    found = [game.walk(orders, examples), game(rows)[3:4], game(codes)[7:8]]
    near = 1e-12 if dtype == torch.float64 else 0.05
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=near * np.abs(expected[0]).max())


# -- what a game says of itself ------------------------------------------------------------------------------------


def test_which_games_are_separable_and_known_to_repeat_themselves(plain: Setting) -> None:
    model, players, x = plain
    targets = {"squared_error": torch.zeros(4, 5), "absolute_error": torch.zeros(4, 5)}
    for name in WORTHS:
        game = NetworkGame(model, players, [(x, targets.get(name, LABELS))], name)
        assert (game.separable, game.repeatable, game.whole_because) == (name != "perplexity", True, None)
    for worth in (first_output, SetWorth("mine", lambda o, t: 1.0), MulticlassF1Score(N_OUTPUTS)):
        game = NetworkGame(model, players, [(x, LABELS)], worth)
        assert (game.separable, game.repeatable) == (worth is first_output, False)
    assert NetworkGame(model, players, [(x, LABELS)], Only("kl", 1)).repeatable
    whole = NetworkGame(model, players, None, Evaluate(lambda net: 1.0))
    assert (whole.separable, whole.repeatable, whole.n_examples, whole.labels) == (False, False, 1, None)


def test_a_network_that_is_run_whole_says_why_and_is_not_known_to_repeat_itself(plain: Setting) -> None:
    model, players, x = plain
    with pytest.warns(ShapruneWarning, match="forward=.* is given"):
        game = NetworkGame(model, players, [(x, LABELS)], forward=lambda net, images: net(images))
    assert (game.whole_because, game.repeatable) == ("forward=... is given", False)


class WritesInPlace(nn.Module):
    """Changes, behind the mask, a value that is computed before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.fc = nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        view = x.view(-1)
        hidden = self.down(torch.tanh(self.up(x)))
        x.add_(hidden)
        return self.fc(F.relu(view.view(-1, 6)))


def test_a_group_whose_part_cannot_be_verified_is_replayed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WritesInPlace().eval()
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    players = find_players(model, x)
    game = NetworkGame(model, players, [(x, LABELS)], "kl", "up")
    assert isinstance(game.runner, ReplayRunner)
    assert (game.whole_because, game.repeatable) == (None, False)
    with pytest.warns(ShapruneWarning, match="forward=.* is given"):
        whole = NetworkGame(model, players, [(x, LABELS)], "kl", "up", forward=lambda net, images: net(images))
    rows = np.random.default_rng(0).random((20, game.n_players)) < 0.5
    np.testing.assert_allclose(game(rows), whole(rows), atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (LABELS, [0, 1, 2, 4]),
        (LABELS.to(torch.uint8), [0, 1, 2, 4]),
        (LABELS.float(), None),
        (LABELS > 1, None),
        (LABELS[:, None], None),
        (None, None),
    ],
)
def test_labels_are_whole_numbers_one_per_example(plain: Setting, targets: Tensor | None, labels: Any) -> None:
    model, players, x = plain
    found = NetworkGame(model, players, [(x, targets)], "fidelity").labels
    assert labels is None if found is None else (found.dtype == np.int64 and found.tolist() == labels)


# -- fingerprints --------------------------------------------------------------------------------------------------


def game_with(**changes: Any) -> NetworkGame:
    """The same game, made anew, but for the changes."""
    model, x = NETWORKS["plain"][0](), NETWORKS["plain"][1]()
    players = find_players(model, x)
    changes.get("model", lambda net: None)(model)
    data = [(changes.get("x", lambda x: x)(x), changes.get("targets", LABELS))]
    return NetworkGame(model, players, data, changes.get("worth", "cross_entropy"), changes.get("group", "conv2"))


def change(name: str, values: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def apply(model: nn.Module) -> None:
        state = model.state_dict()
        state[name].copy_(values(state[name]))

    return apply


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a weight": {"model": change("fc.weight", lambda w: w + 1e-3 * (torch.arange(w.numel()).view_as(w) == 7))},
    "a buffer": {"model": change("bn1.running_mean", lambda m: m.flip(0))},
    "a setting": {"model": lambda net: setattr(net.bn1, "eps", 1e-3)},
    "an input": {"x": lambda x: x.flip(0)},
    "a target": {"targets": LABELS.flip(0)},
    "examples": {"worth": Only("cross_entropy", examples=[0, 1])},
    "the players": {"group": "conv1"},
    "all players": {"group": None},
    "the worth": {"worth": "margin"},
    "fidelity": {"worth": "fidelity"},
    "a callable": {"worth": first_output},
    "another callable": {"worth": second_output},
    "a metric": {"worth": MulticlassF1Score(num_classes=N_OUTPUTS, average="macro")},
    "a metric's option": {"worth": MulticlassF1Score(num_classes=N_OUTPUTS, average="micro")},
    "the whole model": {"worth": Evaluate(lambda net: 1.0)},
    "a partial": {"worth": partial(F.nll_loss, reduction="none")},
    "a partial's options": {"worth": partial(F.nll_loss, reduction="none", ignore_index=3)},
}


def test_the_fingerprint_tells_games_apart_and_knows_equal_ones() -> None:
    prints = {name: game_with(**changes).fingerprint for name, changes in CHANGES.items()}
    assert len(set(prints.values())) == len(CHANGES)
    assert all(len(p) == 64 for p in prints.values())
    for name in ("nothing", "a metric", "the whole model"):
        assert game_with(**CHANGES[name]).fingerprint == prints[name]
    assert (
        game_with(worth="fidelity", targets=LABELS.flip(0)).fingerprint == prints["fidelity"]
    )  # it looks at no target


def test_groups_of_as_many_players_have_other_fingerprints() -> None:
    model, x = NETWORKS["residual"][0](), NETWORKS["residual"][1]()
    players = find_players(model, x)
    names = [group.name for group in players.groups if len(group) == len(players.group("conv1a"))]
    games = [NetworkGame(model, players, [(x, LABELS)], "kl", name) for name in names]
    assert len({game.fingerprint for game in games}) == len(names) > 1


def test_a_game_with_another_worth_has_another_fingerprint() -> None:
    game = game_with()
    before = game.fingerprint
    assert game.judged_by("margin").fingerprint == game_with(worth="margin").fingerprint != before
    assert game.fingerprint == before


# -- values at the cut of another game -------------------------------------------------------------------------------


class InPlace(nn.Module):
    """The shortcut reads what an activation in place has written."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 5)
        self.act = nn.LeakyReLU(0.3, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.down(torch.tanh(self.up(self.act(x)))) + x)


@pytest.mark.parametrize("make", [InPlace, lambda: NETWORKS["residual"][0](), lambda: NETWORKS["plain"][0]()])
def test_games_on_one_subject_answer_as_each_alone_whatever_was_played_before(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    inputs = torch.randn(20, 4) if isinstance(model, InPlace) else torch.randn(20, 3, 8, 8)
    players = find_players(model, inputs[:2])
    names = [g.name for g in players.groups]
    rng = np.random.default_rng(0)
    taken = 0
    for first, second in permutations(names, 2):
        calibration = Calibration(model, [(inputs, None)])
        before = NetworkGame(model, players, calibration, "fidelity", first)
        before(np.ones((1, before.n_players), dtype=bool))
        assert calibration.known is not None
        game = NetworkGame(model, players, calibration, "fidelity", second)
        alone = NetworkGame(model, players, Calibration(model, [(inputs, None)]), "fidelity", second)
        rows = rng.random((6, game.n_players)) < 0.5
        rows[0] = True
        with torch.no_grad():
            asked = game.evaluator.rows
            taken += asked.calibration.known_for(asked.runner, asked.some) is not None
        np.testing.assert_allclose(game(rows), alone(rows), rtol=1e-5, atol=1e-8)
    assert taken > 0


def test_what_another_game_has_computed_is_not_computed_again() -> None:
    model = NETWORKS["plain"][0]().eval()
    inputs = torch.randn(20, 3, 8, 8)
    players = find_players(model, inputs[:2])
    calibration = Calibration(model, [(inputs, None)])
    rows: list[int] = []
    model.conv1.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    for name in ("conv2", "conv3"):
        game = NetworkGame(model, players, calibration, "fidelity", name)
        before = sum(r == 20 for r in rows)
        game(np.ones((1, game.n_players), dtype=bool))
        assert sum(r == 20 for r in rows) - before == (name == "conv2")


class Sums(nn.Module):
    """Sums of which only the first is fresh, and read by its ReLU alone."""

    def forward(self, x: Tensor) -> Tensor:
        fresh = torch.relu(x + 1)
        twice = x * 2 + fresh
        given = x * 3
        written = torch.add(x, fresh, out=given)
        return torch.relu(twice) + twice + torch.relu(written) + given


def test_only_fresh_sums_that_nothing_else_reads_are_overwritten_by_their_relu() -> None:
    trace = Trace(Sums())
    segment = Segment(trace, [node for node in trace.nodes if node.op != "placeholder"])
    assert [str(source) for source in segment.overwritten.values()] == ["add"]
    x = torch.randn(3, 4)
    assert torch.equal(segment.run(trace.feed(x)), Sums()(x))
