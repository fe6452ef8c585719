"""Certified cuts: they end, also with ties, are right as often as they say, and bad input is refused at the start."""

import math
from typing import Any

import numpy as np
import pytest
from testkit.games import TableGame, game_of, random_worth

from shaprune.errors import InputError
from shaprune.values.certificate import Certificate, count_undecided, near_cut
from shaprune.values.estimate import estimate, expected_evaluations
from shaprune.values.estimators.regression import Regression
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.stopping import certified_cut, cut_settled, evaluations, rule_of, seconds, stderr_below


def _fewest(ends: Any, leaves: Any, eps: float) -> int:
    """By trying every set of players to leave out."""
    n = len(leaves)
    for size in range(n + 1):
        for code in range(1 << n):
            rest = np.array([not code >> i & 1 for i in range(n)])
            if n - rest.sum() != size:
                continue
            out, stay = ends[leaves & rest, 1], ends[~leaves & rest, 0]
            if not len(out) or not len(stay) or out.max() <= stay.min() + eps:
                return size
    raise AssertionError("unreachable")


@pytest.mark.parametrize("seed", range(20))
def test_the_undecided_are_the_fewest_without_whom_the_cut_is_certain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    value, width = rng.normal(size=7), rng.exponential(0.5, 7)
    ends = np.stack([value - width, value + width], axis=1)
    ends[rng.random(7) < 0.15] = -math.inf, math.inf
    leaves = np.isin(np.arange(7), value.argsort()[: rng.integers(1, 7)])
    for eps in (0.01, 0.5):
        fewest = count_undecided(ends, leaves, eps)
        assert fewest == _fewest(ends, leaves, eps)
        assert fewest <= near_cut(value, ends, leaves, eps).sum()


def test_a_certificate_says_what_is_certain_or_by_how_many_players_it_is_not() -> None:
    assert str(Certificate(0.95, 0.0123, 0)).startswith(
        "certified at .95, eps = 0.0123: no player that leaves is worth"
    )
    assert str(Certificate(0.9, 0.5, 1)) == "not certified at .9, eps = 0.5: 1 player is undecided"
    assert str(Certificate(0.95, 0.5, 1_234)).endswith(": 1,234 players are undecided")


def test_ties_at_the_cut_are_no_obstacle() -> None:
    game = TableGame(6, 1, seed=1)
    size = (np.arange(64)[:, None] >> np.arange(6) & 1).sum(1)
    game.tables = (size**2 / 10.0)[None]  # all players are alike, and worth more the more there are
    values = estimate(game, stop=certified_cut(3), seed=1)
    assert values.stopped_by == "certified_cut(3, confidence=0.95)"
    assert values.diagnostics["undecided"] == 0
    assert values.diagnostics["eps"] == pytest.approx(0.1 * np.median(values.value))
    never = estimate(game, max_evaluations=2_000, stop=cut_settled(3), seed=1)
    assert never.stopped_by == "max_evaluations"


def test_certified_cuts_are_wrong_in_at_most_one_of_twenty() -> None:
    wrong, eps = [], 0.05
    game = TableGame(6, 1, seed=5)
    truth = estimate(game, "exact").value
    for seed in range(200):
        values = estimate(game, stop=certified_cut(3, eps), seed=seed)
        leaves = np.isin(np.arange(6), values.ranking()[:3])
        wrong.append(truth[leaves].max() > truth[~leaves].min() + eps)
    assert np.mean(wrong) <= 0.05


def test_only_players_near_the_cut_go_on() -> None:
    values = estimate(TableGame(8, 1, seed=2), stop=certified_cut(4, 0.02), seed=2)
    assert values.counts.max() > 1.5 * values.counts.min()
    assert values.stopped_by == "certified_cut(4, eps=0.02, confidence=0.95)"


def test_a_limit_ends_what_is_not_certain_yet_and_the_undecided_are_counted() -> None:
    values = estimate(TableGame(8, 1, seed=2), stop=certified_cut(4, 1e-6) | evaluations(3_000), seed=2)
    assert values.stopped_by == "evaluations(3000)"
    assert 1 <= values.diagnostics["undecided"] <= 4
    assert values.options["certified_cut"] == {"eps": 1e-6, "confidence": 0.95}


def test_the_confidence_is_shared_out_among_the_players_of_all_games() -> None:
    alone = certified_cut(2) | evaluations(10**9)
    among = alone.among(4_000)
    assert among.name == alone.name
    few, many = (estimate(TableGame(4, 1, seed=2), stop=rule, seed=1).n_evaluations for rule in (alone, among))
    assert many > 1.3 * few
    assert stderr_below(1).among(9) is not None
    assert seconds(5).among(9).name == "seconds(5)"


def test_a_rule_in_a_text_may_name_its_numbers() -> None:
    rule = rule_of("certified_cut(0.5, confidence=0.9) | evaluations(500)")
    assert rule.name == "certified_cut(0.5, confidence=0.9) | evaluations(500)"
    assert rule_of(rule.name).name == rule.name
    with pytest.raises(InputError, match=r"cannot be read.*confidenc"):
        rule_of("certified_cut(0.5, confidenc=0.9)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "give how many players leave"),
        ((True,), "give how many players leave"),
        ((2, 0), "eps=0: players of equal value.*cut_settled"),
        ((2, 0.0), "eps=0: players of equal value"),
        ((2, -0.1), "eps is -0.1"),
        ((2, math.nan), "eps is nan"),
        ((2, math.inf), "eps is inf"),
        ((2, True), "eps is True"),
        ((2, 0.1, 95), "strictly between 0 and 1"),
    ],
)
def test_bad_input_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        certified_cut(*arguments)


@pytest.mark.parametrize("remove", [4, 9, 0.01])
def test_a_cut_with_one_side_only_is_refused_before_any_work(remove: float) -> None:
    game = CountingGame(game_of(random_worth(4, seed=0), 4))
    with pytest.raises(InputError, match="at least one must leave and one must stay"):
        estimate(game, stop=certified_cut(remove))
    assert game.evaluations == 0


@pytest.mark.parametrize("method", [Regression("interactions"), Regression("linear", "walks"), Regression(ridge=0.1)])
def test_a_rule_that_can_never_be_met_is_refused_before_any_work(method: Regression) -> None:
    game = CountingGame(Game.from_function(lambda rows: rows.sum(1) ** 2.0, 12))
    for rule in (certified_cut(4), stderr_below(0.1), cut_settled(3)):
        with pytest.raises(InputError, match=r"would never be met; take another method, or combine"):
            estimate(game, method, stop=rule)
        with pytest.raises(InputError, match="would never be met"):
            expected_evaluations(game, method, stop=rule)
    assert game.evaluations == 0
    assert estimate(game, method, stop=certified_cut(4) | evaluations(300)).stopped_by == "evaluations(300)"
