"""Code in the documentation that is about images of real cameras runs as it stands there."""

import re
from pathlib import Path

import galsim
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS

from probdeblend.simulation import Camera, Population, simulate

DOCS = Path(__file__).parents[1] / "docs"
HSC = "deepdisc_fields/hsc/{}-10054-0,2-c1_scarlet_img.fits"
PART = slice(500, 1000)  # pixels of the coadds with stars enough to measure the PSF


def snippets(page):
    """Python code of a page, by the heading above it."""
    parts = re.split(r"^## (.+)$", (DOCS / page).read_text(), flags=re.M)
    return {
        title: "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def run(code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(code, "snippet", "exec"), names)
    return names


def lines(code):
    return [line for line in code.splitlines() if line.strip()]


CODE = snippets("how/hst_jwst_hsc.md")


@pytest.mark.parametrize("camera", ["HST", "JWST", "Hyper Suprime-Cam"])
def test_five_lines_are_enough(camera):
    assert 0 < len(lines(CODE[camera])) <= 5


@pytest.mark.slow
def test_hst(data_dir, tmp_path, monkeypatch):
    (tmp_path / "hst_f160w.fits").symlink_to(data_dir / "candels_f160w" / "egs_H.gf10518.fits")
    catalog = run(CODE["HST"], tmp_path, monkeypatch)["catalog"]
    assert len(catalog) > 3
    assert (catalog["mag"][catalog["existence"] > 0.9].value < 28).all()
    assert len(QTable.read(tmp_path / "hst.ecsv")) == len(catalog)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The unit:astropy.utils.exceptions.AstropyWarning")
def test_hsc(data_dir, tmp_path, monkeypatch):
    for band in "gri":
        pixels, header = fits.getdata(data_dir / HSC.format(band.upper()), header=True)
        fits.writeto(tmp_path / f"hsc_{band}.fits", pixels[PART, PART], header)
    found = run(CODE["Hyper Suprime-Cam"], tmp_path, monkeypatch)
    catalog, color = found["catalog"], found["color"].median(("chain", "draw")).values
    bright = np.asarray(catalog["flux_hsc_i"]) > 8 * np.asarray(catalog["flux_err_hsc_i"])
    assert len(catalog) > 100
    assert bright.sum() > 5
    assert -0.5 < np.median(color[bright]) < 3.0  # g - i of galaxies


@pytest.mark.slow
def test_jwst(tmp_path, monkeypatch):
    """A simulated mosaic of NIRCam in F200W, 0.03 arcsec per pixel, in the form of the pipeline's."""
    scale, solid_angle = 0.03, (0.03 / 206265) ** 2
    optics = galsim.Convolve(galsim.Airy(lam=2000, diam=6.5), galsim.Gaussian(fwhm=0.03), galsim.Pixel(scale))
    psf = optics.drawImage(nx=41, ny=41, scale=scale, method="no_pixel", dtype=float).array
    camera = Camera(scale, torch.from_numpy(np.float32(psf / psf.sum()))[None], torch.tensor([0.002]))
    crowd = Population.default().replace(layout="anywhere", snr=(20.0, 200.0))
    scene = simulate(1, population=crowd, camera=camera, size=256, number=20, seed=4)
    microjansky, rms = scene.image[0, 0].numpy(), 0.002
    brightness = 1e-12 / solid_angle  # MJy/sr of one microjansky in a pixel
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.1, -27.8], [128, 128]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    header = wcs.to_header()
    header["BUNIT"] = "MJy/sr"
    bad = np.zeros(microjansky.shape, np.int32)
    bad[100, 30:33] = 1  # DO_NOT_USE
    hdus = [fits.PrimaryHDU(header=fits.Header({"TELESCOP": "JWST", "INSTRUME": "NIRCAM"}))]
    hdus += [fits.ImageHDU(np.float32(microjansky * brightness), header, name="SCI")]
    hdus += [fits.ImageHDU(np.full(microjansky.shape, rms * brightness, "f4"), name="ERR")]
    hdus += [fits.ImageHDU(bad, name="DQ")]
    fits.HDUList(hdus).writeto(tmp_path / "jwst_i2d.fits")
    fits.writeto(tmp_path / "jwst_psf.fits", psf)
    catalog = run(CODE["JWST"], tmp_path, monkeypatch)["catalog"]
    assert str(catalog["flux"].unit) == "uJy"
    x, y = (np.asarray(catalog[axis])[:, None] for axis in "xy")
    apart = np.hypot(x - scene.x.numpy(), y - scene.y.numpy())
    nearest = apart.argmin(1)
    near = (apart.min(1) < 2) & (np.asarray(catalog["contested"]) < 0.2)
    assert near.sum() >= 5
    ratio = np.asarray(catalog["flux"].value)[near] / scene.flux[:, 0].numpy()[nearest[near]]
    assert abs(np.log(np.median(ratio))) < 0.15
    np.testing.assert_allclose(catalog["mag"].value, 23.9 - 2.5 * np.log10(catalog["flux"].value), atol=1e-3)
