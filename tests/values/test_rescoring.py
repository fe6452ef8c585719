"""Modes: rounds of scoring against naive loops, and games of those who are left, by table and in real networks."""

import math
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from testkit.games import TableGame, Worth, by_all_orders, by_sizes, by_subsets, game_of, random_worth
from testkit.networks import NETWORKS
from testkit.options import scoring
from torch import nn

import shaprune as sp
from shaprune.values.estimators.exact import Partial
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.games.logged import LoggedGame
from shaprune.values.games.subgame import Subgame
from shaprune.values.rescoring import MODES, estimate_in_rounds, expected_evaluations_in_rounds
from shaprune.values.stopping import rule_of

N = 5
Score = Callable[[Worth, int], NDArray[np.float64]]  # (worth of the players that are left, how many) -> values


def naive(
    worth: Worth, n: int, score: Score, *, step: int = 1, adding: bool = False, negative_first: bool = False
) -> tuple[list[int], list[float]]:
    """Players in the order in which they leave or enter, and their values then, by the plainest loop there is."""
    left, done = list(range(n)), []
    values = []
    while left:
        here, settled = tuple(left), frozenset(done) if adding else frozenset()
        value = score(lambda kept, here=here, settled=settled: worth(settled | {here[i] for i in kept}), len(left))
        number = max(step, sum(v < 0 for v in value)) if negative_first else step
        ranked = sorted(range(len(left)), key=lambda i: (-value[i], -i) if adding else (value[i], i))
        for i in ranked[:number]:
            done.append(left[i])
            values.append(float(value[i]))
        left = [p for p in left if p not in done]
    return done, values


def order_of(values: sp.Values, *, adding: bool = False) -> list[int]:
    return values.ranking()[::-1].tolist() if adding else values.ranking().tolist()


def rising(values: Iterable[float]) -> list[float]:
    return np.maximum.accumulate(list(values)).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_greedy_backward_removes_whoever_is_missed_least(seed: int) -> None:
    worth, left, order = random_worth(N, seed), set(range(N)), []
    while left:
        loser = max(sorted(left), key=lambda p: worth(frozenset(left - {p})))
        order.append(loser)
        left -= {loser}
    assert order_of(estimate_in_rounds(game_of(worth, N), "greedy-backward")) == order


@pytest.mark.parametrize("seed", range(6))
def test_greedy_forward_adds_whoever_helps_most(seed: int) -> None:
    worth, inside, order = random_worth(N, seed), frozenset[int](), []
    while len(inside) < N:
        best = max(sorted(set(range(N)) - inside), key=lambda p: worth(inside | {p}))
        order.append(best)
        inside |= {best}
    assert order_of(estimate_in_rounds(game_of(worth, N), "greedy-forward"), adding=True) == order


@pytest.mark.parametrize("step", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("mode", ["iterated", "building"])
def test_rounds_with_exact_values_follow_a_naive_loop(mode: str, step: int) -> None:
    for seed in range(3):
        worth, adding = random_worth(N, seed), mode == "building"
        order, met = naive(worth, N, by_all_orders, step=step, adding=adding)
        values = estimate_in_rounds(game_of(worth, N), mode, "exact", step=step)
        assert order_of(values, adding=adding) == order
        expected = rising(met if not adding else met[::-1])  # in the order of leaving
        assert values.value[values.ranking()] == pytest.approx(expected, abs=1e-12)
        assert np.all(np.diff(values.value[values.ranking()]) > 0)
        assert values.diagnostics["rounds"] == math.ceil(N / step)
        assert values.stopped_by == "rounds"


def test_a_fraction_of_the_players_leaves_per_round() -> None:
    game = game_of(random_worth(N, 0), N)
    assert (
        estimate_in_rounds(game, "iterated", "exact", step=0.4).value.tolist()
        == estimate_in_rounds(game, "iterated", "exact", step=2).value.tolist()
    )
    assert estimate_in_rounds(game, "iterated", "exact", step=0.01).diagnostics["rounds"] == N


def test_one_shot_is_the_estimate() -> None:
    game = TableGame(N, 7, seed=1)
    once = estimate_in_rounds(game, "one-shot", "permutation", 500, seed=3, concept="banzhaf")
    assert once.to_json() == sp.estimate(game, "permutation", 500, seed=3, concept="banzhaf").to_json()


@pytest.mark.parametrize("adding", [False, True])
def test_a_round_weighs_coalitions_by_the_concept_among_those_who_are_left(adding: bool) -> None:
    def banzhaf(worth: Worth, n: int) -> NDArray[np.float64]:
        return by_subsets(worth, n, lambda size: 0.7**size * 0.3 ** (n - 1 - size))

    worth, mode = random_worth(N, 8), "building" if adding else "iterated"
    values = estimate_in_rounds(game_of(worth, N), mode, "exact", concept="banzhaf:0.7")
    assert order_of(values, adding=adding) == naive(worth, N, banzhaf, adding=adding)[0]
    assert values.concept == "banzhaf:0.7"
    assert not values.efficient


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (0.8, 1.0), (0.0, 0.4)])
def test_a_window_counts_those_who_are_left_and_is_widened_where_it_holds_nothing(low: float, high: float) -> None:
    def window(worth: Worth, n: int) -> NDArray[np.float64]:
        first, last = math.ceil(low * n - 1e-9), math.floor(high * n + 1e-9)
        if last <= first:  # the two neighbouring sizes at the upper end
            first, last = max(last, 1) - 1, max(last, 1)
        return by_sizes(worth, n, first, last)

    for seed in range(3):
        worth = random_worth(N, seed)
        values = estimate_in_rounds(game_of(worth, N), "iterated", "exact", sizes=(low, high))
        assert order_of(values) == naive(worth, N, window)[0]


def test_a_window_that_holds_nothing_from_the_start_is_refused() -> None:
    with pytest.raises(sp.InputError, match="holds no two neighbouring"):
        estimate_in_rounds(game_of(random_worth(N, 0), N), "iterated", "exact", sizes=(0.45, 0.55))


def test_negative_players_leave_first_and_together() -> None:
    gain = np.array([-1.0, 3.0, -2.0, 0.5, -0.5, 2.0])
    game = Game.from_function(lambda kept: kept @ gain, 6)
    values = estimate_in_rounds(game, "iterated", "exact", negative_first=True)
    assert order_of(values) == [2, 0, 4, 3, 5, 1]
    assert values.diagnostics["rounds"] == 1 + 3
    assert estimate_in_rounds(game, "iterated", "exact", step=4, negative_first=True).diagnostics["rounds"] == 2
    for seed in range(8):
        worth = random_worth(N, seed)
        values = estimate_in_rounds(game_of(worth, N), "iterated", "exact", negative_first=True)
        assert order_of(values) == naive(worth, N, by_all_orders, negative_first=True)[0]


@pytest.mark.parametrize("mode", ["iterated", "building"])
def test_one_order_per_example_finds_the_order_of_exact_values(mode: str) -> None:
    game = TableGame(4, 40, seed=5)
    gain = np.array([0.6, 0.0, 0.9, 0.3])  # keeps the players apart
    game.tables += (np.arange(16)[:, None] >> np.arange(4) & 1) @ gain
    exact = estimate_in_rounds(game, mode, "exact")
    sampled = estimate_in_rounds(game, mode, "permutation", 40 * 14 * 300, seed=1)
    assert order_of(sampled) == order_of(exact)
    assert np.all(np.abs(sampled.value - exact.value) <= 5 * sampled.stderr + 1e-12)
    assert set(game.walked) <= set(range(40))


@pytest.mark.parametrize("mode", MODES)
def test_the_budget_of_all_rounds_is_kept_and_used(mode: str) -> None:
    game = CountingGame(TableGame(6, 10, seed=0))
    greedy = mode.startswith("greedy")
    budget = 10 * sum(range(2, 8)) + (0 if greedy else 1_000)
    values = estimate_in_rounds(game, mode, max_evaluations=budget)
    assert values.n_evaluations == game.evaluations <= budget
    assert game.evaluations > 0.8 * budget
    assert expected_evaluations_in_rounds(game, mode, max_evaluations=budget) <= budget


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [1, 2, 4])
def test_what_is_expected_is_what_is_paid(mode: str, step: int) -> None:
    for method in ("permutation", "exact"):
        if mode.startswith("greedy") and method == "exact":
            continue
        game = CountingGame(TableGame(6, 3, seed=0))
        expected = expected_evaluations_in_rounds(game, mode, method, step=step)
        assert game.evaluations == 0
        assert estimate_in_rounds(game, mode, method, step=step).n_evaluations == game.evaluations == expected


@pytest.mark.parametrize(
    ("mode", "method"), [("greedy-backward", "permutation"), ("iterated", "exact"), ("building", "permutation")]
)
def test_the_smallest_budget_that_works_is_named_before_any_work(mode: str, method: str) -> None:
    game = CountingGame(TableGame(6, 10, seed=0))
    least = {"greedy-backward": 10 * sum(range(2, 8)), "iterated": 10 * sum(2**n for n in range(1, 7)), "building": 27}[
        mode
    ]
    for ask in (estimate_in_rounds, expected_evaluations_in_rounds):
        with pytest.raises(sp.InputError, match=f"too small for 6 rounds; the smallest that works is {least}:"):
            ask(game, mode, method, least - 1)
    assert game.evaluations == 0
    assert estimate_in_rounds(game, mode, method, least).n_evaluations == game.evaluations <= least


def test_the_same_seed_gives_the_same_bits_and_every_round_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    game = TableGame(6, 10, seed=0)
    one, again, other = (estimate_in_rounds(game, "iterated", seed=seed).value.tolist() for seed in (1, 1, 2))
    assert one == again != other
    seeds = []

    def noted(*args: Any, **options: Any) -> sp.Values:
        seeds.append(args[4])
        return sp.estimate(*args, **options)

    monkeypatch.setattr("shaprune.values.rescoring.estimate", noted)
    for seed in (0, 1):
        estimate_in_rounds(game, "iterated", seed=seed)
    assert len(set(seeds)) == len(seeds) == 12


def test_a_rule_ends_each_round_and_is_left_out_where_too_few_are_left() -> None:
    gain = np.array([1.0, 5.0, 9.0, 14.0, 20.0])
    game = CountingGame(Game.from_function(lambda kept: kept @ gain, N))
    values = estimate_in_rounds(game, "iterated", stop=rule_of("cut_settled(2)"), step=2)
    assert order_of(values) == [0, 1, 2, 3, 4]
    assert expected_evaluations_in_rounds(game, "iterated", stop=rule_of("cut_settled(2)"), step=2) is None
    plain = estimate_in_rounds(CountingGame(game.game), "iterated", step=2)
    assert values.n_evaluations < plain.n_evaluations


def test_partial_looks_at_as_many_as_are_left() -> None:
    worth = random_worth(N, 2)

    def near_empty(worth: Worth, n: int) -> NDArray[np.float64]:
        return by_sizes(worth, n, 0, min(3, n))

    values = estimate_in_rounds(game_of(worth, N), "iterated", Partial(k=3, side="empty"))
    assert order_of(values) == naive(worth, N, near_empty)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "greedy_backward"}, "did you mean 'greedy-backward'"),
        ({"mode": "iterated", "step": 0}, "players per round are 0"),
        ({"mode": "iterated", "step": -1}, "players per round are -1"),
        ({"mode": "iterated", "step": 1.5}, "players per round are 1.5"),
        ({"mode": "iterated", "step": float("nan")}, "players per round are nan"),
        ({"mode": "iterated", "step": True}, "players per round are True"),
        ({"mode": "iterated", "step": "2"}, "players per round are '2'"),
        ({"mode": "iterated", "seed": -1}, "seed is -1"),
        ({"mode": "iterated", "seed": 0.5}, "seed is 0.5"),
        ({"mode": "building", "negative_first": True}, "negative_first is for modes in which players leave"),
        ({"mode": "greedy-forward", "negative_first": True}, "negative_first is for modes in which players leave"),
        ({"mode": "greedy-backward", "method": "exact"}, "a method and a concept of its own"),
        ({"mode": "greedy-backward", "concept": "banzhaf"}, "a method and a concept of its own"),
        ({"mode": "greedy-forward", "sizes": (0.5, 1.0)}, "a method and a concept of its own"),
        ({"mode": "greedy-backward", "stop": lambda values: None}, "no option 'stop'"),
        ({"mode": "greedy-backward", "aggregate": "mean+2std"}, "no values per example"),
        ({"mode": "iterated", "concept": "semivalue:1,2,3,4,5"}, "once 4 of 5 players are left: the semivalue has 5"),
        ({"mode": "iterated", "sizes": (0.9, 0.1)}, "0 <= lo < hi <= 1"),
        ({"mode": "iterated", "method": "permutatoin"}, "did you mean 'permutation'"),
    ],
)
def test_what_cannot_be_played_is_refused_before_any_work(options: dict, message: str) -> None:  # type: ignore[type-arg]
    game = CountingGame(game_of(random_worth(N, 0), N))
    with pytest.raises(sp.InputError, match=message.replace("(", r"\(")):
        estimate_in_rounds(game, **options)
    assert game.evaluations == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_single_player_is_worth_what_it_adds(mode: str) -> None:
    assert estimate_in_rounds(
        game_of({frozenset(): -2.0, frozenset({0}): 3.0}.__getitem__, 1), mode
    ).value.tolist() == [5.0]


def test_a_logged_game_pays_every_coalition_once_over_all_rounds() -> None:
    game = CountingGame(TableGame(N, 3, seed=4))
    values = estimate_in_rounds(LoggedGame(game), "iterated", "exact")
    assert values.n_evaluations == game.evaluations == 3 * 2**N  # rounds look at subsets of what is known
    assert values.diagnostics["evaluations_from_log"] == 3 * (sum(2**n for n in range(1, N + 1)) - 2**N)
    assert values.value.tolist() == estimate_in_rounds(game.game, "iterated", "exact").value.tolist()


# -- those who are left ----------------------------------------------------------------------------------------------


def test_a_subgame_answers_as_the_whole_game_with_the_others_settled() -> None:
    game = TableGame(6, 4, seed=0)
    base = np.array([True, True, False, False, True, False])  # players 0 and 4 play, and are not settled by it
    part = Subgame(game, np.array([4, 0, 3]), base)
    assert (part.n_players, part.n_examples, part.fingerprint) == (3, 4, None)
    for few in (s for size in range(4) for s in combinations(range(3), size)):
        here, whole = np.zeros((1, 3), dtype=bool), np.array([[False, True, False, False, False, False]])
        here[0, list(few)] = True
        whole[0, [(4, 0, 3)[i] for i in few]] = True
        assert part(here) == game(whole)
        assert part(here, np.array([2])) == game(whole, np.array([2]))


@pytest.mark.parametrize("start", [None, (True, False, True)])
def test_walks_of_a_subgame_leave_the_settled_where_they_are(start: tuple[bool, ...] | None) -> None:
    game = TableGame(6, 4, seed=0)
    part = Subgame(game, np.array([4, 0, 3]), np.array([False, True, False, False, False, False]))
    orders = np.array([[0, 2], [2, 0]])
    begin = None if start is None else np.array(start)
    walked = part.walk(orders, np.array([1, 3]), begin)
    for row, (order, example) in enumerate(zip(orders, (1, 3), strict=True)):
        kept = np.ones(3, dtype=bool) if begin is None else begin.copy()
        for step in range(3):
            assert walked[row, step] == part(kept[None], np.array([example]))[0]
            if step < 2:
                kept[order[step]] = False


# -- networks --------------------------------------------------------------------------------------------------------


def flattened() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network, inputs, and targets that it gets right more often than not."""
    make, example = NETWORKS["flattened"]
    model = make().eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3 if weights.ndim > 1 else 1)  # channels that make a difference
    inputs = torch.randn(24, *example().shape[1:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        targets = model(inputs).argmax(1)
    return model, inputs, torch.where(torch.arange(24) % 5 == 0, (targets + 1) % 5, targets)


def test_greedy_backward_cuts_the_channels_that_a_loop_over_pruned_networks_cuts() -> None:
    model, inputs, targets = flattened()
    players = sp.find_players(model, inputs[:2], include=["conv1"])
    kept, order = np.ones(players.n, dtype=bool), []
    while kept.sum() > 1:
        losses = {}
        for player in np.flatnonzero(kept):
            without = kept.copy()
            without[player] = False
            small = sp.prune(model, sp.Plan.from_coalition(players, without), inputs[:2])
            with torch.no_grad():
                losses[int(player)] = float(nn.functional.cross_entropy(small(inputs), targets))
        order.append(min(losses, key=losses.__getitem__))
        kept[order[-1]] = False
    scores = sp.score(
        model,
        players,
        [(inputs, targets)],
        "cross_entropy",
        progress=False,
        options=sp.options.Scoring(mode="greedy-backward"),
    )
    assert scores["conv1"].ranking().tolist()[:-1] == order


@pytest.mark.parametrize("mode", ["iterated", "building"])
def test_sampled_rounds_of_a_network_agree_with_exact_ones(mode: str) -> None:
    model, inputs, targets = flattened()
    players = sp.find_players(model, inputs[:2], include=["conv2"])
    how = {"mode": mode, "progress": False, "per_round": 4, "window": (0.0, 1.0)}
    exact = sp.score(model, players, [(inputs, targets)], "margin", "exact", **scoring(**how))["conv2"]
    sampled = sp.score(model, players, [(inputs, targets)], "margin", max_evaluations=24 * 14 * 120, **scoring(**how))[
        "conv2"
    ]
    first = exact.ranking()[::-1][:4] if mode == "building" else exact.ranking()[:4]
    assert np.all(np.abs(sampled.value - exact.value)[first] < 5 * sampled.stderr[first])
    assert set(sampled.ranking()[:4]) == set(exact.ranking()[:4])


@pytest.mark.parametrize("worth", ["margin", "fidelity"])
def test_from_the_output_back_each_group_is_scored_in_the_network_cut_behind_it(worth: str) -> None:
    model, inputs, targets = flattened()
    players = sp.find_players(model, inputs[:2])
    data = [(inputs, targets)]
    scores = sp.score(
        model,
        players,
        data,
        worth,
        "exact",
        progress=False,
        options=sp.options.Scoring(layers="output-to-input", remove=0.5, window=(0.0, 1.0)),
    )
    whole = sp.NetworkGame(model, players, data, worth)  # every group plays; the later ones are settled by masks
    kept = np.ones(players.n, dtype=bool)
    for group in reversed(players.groups):
        expected = sp.estimate(Subgame(whole, group.indices, kept), "exact")
        assert scores[group.name].value == pytest.approx(expected.value, rel=1e-3, abs=1e-4)
        kept[group.indices[expected.ranking()[: round(len(group) / 2)]]] = False
    assert list(scores) == [group.name for group in players.groups]
    assert len(players.groups) == 3
    alone = sp.score(
        model, players, data, worth, "exact", progress=False, options=sp.options.Scoring(window=(0.0, 1.0))
    )
    last, first = players.groups[-1].name, players.groups[0].name
    assert scores[last].value.tolist() == alone[last].value.tolist()
    assert not np.allclose(scores[first].value, alone[first].value, atol=1e-2)


def test_the_last_channel_of_a_group_stays_for_the_groups_before_it() -> None:
    model, inputs, targets = flattened()
    players = sp.find_players(model, inputs[:2])
    scores = sp.score(
        model,
        players,
        [(inputs, targets)],
        "margin",
        progress=False,
        options=sp.options.Scoring(layers="output-to-input", remove=0.99),
    )
    assert all(np.isfinite(values.value).all() for values in scores.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove": 0.0}, "remove is 0.0"),
        ({"remove": 1.0}, "remove is 1.0"),
        ({"together": True}, "drop these"),
        ({"log": "folder"}, "drop these"),
        ({"method": "taylor"}, "plays no game"),
    ],
)
def test_from_the_output_back_refuses_what_does_not_go_with_it(options: dict, message: str) -> None:  # type: ignore[type-arg]
    model, inputs, targets = flattened()
    players = sp.find_players(model, inputs[:2])
    how = {"method": "permutation", **options}
    with pytest.raises(sp.InputError, match=message):
        sp.score(
            model,
            players,
            [(inputs, targets)],
            "margin",
            progress=False,
            **scoring(layers="output-to-input", **how),
        )
