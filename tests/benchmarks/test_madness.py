"""Fields of LSST, and what MADNESS measures in them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.peers import _lsst, madness
from benchmarks.peers._lsst import BANDS, field, lsst_camera, signal_to_noise
from benchmarks.peers.madness import Answer, Ellipses, R, aperture_flux, cosine, divided, measure, models, summary
from probdeblend.posterior import Posterior
from probdeblend.posterior.cutouts import Cutouts

SIDE = 64


@pytest.fixture(scope="module")
def small():
    """Fields are 64 pixels wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lsst, "SIDE", SIDE)
        patch.setattr(_lsst, "SPREAD", 16.0)
        yield


@pytest.fixture(scope="module")
def made(small):
    return field(5, number=3)


@pytest.fixture
def two():
    """Two round Gaussians of unit sum, 6 pixels apart, in all bands, and ellipses of 3 and 1.5 pixels around them."""
    y, x = np.mgrid[:40, :40]
    light = np.stack([np.exp(-((x - at) ** 2 + (y - 20) ** 2) / 2 / 2**2) / (8 * np.pi) for at in (16.0, 22.0)])
    axes = (np.full((2, len(BANDS)), size) for size in (1.5, 0.75))
    places = Ellipses(np.array([16.0, 22.0]), np.full(2, 20.0), *axes, np.zeros(2))
    return np.repeat(light[:, None], len(BANDS), 1), places


def test_camera_is_that_of_lsst():
    camera = lsst_camera()
    sky = 5520 * 10 ** (0.4 * (28.10 - 21.20)) * 0.2**2
    assert_allclose(camera.sky_rms[R] ** 2, sky, rtol=1e-5)
    # Ivezić et al. (2019) quote r = 27.5 as the depth after ten years, with less conservative zero points.
    flux = 5 * float(camera.sky_rms[R] / camera.psf[R].square().sum().sqrt())
    assert 27.1 < camera.zero_point[R] - 2.5 * np.log10(flux) < 27.5
    assert_allclose(signal_to_noise(np.full((1, 6), flux), np.zeros(1))[0, R], 5, rtol=0.25)


def test_signal_to_noise_falls_with_size():
    small, large = signal_to_noise(np.full((2, 6), 1e4), np.array([0.1, 1.0]))[:, R]
    assert_allclose(small / large, np.sqrt((4 + 0.81**2) / (0.04 + 0.81**2)), rtol=0.05)


def test_field_has_bright_galaxies_alone_and_together(made):
    again = field(5, number=3)
    assert_array_equal(made.image, again.image)
    assert made.light.shape == (3, 6, SIDE, SIDE)
    snr = signal_to_noise(made.flux.double().numpy(), made.half_light_radius.double().numpy())
    assert (snr[:, R] >= 10).all()
    noise = (made.image[0] - made.light.sum(0)) / made.sky_rms[0][:, None, None]
    assert_allclose(noise.std((1, 2)), 1.0, atol=0.15)
    assert (made.light.sum((2, 3)) / made.flux).max() < 1.01
    assert (made.light.sum((2, 3)) / made.flux).min() > 0.9
    # Magnitudes in i follow from fluxes, and their distribution ends where it should.
    magnitude = made.zero_point[3] - 2.5 * made.flux[:, 3].log10()
    assert (magnitude < _lsst.FAINTEST).all()


def test_aperture_flux_is_that_of_an_ellipse(two):
    light, ellipses = two
    y, x = np.mgrid[:40, :40]
    inside = ((x - 16) / 3.0) ** 2 + ((y - 20) / 1.5) ** 2 < 1
    flux = aperture_flux(light.sum(0), light, ellipses)
    assert_allclose(flux[0, R], light[0, R][inside].sum(), rtol=0.1)
    assert_allclose(flux[0], flux[1])
    turned = ellipses._replace(angle=np.full(2, np.pi / 2))
    assert_allclose(aperture_flux(light.sum(0), light, turned), flux, rtol=1e-2)  # own light is round
    blended = aperture_flux(light.sum(0), 0 * light, ellipses), aperture_flux(light.sum(0), 0 * light, turned)
    assert (blended[0] > 1.03 * blended[1]).all()  # the neighbor lies along x


def test_half_of_a_neighbor_left_is_half_of_the_contamination(two):
    light, ellipses = two
    image, true = light.sum(0), aperture_flux(light.sum(0), light, ellipses)
    found = aperture_flux(image, 0.5 * light, ellipses) / true - 1
    # Half of its own light, too, was subtracted and is added again.
    assert_allclose(found[:, R], madness.contamination(image, light, ellipses) / 2, rtol=1e-6)


def test_cosine():
    first, second = np.eye(4)[None, 0:2], np.eye(4)[None, 2:4]
    assert_allclose(cosine(np.stack([first, first, 0 * first]), np.stack([3 * first, second, first])), [[1], [0], [0]])


def test_ellipses_are_as_wide_as_the_psf_makes_them(made):
    ellipses = Ellipses.of(made)
    radius, ratio = made.half_light_radius.numpy(), made.axis_ratio.numpy()
    assert_allclose(ellipses.semi_major[:, R] ** 2 * 0.2**2, radius**2 / ratio + (0.81 / 2) ** 2, rtol=1e-5)
    assert_allclose(ellipses.semi_minor[:, R] ** 2 * 0.2**2, radius**2 * ratio + (0.81 / 2) ** 2, rtol=1e-5)
    assert (np.abs(ellipses.angle) <= np.pi / 2).all()


def test_known_light_makes_no_error_and_none_the_contamination(made):
    known = measure(madness.known_light, made)
    assert_allclose(known["error"], 0, atol=1e-9)
    assert_allclose(known["cosine"], 1, rtol=1e-6)
    assert (np.abs(known["divided_error"][:, R]) < 0.2).all()  # the noise is divided, too
    assert np.abs(known["own_error"][:, R]).max() < 0.5
    nothing = measure(madness.not_deblended, made)
    assert_allclose(nothing["error"][:, R], nothing["contamination"])
    assert np.isnan(nothing["own_error"]).all()


def test_sep_has_images_of_segments_and_kron_fluxes(made):
    found = madness.segmented(made)
    image = made.image[0].double().numpy()
    there = np.isfinite(found.flux[:, R])
    assert there.any()
    assert_allclose(found.light.sum(0)[:, found.light[:, R].any(0)], image[:, found.light[:, R].any(0)])
    assert_allclose(found.flux[there, R] / found.true[there, R], 1, atol=0.5)
    assert (found.true[:, R] < made.flux[:, R].numpy()).all()


def test_pixels_are_divided_in_proportion_to_models(made):
    light = made.light.double().numpy()
    alone = replace(made, image=made.light.sum(0, keepdim=True))
    found = divided(alone, 2 * light)
    assert_allclose(found, light, atol=2e-3 * float(made.sky_rms.max()))
    assert (divided(made, 0 * light) == 0).all()


def test_models_are_those_of_the_posterior(made):
    names = ("half_light_radius", "axis_ratio", "angle")
    columns = {name: getattr(made, name).numpy() for name in names} | {"sersic_index": np.ones(3)}
    flux = made.flux.double().numpy()
    mask = [np.zeros((SIDE, SIDE), dtype="f4")] * 3
    posterior = Posterior.from_draws(
        flux[None, None],
        scene=np.zeros(3),
        group=np.arange(3),
        x=made.x.numpy(),
        y=made.y.numpy(),
        bands=BANDS,
        pixel_scale=0.2,
        columns=columns,
        cutouts=Cutouts(np.zeros((3, 2)), (SIDE, SIDE), mask=mask),
    )
    light = models(posterior, flux, made.psf[0])
    assert_allclose(light.sum((2, 3)), flux, rtol=0.02)
    assert cosine(light, made.light.double().numpy()).min() > 0.95


def test_summary_takes_galaxies_of_a_bin_that_are_bright_enough():
    error = np.zeros((4, 6))
    error[:, R] = 0.1, -0.3, 0.5, 9.0
    error[0, 3] = 0.2
    snr = np.full((4, 6), 20.0)
    snr[1:, 3] = 5
    arrays = {
        "scene": np.array([0, 0, 1, 1]),
        "error": error,
        "own_error": 2 * error,
        "divided_error": error / 2,
        "cosine": 1 - error,
        "snr": snr,
    }
    arrays |= {"contamination": np.array([0.0, 1.0, 4.0, 6.0]), "scene_seconds": np.array([1.0, 3.0])}
    row = summary(arrays, -np.inf, 5.0)
    assert row["galaxies"] == 3
    assert_allclose([row[name] for name in ("mean_r", "median_r", "own_mean_r", "mean_i")], [30, 30, 60, 20])
    assert_allclose([row["found"], row["cosine"], row["seconds"]], [1, 0.9, 2])
    assert_allclose(row["divided_mean_r"], 15)
    assert_allclose(row["r-i"], 2.5 * np.log10(1.2 / 1.1))
    # Two fields: their sums of deviations from the mean are -20 and 20 percent.
    assert_allclose(row["mean_r_error"], np.sqrt(2 * 20**2) / 3)
    assert summary(arrays, 5.0, np.inf)["galaxies"] == 1


def test_methods_that_say_nothing_have_no_numbers(made):
    light, flux = madness._nothing(made)
    nothing = measure(lambda scene: Answer(light, light, flux, scene.flux.numpy()), made)
    row = summary(nothing, -np.inf, np.inf)
    assert row["galaxies"] == 3
    assert np.isnan([row["mean_r"], row["own_mean_r"], row["cosine"]]).all()
    assert row["found"] == 0


@pytest.mark.slow
def test_command(run, small, monkeypatch):
    monkeypatch.setattr(madness, "field", partial(field, number=3))
    table = run(madness, "--count", "2", "--scarlet2", "0")
    every = table[(table["up_to"] == madness.MOST) & np.isinf(table["above"])]["method", "galaxies", "mean_r"]
    assert len(every) == 7
    assert (every["galaxies"] <= 6).all()
    assert np.isfinite(every["mean_r"]).all()
    assert every["mean_r"][every["method"] == "known light"] < 1e-6
    assert table.meta["fields"] == 2
