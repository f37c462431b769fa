"""Ground images labeled from space: where sources lie, how much light there is, and what is refused."""

from functools import cache

import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData
from astropy.wcs import WCS
from galaxies import gaussian

from probdeblend.deblending import deblend
from probdeblend.photometry.noise import correlated_noise
from probdeblend.simulation import Camera
from probdeblend.surveys import label_ground

SPACE, GROUND = 0.05, 0.168  # arcsec
BLUR = {SPACE: 1.5, GROUND: 2.0}  # standard deviation of the PSF in pixels
RMS = 1e-3
PAIR = [(150.0005, 2.0003), (150.0005 - 0.7 / 3600, 2.0003)]  # degrees: 0.7 arcsec apart
ALONE = (149.9995, 1.9995)
SKY = SkyCoord(*np.transpose([*PAIR, ALONE]), unit="deg")
FLUX = (3.0, 1.0, 2.0)


def frame(scale, side, turn=0.0, *, ctype="RA---TAN", center=(150.0, 2.0), radesys="ICRS"):
    made, angle = WCS(naxis=2), np.radians(turn)
    made.wcs.ctype, made.wcs.crval, made.wcs.crpix = [ctype, "DEC--TAN"], center, [side / 2, side / 2 + 0.7]
    made.wcs.cd = scale / 3600 * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    made.wcs.radesys = radesys
    made.wcs.set()
    return made


def image(wcs, scale, side, *, sky=SKY, flux=FLUX, seed=0):
    """Round sources of 0.06 arcsec, seen through the PSF, in white noise."""
    shape, width = (side, side), np.hypot(BLUR[scale], 0.06 / scale)
    pixels = np.random.default_rng(seed).normal(0, RMS, shape)
    for x, y, light in zip(*wcs.world_to_pixel(sky), flux, strict=True):
        pixels += light * gaussian(shape, (x, y), width)
    return pixels


def options(scale, wcs):
    return {"psf": gaussian((21, 21), (10, 10), BLUR[scale]), "sky_rms": RMS, "wcs": wcs}


@cache
def labeled(turn=25.0, *, radesys="ICRS", center=(150.0, 2.0), side=66, change=lambda sharp: sharp):
    wcs = frame(GROUND, side, center=center, radesys=radesys), frame(SPACE, 150, turn)
    ground, sharp = image(wcs[0], GROUND, side, seed=1), change(image(wcs[1], SPACE, 150))
    found = label_ground(ground, sharp, sharp_options=options(SPACE, wcs[1]), **options(GROUND, wcs[0]))
    return found, wcs[0], sharp


@pytest.mark.parametrize(("turn", "radesys"), [(0.0, "ICRS"), (25.0, "ICRS"), (25.0, "FK5")])
def test_sharp_sources_lie_where_they_are_in_the_ground_image(turn, radesys):
    found, wcs, _ = labeled(turn, radesys=radesys)
    table = found.positions
    assert len(table) == 3
    number, apart, _ = SKY.match_to_catalog_sky(SkyCoord(table["ra"], table["dec"]))
    assert (apart.arcsec < 0.01).all()
    x, y = wcs.world_to_pixel(SKY)
    np.testing.assert_allclose(np.stack([table["x"], table["y"]])[:, number], [x, y], atol=0.05)
    np.testing.assert_allclose(table["flux"][number, 0], FLUX, rtol=0.1)


def test_a_blend_that_the_ground_does_not_resolve():
    found, *_ = labeled()
    sources = found.sources[np.argsort(found.sources["number"])]
    assert sources["number"].tolist() == [1, 2]
    np.testing.assert_allclose(sources["share"], [1, 0.75], atol=0.05)
    assert sources["covered"].tolist() == [1, 1]
    owners = found.positions["source"]
    assert np.bincount(owners)[sources["label"]].tolist() == [1, 2]
    x, y = np.floor(np.stack([found.positions["x"], found.positions["y"]]) + 0.5).astype(int)
    assert found.segmentation[y, x].tolist() == owners.tolist()
    np.testing.assert_allclose(sources["flux"][:, 0], [2, 4], rtol=0.1)


def test_light_is_conserved_and_stays_in_place():
    found, wcs, sharp = labeled()
    assert found.light.shape == (1, 66, 66)
    assert found.light.sum() == pytest.approx(sharp.sum(), rel=1e-3)
    y, x = np.mgrid[:66, :66]
    near = np.hypot(x - wcs.world_to_pixel(SKY[2])[0], y - wcs.world_to_pixel(SKY[2])[1]) < 6
    own = np.where(near, found.light[0], 0)
    assert own.sum() == pytest.approx(FLUX[2], rel=0.01)
    center = (own * x).sum() / own.sum(), (own * y).sum() / own.sum()
    np.testing.assert_allclose(center, wcs.world_to_pixel(SKY[2]), atol=0.05)


def test_only_what_the_sharp_image_shows_is_covered():
    def spoiled(sharp):
        sharp[:30] = np.nan
        return sharp

    found, *_ = labeled(0.0, change=spoiled)
    whole, wcs, _ = labeled(0.0)
    area = (SPACE / GROUND) ** 2
    assert whole.covered.sum() == pytest.approx(150 * 150 * area, rel=0.02)
    assert found.covered.sum() == pytest.approx(120 * 150 * area, rel=0.02)
    assert not whole.covered[0].any()
    x, y = np.floor(np.add(wcs.world_to_pixel(SKY), 0.5)).astype(int)
    assert whole.covered[y, x].all()


def test_sources_beyond_the_edge_of_the_ground_image_have_no_position():
    found, *_ = labeled(center=(150.0 + 4 / 3600, 2.0), side=40)
    assert len(found.positions) == 2
    assert (found.sources["number"] == [2]).all()


@pytest.mark.slow
def test_positions_and_masks_are_what_a_deblender_takes():
    found, wcs, _ = labeled()
    asked = {"positions": found.positions, "mask": ~found.covered, "draws": 8}
    posterior = deblend(image(wcs, GROUND, 66, seed=1), **options(GROUND, wcs), **asked)
    assert posterior.dataset["label"].values.tolist() == found.positions["label"].tolist()
    np.testing.assert_allclose(posterior.dataset["x"], found.positions["x"], atol=0.5)


def test_images_have_units_and_bands():
    wcs = frame(GROUND, 66), frame(SPACE, 150)
    ground, sharp = (image(one, *size) for one, size in zip(wcs, ((GROUND, 66), (SPACE, 150)), strict=True))
    sharp = NDData(np.stack([sharp, sharp]), unit="nJy", wcs=wcs[1])
    known = {"psf": gaussian((21, 21), (10, 10), BLUR[SPACE]), "sky_rms": RMS}
    found = label_ground(NDData(ground, unit="electron / s"), sharp, sharp_options=known, **options(GROUND, wcs[0]))
    assert found.positions["flux"].shape == (3, 2)
    assert found.positions["flux"].unit == "nJy"
    assert found.sources["flux"].unit == "electron / s"
    assert found.light.shape == (2, 66, 66)


@pytest.mark.parametrize("name", ["ground", "sharp"])
def test_world_coordinates_are_needed(name):
    wcs = {"ground": frame(GROUND, 66), "sharp": frame(SPACE, 150)}
    wcs[name] = None
    with pytest.raises(ValueError, match=f"^{name} must have world coordinates on the sky, got none"):
        label_ground(
            image(frame(GROUND, 66), GROUND, 66),
            image(frame(SPACE, 150), SPACE, 150),
            sharp_options=options(SPACE, wcs["sharp"]),
            **options(GROUND, wcs["ground"]),
        )


@pytest.mark.parametrize("center", [(150.1, 2.0), (330.0, -2.0)])
def test_images_must_overlap(center):
    wcs = frame(GROUND, 66, center=center), frame(SPACE, 150)
    empty = image(wcs[1], GROUND, 66, sky=SKY[:0], flux=()), image(wcs[1], SPACE, 150)
    known = options(GROUND, wcs[0]) | {"sharp_options": options(SPACE, wcs[1])}
    with pytest.raises(ValueError, match=r"^sharp must show a part of the sky that ground shows, got none"):
        label_ground(*empty, **known)


def test_the_sharp_image_must_be_the_sharper_one():
    wcs = frame(GROUND, 66), frame(SPACE, 150)
    with pytest.raises(ValueError, match=r"^sharp must have a narrower PSF than ground, got 1\.19 and 0\.266 arcsec$"):
        label_ground(
            image(wcs[1], SPACE, 150),
            image(wcs[0], GROUND, 66),
            sharp_options=options(GROUND, wcs[0]),
            **options(SPACE, wcs[1]),
        )


def test_correlated_noise_is_no_source():
    """Drizzled noise peaks higher than white noise once smoothed, and is not taken for sources."""
    wcs, camera = frame(SPACE, 180), Camera.candels_f160w()
    noise = RMS * correlated_noise((180, 180), camera.noise_kernel[0], generator=torch.Generator().manual_seed(1))
    sharp = noise.double().numpy() + image(wcs, SPACE, 180) - image(wcs, SPACE, 180, sky=SKY[:0], flux=())
    ground = frame(GROUND, 66)
    known = options(GROUND, ground) | {"sharp_options": options(SPACE, wcs)}
    assert len(label_ground(image(ground, GROUND, 66), sharp, **known).positions) == 3
