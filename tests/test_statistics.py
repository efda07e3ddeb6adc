"""Intervals and tests against SciPy, published values and properties (F12, F15)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hjepa_lib.evaluation.statistics import (
    NOT_ESTIMABLE,
    bootstrap,
    bootstrap_difference,
    claim,
    mcnemar,
    wilson,
)

RNG = np.random.default_rng(7)


@pytest.mark.parametrize(("k", "n"), [(97, 100), (0, 20), (20, 20), (293, 300), (1, 1)])
def test_wilson_equals_its_closed_form(k, n):
    """F15: every success rate has a Wilson interval; also at 0 and n, where Wald's is empty."""
    z, p = stats.norm.ppf(0.975), k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(k, n) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)
    assert all(math.isnan(bound) for bound in wilson(0, 0))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_the_binomial_sum_over_discordant_trials(pairs):
    a, b = np.array(pairs).T
    result = mcnemar(a, b)
    c, d = result.only_first, result.only_second
    assert (c, d) == (int((a & ~b).sum()), int((b & ~a).sum()))
    tail = sum(math.comb(c + d, i) for i in range(min(c, d) + 1)) / 2 ** (c + d)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(b, a).p_value == pytest.approx(result.p_value)


def test_bootstrap_of_one_seed_equals_scipys_percentile_interval():
    scores = RNG.exponential(size=80)
    ours = bootstrap(scores, resamples=6000)
    reference = stats.bootstrap(
        (scores,), np.mean, n_resamples=6000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.estimate == scores.mean()
    assert ours[1:] == pytest.approx((reference.low, reference.high), abs=0.01)


def test_bootstrap_redraws_seeds():
    """Seeds differ, trials agree: the seeds are redrawn, too. No global generator is used."""
    scores = np.repeat([[0.0], [1.0], [5.0]], 30, axis=1)
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    found, again = (bootstrap(scores, resamples=400) for _ in range(2))
    assert found == again and found.low == 0 and found.high > 3
    assert np.array_equal(np.random.get_state()[1], state)


def test_paired_difference_cancels_what_both_share_and_uses_the_statistic():
    difficulty = RNG.normal(scale=10, size=(3, 40))
    first, second = difficulty + 1, difficulty
    paired = bootstrap_difference(first, second, resamples=300)
    assert paired == pytest.approx((1, 1, 1))
    shuffled = bootstrap_difference(first, second[:, ::-1], resamples=300)
    assert shuffled.high - shuffled.low > 1
    a, b = RNG.normal(size=(2, 15)), RNG.exponential(size=(2, 15))
    forth = bootstrap_difference(a, b, np.median, resamples=100)
    back = bootstrap_difference(b, a, np.median, resamples=100)
    assert forth == pytest.approx((-back.estimate, -back.high, -back.low))
    assert forth.estimate == np.median(a) - np.median(b) != a.mean() - b.mean()


def test_a_claim_needs_seeds_and_blocks_and_an_interval_on_one_side():
    rng = np.random.default_rng(0)
    two = rng.uniform(0.5, 1.5, (3, 12)) * np.array([[1.0], [10.0], [100.0]])  # the seeds' units
    better = claim(0.8 * two * rng.uniform(0.98, 1.02, two.shape), two, resamples=200)
    assert better["verdict"] == "beats" and better["difference"] == pytest.approx(-0.2, abs=0.01)
    assert better["low"] < better["difference"] < better["high"] < 0
    assert claim(1.3 * two, two, resamples=50)["verdict"] == "loses to"
    assert claim(two, two, resamples=50)["verdict"] == "no difference shown"
    few = claim(0.1 * two[:2], two[:2], resamples=50)
    assert few["verdict"] == "nothing claimed: 2 of 3 seeds" and few["high"] < 0
    short = claim(0.1 * two[:, :7], two[:, :7], resamples=50)
    assert short["verdict"] == "nothing claimed: 7 of 8 validation blocks"
    assert claim(0.1 * two[:, :1], two[:, :1], 1, 50)["verdict"] == "beats"
    for other in (0 * two, np.nan * two):
        assert claim(two, other)["verdict"] == NOT_ESTIMABLE
