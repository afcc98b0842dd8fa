"""Intervals agree with scipy, with printed tables, and with what can be worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from cldm.tables.statistics import bootstrap_interval, mean_and_std, means_by, t_interval

KNOWN = [0.1, 0.4, 0.35, 0.2, 0.55, 0.3]


def test_the_standard_deviation_is_that_of_a_sample():
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_std([1.0])[0] == 1.0
    assert np.isnan(mean_and_std([1.0])[1])


def test_the_t_interval_is_that_of_scipy():
    expected = stats.ttest_1samp(KNOWN, 0).confidence_interval(0.95)
    assert t_interval(KNOWN) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_three_seeds_are_as_uncertain_as_the_printed_table_says():
    low, high = t_interval([0.0, 1.0, 2.0])
    assert high - 1.0 == pytest.approx(4.303 / 3**0.5, abs=1e-3)  # t(0.975, 2) times s over the root of n
    assert 1.0 - low == pytest.approx(high - 1.0)


def test_the_bootstrap_interval_is_that_of_scipy_up_to_the_draw():
    values = np.random.default_rng(1).exponential(size=40)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000).confidence_interval
    assert bootstrap_interval(values) == pytest.approx([expected.low, expected.high], abs=0.02)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_one_value_has_no_interval():
    assert np.isnan(t_interval([1.0])).all()
    assert np.isnan(bootstrap_interval([1.0])).all()


def test_images_of_one_item_count_once():
    items, values = np.array([0, 0, 1, 1, 2, 2]), np.array([1.0, 3.0, 5.0, np.nan, np.nan, np.nan])
    assert means_by(items, values).tolist() == [2.0, 5.0]
