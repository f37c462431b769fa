"""The answer follows the image: the same for every form that holds the same light, changed as the light is changed.

Forms (container, type, byte order, memory, mask) leave every bit of the answer as it is. A factor or a unit changes
pixels over noise by rounding alone. Shifts by odd numbers of pixels, flips, turns and edges are what the network has
learned, not what it is built for: its answers move by a fraction of the quoted errors.
"""

import gzip
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, NDData
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from tiny_weights import QUICK, light_of, noise_of

from probdeblend.deblending import load

RMS, SIDE, SCALE = 8.0, 72, 0.06
PLACES = np.array([[24.3, 30.8], [33.1, 35.4], [50.6, 17.9], [52.2, 55.0]])
PIXELS = np.round(light_of((SIDE, SIDE), *PLACES.T, RMS * np.array([1500, 700, 900, 2000])))
PIXELS += np.round(RMS * noise_of((SIDE, SIDE)))
BAD = np.zeros((SIDE, SIDE), dtype=bool)
BAD[3:9, 60:66] = True
ROWS, COLUMNS = np.mgrid[-20:21, -20:21]
PSF = np.exp(-0.5 * ((0.9 * COLUMNS + 0.3 * ROWS) ** 2 + ROWS**2) / 1.3**2)
PSF /= PSF.sum()
ROUNDING = 1e-4  # of ln flux and of pixels
LEARNED = 1.0  # quoted errors of ln flux, of 2 to 4 %; 0.7 is the largest of 20 motions

NOISES = ("given", "map", "measured")
WORLD = WCS(naxis=2)
WORLD.wcs.ctype, WORLD.wcs.crval, WORLD.wcs.cdelt = (
    ("RA---TAN", "DEC--TAN"),
    (53.1, -27.8),
    (-SCALE / 3600, SCALE / 3600),
)
WORLD.wcs.set()

often = partial(settings, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])


@cache
def deblender():
    return load()


def deblended(image, *, listed, noise="given", factor=1.0, unit=None, **options):
    """Answer for an image; the noise is in its unit."""
    rms = {"given": RMS * factor, "map": np.full((SIDE, SIDE), RMS * factor), "measured": None}[noise]
    rms = rms if rms is None or unit is None else rms * unit
    known = {"psf": PSF, "sky_rms": rms, "positions": PLACES if listed else None}
    return deblender()(image, **known | QUICK | options)


@cache
def answer(*, listed, noise="given", bad=False):
    """What every other form of the image is compared with."""
    return deblended(np.where(BAD, np.nan, PIXELS) if bad else PIXELS, listed=listed, noise=noise)


def assert_same(found, expected, *, factor=1.0, tolerance=0.0):
    """Everything that a posterior says of the sources agrees; fluxes in units that are `factor` times smaller."""
    for name in ("label", "group", "flags"):
        np.testing.assert_array_equal(found.dataset[name], expected.dataset[name])
    radius = (
        posterior.dataset["half_light_radius"] / posterior.dataset.attrs["pixel_scale"]
        for posterior in (found, expected)
    )
    columns = [(found.dataset[name], expected.dataset[name]) for name in ("x", "y", "existence", "anomaly")]
    for pair in (*columns, tuple(radius)):
        np.testing.assert_allclose(*pair, rtol=10 * tolerance, atol=10 * tolerance)
    for name in ("flux", "flux_auto"):
        first, second = (np.log(posterior.dataset[name].values) for posterior in (found, expected))
        np.testing.assert_allclose(first - np.log(factor), second, rtol=0, atol=10 * tolerance)
        middle = (np.median(values, (0, 1)) for values in (first - np.log(factor), second))
        np.testing.assert_allclose(*middle, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.dataset["sky_rms"] / factor, expected.dataset["sky_rms"], rtol=tolerance)
    image = expected.model_image()
    np.testing.assert_allclose(found.model_image() / factor, image, rtol=0, atol=tolerance * np.abs(image).max())
    np.testing.assert_array_equal(found.label_image(), expected.label_image())


def nested(pixels, bad, path):
    return np.where(bad, np.nan, pixels).tolist()


def in_file(pixels, bad, path, *, extension=False, packed=False):
    """A FITS file; integers are blank where they are bad."""
    image = fits.ImageHDU(pixels, name="SCI") if extension else fits.PrimaryHDU(pixels)
    if bad.any() and pixels.dtype.kind == "i":
        image.header["BLANK"] = blank = -9999
        image.data = np.where(bad, blank, pixels).astype(pixels.dtype)
    elif bad.any():
        image.data = np.where(bad, np.nan, pixels).astype(pixels.dtype)
    hdus = [fits.PrimaryHDU(), image, fits.ImageHDU(np.ones((3, 3)), name="WHT")] if extension else [image]
    fits.HDUList(hdus).writeto(path, overwrite=True)
    if packed:
        path = path.with_suffix(".fits.gz")
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes(), compresslevel=1))
    return f"{path}[SCI]" if extension else path


CONTAINERS = {
    "nested lists": nested,
    "masked array": lambda pixels, bad, _: np.ma.array(pixels, mask=bad),
    "masked type": lambda pixels, bad, _: Masked(pixels, mask=bad),
    "data": lambda pixels, bad, _: NDData(pixels, mask=bad if bad.any() else None),
    "ccd": lambda pixels, bad, _: CCDData(pixels, mask=bad, unit=u.dimensionless_unscaled),
    "list of bands": lambda pixels, bad, _: [np.ma.array(pixels, mask=bad)],
    "one band": lambda pixels, bad, _: np.ma.array(pixels, mask=bad)[None],
    "file": in_file,
    "extension": partial(in_file, extension=True),
    "packed file": partial(in_file, packed=True),
}
LAYOUTS = {
    "as it is": lambda pixels: pixels,
    "Fortran": np.asfortranarray,
    "turned twice": lambda pixels: pixels[::-1, ::-1].copy()[::-1, ::-1],
    "every other": lambda pixels: np.repeat(np.repeat(pixels, 2, 0), 3, 1)[::2, ::3],
    "cut out": lambda pixels: np.pad(pixels, 5)[5:-5, 5:-5],
}


class Form(NamedTuple):
    """How an image is held."""

    container: str
    dtype: str
    layout: str
    bad: bool
    listed: bool
    noise: str


FORMS = st.builds(
    Form,
    st.sampled_from(sorted(CONTAINERS)),
    st.sampled_from(["<f8", ">f8", "<f4", ">f4", "<i2", ">i2", "<i4", ">i8"]),
    st.sampled_from(sorted(LAYOUTS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(NOISES),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "image.fits"


def check_form(form, path):
    pixels, bad = LAYOUTS[form.layout](PIXELS.astype(form.dtype)), BAD & form.bad
    image = CONTAINERS[form.container](pixels, bad, path)
    same = {"listed": form.listed, "noise": form.noise}
    assert_same(deblended(image, **same), answer(**same, bad=form.bad))


@often(max_examples=4)
@example(form=Form("masked array", "<f4", "cut out", bad=True, listed=True, noise="map"))
@example(form=Form("packed file", ">i2", "every other", bad=True, listed=False, noise="measured"))
@given(form=FORMS)
def test_forms_of_an_image_do_not_matter(form, path):
    check_form(form, path)


@pytest.mark.slow
@often(max_examples=60)
@given(form=FORMS)
def test_many_forms_of_an_image_do_not_matter(form, path):
    check_form(form, path)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.int16])
def test_tensors_are_arrays(kind):
    assert_same(deblended(torch.from_numpy(PIXELS).to(kind), listed=True), answer(listed=True))


SURFACE = SCALE**2 * 1e6  # square of a pixel in arcsec, micro in one
UNITS = {  # AB magnitude of the unit of fluxes, where it fixes one, and fluxes for pixels that add up to one
    "": (None, 1.0),
    "ct": (None, 1.0),
    "electron/s": (None, 1.0),
    "Jy": (8.9, 1.0),
    "uJy": (23.9, 1.0),
    "nJy": (31.4, 1.0),
    "nmgy": (22.5, 1.0),
    "erg/(s cm2 Hz)": (-48.6, 1.0),
    "W/(m2 Hz)": (-56.1, 1.0),
    "Jy/arcsec2": (23.9, SURFACE),
    "MJy/sr": (23.9, SURFACE * 1e6 / 206264.806**2),
}


class Scaling(NamedTuple):
    """How the numbers of an image are changed."""

    power: int
    unit: str
    listed: bool
    noise: str


SCALINGS = st.builds(
    Scaling, st.floats(-40, 40), st.sampled_from(sorted(UNITS)), st.booleans(), st.sampled_from(NOISES)
)


def check_scaling(scaling):
    factor, unit = 1.1 * 10.0**scaling.power, u.Unit(scaling.unit) if scaling.unit else None
    point, area = UNITS[scaling.unit]
    known = {"wcs": WORLD} if area != 1 else {}
    known |= {"zero_point": 25.0} if point is None else {}
    image, same = PIXELS * factor, {"listed": scaling.listed, "noise": scaling.noise}
    found = deblended(image if unit is None else image * unit, factor=factor, unit=unit, **same, **known)
    assert_same(found, answer(**same), factor=factor * area, tolerance=ROUNDING)
    np.testing.assert_allclose(found.dataset["zero_point"], 25.0 if point is None else point, atol=1e-3)
    expected = found.dataset["zero_point"].values - 2.5 * np.log10(found.flux.values)
    np.testing.assert_allclose(found.magnitude, expected, atol=1e-6)


@often(max_examples=4)
@example(scaling=Scaling(-40, "W/(m2 Hz)", listed=True, noise="given"))
@example(scaling=Scaling(40, "MJy/sr", listed=False, noise="measured"))
@given(scaling=SCALINGS)
def test_fluxes_follow_factor_and_unit(scaling):
    check_scaling(scaling)


@pytest.mark.slow
@often(max_examples=60)
@given(scaling=SCALINGS)
def test_fluxes_follow_many_factors_and_units(scaling):
    check_scaling(scaling)


class Motion(NamedTuple):
    """How an image is moved: turned, mirrored, and set into a larger one whose other pixels are bad."""

    quarters: int
    mirrored: bool
    before: tuple[int, int]
    after: tuple[int, int]


MANY = {"draws": 200, "passes": 10}  # draws that tell a mean to a tenth of the error
SIDES = st.tuples(st.integers(0, 24), st.integers(0, 24))
MOTIONS = st.builds(Motion, st.integers(0, 3), st.booleans(), SIDES, SIDES)


def moved(motion):
    """Return the image, the places of its sources, and the PSF, so moved."""
    image, psf = (np.rot90(v[:, ::-1] if motion.mirrored else v, motion.quarters) for v in (PIXELS, PSF))
    x, y = PLACES.T - (SIDE - 1) / 2
    x = -x if motion.mirrored else x
    for _ in range(motion.quarters):
        x, y = y, -x
    around = tuple(zip(motion.before, motion.after, strict=True))
    return (
        np.pad(image, around, constant_values=np.nan),
        np.stack([x, y], 1) + (SIDE - 1) / 2 + motion.before[::-1],
        psf,
    )


def moments(posterior):
    logs = np.log(posterior.flux.values)
    return logs.mean((0, 1)), logs.std((0, 1))


def check_motion(motion):
    """Whole strides change little but the edge: the network's cells begin where the image begins."""
    expected, error = moments(deblended(PIXELS, listed=True, **MANY))
    found = []
    for further in (0, 16):
        before = (motion.before[0] + further, motion.before[1] + further)
        image, places, psf = moved(motion._replace(before=before))
        posterior = deblended(image, listed=True, **MANY, psf=psf, positions=places)
        np.testing.assert_allclose(np.stack([posterior.dataset[axis] for axis in "xy"], 1), places, atol=0.3)
        found.append(moments(posterior))
    for mean, quoted in found:
        assert (np.abs(mean - expected) < LEARNED * error).all()
        assert (np.abs(np.log(quoted / error)) < np.log(2)).all()
    assert (np.abs(np.subtract(*(mean for mean, _ in found))) < LEARNED / 5 * error).all()


@often(max_examples=2)
@given(motion=MOTIONS)
def test_sources_move_with_the_image(motion):
    check_motion(motion)


@pytest.mark.slow
@often(max_examples=15)
@given(motion=MOTIONS)
def test_sources_move_with_the_image_in_many_ways(motion):
    check_motion(motion)
