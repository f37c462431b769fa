"""Every form of an image becomes the same pixels over sky noise, and what is wrong with one is said in a sentence."""

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from tiny_weights import PSF, light_of, noise_of

from probdeblend.deblending import pixels
from probdeblend.deblending.inputs import observe, widened

SHAPE = (50, 64)
RMS = 8.0
PIXELS = np.round(light_of(SHAPE, [20, 40], [30, 12], [3200, 1600]) + RMS * noise_of(SHAPE))
BAD = np.zeros(SHAPE, dtype=bool)
BAD[7, 8:20] = True
ALL = tuple(slice(0, side) for side in SHAPE)


def seen_of(image, **options):
    """Pixels over sky noise and good pixels of the whole image, and the observation."""
    with observe(image, **{"psf": PSF, "sky_rms": RMS} | options) as seen:
        return *(part.numpy() for part in seen.window(*ALL)), seen


def world(scale=0.06):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = 53.1, -27.8
    wcs.wcs.crpix = 20, 20
    wcs.wcs.cdelt = -scale / 3600, scale / 3600
    wcs.wcs.set()
    return wcs


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "field.fits"
    header = world().to_header()
    header.update(BUNIT="electron/s", ABMAGZP=25.9)
    fits.PrimaryHDU(PIXELS.astype(">f4"), header).writeto(path)
    return path


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", "<f2", ">i2", "<i4", ">i8"])
def test_type_and_byte_order_do_not_matter(dtype):
    ratio, good, seen = seen_of(PIXELS.astype(dtype))
    np.testing.assert_array_equal(ratio[0], (PIXELS / RMS).astype(np.float32))
    assert good.all()
    assert (seen.unit, seen.bands, seen.shape) == ("", ("",), SHAPE)


def frozen():
    pixels = PIXELS.copy()
    pixels.flags.writeable = False
    return pixels


CONTAINERS = {
    "read-only": frozen,
    "strided": lambda: np.repeat(PIXELS, 2, 1)[:, ::2],
    "nested lists": PIXELS.tolist,
    "one band": lambda: PIXELS[None],
    "list of one": lambda: [PIXELS],
    "tensor": lambda: torch.from_numpy(PIXELS).requires_grad_(),
    "half tensor": lambda: torch.from_numpy(PIXELS).bfloat16(),
    "quantity": lambda: PIXELS * u.ct,
    "data": lambda: NDData(PIXELS, unit="ct"),
    "ccd": lambda: CCDData(PIXELS.astype(">f4"), unit="ct"),
}


@pytest.mark.parametrize("form", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_do_not_matter(form):
    image = form()
    ratio, good, seen = seen_of(image)
    tolerance = 1e-2 if getattr(image, "dtype", None) == torch.bfloat16 else 0
    np.testing.assert_allclose(ratio[0], (PIXELS / RMS).astype(np.float32), rtol=tolerance)
    assert good.all()
    assert seen.unit == ("ct" if hasattr(image, "unit") else "")


def test_files_are_read_with_what_they_say(stored):
    for path in (stored, str(stored)):
        ratio, _, seen = seen_of(path)
        np.testing.assert_array_equal(ratio[0], (PIXELS / RMS).astype(np.float32))
        assert (seen.unit, seen.zero_point) == ("electron / s", (25.9,))
        assert seen.pixel_scale == pytest.approx(0.06)
        assert seen.wcs.wcs.crval[0] == pytest.approx(53.1)
    assert seen_of(stored, zero_point=30, wcs=world(0.2))[2].zero_point == (30.0,)
    assert seen_of(stored, wcs=world(0.2))[2].pixel_scale == pytest.approx(0.2)


def test_integers_in_files_are_scaled_and_blank_ones_are_bad(tmp_path):
    unsigned, blank = tmp_path / "unsigned.fits", tmp_path / "blank.fits"
    fits.PrimaryHDU((PIXELS + 1000).astype(np.uint16)).writeto(unsigned)
    np.testing.assert_allclose(seen_of(unsigned)[0][0], (PIXELS + 1000) / RMS)
    counts = fits.PrimaryHDU(np.where(BAD, -999, PIXELS).astype(">i2"))
    counts.header["BLANK"] = -999
    counts.writeto(blank)
    np.testing.assert_array_equal(seen_of(blank)[1][0] == 0, BAD)


def test_a_file_is_read_in_blocks_that_join(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "BLOCK", 32)
    monkeypatch.setattr(pixels, "BLOCK_MARGIN", 8)
    values, parts, raw = noise_of((96, 64)).astype(">f4"), [], pixels.BandPixels.raw
    monkeypatch.setattr(pixels.BandPixels, "raw", lambda self, part: parts.append(part) or raw(self, part))
    fits.PrimaryHDU(values).writeto(tmp_path / "mapped.fits")
    with observe(tmp_path / "mapped.fits", psf="candels_f160w", sky_rms=1.0) as seen:
        before = len(parts)
        ratio, good = seen.window(slice(20, 100), slice(40, 80))
    np.testing.assert_array_equal(ratio[0, :76, :24], values[20:, 40:])
    assert good[0, :76, :24].all()
    assert good.sum() == 76 * 24
    assert len(parts) - before <= 3
    assert max(side.stop - side.start for part in parts[before:] for side in part) <= 48


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (np.ma.array(PIXELS, mask=BAD), {}),
        (np.ma.array(PIXELS.astype(">i4"), mask=BAD), {}),
        (np.where(BAD, np.nan, PIXELS), {}),
        (np.where(BAD, np.inf, PIXELS), {}),
        (np.where(BAD, 1e30, PIXELS), {}),
        (NDData(PIXELS, mask=BAD), {}),
        (CCDData(PIXELS, mask=BAD, unit="adu"), {}),
        (PIXELS, {"mask": BAD}),
        (PIXELS, {"mask": 4 * BAD.astype(np.uint8)}),
        (PIXELS, {"mask": torch.from_numpy(BAD)}),
        (PIXELS, {"mask": BAD[None]}),
        (PIXELS, {"mask": np.ma.array(np.zeros(SHAPE), mask=BAD)}),
        (Masked(PIXELS, mask=BAD), {}),
        (Masked(PIXELS, mask=BAD) * u.nJy, {}),
        (NDData(PIXELS, uncertainty=InverseVariance(np.where(BAD, 0, RMS**-2))), {"sky_rms": None}),
        (NDData(PIXELS, uncertainty=VarianceUncertainty(np.where(BAD, -1, RMS**2))), {"sky_rms": None}),
        (PIXELS, {"sky_rms": np.where(BAD, np.nan, RMS)}),
        (PIXELS, {"sky_rms": np.where(BAD, 0.0, RMS)}),
        (NDData(PIXELS, mask=BAD & (np.arange(64) < 12)), {"mask": BAD & (np.arange(64) >= 12)}),
    ],
)
def test_bad_pixels_are_zero_and_known(image, options):
    ratio, good, _ = seen_of(image, **options)
    np.testing.assert_array_equal(good[0] == 0, BAD)
    np.testing.assert_array_equal(ratio[0], np.where(BAD, 0, PIXELS / RMS).astype(np.float32))


def test_a_patch_of_zeros_is_bad_and_a_single_zero_is_not():
    image = PIXELS + 0.1
    image[10:20, 30:40], image[2, 3] = 0, 0
    good = seen_of(image)[1][0] > 0
    assert not good[10:20, 30:40].any()
    assert (~good).sum() == 100


MAP = np.full(SHAPE, 1.25 * RMS)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (PIXELS, {"sky_rms": RMS}, RMS),
        (PIXELS, {"sky_rms": [RMS]}, RMS),
        (PIXELS * u.ct, {"sky_rms": RMS / 1e3 * u.kct}, RMS),
        (PIXELS, {"sky_rms": torch.tensor(RMS)}, RMS),
        (PIXELS, {"sky_rms": MAP}, MAP),
        (PIXELS, {"sky_rms": torch.from_numpy(MAP)}, MAP),
        (PIXELS, {"sky_rms": MAP.astype(">f8")[None]}, MAP),
        (NDData(PIXELS, uncertainty=StdDevUncertainty(MAP)), {"sky_rms": None}, MAP),
        (NDData(PIXELS, uncertainty=VarianceUncertainty(MAP**2)), {"sky_rms": None}, MAP),
        (NDData(PIXELS, uncertainty=InverseVariance(MAP**-2)), {"sky_rms": None}, MAP),
        (CCDData(PIXELS, unit="ct", uncertainty=StdDevUncertainty(MAP / 1e3, unit="kct")), {"sky_rms": None}, MAP),
        (NDData(PIXELS, uncertainty=StdDevUncertainty(2 * MAP)), {"sky_rms": RMS}, RMS),
        (NDData(PIXELS, uncertainty=UnknownUncertainty(2 * MAP)), {"sky_rms": RMS}, RMS),
    ],
)
def test_noise_has_many_forms(image, options, expected):
    ratio, _, seen = seen_of(image, **options)
    np.testing.assert_allclose(ratio[0], PIXELS / expected, rtol=1e-6)
    rms = seen.sky_rms(np.array([3.2, 40.0]), np.array([9.0, 2.0]))
    np.testing.assert_allclose(rms[:, 0], np.broadcast_to(expected, SHAPE)[[9, 2], [3, 40]])


def test_noise_maps_may_be_files(tmp_path):
    fits.PrimaryHDU(MAP.astype(">f4")).writeto(tmp_path / "rms.fits")
    np.testing.assert_allclose(seen_of(PIXELS, sky_rms=tmp_path / "rms.fits")[0][0], PIXELS / MAP, rtol=1e-6)


def test_image_noise_and_mask_may_be_hdus_of_one_file(tmp_path):
    path = tmp_path / "all.fits"
    hdus = [
        fits.ImageHDU(PIXELS.astype(">f4"), fits.Header({"BUNIT": "uJy"}), name="SCI"),
        fits.ImageHDU(1e3 * MAP.astype(">f4"), fits.Header({"BUNIT": "nJy"}), name="ERR"),
        fits.ImageHDU(8 * BAD.astype(np.uint8), name="DQ"),
        fits.ImageHDU(np.zeros(SHAPE, dtype=np.int16), name="DQ", ver=2),
    ]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    ratio, good, seen = seen_of(f"{path}[SCI]", sky_rms=f"{path}[ERR]", mask=f"{path}[DQ,1]")
    np.testing.assert_allclose(ratio[0], np.where(BAD, 0, PIXELS / MAP), rtol=1e-6)
    np.testing.assert_array_equal(good[0] == 0, BAD)
    assert (seen.unit, seen.zero_point) == ("uJy", (pytest.approx(23.9, abs=1e-3),))
    whole = seen_of(path, sky_rms=path)
    np.testing.assert_array_equal(whole[0], ratio)
    assert seen_of(f"{path}[SCI]", mask=f"{path}[DQ,2]", dq=0)[1].all()
    with pytest.raises(ValueError, match="sky_rms must be in ct, got nJy"):
        seen_of(PIXELS * u.ct, sky_rms=f"{path}[ERR]")


def accompanied(path, image, noise=None, quality=None, name="ERR"):
    """Write a file with an image, and noise and data quality that go along with it."""
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image.astype(">f4"), name="SCI")]
    hdus += [] if noise is None else [fits.ImageHDU(np.broadcast_to(noise, image.shape).astype(">f4"), name=name)]
    hdus += [] if quality is None else [fits.ImageHDU(quality.astype(np.int16), name="DQ")]
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def test_a_file_alone_brings_its_noise_and_its_mask(tmp_path):
    """A noise map tells where the noise is larger; blank sky tells its level, here to within 3 standard errors."""
    shape = (64, 256)
    noise, bad = np.where(np.arange(256) < 128, 2.0, 1.0) * np.ones(shape), np.zeros(shape, dtype=bool)
    bad[7, 8:20] = True
    sky = light_of(shape, [40], [20], 300) + noise * noise_of(shape)
    path = accompanied(tmp_path / "x.fits", sky, 1.3 * noise, 4 * bad)
    columns = slice(0, 256)

    def flagged(image, **options):
        with observe(image, psf=PSF, **options) as seen:
            return seen.window(slice(0, 64), columns)[1].numpy() == 0, seen

    found, seen = flagged(path)
    np.testing.assert_array_equal(found[0], bad)
    np.testing.assert_allclose(seen.sky_rms(np.array([40.0, 220.0]), np.array([30.0, 30.0]))[:, 0], [2, 1], rtol=0.05)
    (note,) = (note for note in seen.notes if "sky noise" in note)
    assert note.startswith(f"the sky noise is ERR,1 of {path}, times 0.7")
    assert f"pixels are bad where DQ,1 of {path} has any bit" in seen.notes
    found, seen = flagged(path, sky_rms=noise, mask=np.roll(bad, 5, 0))
    np.testing.assert_array_equal(found[0], bad | np.roll(bad, 5, 0))
    assert not any("sky noise" in note for note in seen.notes)
    assert not flagged(path, sky_rms=noise, dq="~4")[0].any()
    plain = accompanied(tmp_path / "y.fits", sky)
    assert flagged([path, plain], sky_rms=1.5)[0].sum((1, 2)).tolist() == [bad.sum(), 0]


@pytest.mark.parametrize("noise", [30.0, 0.01, 0.0, np.nan])
def test_noise_of_a_file_that_is_not_that_of_its_sky_is_measured(tmp_path, noise):
    image = light_of((80, 80), [40], [20], 300) + noise_of((80, 80))
    path = accompanied(tmp_path / "x.fits", image, noise)
    with observe(path, psf=PSF) as seen:
        assert seen.sky_rms(np.array([8.0]), np.array([9.0]))[0, 0] == pytest.approx(1, rel=0.1)
    assert f"the sky noise is measured, as ERR,1 of {path} is far from the scatter of blank sky" in seen.notes
    with pytest.raises(ValueError, match="sky_rms must be"):
        seen_of(image, sky_rms=f"{path}[ERR]")


def test_noise_of_a_file_without_blank_sky_is_taken_as_it_is(tmp_path):
    path = accompanied(tmp_path / "x.fits", noise_of((30, 30)), 1.3)
    with observe(path, psf=PSF) as seen:
        assert seen.sky_rms(np.array([8.0]), np.array([9.0]))[0, 0] == pytest.approx(1.3, rel=1e-6)
    assert any(f"the sky noise is ERR,1 of {path}, times 1.00" in note for note in seen.notes)


@pytest.mark.parametrize(("name", "power"), [("VAR", 2), ("IVAR", -2), ("WHT", -2), ("RMS", 1)])
def test_noise_that_is_given_is_converted_by_its_name(tmp_path, name, power):
    fits.ImageHDU(RMS**power * np.ones(SHAPE), name=name).writeto(tmp_path / "x.fits")
    ratio, _, seen = seen_of(PIXELS, sky_rms=tmp_path / "x.fits")
    np.testing.assert_allclose(ratio[0], PIXELS / RMS, rtol=1e-6)
    assert any("sky_rms is taken to the power of" in note for note in seen.notes) == (power != 1)
    with pytest.raises(ValueError, match="sky_rms must be the standard deviation of pixels of blank sky"):
        seen_of(100 * PIXELS, sky_rms=tmp_path / "x.fits")


def test_each_band_may_have_its_mask():
    masks = np.stack([BAD, np.roll(BAD, 5, 0)])
    good = seen_of(np.stack([PIXELS, PIXELS]), sky_rms=[RMS, RMS], mask=masks)[1]
    np.testing.assert_array_equal(good == 0, masks)


def sky_of(image, **options):
    """Sky noise in units of flux, that unit, the zero point, and the notes."""
    seen = seen_of(image, **options)[2]
    return seen.sky_rms(np.array([5.0]), np.array([5.0]))[0, 0], seen.unit, seen.zero_point[0], seen.notes


@pytest.mark.parametrize(
    ("unit", "zero_point"),
    [(u.nJy, 31.4), (u.uJy, 23.9), (u.mJy, 16.4), (u.Jy, 8.9), (u.Unit("nmgy"), 22.5), (u.ct, np.nan)],
)
def test_units_of_flux_density_fix_the_zero_point(unit, zero_point):
    for image in (PIXELS * unit, CCDData(PIXELS, unit=unit)):
        sky, named, found, _ = sky_of(image)
        assert (sky, named) == (RMS, str(unit))
        assert found == pytest.approx(zero_point, abs=1e-3, nan_ok=True)
    assert sky_of(PIXELS * unit, zero_point=zero_point if zero_point > 0 else 25.0)[2] > 0
    assert sky_of(PIXELS * u.ct, zero_point=25 * u.ABmag)[2] == 25


@pytest.mark.parametrize("unit", ["MJy/sr", "uJy/arcsec2", "nJy/deg2"])
def test_surface_brightness_becomes_flux(unit):
    """The flux of the same pixels is the same, whatever the solid angle that they are given per."""
    area = (0.06 * u.arcsec) ** 2
    factor = (1 * u.uJy / area).to_value(unit)
    for options in ({"wcs": world()}, {"psf": "candels_f160w"}):
        sky, named, zero_point, notes = sky_of(PIXELS * factor * u.Unit(unit), sky_rms=RMS * factor, **options)
        assert sky == pytest.approx(RMS)
        assert (named, zero_point) == ("uJy", pytest.approx(23.9, abs=1e-3))
        assert any("multiplied by their area, so fluxes are in uJy" in note for note in notes)
    rms = RMS * factor * u.Unit(unit)
    assert sky_of(PIXELS * factor * u.Unit(unit), sky_rms=rms, wcs=world())[0] == pytest.approx(RMS)
    counts = sky_of(PIXELS * u.electron / u.s / u.arcsec**2, wcs=world(2.0))
    assert counts[:2] == (pytest.approx(4 * RMS), "electron / s")


def test_other_units_are_converted():
    rate, micron = PIXELS * u.electron / u.s, 1.54 * u.micron
    plain = seen_of(rate, gain=3.2, wavelength=1.54)[2].noise.numpy()
    for gain in (3.2 * u.s, 3200 * u.ms, 3.2 * u.electron / rate.unit):
        seen = seen_of(rate, gain=gain, wavelength=micron.to(u.nm))[2]
        np.testing.assert_allclose(seen.noise.numpy(), plain, rtol=1e-6)
    adu = seen_of(PIXELS * u.adu, gain=3.2 * u.electron / u.adu, wavelength=micron)[2]
    np.testing.assert_allclose(adu.noise.numpy(), plain, rtol=1e-6)
    assert "photon noise is taken as zero without gain, which is not read from headers" not in adu.notes
    assert "photon noise is taken as zero without gain, which is not read from headers" in seen_of(PIXELS)[2].notes


def test_what_cards_say_of_the_gain_is_noted_and_not_used(tmp_path):
    fits.PrimaryHDU(PIXELS, fits.Header({"BUNIT": "ELECTRONS/S", "EXPTIME": 500.0})).writeto(tmp_path / "x.fits")
    seen = seen_of(tmp_path / "x.fits")[2]
    note = "photon noise is taken as zero without gain, which is not read from headers"
    assert f"{note} (EXPTIME and GAIN would make it 500)" in seen.notes
    assert seen.photon.item() == 0
    assert not any(note in one for one in seen_of(tmp_path / "x.fits", gain=500)[2].notes)


def test_fluxes_in_a_unit_that_nobody_knows_are_not_converted(tmp_path):
    for unit in ("widget", "gizmo"):
        fits.PrimaryHDU(PIXELS, fits.Header({"BUNIT": unit})).writeto(tmp_path / f"{unit}.fits")
    path = tmp_path / "widget.fits"
    _, unit, zero_point, notes = sky_of(path)
    assert (unit, np.isnan(zero_point)) == ("widget", True)
    assert "astropy does not know the unit widget, so fluxes are sums of pixels in it" in notes
    assert sky_of(path, sky_rms=path)[1] == "widget"
    for options, message in (
        ({"sky_rms": tmp_path / "gizmo.fits"}, "sky_rms must be in widget, got gizmo"),
        ({"sky_rms": RMS * u.Jy}, "sky_rms must be in widget, got Jy"),
        ({"gain": 2 * u.electron / u.adu}, "gain must be a number for an image in widget, got 2.0 electron / adu"),
    ):
        with pytest.raises(ValueError, match=message):
            sky_of(path, **options)
    with pytest.raises(ValueError, match="bands must have one unit, got 'gizmo', 'widget'"):
        sky_of([path, tmp_path / "gizmo.fits"])
    with pytest.raises(ValueError, match="sky_rms must be in adu, got gizmo"):
        sky_of(PIXELS * u.adu, sky_rms=tmp_path / "gizmo.fits")


def test_pixels_that_are_not_square_are_noted():
    wide = world()
    wide.wcs.cdelt = -0.06 / 3600, 0.05 / 3600
    _, _, seen = seen_of(PIXELS, wcs=wide)
    assert "pixels of 0.06 x 0.05 arcsec are taken as squares of their area" in seen.notes
    assert seen.pixel_scale == pytest.approx(np.sqrt(0.06 * 0.05))
    assert not any("squares" in note for note in seen_of(PIXELS, wcs=world())[2].notes)


def test_world_coordinates_may_be_of_no_sky():
    for axes, scale in ((("HPLN-TAN", "HPLT-TAN"), 3600.0), (("LINEAR", "LINEAR"), 1.0)):
        other = WCS(naxis=2)
        other.wcs.ctype = axes
        seen = seen_of(PIXELS, wcs=other)[2]
        assert seen.pixel_scale == pytest.approx(scale)
        assert ("without world coordinates, sizes are in pixels" in seen.notes) == (scale == 1)


def test_notes_of_files_are_kept(tmp_path):
    fits.PrimaryHDU(PIXELS, fits.Header({"MAGZERO": "25,9"})).writeto(tmp_path / "x.fits")
    assert any(
        "MAGZERO must be a positive number, got '25,9'" in note for note in seen_of(tmp_path / "x.fits")[2].notes
    )


def test_sky_and_noise_are_measured_in_large_images():
    image = light_of((200, 220), [60, 150], [70, 120], 3000) + 2 * noise_of((200, 220)) + 30
    ratio, _, seen = seen_of(image, sky_rms=None)
    assert np.median(ratio) == pytest.approx(0, abs=0.1)
    assert seen.sky_rms(np.array([10.0]), np.array([10.0]))[0, 0] == pytest.approx(2, rel=0.05)
    assert not any("sky-subtracted" in note for note in seen.notes)
    constant = seen_of(np.full((200, 220), 30.0), sky_rms=2.0)[0]
    assert not constant.any()


def test_masked_pixels_around_an_image_do_not_change_how_its_sky_is_treated():
    image = light_of((150, 150), [60, 110], [70, 120], 3000) + noise_of((150, 150)) + 0.3
    alone = seen_of(image, sky_rms=1.0)
    padded = np.full((400, 400), np.nan)
    padded[96:246, 96:246] = image
    with observe(padded, psf=PSF, sky_rms=1.0) as seen:
        window = seen.window(slice(96, 246), slice(96, 246))[0]
        assert seen.notes == alone[2].notes
    np.testing.assert_array_equal(window[:, :50, :64], alone[0])
    assert "fewer than 192 x 192 good pixels is taken as sky-subtracted" in seen.notes[0]


@pytest.mark.parametrize("sky", [-2.0, 0.0, 1.0, 5.0])
def test_the_sky_that_is_left_in_a_small_image_is_subtracted(sky):
    """A level within the scatter of the blank pixels' median, 0.03, of what it is: four of them."""
    image = light_of((64, 64), [30], [30], 300) + noise_of((64, 64))
    ratio, _, seen = seen_of(image + sky, sky_rms=1.0)
    assert any("the level of its blank sky is" in note for note in seen.notes) == (sky != 0)
    np.testing.assert_allclose(ratio, seen_of(image, sky_rms=1.0)[0], atol=0.12)


def test_a_sky_that_cannot_be_measured_is_noted():
    seen = seen_of(light_of((40, 40), [20], [20], 1e5) + noise_of((40, 40)), sky_rms=1.0)[2]
    assert any("the level of its blank sky cannot be measured" in note for note in seen.notes)


@pytest.mark.parametrize(("sigma", "expected"), [(8.0, False), (60.0, True)])
def test_a_source_that_covers_the_image_is_noted(sigma, expected):
    image = light_of((200, 200), [100], [100], 1e6, sigma=sigma) + noise_of((200, 200))
    assert (
        any("half of the middle of the image is light" in note for note in seen_of(image, sky_rms=1.0)[2].notes)
        == expected
    )


@pytest.mark.parametrize("factor", [0.1, 0.45, 2.3, 100])
def test_noise_that_is_not_the_scatter_of_blank_sky_is_refused(factor):
    image = light_of(SHAPE, [20, 40], [30, 12], [200, 100]) + noise_of(SHAPE)
    with pytest.raises(ValueError, match="sky_rms must be the standard deviation of pixels of blank sky"):
        seen_of(image, sky_rms=factor)


@pytest.mark.parametrize(("factor", "noted"), [(0.7, True), (0.95, False), (1.05, False), (1.5, True)])
def test_noise_that_is_off_is_noted(factor, noted):
    notes = seen_of(light_of(SHAPE, [20, 40], [30, 12], [200, 100]) + noise_of(SHAPE), sky_rms=factor)[2].notes
    assert any("times as much as the given noise says" in note for note in notes) == noted


def test_what_a_camera_brings_is_noted():
    notes = seen_of(PIXELS, sky_rms=RMS, psf="candels_f160w")[2].notes
    assert any(note.startswith("pixels of 0.06 arcsec, the correlation of the noise") for note in notes)


@pytest.mark.parametrize(("sky", "noted"), [(0.02, "2.0%"), (0.002, None), (-0.003, "-0.3%")])
def test_a_psf_with_sky_is_noted(sky, noted):
    notes = seen_of(PIXELS, sky_rms=RMS, psf=PSF + sky * PSF.max())[2].notes
    found = [note for note in notes if "of its peak at its rim" in note]
    assert len(found) == (noted is not None)
    assert not found or noted in found[0]


def test_photon_noise_in_a_map_does_not_divide_the_light():
    light = light_of((128, 128), [60], [70], 3000)
    noise = np.sqrt(1 + light)
    image = light + noise * noise_of((128, 128))
    with observe(image, psf=PSF, sky_rms=noise) as seen:
        ratio = seen.window(slice(0, 128), slice(0, 128))[0][0].numpy()
        assert seen.sky_rms(np.array([60.0]), np.array([70.0]))[0, 0] == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(ratio, image, rtol=0.02)
    noise[5, 5], image[9, 9] = np.nan, np.nan
    with observe(image, psf=PSF, sky_rms=noise) as seen:
        assert np.argwhere(seen.window(slice(0, 128), slice(0, 128))[1][0].numpy() == 0).tolist() == [[5, 5], [9, 9]]


@pytest.mark.parametrize("unit", [1e-40, 1e40])
@pytest.mark.parametrize("side", [96, 200])
def test_what_the_network_sees_does_not_depend_on_the_unit(unit, side):
    """Neither where the sky is subtracted nor where its level is."""
    image = light_of((side, side), [60], [70], 3000) + noise_of((side, side)) + 5
    expected, _, usual = seen_of(image, sky_rms=1.0)[:3]
    found, _, seen = seen_of(unit * image, sky_rms=unit)[:3]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert len(seen.notes) == len(usual.notes)


@pytest.mark.parametrize("absurd", [1e31, 1e38, -1e300])
def test_an_absurd_pixel_is_a_bad_pixel(absurd):
    image = light_of((200, 200), [60], [70], 3000) + noise_of((200, 200)) + 5
    image[50, 50] = np.nan
    usual = seen_of(image, sky_rms=1.0)[0]
    image[50, 50] = absurd
    np.testing.assert_allclose(seen_of(image, sky_rms=1.0)[0], usual, atol=1e-4)


def test_pixels_that_are_too_bright_are_noted():
    image = light_of((64, 64), [30], [30], 3000) + noise_of((64, 64))
    too_bright = "pixels above 10,000,000 times the sky noise are bad: sources there may be missing"
    assert too_bright not in seen_of(image, sky_rms=1.0)[2].notes
    image[30:33, 30:33] = 2e7
    _, good, seen = seen_of(image, sky_rms=1.0)[:3]
    assert not good[0, 30:33, 30:33].any()
    assert seen.notes.count(too_bright) == 1


@pytest.mark.parametrize("rms", [0.6, 1.0, 2.0, 5.0])
def test_the_noise_of_integers_is_measured(rms):
    image = np.round(light_of((200, 200), [60], [70], 3000) + rms * noise_of((200, 200)) + 100)
    seen = seen_of(image.astype(int), sky_rms=None)[2]
    assert seen.sky_rms(np.array([150.0]), np.array([150.0])).item() == pytest.approx(np.hypot(rms, 12**-0.5), rel=0.15)


def test_the_network_sees_narrow_defects_interpolated():
    light = light_of((64, 64), [30], [30], 3000)
    image = light + noise_of((64, 64))
    image[:, 29:32], image[30:60, 2:8] = np.nan, np.nan
    image[np.arange(40, 63), np.arange(40, 63)] = np.nan
    image[50:57, 10:17] = np.nan
    with observe(image, psf=PSF, sky_rms=1.0) as seen:
        window = slice(0, 64), slice(0, 64)
        pixels, known = (value[0].numpy() for value in seen.network_window(*window))
        good = seen.window(*window)[1][0].numpy()
    np.testing.assert_array_equal(good > 0, np.isfinite(image))
    assert np.argwhere(known == 0).min(0).tolist() == [50, 10]
    assert (known == 0).sum() == 49
    assert pixels[30, 30] == pytest.approx(light[30, 30], rel=0.2)


NARROW = np.exp(-0.5 * (np.hypot(*np.mgrid[-20:21, -20:21]) / 0.6) ** 2)


def test_bands_with_narrow_psfs_are_smoothed_and_the_others_are_not():
    """Light is kept, the noise is what the network is told, bad pixels do not leak, and windows join."""
    noise = noise_of((2, 150, 160))
    bad = np.zeros((150, 160), dtype=bool)
    bad[40:45, 50], bad[80, 81] = True, True
    noise[1, bad] = 1e6
    star = light_of((150, 160), [90], [100], 1e4, sigma=0.6)
    with observe(noise + star, psf=[PSF, NARROW], sky_rms=[1.0, 1.0], mask=bad) as opened:
        seen = widened(opened, (1.9, 6.0))
        parts = slice(0, 150), slice(0, 160)
        (plain, good), (ratio, also) = opened.window(*parts), seen.network_window(*parts)
        inner = seen.network_window(slice(32, 96), slice(16, 160))[0]
    np.testing.assert_allclose(ratio[:, 32:96, 16:], inner, atol=1e-4)
    np.testing.assert_allclose(ratio[0], opened.network_window(*parts)[0][0], rtol=1e-6)
    np.testing.assert_array_equal(ratio[0][good[0] > 0], plain[0][good[0] > 0])
    assert also.all()
    assert ratio[1].min() > -6
    sky = ratio[1, :80, :].numpy()
    assert np.std(sky[:, 100:]) == pytest.approx(1, abs=0.06)
    neighbors = np.corrcoef(sky[:, 101:].ravel(), sky[:, 100:-1].ravel())[0, 1]
    assert neighbors == pytest.approx(float(seen.noise[1, 0]), abs=0.06)
    assert seen.noise[0, 0] == opened.noise[0, 0]
    near = slice(90, 111), slice(80, 101)
    smoothed = ratio[1][near].sum() * seen.noise_ratio[1]
    assert smoothed == pytest.approx(float(plain[1][near].sum()), abs=15)
    assert (seen.noise_ratio[0], seen.noise_ratio[1] < 0.7) == (1, True)
    assert seen.psf[1].sum() == pytest.approx(1, abs=1e-5)
    assert "the network saw bands smoothed with Gaussians of 0.00, 1." in seen.notes[-1]


def test_what_describes_the_noise_does_not_depend_on_the_unit():
    def numbers(factor, **options):
        return seen_of(PIXELS * factor, sky_rms=RMS * factor, **options)[2].noise.numpy()

    for options in ({}, {"psf": "candels_f160w"}, {"wavelength": 1.6}):
        np.testing.assert_allclose(numbers(1e-9, **options), numbers(1.0, **options), rtol=1e-5)
    np.testing.assert_allclose(numbers(10, gain=0.3), numbers(1.0, gain=3.0), rtol=1e-5)
    assert numbers(1, gain=0.3)[0, 2] > numbers(1, gain=3.0)[0, 2] > numbers(1.0)[0, 2]
    assert numbers(1)[0, 3:].tolist() == [0, 0]
    assert numbers(1, wavelength=1.54)[0, 3:].tolist() == numbers(1, psf="candels_f160w")[0, 3:].tolist()
    assert numbers(1, wavelength=1.54)[0, 4] == 1


def test_bands_come_in_many_forms(stored, tmp_path):
    cube = np.stack([PIXELS, 2 * PIXELS, PIXELS - 3])
    other = tmp_path / "i.fits.gz"
    fits.PrimaryHDU(cube[1].astype(">f4"), fits.Header({"BUNIT": "electron/s"})).writeto(other)
    noise = StdDevUncertainty(np.full(cube.shape, RMS))
    masked = np.broadcast_to(BAD, cube.shape)
    forms = [cube, list(cube), torch.from_numpy(cube), cube * u.ct, [band * u.ct for band in cube], NDData(cube),
             NDData(cube, mask=masked, uncertainty=noise, unit="ct"), [NDData(cube[0]), cube[1], cube[2].tolist()],
             np.ma.array(cube, mask=masked)]  # fmt: skip
    for form in forms:
        ratio, good, seen = seen_of(form, sky_rms=[RMS, 2 * RMS, RMS])
        np.testing.assert_allclose(ratio * good, good * cube / np.reshape([RMS, 2 * RMS, RMS], (3, 1, 1)), rtol=1e-6)
        assert seen.bands == ("0", "1", "2")
        assert len(seen.psf) == len(seen.noise) == len(seen.zero_point) == 3
        assert good.all() == (not (hasattr(form, "mask") and form.mask is not None))
    ratio, _, seen = seen_of([stored, other], zero_point=[25.0, 26.0], gain=[1, 2])
    assert (seen.bands, seen.zero_point) == (("field", "i"), (25.0, 26.0))
    np.testing.assert_allclose(ratio, cube[:2] / RMS, rtol=1e-6)
    assert seen_of([stored, stored])[2].bands == ("0", "1")


HALF = CCDData(PIXELS, unit="ct", uncertainty=StdDevUncertainty(MAP[:, :20]))


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (PIXELS[0], {}, r"image must have the axes \(y, x\) or \(band, y, x\), got shape \(64,\)"),
        (PIXELS[None, None], {}, r"image must have the axes .* got shape \(1, 1, 50, 64\)"),
        (3.0, {}, r"got shape \(\)"),
        ([], {}, r"got shape \(0,\)"),
        (np.zeros((0, 4)), {}, r"got shape \(0, 4\)"),
        (np.zeros((2, 0, 4)), {}, r"got shape \(0, 4\)"),
        (np.zeros((0, 9, 4)), {}, r"got shape \(0, 9, 4\)"),
        (NDData(PIXELS[0]), {}, r"got shape \(64,\)"),
        ([PIXELS[None], PIXELS[None]], {}, r"got shape \(1, 50, 64\)"),
        ([PIXELS, PIXELS.T], {}, r"bands must have one shape, got \(50, 64\), \(64, 50\)"),
        ([PIXELS, PIXELS[None]], {}, r"bands must have one shape"),
        ([PIXELS * u.ct, PIXELS * u.Jy], {}, "bands must have one unit, got 'Jy', 'ct'"),
        ([PIXELS * u.ct, PIXELS], {}, "bands must have one unit, got '', 'ct'"),
        (PIXELS, {"sky_rms": 0}, "sky_rms must be positive and finite, got 0"),
        (PIXELS, {"sky_rms": -2}, "sky_rms must be positive and finite, got -2"),
        (PIXELS, {"sky_rms": np.nan}, "sky_rms must be positive and finite, got nan"),
        ([PIXELS] * 2, {"sky_rms": [1, np.inf]}, "sky_rms must be positive and finite, got inf"),
        (PIXELS, {"sky_rms": np.zeros(SHAPE)}, "sky_rms must be positive and finite, got 0"),
        (PIXELS, {"sky_rms": [1, 2]}, r"sky_rms must be a number, one for each of 1 bands, or a map .* shape \(2,\)"),
        (PIXELS, {"sky_rms": MAP.T}, r"map of the image's shape \(50, 64\), got shape \(64, 50\)"),
        (HALF, {}, r"the uncertainty of image must have the image's shape \(50, 64\), got \(50, 20\)"),
        (PIXELS * u.ct, {"sky_rms": 1 * u.m}, "sky_rms must be in ct, got m"),
        (PIXELS, {"sky_rms": RMS * u.nJy}, "sky_rms must be in no unit, got nJy"),
        (PIXELS * u.nJy, {"zero_point": 25}, r"zero_point must be 31.4, that of nJy, got 25"),
        (PIXELS * u.ct, {"zero_point": 25 * u.STmag}, r"zero_point must be in mag\(AB\) or mag, got mag\(ST\)"),
        (PIXELS, {"zero_point": np.inf}, "zero_point must be finite, got inf"),
        (PIXELS, {"gain": np.inf}, "gain must be positive, got inf"),
        (PIXELS * u.nJy, {"gain": 3 * u.s}, "gain times image must be in electron or ct .* got nJy s"),
        (PIXELS, {"wavelength": 3 * u.kg}, "wavelength must be in micron, got kg"),
        (PIXELS * u.ABmag, {}, r"unit of image must be of flux, or of surface brightness .* got mag\(AB\)"),
        (PIXELS * u.mag, {}, "unit of image must be of flux, .* got mag"),
        (PIXELS * u.Jy / u.beam, {"wcs": world()}, "unit of image must be of flux, .* got Jy / beam"),
        (PIXELS * u.MJy / u.sr, {}, "surface brightness if the size of a pixel is known, got MJy / sr"),
        (np.ones(SHAPE), {"sky_rms": None}, "sky_rms must be given where the sky cannot be measured"),
        (PIXELS, {"dq": "4"}, "dq must be left out for an image that is not a file, got '4'"),
        (PIXELS, {"gain": [1 * u.s, 1 * u.m]}, "gain must be in one unit, got s, m"),
        (NDData(PIXELS, mask=BAD.T), {}, r"the mask of image must have the image's shape \(50, 64\), got \(64, 50\)"),
        (PIXELS, {"mask": BAD.T}, r"mask must have the image's shape \(50, 64\), got \(64, 50\)"),
        (PIXELS, {"gain": 0}, "gain must be positive, got 0"),
        (PIXELS, {"gain": [1, 2]}, r"gain must be one number or one for each of 1 bands, got \[1, 2\]"),
        (PIXELS, {"wavelength": -1}, "wavelength must be positive, got -1"),
        (PIXELS, {"zero_point": [25, 26]}, "zero_point must be one number or one for each of 1 bands"),
        (
            PIXELS,
            {"psf": "candels_f160w", "wcs": world(0.2)},
            "a camera with pixels of 0.06 arcsec for an image of 0.2",
        ),
    ],
)
def test_bad_input(image, options, message):
    with pytest.raises(ValueError, match=message):
        seen_of(image, **options)


def test_world_coordinates_are_those_of_astropy():
    with pytest.raises(TypeError, match=r"wcs must be an astropy\.wcs\.WCS, got str"):
        seen_of(PIXELS, wcs="field.fits")


@pytest.mark.parametrize("kind", [UnknownUncertainty, InverseVariance, StdDevUncertainty])
def test_uncertainties_that_say_nothing_are_noted_and_the_noise_is_measured(kind):
    with observe(NDData(noise_of((64, 64)), uncertainty=kind(np.zeros((64, 64)))), psf=PSF) as seen:
        assert seen.sky_rms(np.zeros(1), np.zeros(1)) == pytest.approx(1, rel=0.1)
    assert any(note.startswith("the uncertainty of image is not used, as") for note in seen.notes)


LETTERS = np.full(SHAPE, "a")


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (NDData(PIXELS, mask=LETTERS), {}, "the mask of image must be an array of numbers, got <U1"),
        (PIXELS, {"mask": LETTERS}, "mask must be an array of numbers, got <U1"),
        (PIXELS, {"mask": [[1], [1, 2]]}, "mask must be an array of numbers, got list"),
        (PIXELS, {"mask": NDData(BAD)}, "mask must be an array of numbers, got NDData"),
        (PIXELS, {"sky_rms": StdDevUncertainty(MAP)}, "sky_rms must be an array of numbers, got StdDevUncertainty"),
        (fits.PrimaryHDU(PIXELS), {}, "image must be an array of numbers, got PrimaryHDU"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_by_its_name(image, options, message):
    with pytest.raises(TypeError, match=message):
        seen_of(image, **{"sky_rms": None} | options)


@pytest.mark.parametrize("image", [np.array([["a"]]), PIXELS.astype(complex), np.array([[None]]), BAD])
def test_only_numbers_are_pixels(image):
    with pytest.raises(TypeError, match="image must be an array of numbers, got"):
        seen_of(image)


def test_files_that_are_not_there_or_are_cubes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.fits: no such file"):
        seen_of(tmp_path / "nothing.fits")
    fits.PrimaryHDU(np.zeros((2, 9, 9))).writeto(tmp_path / "cube.fits")
    with pytest.raises(ValueError, match="two dimensions"):
        seen_of(tmp_path / "cube.fits")
