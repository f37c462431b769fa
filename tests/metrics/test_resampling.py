"""Bands that hold the truth as often as they say, and that know that galaxies repeat."""

import numpy as np
import pytest
from scipy.stats import binomtest

from probdeblend.metrics.resampling import bootstrap


def test_band_of_a_mean_has_its_standard_error(rng):
    values = rng.normal(size=2000)
    low, high = bootstrap(lambda rows: values[rows].mean(), np.arange(2000), resamples=400)
    assert (high - low) / 2 == pytest.approx(1 / np.sqrt(2000), rel=0.15)


@pytest.mark.slow
def test_band_covers_over_galaxies_not_over_rows(rng, false_alarm):
    """Twenty galaxies seen a hundred times each: 200 experiments; rows drawn one by one would cover a tenth."""
    galaxy = np.repeat(np.arange(20), 100)
    inside = {True: 0, False: 0}
    for _ in range(200):
        values = np.repeat(rng.normal(size=20), 100) + 0.1 * rng.normal(size=2000)
        for clustered in inside:
            owner = galaxy if clustered else np.arange(2000)
            low, high = bootstrap(lambda rows, values=values: values[rows].mean(), owner, resamples=100)
            inside[clustered] += low <= 0 <= high
    # With 20 galaxies the bootstrap's interval is a little too short: 0.66 instead of 0.68.
    assert binomtest(inside[True], 200, 0.66).pvalue > false_alarm
    assert binomtest(inside[False], 200, 0.66).pvalue < false_alarm


def test_same_seed_same_band(rng):
    values = rng.normal(size=50)
    bands = {seed: bootstrap(lambda rows: values[rows].mean(), np.arange(50), seed=seed) for seed in (1, 2)}
    assert bands[1] == bootstrap(lambda rows: values[rows].mean(), np.arange(50), seed=1)
    assert bands[1] != bands[2]


def test_mistakes():
    with pytest.raises(ValueError, match="galaxies must name at least one row, got none"):
        bootstrap(len, [])
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 2"):
        bootstrap(len, [1], level=2)
