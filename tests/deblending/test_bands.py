"""What the containers of an image say of it: header, world coordinates, PSF, masks and lists of quantities."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, NDData, StdDevUncertainty
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from astropy.wcs.wcsapi import SlicedLowLevelWCS
from tiny_weights import PSF, noise_of

from probdeblend.deblending.inputs import observe

SHAPE = (40, 48)
SKY = noise_of(SHAPE)
BAD = np.zeros(SHAPE, dtype=bool)
BAD[7, 8:20] = True


def seen_of(image, **options):
    """An observation, and its good pixels."""
    with observe(image, **{"psf": PSF, "sky_rms": 1.0} | options) as seen:
        return seen, seen.window(*(slice(0, side) for side in SHAPE))[1].numpy()


@pytest.mark.parametrize("header", [{"ABMAGZP": 25.9}, {"PHOTFLAM": 1.9e-20, "PHOTPLAM": 15369.0}, {"ABMAGZP": "25,9"}])
def test_the_header_of_an_image_is_read_like_that_of_a_file(header, tmp_path):
    cards = header | {"EXPTIME": 100.0}
    fits.PrimaryHDU(SKY, fits.Header(cards | {"BUNIT": "electron/s"})).writeto(tmp_path / "image.fits")
    image = CCDData(SKY, unit="electron/s", meta=cards)
    seen, stored = (seen_of(form)[0] for form in (image, tmp_path / "image.fits"))
    assert seen.zero_point == pytest.approx(stored.zero_point, nan_ok=True)
    assert seen.notes == [note.replace(f"{tmp_path}/image.fits", "image") for note in stored.notes]
    assert any("would make it 100" in note for note in seen.notes)
    single = {"ABMAGZP": np.float32(25.9)}  # cards of a header that no file has held
    assert seen_of(CCDData(SKY, unit="adu", meta=single))[0].zero_point == pytest.approx((25.9,))
    assert seen_of(CCDData(SKY, unit="nJy", meta=header))[0].zero_point == pytest.approx((31.4,), abs=1e-3)


def test_the_psf_of_an_image_is_used_where_none_is_given():
    own, cube = NDData(SKY, psf=PSF), NDData(np.stack([SKY, SKY]), psf=PSF)
    expected = seen_of(SKY)[0].psf
    for image in (own, cube, [own, own]):
        seen = seen_of(image, psf=None)[0]
        assert seen.psf.allclose(expected)
        assert "the PSF is that of the image itself" in seen.notes
    assert "the PSF is that of the image itself" not in seen_of(own, psf="candels_f160w")[0].notes
    with pytest.raises(ValueError, match="psf must be square"):
        seen_of(NDData(SKY, psf=PSF[1:]), psf=None)
    with pytest.raises(ValueError, match="psf must be given"):
        seen_of([own, NDData(SKY)], psf=None)


def test_other_world_coordinates_than_those_of_fits_are_noted():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cdelt = ("RA---TAN", "DEC--TAN"), (-1e-5, 1e-5)
    assert seen_of(NDData(SKY, wcs=wcs))[0].pixel_scale == pytest.approx(0.036)
    seen = seen_of(NDData(SKY, wcs=SlicedLowLevelWCS(wcs, [slice(0, side) for side in SHAPE])))[0]
    assert seen.wcs is None
    assert any("world coordinates are not used, as they are a HighLevelWCSWrapper" in note for note in seen.notes)


@pytest.mark.parametrize(
    "image",
    [
        Masked(SKY, mask=BAD),
        Masked(SKY * u.ct, mask=BAD),
        [Masked(SKY * u.ct, mask=BAD), np.ma.array(SKY, mask=BAD) * u.ct][:1],
        NDData(SKY, mask=BAD.astype(float)),
        NDData(SKY, mask=np.where(BAD, np.nan, 0.0)),
        CCDData(SKY, unit="ct", mask=8 * BAD),
    ],
    ids=["masked", "masked quantity", "list", "floats", "nan", "flags"],
)
def test_masks_have_many_forms(image):
    assert ((seen_of(image)[1][0] == 0) == BAD).all()
    assert (seen_of(SKY, mask=8.0 * BAD)[1][0] == 0).tolist() == BAD.tolist()


def test_lists_of_quantities_are_quantities():
    assert seen_of(list(SKY * u.ct))[0].unit == "ct"
    seen = seen_of([SKY * u.ct] * 2, sky_rms=[1 * u.ct, 1e-3 * u.kct], zero_point=[25 * u.ABmag, 26 * u.ABmag])[0]
    assert (seen.zero_point, seen.sky_rms(np.zeros(1), np.zeros(1)).tolist()) == ((25.0, 26.0), [[1.0, 1.0]])
    assert seen_of([SKY * u.adu] * 2, gain=[2 * u.electron / u.adu] * 2)[0].photon.tolist() == pytest.approx([0.5] * 2)


@pytest.mark.parametrize("uncertainty", [None, StdDevUncertainty(np.ones(SHAPE))])
def test_a_stored_image_is_read_as_it_was(tmp_path, uncertainty):
    """Primary image, mask and uncertainty, as CCDData writes them."""
    image = CCDData(SKY, unit="adu", mask=BAD, uncertainty=uncertainty)
    image.write(tmp_path / "image.fits")
    seen, good = seen_of(tmp_path / "image.fits", sky_rms=None if uncertainty else 1.0)
    assert ((good[0] == 0) == BAD).all()
    assert seen.unit == "adu"
    assert seen.sky_rms(np.zeros(1), np.zeros(1)) == pytest.approx(1, rel=0.1)
