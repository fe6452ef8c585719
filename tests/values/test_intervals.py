"""Intervals: those for one look are Student's, and confidence sequences hold at all looks together."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from testkit.games import TableGame

from shaprune.errors import InputError
from shaprune.values.estimate import estimate
from shaprune.values.intervals import fixed_time_reach, sequence_reach
from shaprune.values.rescoring import estimate_in_rounds
from shaprune.values.result import Values
from shaprune.values.stopping import evaluations, stderr_below


@pytest.mark.parametrize(("confidence", "players", "n"), [(0.95, 1, 12), (0.95, 1, 400), (0.8, 1, 40), (0.95, 100, 60)])
def test_a_sequence_ends_where_the_martingale_reaches_one_over_the_doubt(
    confidence: float, players: int, n: int
) -> None:
    alpha = (1 - confidence) / players
    (reach,) = sequence_reach(confidence, np.array([n]), players)
    prior = 64 / (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha)))
    samples = np.random.default_rng(0).normal(3, 2, n)
    true_mean = samples.mean() + reach * samples.std(ddof=1) / math.sqrt(n)
    total, square = (samples - true_mean).sum(), ((samples - true_mean) ** 2).sum()
    martingale = math.sqrt(prior / (n + prior)) * (square / (square - total**2 / (n + prior))) ** (n / 2)
    assert martingale == pytest.approx(1 / alpha, rel=1e-6)


def test_a_sequence_holds_at_all_looks_together_where_an_interval_for_one_look_does_not() -> None:
    samples = np.random.default_rng(1).normal(size=(2_000, 1_000))
    counts = np.arange(2, 1_001)
    mean = np.cumsum(samples, axis=1)[:, 1:] / counts
    variance = (np.cumsum(samples**2, axis=1)[:, 1:] - counts * mean**2) / (counts - 1)
    away = np.abs(mean) / np.sqrt(variance / counts)
    missed = [(away > reach(0.95, counts)).any(axis=1).mean() for reach in (fixed_time_reach, sequence_reach)]
    assert missed[0] > 0.3
    assert 0.005 < missed[1] < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2_000)


def test_a_sequence_is_half_as_wide_again_and_makes_no_claim_from_too_few_samples() -> None:
    counts = np.array([64, 1_000, 100_000])
    ratio = sequence_reach(0.95, counts) / fixed_time_reach(0.95, counts)
    assert ((ratio > 1.4) & (ratio < 2.2)).all()
    assert sequence_reach(0.95, np.array([0, 1])).tolist() == [math.inf, math.inf]
    together = sequence_reach(0.95, np.array([2, 64, 1_000]), players=1_024)
    assert together[0] == math.inf
    assert (together[1:] > sequence_reach(0.95, np.array([64, 1_000]))).all()
    wide, narrow = (sequence_reach(confidence, counts) for confidence in (0.99, 0.8))
    assert (wide > narrow).all()


def _game() -> TableGame:
    return TableGame(4, 1, seed=1)


def test_the_interval_is_a_sequence_where_a_rule_looked_and_the_one_for_one_look_stays_by_name() -> None:
    looked = estimate(_game(), stop=stderr_below(0.02))
    assert looked.looks > 1
    assert looked.interval().tolist() == looked.confidence_sequence(0.95).tolist()
    fixed = looked.fixed_time_interval()
    assert (np.ptp(looked.interval(), axis=1) > 1.3 * np.ptp(fixed, axis=1)).all()
    assert Values.from_json(looked.to_json()).interval().tolist() == looked.interval().tolist()
    once = estimate(_game(), max_evaluations=looked.n_evaluations)
    assert once.looks == 0
    assert once.interval().tolist() == once.fixed_time_interval().tolist()
    ended = estimate(_game(), max_evaluations=2_000, stop=stderr_below(1e-9))  # the rule looked and was not met
    assert ended.looks > 1


def test_rounds_keep_the_looks_that_were_taken() -> None:
    assert estimate_in_rounds(_game(), "iterated", stop=evaluations(500)).looks > 0
    assert estimate_in_rounds(_game(), "iterated").looks == 0


def test_exact_values_have_no_doubt_at_any_look() -> None:
    values = estimate(_game(), "exact")
    assert values.confidence_sequence().tolist() == np.stack([values.value] * 2, axis=1).tolist()


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_a_confidence_outside_zero_and_one_is_refused(confidence: float) -> None:
    values = estimate(_game(), "exact")
    for interval in (values.confidence_sequence, values.fixed_time_interval):
        with pytest.raises(InputError, match="strictly between 0 and 1"):
            interval(confidence)


def test_an_interval_of_an_unknown_error_has_no_ends() -> None:
    values = estimate(_game(), max_evaluations=5)
    assert_allclose(values.stderr, math.inf)
    assert not np.isfinite(values.interval()).any()
