"""SEP as a posterior: matching in its three cases, draws, masks and flags."""

import numpy as np
import pytest
from scipy import stats

from probdeblend.deblending import sep_posterior
from probdeblend.deblending.sep import match
from probdeblend.photometry import detection as photometry
from probdeblend.posterior.flags import Flag

SIZE = 128
SKY_RMS = 0.01
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(float)


def gaussian(x, y, flux, *, sigma=3.0):
    return flux * np.exp(-0.5 * ((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / sigma**2) / (2 * np.pi * sigma**2)


def noise(rng, *shape):
    return SKY_RMS * rng.normal(size=(*shape, SIZE, SIZE))


def detection(*sources):
    """Detections (x, y, flux) without pixels."""
    x, y, flux = np.array(sources, dtype=float).reshape(-1, 3).T
    one = np.ones(len(x))
    return photometry.Detection(np.zeros((SIZE, SIZE), np.int32), x, y, one, one, 0 * one, flux)


EXPECTED = np.array([[63.0, 63.0], [80.0, 63.0]])


@pytest.mark.parametrize(
    ("sources", "matched"),
    [
        ([], [-1, -1]),
        ([(62, 63, 10)], [0, -1]),
        ([(76, 63, 10)], [-1, 0]),
        ([(79, 64, 10), (63, 62, 5)], [1, 0]),
        ([(64, 63, 10), (68, 63, 5)], [0, 1]),
        ([(20, 20, 100), (81, 63, 5), (62, 63, 10)], [2, 1]),
    ],
    ids=["none", "one, the central", "one, the companion", "two", "two near one galaxy", "three"],
)
def test_match_by_position(sources, matched):
    np.testing.assert_array_equal(match(detection(*sources), EXPECTED), matched)


@pytest.mark.parametrize(
    ("sources", "matched"),
    [
        ([], [-1, -1]),
        ([(80, 63, 10)], [0, -1]),
        ([(80, 63, 10), (60, 63, 5)], [1, 0]),
        ([(66, 66, 1), (64, 63, 10), (90, 90, 20), (30, 90, 3)], [1, 2]),
    ],
    ids=["none", "one", "two", "four"],
)
def test_match_without_positions(sources, matched):
    np.testing.assert_array_equal(match(detection(*sources)), matched)


def test_match_is_one_to_one():
    matched = match(detection((70, 63, 10), (71, 63, 5), (100, 100, 5)), EXPECTED)
    assert sorted(matched) == [0, 1]


@pytest.fixture
def blends(rng):
    """A blend of two galaxies, one whose companion is too faint, and blank sky."""
    pair = gaussian(63, 64, 20.0) + gaussian(85, 60, 10.0)
    single = gaussian(63, 64, 20.0) + gaussian(85, 60, 0.01)
    return np.stack([pair, single, np.zeros_like(pair)]) + noise(rng, 3)


X, Y = np.tile([63.0, 85.0], (3, 1)), np.tile([64.0, 60.0], (3, 1))


def test_posterior_of_three_blends(blends):
    posterior = sep_posterior(blends, SKY_RMS, x=X, y=Y, draws=500)
    assert posterior.flux.dims == ("chain", "draw", "blend", "galaxy", "band")
    assert posterior.flux.shape == (1, 500, 3, 2, 1)
    assert posterior.flux.attrs["flux_kind"] == "auto"
    assert posterior.dataset.attrs["method"] == "sep"
    missed = [[False, False], [False, True], [True, True]]
    np.testing.assert_array_equal(posterior.flags == Flag.NOT_DETECTED, missed)
    np.testing.assert_array_equal(np.isnan(posterior.flux.values).all((0, 1, 4)), missed)
    np.testing.assert_array_equal(np.isnan(posterior.dataset["x"]), missed)
    np.testing.assert_array_equal(posterior.mask.values.any((2, 3)), np.logical_not(missed))
    np.testing.assert_allclose(posterior.flux.values[0, :, 0, :, 0].mean(0), [20, 10], rtol=0.05)
    np.testing.assert_allclose(posterior.dataset["x"][0], X[0], atol=0.3)
    np.testing.assert_allclose(posterior.dataset["y"][0], Y[0], atol=0.3)


def test_masks_are_the_segmentation(blends):
    posterior = sep_posterior(blends[:1], SKY_RMS)
    segmentation = photometry.detect_cold_hot(blends[0], SKY_RMS).segmentation
    assert set(np.unique(posterior.mask)) == {0, 1}
    np.testing.assert_array_equal(posterior.mask[0].sum("galaxy"), segmentation > 0)
    assert posterior.mask[0, 0, 64, 63] == 1
    assert posterior.mask[0, 1, 60, 85] == 1


@pytest.mark.parametrize(
    ("kind", "flux"),
    [
        ("auto", photometry.kron_flux),
        ("isophotal", photometry.isophotal_flux),
        ("mirrored", photometry.mirrored_flux),
    ],
)
def test_draws_have_the_quoted_errors(blends, false_alarm, kind, flux):
    posterior = sep_posterior(blends[:1], SKY_RMS, kind=kind, exposure=100, draws=4000)
    assert posterior.flux.attrs["flux_kind"] == ("isophotal" if kind == "isophotal" else "auto")
    found = photometry.detect_cold_hot(blends[0], SKY_RMS)
    value, error = flux(blends[0], found, SKY_RMS, exposure=100)
    order = match(found)
    pulls = (posterior.flux.values[0, :, 0, :, 0] - value[order]) / error[order]
    assert all(stats.kstest(pull, "norm").pvalue > false_alarm / 2 for pull in pulls.T)
    assert stats.pearsonr(*pulls.T).pvalue > false_alarm


def test_positions_may_swap_the_galaxies(blends):
    found, swapped = (
        sep_posterior(blends[:1], SKY_RMS, x=x, y=y) for x, y in ((X[:1], Y[:1]), (X[:1, ::-1], Y[:1, ::-1]))
    )
    np.testing.assert_array_equal(swapped.mask[0].values, found.mask[0].values[::-1])


def test_bands_are_measured_in_the_apertures_of_the_first(blends):
    bands = np.stack([blends, 2 * blends], axis=1)
    posterior = sep_posterior(bands, SKY_RMS, draws=50)
    assert posterior.flux.shape == (1, 50, 3, 2, 2)
    ratio = posterior.flux.mean(("chain", "draw"))[0]
    np.testing.assert_allclose(ratio.sel(band=1) / ratio.sel(band=0), 2, rtol=0.05)


def test_noise_may_be_a_number_one_a_blend_or_maps(blends):
    answers = [
        sep_posterior(blends, rms, exposure=exposure, draws=10).flux.values
        for rms, exposure in (
            (SKY_RMS, 100),
            (np.full(3, SKY_RMS), np.full(3, 100)),
            (np.full(blends.shape, SKY_RMS), 100),
        )
    ]
    np.testing.assert_allclose(answers[1], answers[0])
    np.testing.assert_allclose(answers[2], answers[0], rtol=1e-5)


def test_same_seed_same_draws_whatever_the_batch(blends):
    whole = sep_posterior(blends, SKY_RMS, draws=20, seed=4).flux.values
    part = sep_posterior(blends[:1], SKY_RMS, draws=20, seed=4).flux.values
    np.testing.assert_array_equal(part, whole[:, :, :1])
    other = sep_posterior(blends[:1], SKY_RMS, draws=20, seed=5).flux.values
    assert not np.array_equal(other, part)


def test_no_blends():
    posterior = sep_posterior(np.zeros((0, SIZE, SIZE)), SKY_RMS, draws=10)
    assert posterior.flux.shape == (1, 10, 0, 2, 1)


def test_quoted_errors_are_too_small_for_a_close_pair(rng):
    truth = np.array([20.0, 10.0])
    close = gaussian(60, 64, truth[0]) + gaussian(69, 64, truth[1]) + noise(rng, 30)
    posterior = sep_posterior(close, SKY_RMS, x=np.tile([60, 69], (30, 1)), y=np.full((30, 2), 64))
    low, high = np.quantile(posterior.flux.values[0, ..., 0], [0.16, 0.84], axis=0)
    assert ((low < truth) & (truth < high)).mean() < 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "total"}, "kind must be one of auto, isophotal, mirrored, got 'total'"),
        ({"draws": 1}, "draws must be at least 2, got 1"),
        (
            {"sky_rms": np.ones(2)},
            r"sky_rms must have one of the shapes \[\(\), \(3,\), \(3, 128, 128\)\], got \(2,\)",
        ),
        ({"sky_rms": -1.0}, r"sky_rms must be positive, got a minimum of -1\.0"),
        ({"exposure": np.ones(2)}, r"exposure must have one of the shapes \[\(\), \(3,\)\], got \(2,\)"),
        ({"exposure": 0}, r"exposure must be positive, got a minimum of 0\.0"),
        ({"x": X}, r"y must have shape \(3, 2\), got \(\)"),
        ({"x": X[:2], "y": Y}, r"x must have shape \(3, 2\), got \(2, 2\)"),
        (
            {"image": np.zeros((8, 8))},
            r"image must have the axes \(blend, y, x\) or \(blend, band, y, x\), got \(8, 8\)",
        ),
    ],
)
def test_bad_input(blends, changes, message):
    arguments = {"image": blends, "sky_rms": SKY_RMS} | changes
    with pytest.raises(ValueError, match=message):
        sep_posterior(arguments.pop("image"), arguments.pop("sky_rms"), **arguments)
