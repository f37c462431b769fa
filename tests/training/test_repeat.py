"""Two exposures of blends whose noise is known, deblended by a fit whose errors are right, too small or too large."""

from math import inf, nan

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from click.testing import CliRunner

from probdeblend.cli import main
from probdeblend.cli.options import Group
from probdeblend.deblending import weights
from probdeblend.deblending.deblender import Deblender
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.scene import STAMP_CENTER, Instrument
from probdeblend.training.repeat import Repeat, compare_exposures, mean_image

SKY_RMS = 0.01
TILE = (130, 132)
PAIR = [(64.5, 64.5, 30), (77.5, 64.5, 15)]  # where stamps have their center at that of the brighter galaxy
PAIRS = 24
FOUR = 4 / np.sqrt(4 * PAIRS)  # four standard errors of a standard deviation of two numbers a pair


class Fit:
    """Least squares with the true shapes: its errors are those of the noise, times a factor that it claims."""

    instrument = Instrument.candels_f160w().replace(noise_kernel=None)
    check_pixel_scale = Deblender.check_pixel_scale

    def __init__(self, claimed=1.0):
        self.claimed = claimed
        self.calls = []

    def __call__(self, stamps, *, sky_rms, draws=400, passes=1, seed=0, calibrate=True):
        self.calls.append({"stamps": stamps, "sky_rms": sky_rms, "draws": draws, "seed": seed})
        shapes = np.stack([light((128, 128), [(x, STAMP_CENTER, 1)]).ravel() for x in (63.5, 76.5)], -1)
        covariance = np.linalg.inv(shapes.T @ shapes)
        flux = np.nan_to_num(stamps).reshape(len(stamps), -1) @ shapes @ covariance
        error = np.random.default_rng(seed).multivariate_normal([0, 0], covariance, size=(draws, len(stamps)))
        flux = flux + self.claimed * error * sky_rms[:, None]
        mask = np.zeros((len(stamps), 2, 128, 128), dtype=np.float32)
        return Posterior.from_draws(flux[None, ..., None], flux_kind="total", method="network", mask=mask)


def light(shape, sources):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    parts = [flux / (18 * np.pi) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18) for x, y, flux in sources]
    return np.sum(parts, axis=0)


def noise(count, *, pairs=PAIRS, seed=0):
    """Unit noise of some exposures of a column of tiles."""
    return np.random.default_rng(seed).normal(size=(count, TILE[0] * pairs, TILE[1]))


def exposures(*, sources=PAIR, pairs=PAIRS, seed=0):
    """A column of pairs, twice."""
    return np.tile(light(TILE, sources), (pairs, 1)) + SKY_RMS * noise(2, pairs=pairs, seed=seed)


@pytest.fixture(scope="module")
def images():
    return exposures()


@pytest.fixture(scope="module")
def right(images):
    return compare_exposures(*images, Fit())


def row(result, method="network"):
    return next(found for found in result.summary() if (found["method"], found["galaxies"]) == (method, "all"))


def test_right_errors_pass(right):
    found = row(right)
    assert found["count"] == 2 * PAIRS
    assert found["pairs"] == PAIRS
    assert found["sd"] == pytest.approx(1, abs=FOUR)
    assert found["mean"] == pytest.approx(0, abs=4 / np.sqrt(2 * PAIRS))
    assert found["nmad"] == pytest.approx(1, abs=FOUR * 1.65)  # whose standard error is so much larger
    assert found["sd_low"] < found["sd"] < found["sd_high"]
    for name, expected, count in (
        ("within_1", 0.683, 2 * PAIRS),
        ("within_2", 0.954, 2 * PAIRS),
        ("joint", 0.683, PAIRS),
    ):
        assert found[name] == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / count))
        assert found[f"{name}_low"] < expected < found[f"{name}_high"]
    assert right.sky_rms == pytest.approx((SKY_RMS, SKY_RMS), rel=0.02)
    assert right.noise_factor == pytest.approx(1, abs=0.1)


def test_the_table_holds_what_z_is_made_of(right):
    table = right.table
    assert table["method"].tolist() == 2 * PAIRS * ["network"] + 2 * PAIRS * ["sep"]
    network = table[: 2 * PAIRS]
    assert network["galaxy"].tolist() == PAIRS * [0, 1]
    np.testing.assert_allclose(network["x"].reshape(-1, 2), np.tile([64.5, 77.5], (PAIRS, 1)), atol=0.3)
    np.testing.assert_allclose(network["flux_a"].reshape(-1, 2), np.tile([30, 15], (PAIRS, 1)), atol=1)
    error = np.hypot(network["error_a"], network["error_b"])
    np.testing.assert_allclose(network["z"], (network["flux_a"] - network["flux_b"]) / error)
    z = network["z"].reshape(-1, 2)
    shapes = np.stack([light((128, 128), [(x, STAMP_CENTER, 1)]).ravel() for x in (63.5, 76.5)])
    correlation = -(shapes[0] @ shapes[1]) / (shapes[0] @ shapes[0])
    chi2 = ((z**2).sum(-1) - 2 * correlation * z.prod(-1)) / (1 - correlation**2)
    np.testing.assert_allclose(network["chi2"][::2], chi2, rtol=0.3, atol=0.1)  # its correlation is one of 400 draws
    assert not network["flags"].any()


@pytest.mark.parametrize("claimed", [0.5, 2.0])
def test_errors_too_small_or_too_large_fail(images, claimed):
    result = compare_exposures(*images, Fit(claimed))
    found = row(result)
    assert found["sd"] == pytest.approx(1 / claimed, abs=FOUR / claimed)
    assert not found["sd_low"] < 1 < found["sd_high"]
    for name in ("within_1", "joint"):
        assert not found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_sep_stands_beside_it(right):
    found = row(right, "sep")
    assert found["count"] == 2 * PAIRS
    assert 0.5 < found["sd"] < 2  # white noise, and pairs that SEP splits alike
    assert list(right.pulls()) == ["network", "sep"]


def test_photon_noise_enters_the_errors_of_sep():
    pair = exposures(pairs=3)
    plain, counted = (
        compare_exposures(pair[0], 10 * pair[1], Fit(), zero_points=(25, 27.5), exposures=given).table[6:]
        for given in ((inf, inf), (2.0, 0.2))
    )
    for name in ("error_a", "error_b"):
        expected = np.sqrt(plain[name] ** 2 + plain["flux_a"] / 2)
        np.testing.assert_allclose(counted[name], expected, rtol=0.15)  # quantiles of 1000 draws


@pytest.mark.slow
def test_many_blends_are_deblended_in_chunks():
    """Seventy pairs: sixty-four in the first call, the others with another seed."""
    fit = Fit()
    result = compare_exposures(*exposures(pairs=70), fit, draws=50, seed=5)
    assert [(len(call["stamps"]), call["seed"]) for call in fit.calls] == 2 * [(64, 5), (6, 69)]
    assert row(result)["count"] == 140
    assert row(result)["sd"] == pytest.approx(1, abs=4 / np.sqrt(4 * 70))


@pytest.mark.slow
def test_common_exposures_need_their_correlation():
    own = noise(3)
    sky = np.tile(light(TILE, PAIR), (PAIRS, 1))
    first, second = (sky + SKY_RMS * (own[i] + own[2]) / np.sqrt(2) for i in (0, 1))
    stated = row(compare_exposures(first, second, Fit(), correlation=0.5))
    missing = row(compare_exposures(first, second, Fit()))
    assert stated["sd"] == pytest.approx(1, abs=FOUR)
    assert stated["joint_low"] <= stated["joint"] <= stated["joint_high"]
    assert missing["sd"] == pytest.approx(np.sqrt(0.5), abs=FOUR * np.sqrt(0.5))
    assert missing["within_1"] > missing["within_1_high"]


@pytest.mark.slow
def test_an_image_and_a_part_of_it_at_another_zero_point():
    own = noise(4)
    sky = np.tile(light(TILE, PAIR), (PAIRS, 1))
    part, whole = sky + SKY_RMS * own[0], 10 * (sky + SKY_RMS * own.mean(0))
    result = compare_exposures(part, whole, Fit(), correlation=0.5, zero_points=(25.0, 27.5))
    assert result.sky_rms == pytest.approx((SKY_RMS, SKY_RMS / 2), rel=0.02)
    np.testing.assert_allclose(result.table["flux_b"][: 2 * PAIRS].reshape(-1, 2).mean(0), [30, 15], rtol=0.01)
    assert row(result)["sd"] == pytest.approx(1, abs=FOUR)


def test_the_mean_is_independent_of_the_difference():
    noise_a, noise_b, correlation = 0.7, 1.9, 0.2
    ones, zeros = np.ones(1), np.zeros(1)
    weight = mean_image((ones, noise_a * ones), (zeros, noise_b * ones), correlation)[0]
    shared = correlation * noise_a * noise_b
    of_first, of_second = noise_a**2 - shared, noise_b**2 - shared
    assert weight * of_first == pytest.approx((1 - weight) * of_second)
    alone = mean_image((ones, 2 * ones), (zeros, ones), 0.5)
    assert alone[0] == 0  # the whole, where the other is a part of it


def test_the_order_of_the_images_is_a_matter_of_sign():
    pair = exposures(pairs=4)
    there, back = compare_exposures(*pair, Fit()).table, compare_exposures(*pair[::-1], Fit()).table
    np.testing.assert_array_equal(there["z"], -back["z"])
    np.testing.assert_allclose(there["chi2"], back["chi2"])


def test_stamps_are_the_same_places_without_neighbors():
    pair = exposures(sources=[*PAIR, (101, 25, 40)], pairs=3)
    pair[0, 200, 80] = nan
    fit = Fit()
    result = compare_exposures(*pair, fit, draws=50, seed=5)
    first, second = fit.calls
    for stamps in (first["stamps"], second["stamps"]):
        assert stamps.shape == (3, 128, 128)
        assert sorted(np.isnan(stamps).sum((1, 2))) == [0, 0, 1]
        corner = stamps[:, 20:30, 95:105]  # the neighbor's place
        assert abs(corner).max() < 6 * SKY_RMS
        np.testing.assert_allclose(np.nanargmax(stamps.reshape(3, -1), axis=1) // 128, 63.5, atol=2)
    assert np.nanstd(first["stamps"] - second["stamps"]) == pytest.approx(np.sqrt(2) * SKY_RMS, rel=0.03)
    assert [(call["draws"], call["seed"]) for call in fit.calls] == [(50, 5), (50, 5)]
    assert len(result.table) == 12


def test_a_galaxy_of_two_blends_counts_once():
    pair = exposures(sources=[*PAIR, (51.5, 64.5, 10)], pairs=3)
    table = compare_exposures(*pair, Fit()).table[:9]
    assert (table["flags"] & Flag.CROWDED).all()
    blends, galaxies = np.unique(table["blend"], return_counts=True)
    assert len(blends) == 6
    assert sorted(galaxies) == 3 * [1] + 3 * [2]
    np.testing.assert_array_equal(np.isfinite(table["chi2"]), np.isin(table["blend"], blends[galaxies == 2]))


def test_what_sep_misses_in_one_image_has_no_z():
    pair = exposures(pairs=4)
    pair[1] += 7 * SKY_RMS * noise(1, pairs=4, seed=9)[0]
    result = compare_exposures(*pair, Fit())
    missed = (result.table["flags"] & Flag.NOT_DETECTED) > 0
    assert missed.tolist() == 8 * [False] + 4 * [False, True]  # the companions, by SEP
    np.testing.assert_array_equal(np.isnan(result.table["z"]), missed)
    assert np.isnan(result.table["chi2"][8:]).all()
    found = row(result, "sep")
    assert (found["count"], found["pairs"]) == (4, 0)
    assert np.isnan(found["joint"])
    assert row(result)["count"] == 8


def test_flagged_galaxies_have_a_line_of_their_own(right):
    table = right.table.copy()
    table["flags"][:24] = Flag.UNFAMILIAR
    table["flags"][25] = Flag.UNFAMILIAR
    summary = Repeat(table, (1, 1), 1.0).summary()
    network = summary[summary["method"] == "network"]
    assert network["galaxies"].tolist() == ["all", "without flags"]
    assert network["count"].tolist() == [2 * PAIRS, 2 * PAIRS - 25]
    assert network["pairs"].tolist() == [PAIRS, PAIRS - 13]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda image: image[1:],
            {},
            r"image_b must have the shape \(y, x\) of image_a \(260, 132\), got \(259, 132\)",
        ),
        (lambda image: image, {"correlation": 1.0}, "correlation must be at least 0 and below 1, got 1.0"),
        (lambda image: image, {"correlation": -0.1}, "correlation must be at least 0 and below 1, got -0.1"),
        (lambda image: image, {"correlation": nan}, "correlation must be at least 0 and below 1, got nan"),
        (lambda image: image, {"zero_points": (25.9, None)}, r"zero_points must be finite .*, got \(25.9, None\)"),
        (lambda image: image, {"zero_points": (nan, 25.9)}, r"zero_points must be finite .*, got \(nan, 25.9\)"),
        (lambda image: nan * image, {}, "image must have good pixels that differ, got none"),
        (lambda image: np.round(image) + 1, {}, "image_a and image_b must have nonzero sky noise, got 0"),
    ],
    ids=["shape", "one", "negative", "nan", "zero point", "nan zero point", "bad", "flat sky"],
)
def test_bad_input(change, options, message):
    first, second = exposures(pairs=2)
    with pytest.raises(ValueError, match=message):
        compare_exposures(first, change(second), Fit(), **options)


@pytest.mark.parametrize("sources", [PAIR[:1], [(10, 20, 30), (23, 20, 15)]], ids=["no pair", "at the edge"])
def test_no_blends(sources):
    pair = light(TILE, sources) + SKY_RMS * noise(2, pairs=1)
    with pytest.raises(ValueError, match="image_a and image_b must show blends at least half a stamp from the edge"):
        compare_exposures(*pair, Fit())


def plane():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [80, 200]
    wcs.wcs.cd = np.diag([-0.06 / 3600, 0.06 / 3600])
    return wcs.to_header()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command on two images, of which B is brighter by 2.5 magnitudes in numbers."""
    monkeypatch.chdir(tmp_path)
    fit = Fit()
    monkeypatch.setattr(weights, "load", lambda path=None, calibrator=None: fit)
    first, second = exposures(pairs=3).astype(np.float32)
    for name, pixels, zero_point in (("a", first, 25.0), ("b", 10 * second, 27.5)):
        fits.PrimaryHDU(pixels, plane()).writeto(f"{name}.fits")
        fits.setval(f"{name}.fits", "ABMAGZP", value=zero_point)
    group = Group(commands={"repeat": main.commands["repeat"]})
    return lambda *arguments: CliRunner().invoke(group, ["repeat", *map(str, arguments)])


def test_the_command_writes_a_folder(run, tmp_path):
    result = run("a.fits", "b.fits", "--draws", 300)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "repeat").iterdir()} == {"z.ecsv", "repeat.png"}
    table = Table.read(tmp_path / "repeat" / "z.ecsv")
    assert len(table) == 12
    np.testing.assert_allclose(table["flux_b"], table["flux_a"], rtol=0.2)
    assert result.stdout.split()[:4] == ["method", "galaxies", "count", "pairs"]
    assert result.stdout.endswith("written to repeat: z.ecsv, repeat.png\n")
    again = run("a.fits", "b.fits")
    assert again.stderr == "Error: repeat: exists already; --overwrite replaces it\n"
    options = ["--overwrite", "--zero-points", 25, 25, "--exposures", 100, 100, "--correlation", 0.3]
    assert run("a.fits", "b.fits", *options).exit_code == 0
    table = Table.read(tmp_path / "repeat" / "z.ecsv")
    np.testing.assert_allclose(table["flux_b"], 10 * table["flux_a"], rtol=0.2)


@pytest.mark.parametrize(
    ("shift", "options", "says"),
    [
        (3.0, [], "b.fits: must be on the pixels of a.fits, got one shifted by 3.0 pixels"),
        (0.0, ["--correlation", 2], "correlation must be at least 0 and below 1, got 2.0"),
        (0.0, ["--pixel-scale", 0.2], 'pixel_scale must be 0.06" within 2%'),
        (0.0, ["--calibrator", "c.json", "--no-calibrator"], "calibrator and no_calibrator are mutually exclusive"),
        (0.0, ["--hdu", 3], "a.fits: HDU 3 holds no image"),
        (None, [], "pixel_scale must be given with --pixel-scale where the header has none"),
    ],
    ids=["shifted", "correlation", "pixel scale", "calibrators", "hdu", "no scale"],
)
def test_what_the_command_refuses(run, tmp_path, shift, options, says):
    if shift:
        fits.setval("b.fits", "CRPIX1", value=80 + shift)
    if shift is None:
        for name in ("a.fits", "b.fits"):
            fits.writeto(name, fits.getdata(name), overwrite=True)
    result = run("a.fits", "b.fits", *options)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {says}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "repeat").exists()


def test_help_shows_an_example(run):
    assert "Example:\n    probdeblend repeat first" in run("--help").output
