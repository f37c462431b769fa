import numpy as np
import pytest

from probdeblend.posterior.draws import Posterior
from probdeblend.training.fitting import fit_calibrator, folds_of, report
from probdeblend.training.trial import Trial


def trial_of(count=800, *, narrow=0.6, galaxies=None, seed=0):
    """Errors of 0.2 that the posterior says are smaller; of repeated galaxies each has its own error."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(4, 6, (count, 2, 1)))
    identity = np.full((count, 2), -1) if galaxies is None else rng.integers(galaxies, size=(count, 2))
    error = rng.normal(size=truth.shape) if galaxies is None else rng.normal(size=galaxies)[identity][..., None]
    flux = truth * np.exp(0.2 * (error + narrow * rng.normal(size=(1, 100, *truth.shape))))
    posterior = Posterior.from_draws(flux, flux_kind="total", method="network")
    known = {"flux": truth, "identity": identity, "sky_rms": np.full(count, 0.01)}
    return Trial(posterior, posterior, {}, known, {}, {}, None)


def test_the_test_is_on_unseen_galaxies():
    trial = trial_of()
    fit = fit_calibrator(trial.network, trial, fitted_on="made-up blends")
    before, after = (fit.tested[fit.tested["state"] == state] for state in ("before", "after"))
    assert before["coverage_68"][0] < 0.5
    # 1,600 galaxies: four standard errors.
    assert after["coverage_68"][0] == pytest.approx(0.68, abs=0.047)
    assert after["interval_score"][0] < before["interval_score"][0]
    text = report(fit)
    assert "fitted on made-up blends" in text
    assert "each galaxy repaired by a calibrator that was fitted on others" in text


def test_bands_are_over_galaxies_where_they_repeat():
    trial = trial_of(galaxies=100)
    fit = fit_calibrator(trial.network, trial, least=50)
    row = fit.tested[(fit.tested["state"] == "after") & (fit.tested["quantity"] == "each flux")][0]
    # Blends of two folds are left out; those that stay repeat their galaxies.
    assert row["galaxies"] <= 100
    assert row["coverage_68_high"] - row["coverage_68_low"] > 0.08


def test_folds_keep_galaxies_whole():
    identity = np.random.default_rng(0).integers(40, size=(500, 2))
    folds = folds_of(identity)
    assert all(len(set(folds[identity == name])) == 1 for name in range(40))
    assert np.ptp(np.bincount(folds.ravel())) < 100
    np.testing.assert_array_equal(folds, folds_of(identity))
    with pytest.raises(ValueError, match="5 folds need as many galaxies, got 3"):
        folds_of([[1, 2], [2, 3]])


def test_too_few_galaxies():
    trial = trial_of(90)
    with pytest.raises(ValueError, match="at least 200 galaxies with an answer are needed to fit, got 180"):
        fit_calibrator(trial.network, trial)
