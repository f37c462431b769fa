import numpy as np
import pytest

from probdeblend.posterior.draws import Posterior
from probdeblend.training.scorecard import log_fluxes, scorecard


def pairs(count=2000, *, claimed=-0.8, narrow=1.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(4, 6, (count, 2)))
    middle = np.log(truth) + 0.1 * rng.multivariate_normal([0, 0], [[1, -0.8], [-0.8, 1]], count)
    noise = rng.multivariate_normal([0, 0], [[1, claimed], [claimed, 1]], size=(1, 100, count))
    flux = np.exp(middle + 0.1 * narrow * noise)[..., None]
    return Posterior.from_draws(flux, flux_kind="total", method="network"), truth[..., None], np.full(count, 0.01)


def test_an_exact_posterior_of_pairs():
    posterior, truth, floor = pairs()
    table = scorecard(posterior, truth, floor=floor)
    assert list(table["quantity"]) == ["each flux", "total flux", "both jointly"]
    for row in table:
        # Galaxies of a pair are tied: four standard errors of 2,000 blends, a false alarm in 16,000.
        assert row["coverage_68"] == pytest.approx(0.68, abs=4 * np.sqrt(0.68 * 0.32 / 2000))
    assert abs(table["correlation"][2]) < 0.1


def test_a_missing_correlation_shows():
    posterior, truth, floor = pairs(claimed=0.0)
    each, total, joint = scorecard(posterior, truth, floor=floor)
    assert each["coverage_68"] == pytest.approx(0.68, abs=0.042)
    assert total["coverage_68"] > 0.8
    assert joint["correlation"] < -0.7
    exact = scorecard(*pairs()[:2], floor=floor)[2]
    assert joint["log_score"] > exact["log_score"]
    assert joint["energy_score"] > exact["energy_score"]


@pytest.mark.slow
def test_abstentions_and_negative_draws():
    posterior, truth, floor = pairs(500)
    flux = posterior.flux.values.copy()
    flux[:, :, :50, 0] = np.nan
    flux[:, 0, 60, 1] = -5.0
    posterior = Posterior.from_draws(flux, flux_kind="auto", method="sep")
    draws, true = log_fluxes(posterior, truth, floor)
    assert draws.shape == (100, 500, 2)
    assert draws[0, 60, 1] == pytest.approx(np.log(0.01))
    table = scorecard(posterior, truth, floor=floor)
    assert list(table["count"]) == [950, 450, 450]
    assert true.shape == (500, 2)


def test_bands_are_over_galaxies_where_they_repeat():
    """Of the pair jointly too: twenty central galaxies tell little, however often they are blended."""
    posterior, truth, floor = pairs(20)
    rows = np.arange(600) % 20
    galaxies = np.stack([rows, rows + 20], 1)
    for row in scorecard(posterior.select(rows), truth[rows], floor=floor[rows], galaxies=galaxies):
        assert row["coverage_68_high"] - row["coverage_68_low"] > 0.15
        assert row["galaxies"] == (40 if row["quantity"] == "each flux" else 20)
    for row in scorecard(posterior.select(rows), truth[rows], floor=floor[rows]):
        assert row["coverage_68_high"] - row["coverage_68_low"] < 0.12


def test_mistakes():
    posterior, truth, floor = pairs(20)
    with pytest.raises(ValueError, match=r"truth must have the shape \(blend, galaxy, band\) of \(20, 2\), got"):
        scorecard(posterior, truth[:5], floor=floor)
    with pytest.raises(ValueError, match=r"floor must have a number a blend, got shape \(5,\)"):
        scorecard(posterior, truth, floor=floor[:5])
