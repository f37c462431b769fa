"""Calibration on a user's own sky, on a mosaic that the package simulates, with a network that is known to be wrong."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from probdeblend.photometry.mosaics import open_mosaic
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.surveys import collect
from probdeblend.surveys.sky_patches import magnitude_weights, simulated_in_sky, sky_patches
from probdeblend.training.survey import Survey, calibrate_survey

HST = Instrument.candels_f160w()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    fitted = collect.fit_aperture_correction
    monkeypatch.setattr(collect, "fit_aperture_correction", lambda instrument: fitted(instrument, count=96))


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
    from probdeblend.training import fitting, survey

    narrow = Narrow()
    for module, name in ((survey, "simulated_in_sky"), (fitting, "pair_blends")):
        make = getattr(module, name)

        def watched(*arguments, make=make, **options):
            for blend in make(*arguments, **options):
                narrow.made.append(blend)
                yield blend

        monkeypatch.setattr(module, name, watched)
    return narrow


def survey_of(folder, **changes):
    return Survey((folder / "mosaic.fits",), HST, **{"count": 300} | changes)


def test_patches_are_sky(folder):
    with open_mosaic(folder / "mosaic.fits") as mosaic:
        sky = sky_patches([mosaic], HST, count=12, seed=1)
        again = sky_patches([mosaic], HST, count=12, seed=1)
    assert sky.pixels.shape == (12, 128, 128)
    np.testing.assert_array_equal(sky.pixels, again.pixels)
    # The noise that was put in is found again, without the galaxies.
    np.testing.assert_allclose(sky.sky_rms, HST.sky_rms, rtol=0.1)
    assert np.abs(np.median(sky.pixels, (1, 2))).max() < 0.2 * HST.sky_rms
    neighbor = (sky.pixels[:, :, 1:] * sky.pixels[:, :, :-1]).mean() / (sky.pixels**2).mean()
    assert neighbor == pytest.approx(0.44, abs=0.12)  # drizzled noise, not white


def test_blends_in_that_sky(folder):
    with open_mosaic(folder / "mosaic.fits") as mosaic:
        sky = sky_patches([mosaic], HST, count=3, seed=1)
    batches = list(simulated_in_sky(sky, 70, prior=Prior.published(), seed=2))
    assert [len(blend) for blend in batches] == [64, 6]
    blend = batches[0]
    assert len(torch.unique(torch.cat([batch.identity.ravel() for batch in batches]))) == 140
    left = (blend.image[:, 0] - blend.isolated[:, :, 0].sum(1)).double()
    faint = blend.isolated[:, :, 0].sum(1) < 0.1 * blend.sky_rms[:, None, None]
    scatter = left[faint].std()
    assert float(scatter) == pytest.approx(float(sky.sky_rms.mean()), rel=0.1)
    # Photons scatter more where the galaxies are bright.
    assert left[blend.isolated[:, :, 0].sum(1) > 30 * HST.sky_rms].std() > 1.2 * scatter


def test_simulated_magnitudes_are_those_of_the_survey(folder):
    with open_mosaic(folder / "mosaic.fits") as mosaic:
        sky = sky_patches([mosaic], HST, count=2, seed=1)
    rng = np.random.default_rng(1)
    target = rng.normal(22.5, 0.4, 2000)
    blends = simulated_in_sky(sky, 192, prior=Prior.default(), magnitudes=target, seed=2)
    flux = torch.cat([blend.flux[..., 0] for blend in blends]).double().numpy()
    found = HST.zero_point - 2.5 * np.log10(flux)
    # 384 galaxies, in pairs: four standard errors, and half a bin.
    assert found.mean() == pytest.approx(22.5, abs=0.15)
    assert found.std() == pytest.approx(0.43, abs=0.12)


def test_weights_match_the_magnitudes():
    rng = np.random.default_rng(0)
    sampled = rng.uniform(20, 25, (4000, 2))
    target = 25 - rng.exponential(1.0, 20_000)
    weight = magnitude_weights(sampled, target)
    assert weight.mean() == pytest.approx(1)
    edges = np.arange(20, 25.5, 0.5)
    found = np.histogram(sampled.ravel(), edges, weights=np.repeat(weight, 2))[0]
    wanted = np.histogram(target, edges)[0]
    np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), atol=0.002)
    with pytest.raises(
        ValueError, match="the survey must have galaxies of magnitude 20 to 25, as the blends, got none"
    ):
        magnitude_weights(sampled, [15.0])


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
    assert "lone galaxies" in fit.calibrator.fitted_on
    after = fit.tested[fit.tested["state"] == "after"][0]
    # Blends are made within folds, so that all are tested.
    assert after["count"] == 600
    assert after["galaxies"] <= 40


@pytest.mark.slow
def test_too_few_lone_galaxies(folder, deblender):
    with pytest.raises(
        ValueError, match=r"at least 200 lone galaxies are needed, got \d+: lower least, add images, or"
    ):
        calibrate_survey(survey_of(folder, galaxies="own"), deblender)


def test_no_sky(tmp_path):
    fits.PrimaryHDU(np.ones((100, 100), dtype=np.float32)).writeto(tmp_path / "small.fits")
    with (
        open_mosaic(tmp_path / "small.fits") as mosaic,
        pytest.raises(ValueError, match="images must have a place of 128 x 128 covered pixels, 60% of them without"),
    ):
        sky_patches([mosaic], HST, count=2)


def test_catalog_gives_the_magnitudes(folder):
    from probdeblend.training.survey import survey_magnitudes

    given = survey_magnitudes(survey_of(folder, catalog=folder / "catalog.csv"))
    np.testing.assert_allclose(np.sort(given), np.sort(Table.read(folder / "catalog.csv")["magnitude"]))
    assert len(survey_magnitudes(survey_of(folder))) > 20
