"""Whole images whose sources are known: pairs, groups, isolated sources and edges."""

import warnings

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import QTable
from astropy.wcs import WCS

from probdeblend.deblending import deblend_field, sep_posterior
from probdeblend.photometry import noise
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.scene import STAMP_CENTER, Instrument

SKY_RMS = 0.01
INSTRUMENT = Instrument.candels_f160w(sky_rms=SKY_RMS, exposure=np.inf)
PAIR = [(120, 130, 30), (133, 130, 15)]


class FakeDeblender:
    """SEP in the network's clothes; it remembers what it was asked."""

    instrument = INSTRUMENT

    def __init__(self):
        self.calls = []

    def __call__(self, stamps, *, sky_rms, draws=20, passes=1, seed=0):
        self.calls.append((len(stamps), draws, passes, seed))
        answer = sep_posterior(np.nan_to_num(stamps), sky_rms, draws=draws, seed=seed).dataset
        flags = np.full(answer["flags"].shape, int(Flag.OUTSIDE_PRIOR))
        mask = answer["mask"].values
        flux = answer["flux"].values
        return Posterior.from_draws(flux, flux_kind="total", method="network", mask=mask, flags=flags)


def scene(*sources, shape=(260, 260), sky_rms=SKY_RMS, level=0.0, seed=0):
    """Round Gaussians (x, y, flux) of 3 pixels width in correlated noise."""
    generator = torch.Generator().manual_seed(seed)
    image = noise.correlated_noise(shape, INSTRUMENT.noise_kernel, generator=generator).double().numpy()
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = image * sky_rms + level
    for x, y, flux in sources:
        image += flux / (18 * np.pi) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    return image


def deblend(image, **options):
    deblender = FakeDeblender()
    return deblend_field(image, deblender, **options), deblender


def test_pair_and_isolated_source():
    result, _ = deblend(scene(*PAIR, (40, 200, 25), level=0.3))
    catalog = result.catalog
    assert catalog["id"].tolist() == [1, 2, 3]
    assert catalog["method"].tolist() == ["network", "network", "sep"]
    assert catalog["flux_kind"].tolist() == ["total", "total", "auto"]
    assert catalog.meta["flux_kind"] == "total, auto"
    assert catalog["galaxy"].tolist() == [0, 1, 0]
    assert np.ma.getmaskarray(catalog["blend"]).tolist() == [False, False, True]
    assert catalog["flags"].tolist() == [Flag.OUTSIDE_PRIOR, Flag.OUTSIDE_PRIOR, Flag.ISOLATED]
    np.testing.assert_allclose(catalog["x"], [120, 133, 40], atol=0.5)
    np.testing.assert_allclose(catalog["y"], [130, 130, 200], atol=0.5)
    assert catalog["flux"][2] == pytest.approx(25, rel=0.1)
    assert catalog["mag"][2].unmasked.value == pytest.approx(25.946 - 2.5 * np.log10(25), abs=0.1)
    assert abs(np.median(result.image)) < 0.1 * SKY_RMS


def test_stamps_are_centered_and_placed():
    result, _ = deblend(scene(*PAIR))
    x, y = (result.posterior.dataset[name].values[0] for name in ("x", "y"))
    assert abs(x[0] - STAMP_CENTER) < 1
    assert abs(y[0] - STAMP_CENTER) < 1
    x0, y0 = result.corners["x0"][0], result.corners["y0"][0]
    np.testing.assert_allclose(x + x0, result.catalog["x"])
    np.testing.assert_allclose(result.stamps[0], result.image[y0 : y0 + 128, x0 : x0 + 128], rtol=1e-5, atol=1e-7)


def test_other_sources_become_sky():
    result, _ = deblend(scene(*PAIR, (120, 175, 30)))
    assert result.catalog["method"].tolist() == ["network", "network", "sep"]
    patch = result.stamps[0, 96:120, 50:78]
    assert abs(patch).max() < 6 * SKY_RMS
    assert patch.std() == pytest.approx(SKY_RMS, rel=0.25)
    neighbors = (patch[:, 1:] * patch[:, :-1]).mean() / patch.var()
    assert neighbors == pytest.approx(0.52, abs=0.15)


def test_edge_is_filled_with_noise_and_flagged():
    result, _ = deblend(scene((20, 130, 30), (33, 130, 15)))
    assert (result.posterior.flags.values & Flag.TRUNCATED).all()
    beyond = result.stamps[0][:, : -result.corners["x0"][0]]
    assert beyond.shape[1] > 40
    assert beyond.std() == pytest.approx(SKY_RMS, rel=0.1)
    assert (beyond[:, 1:] * beyond[:, :-1]).mean() / beyond.var() == pytest.approx(0.52, abs=0.1)


@pytest.mark.parametrize(("flux", "blends"), [([30, 20, 15], 2), ([30, 20, 15, 12], 2)], ids=["three", "four"])
def test_groups_give_every_galaxy_one_row(flux, blends):
    result, _ = deblend(scene(*[(90 + 13 * i, 130, f) for i, f in enumerate(flux)]))
    assert len(result.catalog) == len(flux)
    assert len(result.corners) == blends
    assert (result.catalog["flags"] & Flag.CROWDED).all()
    np.testing.assert_allclose(np.sort(result.catalog["x"]), 90 + 13 * np.arange(len(flux)), atol=1)


def test_errors_of_isolated_sources_match_their_scatter():
    positions = [(x, y, 20) for x in range(40, 400, 48) for y in range(40, 400, 48)]
    catalog = deblend(scene(*positions, shape=(420, 420)))[0].catalog
    assert len(catalog) == len(positions)
    flux = np.asarray(catalog["flux"])
    scores = (flux - flux.mean()) / np.asarray(catalog["flux_err"])
    assert 0.7 < scores.std() < 1.4


def test_two_depths():
    image = scene((60, 130, 25), (200, 130, 25), (213, 130, 15))
    image[:, :130] += 3 * scene(shape=(260, 130), seed=1)
    result, _ = deblend(image)
    assert len(result.catalog) == 3
    isolated = result.catalog[result.catalog["method"] == "sep"]
    assert isolated["flux_err"][0] > 2 * deblend(scene((60, 130, 25)))[0].catalog["flux_err"][0]


def test_rms_map_is_scaled_unless_taken_as_is():
    image = scene(*PAIR)
    rms = np.full(image.shape, 2 * SKY_RMS)
    scaled, as_is = deblend(image, rms=rms)[0], deblend(image, rms=rms, rms_as_is=True)[0]
    assert scaled.rms_factor == pytest.approx(0.5, rel=0.05)
    assert scaled.sky_rms == pytest.approx(SKY_RMS, rel=0.05)
    assert (as_is.rms_factor, as_is.sky_rms) == (1.0, 2 * SKY_RMS)
    assert deblend(image, rms=2 * SKY_RMS)[0].sky_rms == 2 * SKY_RMS
    assert deblend(image)[0].sky_rms == pytest.approx(SKY_RMS, rel=0.05)
    assert scaled.noise_factor == pytest.approx(2.2, rel=0.15)


def test_background_is_kept_on_request():
    image = scene(*PAIR)
    np.testing.assert_array_equal(deblend(image, background=False)[0].image, image)


def test_many_blends_reach_the_deblender_in_chunks():
    """Each chunk has its own seed, so that no two blends share their draws."""
    rows = range(40, 40 + 66 * 75, 75)
    image = scene(*[(x, y, flux) for y in rows for x, flux in ((25, 30), (36, 15))], shape=(5000, 64))
    calls = []

    def deblender(stamps, *, sky_rms, **sampling):
        calls.append((len(stamps), len(sky_rms), sampling))
        return Posterior.from_draws(np.ones((1, 2, len(stamps), 2, 1)), flux_kind="total", method="network")

    result = deblend_field(image, deblender, instrument=INSTRUMENT, passes=3, seed=5)
    assert calls == [(64, 64, {"passes": 3, "seed": 5}), (2, 2, {"passes": 3, "seed": 69})]
    assert len(result.posterior) == 66


def test_same_seed_same_stamps():
    image = scene(*PAIR, (120, 175, 30))
    first, again, other = (deblend(image, seed=seed)[0].stamps for seed in (5, 5, 6))
    np.testing.assert_array_equal(again, first)
    assert not np.array_equal(other, first)


def test_bad_pixels_unit_and_sky_positions():
    image = scene(*PAIR, (40, 200, 25))
    image[128:131, 150:153] = np.nan
    image[203, 42] = np.inf
    image[:, -20:] = 0
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [-1.67e-5, 1.67e-5]
    wcs.wcs.crval = [150.0, 2.0]
    unit = u.electron / u.s
    result, _ = deblend(image * unit, wcs=wcs, rms=1e3 * SKY_RMS * u.Unit("1e-3 electron / s"))
    catalog = result.catalog
    assert result.sky_rms == pytest.approx(SKY_RMS)
    assert catalog["flux"].unit == unit
    assert catalog["flags"][2] == Flag.ISOLATED | Flag.BAD_CENTER
    assert np.isnan(result.stamps).sum() == 9
    assert np.isnan(result.image[:, -20:]).all()
    expected = wcs.pixel_to_world(catalog["x"], catalog["y"])
    np.testing.assert_allclose(catalog["ra"].to_value("deg"), expected.ra.deg)


def test_instrument_sets_zero_point_and_photon_noise():
    image = scene((120, 130, 100))
    plain = deblend(image)[0].catalog
    known = deblend(image, instrument=INSTRUMENT.replace(exposure=1.0, zero_point=np.nan))[0]
    assert known.posterior is None
    assert known.stamps is None
    assert len(known.corners) == 0
    assert known.catalog["flux_err"][0] > 10 > plain["flux_err"][0]
    assert known.catalog["mag"].mask.all()


def test_catalog_writes_as_ecsv(tmp_path):
    result, _ = deblend(scene(*PAIR, (40, 200, 25)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.catalog.write(tmp_path / "catalog.ecsv", format="ascii.ecsv")
    again = QTable.read(tmp_path / "catalog.ecsv")
    assert again.colnames == result.catalog.colnames
    np.testing.assert_array_equal(again["flags"], result.catalog["flags"])
    np.testing.assert_allclose(again["flux"], result.catalog["flux"])


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.ones(5), {}, r"image must have the axes \(y, x\), got shape \(5,\)"),
        (np.full((99, 99), np.nan), {}, "image must have good pixels that differ, got none"),
        (np.zeros((99, 99)), {}, "image must have good pixels that differ, got none"),
        (np.ones((99, 99)), {}, "image must have good pixels that differ"),
        (scene(), {"rms": 0}, "rms must be positive and finite, got 0.0"),
        (scene(), {"rms": -np.ones((260, 260))}, "rms must be positive and finite, got -1.0"),
        (
            scene(),
            {"rms": np.ones((26, 26))},
            r"rms must be a number or have the shape of image \(260, 260\)",
        ),
        (scene(), {}, "no source found above 4 times the sky rms 0.0"),
    ],
    ids=["axes", "nan", "zero", "constant", "no rms", "negative rms", "rms shape", "blank"],
)
def test_bad_input(image, options, message):
    with pytest.raises(ValueError, match=message):
        deblend(image, **options)


def test_sky_without_scatter_needs_an_rms():
    image = scene((120, 130, 30), sky_rms=0.0, level=1.0)
    with pytest.raises(ValueError, match="rms must be given if the sky noise cannot be measured, got None"):
        deblend(image)


@pytest.mark.slow
def test_real_images(data_dir):
    from probdeblend.photometry.images import read_image

    for path in sorted(data_dir.glob("candels_f160w/*.fits")):
        image = read_image(path, hdu=1)
        result, _ = deblend(image.data, wcs=image.wcs)
        assert len(result.catalog) == len(result.detection)
        assert 1.9 < result.noise_factor < 3
