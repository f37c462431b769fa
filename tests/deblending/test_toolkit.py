"""Batches of the Blending ToolKit: what is read of them, and what is answered; without the ToolKit on stand-ins."""

import sys
from collections import namedtuple
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import galsim
import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table
from astropy.wcs import WCS

from probdeblend.deblending import ToolkitDeblender
from probdeblend.deblending.toolkit import toolkit_scene
from probdeblend.scene import PSF_SIZE

SCALE, SIDE = 0.2, 64
FILTERS = {"g": (28.29, 22.26, 2400), "r": (28.13, 21.20, 5520), "i": (27.81, 20.48, 5520)}  # zero point, sky, seconds
PLACES = np.array([[20.3, 30.1], [29.6, 33.4], [45.2, 12.7]])
FLUX = np.array([[2e5, 5e5, 6e5], [3e5, 4e5, 3e5], [1e5, 4e5, 7e5]])
IGNORED = "ignore:Conversion of an array:DeprecationWarning"  # of GalSim, about seeds of the ToolKit
MISSING = "needs the Blending ToolKit: pip install 'probdeblend[toolkit]'"


def survey():
    """Three filters of LSST, as the ToolKit has them."""
    filters = {
        name: SimpleNamespace(
            zeropoint=zero * u.mag,
            sky_brightness=sky * u.mag / u.arcsec**2,
            full_exposure_time=seconds * u.s,
            effective_wavelength=None if name == "i" else 600 * u.nm,
        )
        for name, (zero, sky, seconds) in FILTERS.items()
    }

    def get_filter(name):
        if name not in filters:
            raise ValueError(f"no filter {name}")
        return filters[name]

    return SimpleNamespace(available_filters=list(filters), get_filter=get_filter, pixel_scale=SCALE * u.arcsec)


@pytest.fixture(scope="module")
def batch():
    """Two images of which the first has three stars and the second none."""
    psf = [galsim.Moffat(beta=3, fwhm=fwhm) for fwhm in (0.86, 0.81, 0.79)]
    image = np.random.default_rng(1).normal(size=(2, 3, SIDE, SIDE))
    image *= [[[[noise(name)]] for name in FILTERS]]
    for (x, y), fluxes in zip(PLACES, FLUX, strict=True):
        for band, flux in enumerate(fluxes):
            star = (psf[band] * flux).shift(*(SCALE * (np.array([x, y]) - (SIDE - 1) / 2)))
            image[0, band] += star.drawImage(nx=SIDE, ny=SIDE, scale=SCALE).array
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crpix, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [(SIDE + 1) / 2] * 2, [0, 0]
    wcs.wcs.cdelt = [SCALE / 3600] * 2
    return SimpleNamespace(survey=survey(), blend_images=image, psf=psf, wcs=wcs, image_size=SIDE)


def noise(name):
    zero, sky, seconds = FILTERS[name]
    return np.sqrt(seconds * 10 ** (0.4 * (zero - sky)) * SCALE**2)


@pytest.fixture(scope="module")
def quick(shipped):
    """The weights that ship, with few draws."""
    return SimpleNamespace(scenes=partial(shipped.scenes, draws=96, passes=4))


@pytest.fixture
def stand_in(monkeypatch):
    """Modules with the names of the ToolKit's, whose results check nothing."""
    fields = "max_n_sources catalog n_bands image_size segmentation deblended_images extra_data"
    example = namedtuple("DeblendExample", fields)

    class Deblender:
        known: ClassVar = []

        @classmethod
        def register(cls, kind):
            cls.known.append(kind)

        def batch_call(self, batch, njobs=1, **given):
            return [self.deblend(ii, batch, **given) for ii in range(len(batch.blend_images))]

    known = {"btk": {}, "btk.blend_batch": {"DeblendExample": example}, "btk.deblend": {"Deblender": Deblender}}
    for name, values in known.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return Deblender


def test_noise_is_that_of_the_survey(batch):
    scene = toolkit_scene(batch, 1, list(FILTERS))
    assert scene.image.shape == (1, 3, SIDE, SIDE)
    np.testing.assert_allclose(scene.sky_rms[0], [noise(name) for name in FILTERS], rtol=1e-5)
    np.testing.assert_allclose(scene.image.std((0, 2, 3)), scene.sky_rms[0], rtol=0.05)
    np.testing.assert_allclose(scene.photon, 1 / scene.sky_rms, rtol=1e-6)  # images are in electrons
    counts = 10 ** (0.4 * (np.array(scene.zero_point) - 25))  # of a source of magnitude 25
    np.testing.assert_allclose(counts, [t * 10 ** (0.4 * (zero - 25)) for zero, _, t in FILTERS.values()], rtol=1e-10)
    np.testing.assert_allclose(scene.wavelength[0], [0.6, 0.6, np.nan], rtol=1e-6)
    assert scene.pixel_scale == pytest.approx(SCALE)


def test_psf_holds_the_pixel(batch):
    psf = toolkit_scene(batch, 0, ["i"]).psf[0, 0].numpy()
    drawn = batch.psf[2].drawImage(nx=PSF_SIZE, ny=PSF_SIZE, scale=SCALE, dtype=float).array
    np.testing.assert_allclose(psf, drawn / drawn.sum(), atol=1e-6)


def test_bands_are_chosen_by_name(batch):
    scene = toolkit_scene(batch, 0, ["i", "g"])
    np.testing.assert_allclose(scene.image[0], batch.blend_images[0, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(scene.sky_rms[0], [noise("i"), noise("g")], rtol=1e-5)
    assert scene.psf[0, 0].max() > scene.psf[0, 1].max()  # the seeing is better in i
    with pytest.raises(ValueError, match="no filter q"):
        toolkit_scene(batch, 0, ["r", "q"])


def test_answers_are_in_electrons_and_arcsec(batch, quick, stand_in):
    deblender = ToolkitDeblender(5, quick)
    assert stand_in.known == [ToolkitDeblender]
    assert str(deblender) == "ToolkitDeblender"
    found = deblender.deblend(0, batch)
    assert (found.max_n_sources, found.n_bands, found.image_size) == (5, 3, SIDE)
    catalog = found.catalog[np.argsort(found.catalog["x_peak"])]
    np.testing.assert_allclose(np.stack([catalog["x_peak"], catalog["y_peak"]], 1), PLACES, atol=0.5)
    flux, error = (np.stack([catalog[f"{name}_{band}"] for band in FILTERS], 1) for name in ("flux", "flux_err"))
    np.testing.assert_allclose(flux, FLUX, atol=5 * error.max(), rtol=0.15)
    offset = (np.stack([catalog["ra"], catalog["dec"]], 1) / 3600 + 180) % 360 - 180
    np.testing.assert_allclose(offset * 3600 / SCALE + (SIDE - 1) / 2, PLACES, atol=0.5)
    assert all(catalog[name].unit is None for name in catalog.colnames)  # so that it can be pickled and stored


def test_pixels_and_draws_are_those_of_the_posterior(batch, quick, stand_in):
    found = ToolkitDeblender(5, quick, ("r", "i")).deblend(0, batch, [Table(PLACES, names=["x_peak", "y_peak"])] * 2)
    posterior, chance = found.extra_data["posterior"], found.extra_data["mask_probability"]
    assert posterior.dataset["band"].values.tolist() == ["r", "i"]
    np.testing.assert_allclose(np.stack([found.catalog["x_peak"], found.catalog["y_peak"]], 1), PLACES, atol=0.5)
    assert found.extra_data["draws"].shape[2:] == (3, 2)
    assert found.deblended_images.shape == (5, 2, SIDE, SIDE)
    assert found.deblended_images.min() == 0
    assert not found.deblended_images[3:].any()
    for number, label in enumerate(posterior.dataset["label"].values):
        cutout = posterior.image(label)
        np.testing.assert_allclose(found.deblended_images[number][:, *cutout.slices], cutout.data.clip(0))
        y, x = PLACES[number, ::-1].round().astype(int)
        assert chance[number, y, x] > 0.9
        assert found.segmentation[number, y, x]
    assert (found.segmentation == (chance >= 0.5)).all()
    assert 0 <= chance.min() < chance.max() <= 1


def test_images_without_sources(batch, quick, stand_in):
    none = Table(PLACES[:0], names=["x_peak", "y_peak"])
    first, second = ToolkitDeblender(5, quick)(batch, catalogs=[Table(PLACES, names=["x_peak", "y_peak"]), none])
    assert (len(first.catalog), len(second.catalog)) == (3, 0)
    assert {"ra", "dec", "x_peak", "y_peak", "flux_r", "flux_err_r"} <= set(second.catalog.colnames)
    assert not second.segmentation.any()
    assert second.deblended_images.shape == (5, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def drawn():
    """A batch of two blends that the ToolKit has drawn, and its generator."""
    btk = pytest.importorskip("btk", reason=MISSING)
    from btk import catalog, draw_blends, sampling_functions, survey

    assert btk
    shape = {"a_d": 0.5, "b_d": 0.3, "pa_disk": 30.0, "a_b": 0.3, "b_b": 0.2, "pa_bulge": 30.0}
    table = {"ra": 0.0, "dec": 0.0, "fluxnorm_disk": 1.0, "fluxnorm_bulge": 0.5, "fluxnorm_agn": 0.0} | shape
    table = Table([table | {f"{band}_ab": 23.0 for band in "ugrizy"}] * 5)
    sampling = sampling_functions.DefaultSampling(stamp_size=12.0, max_number=3, max_shift=2.0, seed=1)
    camera = survey.get_surveys("LSST")
    return draw_blends.CatsimGenerator(catalog.CatsimCatalog(table), sampling, camera, batch_size=2, seed=1)


@pytest.mark.slow
@pytest.mark.filterwarnings(IGNORED)
def test_the_toolkit_takes_it_for_its_own(drawn, shipped):
    from btk.deblend import DeblendGenerator, SepMultiBand

    deblender = ToolkitDeblender(6, shipped, ("g", "r", "i"))
    batch, found = next(DeblendGenerator([deblender, SepMultiBand(6)], drawn, njobs=2))
    assert list(found) == ["ToolkitDeblender", "SepMultiBand"]
    assert found["ToolkitDeblender"].deblended_images.shape == (2, 6, 3, 60, 60)
    answer = deblender(batch, catalogs=batch.catalog_list)
    for number, (catalog, true) in enumerate(zip(answer.catalog_list, batch.catalog_list, strict=True)):
        flux, total = catalog["flux_r"].sum(), batch.isolated_images[number, :, 2].sum()
        assert len(catalog) == len(true)
        assert flux == pytest.approx(total, rel=0.15)
    with pytest.raises(ValueError, match="more sources than the maximum"):
        ToolkitDeblender(1, shipped, ("r",))(batch, catalogs=[Table(PLACES, names=["x_peak", "y_peak"])] * 2)
    with pytest.raises(ValueError, match="available filters for LSST"):
        ToolkitDeblender(6, shipped, ("H",))(batch)


@pytest.mark.slow
@pytest.mark.filterwarnings(IGNORED)
def test_answers_are_stored(drawn, shipped, tmp_path):
    from btk.blend_batch import DeblendBatch

    answer = ToolkitDeblender(6, shipped, ("r",))(next(drawn))
    answer.save(str(tmp_path))
    again = DeblendBatch.load(str(tmp_path))
    np.testing.assert_array_equal(again.catalog_list[0]["flux"], answer.catalog_list[0]["flux"])
