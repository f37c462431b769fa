"""Calibrators are fitted to posteriors that are too narrow, on blends of known truth and on a survey's own sky."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.surveys import selection
from probdeblend.training import calibrate, fit_calibrator
from probdeblend.training.calibrate import Survey, calibrate_survey, folds_of, survey_magnitudes
from probdeblend.training.evaluation import Comparison

HST = Instrument.candels_f160w()


def comparison_of(count=800, *, narrow=0.6, galaxies=None, seed=0):
    """Errors of 0.2 that the posterior says are smaller; of repeated galaxies each has its own error."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(4, 6, (count, 2, 1)))
    identity = np.full((count, 2), -1) if galaxies is None else rng.integers(galaxies, size=(count, 2))
    error = rng.normal(size=truth.shape) if galaxies is None else rng.normal(size=galaxies)[identity][..., None]
    flux = truth * np.exp(0.2 * (error + narrow * rng.normal(size=(1, 100, *truth.shape))))
    posterior = Posterior.from_draws(flux, flux_kind="total", method="network")
    known = {"flux": truth, "identity": identity, "sky_rms": np.full(count, 0.01)}
    return Comparison(posterior, posterior, {}, known, {}, {}, None)


def test_the_test_is_on_unseen_galaxies():
    comparison = comparison_of()
    fit = fit_calibrator(comparison.network, comparison, fitted_on="made-up blends")
    before, after = (fit.tested[fit.tested["state"] == state] for state in ("before", "after"))
    assert before["coverage_68"][0] < 0.5
    # 1,600 galaxies: four standard errors.
    assert after["coverage_68"][0] == pytest.approx(0.68, abs=0.047)
    assert after["interval_score"][0] < before["interval_score"][0]
    assert fit.calibrator.fitted_on == "made-up blends"


def test_bands_are_over_galaxies_where_they_repeat():
    comparison = comparison_of(galaxies=100)
    fit = fit_calibrator(comparison.network, comparison, least=50)
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
    with pytest.raises(ValueError, match="galaxies must be at least 5 for as many folds, got 3"):
        folds_of([[1, 2], [2, 3]])


def test_too_few_galaxies():
    comparison = comparison_of(90)
    with pytest.raises(ValueError, match="at least 200 galaxies with draws are needed to fit, got 180"):
        fit_calibrator(comparison.network, comparison)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    fitted = selection.fit_aperture_correction
    monkeypatch.setattr(selection, "fit_aperture_correction", lambda instrument: fitted(instrument, count=96))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("survey")
    image, catalog = simulate_mosaic(40, (700, 700), prior=Prior.published(), instrument=HST, seed=5)
    fits.PrimaryHDU(image.astype(np.float32), fits.Header({"ABMAGZP": 25.9463})).writeto(path / "mosaic.fits")
    catalog.write(path / "catalog.csv")
    return path


class Narrow:
    """Knows the blends that are made, errs by 0.2 in ln flux, and says 0.1."""

    def __init__(self):
        self.made = []

    def __call__(self, image, *, sky_rms, draws, passes, seed, calibrate):
        blend = self.made.pop(0)
        rng = np.random.default_rng(seed)
        truth = blend.flux.numpy()
        middle = truth * np.exp(0.2 * rng.normal(size=truth.shape))
        flux = middle * np.exp(0.1 * rng.normal(size=(1, draws, *truth.shape)))
        mask = np.where(blend.mask.numpy(), 0.95, 0.2).astype(np.float32)
        named = {"x": blend.x.numpy(), "y": blend.y.numpy(), "mask": mask}
        return Posterior.from_draws(flux, flux_kind="total", method="network", **named)


@pytest.fixture
def deblender(monkeypatch):
    """A network that sees the truth of what the survey makes."""
    narrow = Narrow()
    for name in ("simulated_in_sky", "pair_blends"):
        make = getattr(calibrate, name)

        def watched(*arguments, make=make, **options):
            for blend in make(*arguments, **options):
                narrow.made.append(blend)
                yield blend

        monkeypatch.setattr(calibrate, name, watched)
    return narrow


def survey_of(folder, **changes):
    return Survey((folder / "mosaic.fits",), HST, **{"count": 300} | changes)


@pytest.mark.slow
def test_simulated_galaxies_in_the_own_sky(folder, deblender):
    fit = calibrate_survey(
        survey_of(folder, galaxies="simulated", count=500), deblender, least=100, draws=100, passes=0
    )
    before, after = (fit.tested[fit.tested["state"] == state][0] for state in ("before", "after"))
    assert before["coverage_68"] < 0.5
    assert after["count"] == 1000
    assert after["coverage_68"] == pytest.approx(0.68, abs=0.06)
    assert after["interval_score"] < before["interval_score"]
    assert fit.calibrator.mask is not None
    assert "500 blends of simulated galaxies in" in fit.calibrator.fitted_on
    assert "with magnitudes as in mosaic.fits" in fit.calibrator.fitted_on


@pytest.mark.slow
def test_own_galaxies(folder, deblender):
    survey = survey_of(folder, galaxies="own", catalog=folder / "catalog.csv", magnitude=26.0)
    fit = calibrate_survey(survey, deblender, least=10, draws=100, passes=0)
    assert "isolated galaxies" in fit.calibrator.fitted_on
    after = fit.tested[fit.tested["state"] == "after"][0]
    # Blends are made within folds, so that all are tested.
    assert after["count"] == 600
    assert after["galaxies"] <= 40


@pytest.mark.slow
def test_too_few_isolated_galaxies(folder, deblender):
    with pytest.raises(
        ValueError, match=r"images must have at least 200 isolated galaxies, got \d+: lower least, add images, or"
    ):
        calibrate_survey(survey_of(folder, galaxies="own"), deblender, least=200)


def test_catalog_gives_the_magnitudes(folder):
    given = survey_magnitudes(survey_of(folder, catalog=folder / "catalog.csv"))
    np.testing.assert_allclose(np.sort(given), np.sort(Table.read(folder / "catalog.csv")["magnitude"]))
    assert len(survey_magnitudes(survey_of(folder))) > 20
