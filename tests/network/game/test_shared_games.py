"""Several worths in one pass: the same bits as games of their own, for one forward pass."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score

from shaprune.errors import GameError, InputError, ShapruneWarning
from shaprune.network.discovery.find_players import find_players
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.shared_games import several
from shaprune.network.game.subset_worth import Only
from shaprune.network.game.worths import Evaluate, SetWorth
from shaprune.players.players import Players
from shaprune.values.estimate import estimate
from shaprune.values.games.game import Game

pytestmark = pytest.mark.usefixtures("one_thread")

N = 12
LABELS = torch.arange(N) % N_OUTPUTS
Setting = tuple[nn.Module, Players, Tensor]


def rude(outputs: Tensor, targets: Tensor) -> Tensor:
    """A worth that writes into what it is given."""
    return outputs.mul_(2).gather(1, targets.zero_()[:, None])[:, 0]


def rude_to_all(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mul_(2).sum().double() + targets.zero_().sum()


WORTHS: list[Any] = ["accuracy", rude, "cross_entropy", "kl", "perplexity", SetWorth("rude", rude_to_all)]
WORTHS += [MulticlassF1Score(N_OUTPUTS), "fidelity", SetWorth("spread", lambda o, targets: o.double().std())]
BY_ROW = [0, 1, 2, 3, 7]


@pytest.fixture
def plain() -> Setting:
    make, inputs = NETWORKS["plain"]
    model, x = make(), torch.cat([inputs(), -inputs(), 0.5 * inputs().flip(0)])
    return model, find_players(model, x), x


def counted(model: nn.Module) -> list[int]:
    """Rows that pass the last layer, batch by batch."""
    passed: list[int] = []
    model.fc.register_forward_hook(lambda module, args, output: passed.append(len(output)))  # type: ignore[union-attr]
    return passed


def questions(n: int) -> dict[str, Callable[[Game], Any]]:
    rng = np.random.default_rng(0)
    kept, examples = rng.random((5, n)) < 0.6, rng.integers(0, N, 5)
    orders = rng.permuted(np.tile(np.arange(n), (4, 1)), axis=1)
    start = np.arange(n) != 3
    short = np.array([[0, 1, 5], [5, 4, 1]])
    return {
        "over all": lambda game: game(kept),
        "walks over all": lambda game: game.walk(orders[:1, :3]),
        "rows": lambda game: game(kept, examples),
        "walks": lambda game: game.walk(orders, examples[:4]),
        "walks from a coalition": lambda game: game.walk(short, examples[:2], start),
        "short walks": lambda game: game.walk(short, examples[:2]),
    }


@pytest.mark.parametrize(
    ("group", "max_memory", "whole"),
    [
        ("conv2", 1 << 30, False),
        ("conv2", 30_000, True),
        ("conv2", 2_000, False),
        (None, 1 << 30, True),
        (None, 8_000, False),
    ],
)
def test_the_answers_are_the_bits_of_games_of_their_own(
    plain: Setting, group: str | None, max_memory: int, whole: bool
) -> None:
    model, players, x = plain
    options: dict[str, Any] = {"group": group, "max_memory": max_memory}
    if whole:
        options["forward"] = lambda net, images: net(images)
    with pytest.warns(ShapruneWarning) if whole else nullcontext():
        shared = several(model, players, [(x, LABELS)], WORTHS, **options)
    with pytest.warns(ShapruneWarning) if whole else nullcontext():
        alone = [NetworkGame(model, players, [(x, LABELS)], worth, **options) for worth in WORTHS]
    assert [g.separable for g in shared] == [i in BY_ROW for i in range(len(WORTHS))]
    for name, ask in questions(shared[0].n_players).items():
        order = range(len(WORTHS)) if name != "over all" else reversed(range(len(WORTHS)))  # any may come first
        for i in order:
            if i in BY_ROW or "over all" in name:
                assert ask(shared[i]).tolist() == ask(alone[i]).tolist(), (name, WORTHS[i])
    assert [g.fingerprint for g in shared] == [g.fingerprint for g in alone]
    assert len({g.fingerprint for g in shared}) == len(WORTHS)
    for ours, theirs in zip(shared, alone, strict=True):
        assert (ours.n_examples, ours.repeatable) == (theirs.n_examples, theirs.repeatable)
        assert ours.labels is not None
        assert ours.labels.tolist() == LABELS.tolist()


def test_the_same_estimator_with_the_same_seed_pays_once(plain: Setting) -> None:
    model, players, x = plain
    passed = counted(model)
    shared = several(model, players, [(x, LABELS)], WORTHS, "conv2")
    values = []
    for i in BY_ROW:
        passed.clear()
        values.append(estimate(shared[i], max_evaluations=3 * 13 * N, seed=1))
        assert bool(passed) == (i == 0)
        assert i > 0 or 39 * N <= sum(passed) <= 39 * N + 8
    alone = NetworkGame(model, players, [(x, LABELS)], "kl", "conv2")
    again = estimate(alone, max_evaluations=3 * 13 * N, seed=1)
    assert values[BY_ROW.index(WORTHS.index("kl"))].value.tolist() == again.value.tolist()
    assert np.ptp([v.value[0] for v in values]) > 1e-4


def test_questions_over_all_examples_are_shared_by_every_kind_of_worth(plain: Setting) -> None:
    model, players, x = plain
    passed = counted(model)
    shared = several(model, players, [(x, LABELS)], WORTHS, "conv2")
    kept = np.random.default_rng(0).random((20, 12)) < 0.6
    passed.clear()
    for game in shared:
        game(kept)
    assert sum(passed) == 20 * N
    shared[0](~kept)
    assert sum(passed) == 40 * N  # another question is another pass
    shared[0](kept, np.arange(20) % N)
    shared[2](kept, np.arange(20) % N)
    assert sum(passed) == 40 * N + 20


def test_answers_belong_to_those_who_ask(plain: Setting) -> None:
    model, players, x = plain
    shared = several(model, players, [(x, LABELS)], ["accuracy", "kl"], "conv2")
    kept = np.random.default_rng(0).random((6, 12)) < 0.6
    first = shared[1](kept)
    kept_before = first.copy()
    first[:] = 7
    second = shared[1](kept)
    second[:] = 8
    assert shared[1](kept).tolist() == kept_before.tolist()


def test_memory_for_answers_is_bounded_and_the_oldest_leave(plain: Setting) -> None:
    model, players, x = plain
    passed = counted(model)
    shared = several(model, players, [(x, LABELS)], ["accuracy", "kl"], "conv2", max_memory=4 * 256)
    rows = np.random.default_rng(0).random((3, 8, 12)) < 0.6
    for block in rows:  # two times eight answers of 8 bytes each; two blocks have room
        shared[0](block, np.zeros(8, dtype=np.int64))
    for block, run_again in zip(rows[::-1], (0, 0, 8), strict=True):
        passed.clear()
        shared[1](block, np.zeros(8, dtype=np.int64))
        assert sum(passed) == run_again
    assert shared[0]._shelf.bytes <= 256  # type: ignore[attr-defined]
    assert shared[0]._shelf.bytes == sum(a.nbytes for a in shared[0]._shelf.kept.values())  # type: ignore[attr-defined]


def test_worths_on_the_same_examples_share(plain: Setting) -> None:
    model, players, x = plain
    worths = ["accuracy", Only("accuracy", 1), Only("margin", examples=[1, 6, 11])]
    shared = several(model, players, [(x, LABELS)], worths, "conv2")
    assert [game.n_examples for game in shared] == [N, 3, 3]
    kept = np.random.default_rng(0).random((6, 12)) < 0.6
    for game, worth in zip(shared, worths, strict=True):
        assert game(kept).tolist() == NetworkGame(model, players, [(x, LABELS)], worth, "conv2")(kept).tolist()
    passed = counted(model)
    shared[1](~kept)
    shared[2](~kept)
    assert sum(passed) == 6 * 3


def test_a_borrowed_model_comes_back_untouched(plain: Setting, untouched: Any) -> None:
    model, players, x = plain
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with untouched(model):
        for game in several(model, players, [(x, LABELS)], WORTHS, "conv2"):
            estimate(game, max_evaluations=4 * 13 * N)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert LABELS.tolist() == [i % N_OUTPUTS for i in range(N)]


def test_unusable_lists_of_worths_are_refused(plain: Setting) -> None:
    model, players, x = plain
    for worths in ("accuracy", [], None, 3):
        with pytest.raises(InputError, match=r"give a list of worths, such as \['accuracy', 'cross_entropy'\]"):
            several(model, players, [(x, LABELS)], worths)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Evaluate runs the model itself and cannot share"):
        several(model, players, [(x, LABELS)], ["accuracy", Evaluate(lambda net: 1.0)])  # type: ignore[list-item]
    with pytest.raises(InputError, match="unknown worth 'acuracy'"):
        several(model, players, [(x, LABELS)], ["kl", "acuracy"])
    game = several(model, players, [(x, LABELS)], ["kl", "perplexity"])[1]
    with pytest.raises(InputError, match="'perplexity' is one number over all examples"):
        game(np.ones((1, players.n), dtype=bool), np.zeros(1, dtype=np.int64))
    with pytest.raises(InputError, match=r"coalitions have shape \(1, 4\)"):
        game(np.ones((1, 4), dtype=bool))


def test_a_worth_that_fails_is_named_for_all(plain: Setting) -> None:
    model, players, x = plain
    shared = several(model, players, [(x, LABELS)], ["kl", lambda o, t: o[:, 0] / 0], "conv2")
    with pytest.raises(GameError, match="not finite for the full coalition of conv2 on example 0; worth '<lambda>'"):
        shared[0](np.ones((1, 12), dtype=bool))
