"""Isolated galaxies: cut out of images, judged, in any number of bands."""

from collections import Counter

import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs.utils import proj_plane_pixel_scales

from probdeblend.surveys import isolate

ALONE = (100.3, 90.7, 50.0, 4.0)
HST = {"psf": "candels_f160w", "sky_rms": 3e-3}


def only(galaxies):
    (galaxy,) = galaxies
    return galaxy


def test_an_isolated_galaxy_is_kept(sky, wcs):
    galaxy = only(isolate(sky(ALONE), **HST, wcs=wcs, zero_point=25.9463, origin="field"))
    assert galaxy.keep
    assert galaxy.flags == ()
    assert galaxy.identity == "field:100,91"
    assert galaxy.pixel_scale == pytest.approx(proj_plane_pixel_scales(wcs)[0] * 3600)
    place = np.array(wcs.pixel_to_world_values(100.3, 90.7))
    assert np.array([galaxy.ra, galaxy.dec]) == pytest.approx(place, abs=0.03 / 3600)
    assert galaxy.magnitude == pytest.approx([25.9463 - 2.5 * np.log10(50)], abs=0.05)
    assert galaxy.sky_rms == pytest.approx([3e-3])
    assert galaxy.wavelength == pytest.approx([1.54])
    beyond = galaxy.pixels[0][~galaxy.footprint]
    assert np.std(beyond) == pytest.approx(3e-3, rel=0.1)


def test_a_galaxy_has_the_pixels_of_all_bands(sky):
    image = np.stack([sky(ALONE), sky((*ALONE[:2], 100.0, 4.0), seed=1, rms=6e-3)])
    galaxy = only(isolate(image, psf="candels_f160w", sky_rms=[3e-3, 6e-3]))
    assert galaxy.pixels.shape[0] == len(galaxy.psf) == 2
    assert galaxy.sky_rms == pytest.approx([3e-3, 6e-3])
    assert galaxy.pixels[:, galaxy.footprint].sum(1) == pytest.approx([50, 100], rel=0.05)


def test_a_footprint_has_no_pixel_of_a_neighbor_or_a_defect(sky):
    image = sky(ALONE, (130.0, 90.0, 20.0, 3.0))
    image[88, 97] = np.nan
    first = next(galaxy for galaxy in isolate(image, **HST, zero_point=25.9463) if galaxy.magnitude[0] < 22)
    assert np.isfinite(first.pixels[:, first.footprint]).all()
    assert first.footprint.sum() < only(isolate(sky(ALONE), **HST)).footprint.sum()


@pytest.mark.parametrize(
    ("others", "reason"),
    [([(117.0, 91.0, 40.0, 4.0)], "neighbor"), ([(106.0, 91.0, 40.0, 1.5)], "asymmetric")],
)
def test_company_is_a_reason_to_reject(sky, others, reason):
    galaxies = isolate(sky((*ALONE[:3], 3.0), *others), **HST)
    assert all(galaxy.flags == (reason,) and not galaxy.keep for galaxy in galaxies)


def test_missing_pixels_are_a_reason_to_reject(sky):
    image = sky(ALONE)
    image[85:88, 95:103] = np.nan
    assert only(isolate(image, **HST)).flags == ("missing pixels",)
    far = sky(ALONE)
    far[20:30, 20:30] = np.nan
    assert only(isolate(far, **HST)).keep
    assert only(isolate(sky(ALONE)[80:], **HST)).flags == ("missing pixels",)


def test_two_noise_levels_are_a_reason_to_reject(sky):
    image = sky((*ALONE[:2], 200.0, 6.0))
    rms = np.full(image.shape, 3e-3)
    image[:, 100:] += sky(seed=1, rms=6e-3)[:, 100:]
    rms[:, 100:] *= 5**0.5
    assert only(isolate(image, psf="candels_f160w", sky_rms=rms)).flags == ("two noise levels",)


def test_galaxies_at_positions_have_their_names(sky, wcs):
    image = sky(ALONE, (40.0, 50.0, 50.0, 4.0))
    assert len(isolate(image, **HST)) == 2
    table = Table({"x": [102.0, 150.0], "y": [90.0, 150.0], "name": ["mine", "nothing"]})
    assert only(isolate(image, **HST, positions=table)).identity == "image:mine"
    assert only(isolate(image, **HST, positions=wcs.pixel_to_world([41.0], [50.0]), wcs=wcs)).identity == "image:1"


def test_an_image_is_needed_in_which_galaxies_can_be_found(sky):
    with pytest.raises(ValueError, match="image must hold a galaxy with a signal-to-noise ratio of 1e\\+06, got none"):
        isolate(sky(ALONE), **HST, least_snr=1e6)
    with pytest.raises(ValueError, match="wcs must be given where the size of a pixel is not known, got None"):
        isolate(sky(ALONE), psf=np.ones((3, 3)), sky_rms=3e-3)


def test_tiles_do_not_change_galaxies(sky, monkeypatch):
    image = sky(ALONE, (40.0, 50.0, 50.0, 4.0))
    whole = isolate(image, **HST)
    monkeypatch.setattr("probdeblend.surveys.isolated.TILE", 96)
    monkeypatch.setattr("probdeblend.surveys.isolated.OVERLAP", 48)
    parts = isolate(image, **HST)
    assert sorted(one.identity for one in parts) == sorted(one.identity for one in whole)
    fluxes = [
        [one.pixels[:, one.footprint].sum() for one in sorted(found, key=lambda one: one.identity)]
        for found in (parts, whole)
    ]
    np.testing.assert_allclose(*fluxes, rtol=1e-3)
    monkeypatch.setattr("probdeblend.surveys.isolated.OVERLAP", 8)
    assert all("missing pixels" in one.flags for one in isolate(sky((*ALONE[:2], 500.0, 12.0)), **HST))


@pytest.mark.slow
def test_isolated_galaxies_of_candels(data_dir):
    """Of the seven cut-outs: some kept and some rejected, and the two depths of one are seen."""
    paths = sorted((data_dir / "candels_f160w").glob("*.fits"))
    found = {path.stem: isolate(f"{path}[1]", psf="candels_f160w", zero_point=25.9463) for path in paths}
    galaxies = [galaxy for own in found.values() for galaxy in own if galaxy.magnitude[0] < 24.7]
    assert 5 <= sum(galaxy.keep for galaxy in galaxies) < len(galaxies)
    (bright,) = (galaxy for galaxy in found["gds_H.gf18160"] if galaxy.magnitude[0] < 21)
    assert bright.flags == ("two noise levels",)
    assert Counter(flag for galaxy in galaxies for flag in galaxy.flags)["missing pixels"] >= 3
    assert all(1.5e-3 < galaxy.sky_rms[0] < 9e-3 for galaxy in galaxies)
