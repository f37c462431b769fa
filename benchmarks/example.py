"""The example stamp that ships with the package, made from a GalSim simulation.

A bulge with a disk overlaps a fainter disk, in the conditions of CANDELS F160W: correlated sky noise and
photon noise. The position in the sky is made up.
"""

from __future__ import annotations

import math
from importlib.resources import files
from os import PathLike
from pathlib import Path

import torch
from astropy.io import fits
from astropy.wcs import WCS

from .._files import whole_file
from ..photometry.noise import add_noise
from ..scene import STAMP_CENTER, STAMP_SIZE, Components, Instrument
from ..simulation.galsim import render_galsim

__all__ = ["EXAMPLE_PATH", "write_example"]

EXAMPLE_PATH = Path(str(files("probdeblend") / "data" / "example.fits"))
"""The stamp: sky-subtracted electrons per second, with its noise and the true total fluxes in the header."""

SEED = 4
POSITION = (53.1227, -27.8051)
GALAXIES = (
    # magnitude, half-light radius in arcsec, Sérsic index, axis ratio, angle, offset (x, y) from the center
    ((22.3, 0.14, 3.0, 0.85, 0.6, (0.3, -0.2)), (21.15, 0.52, 1.0, 0.55, 0.6, (0.3, -0.2))),
    ((21.4, 0.36, 1.0, 0.6, 2.2, (11.4, 8.6)),),
)


def write_example(path: str | PathLike[str] = EXAMPLE_PATH, *, overwrite: bool = False) -> None:
    """Simulate the example with GalSim and write it as FITS.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether a file that exists may be replaced.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is not set.
    """
    instrument = Instrument.candels_f160w()
    light = _components(instrument)
    isolated = render_galsim(light, instrument)
    noise = {name: torch.tensor([getattr(instrument, name)]) for name in ("sky_rms", "exposure")}
    generator = torch.Generator().manual_seed(SEED)
    image = add_noise(isolated.sum(1, keepdim=True), instrument, **noise, generator=generator)
    header = _header(instrument)
    for galaxy, flux in enumerate(light.total_flux[0].tolist()):
        header[f"FLUX{galaxy}"] = (round(flux, 4), f"true total flux of galaxy {galaxy}")
    with whole_file(path, overwrite=overwrite) as temporary:
        fits.PrimaryHDU(image[0, 0].float().numpy(), header).writeto(temporary)


def _components(instrument: Instrument) -> Components:
    most = max(map(len, GALAXIES))
    rows = torch.ones(len(GALAXIES), most, 7)
    present = torch.zeros(len(GALAXIES), most, dtype=torch.bool)
    for galaxy, parts in enumerate(GALAXIES):
        for part, (magnitude, radius, index, ratio, angle, offset) in enumerate(parts):
            flux = 10 ** (-0.4 * (magnitude - instrument.zero_point))
            x, y = (STAMP_CENTER + shift for shift in offset)
            rows[galaxy, part] = torch.tensor([flux, radius, index, ratio, angle, x, y])
            present[galaxy, part] = True
    return Components(*rows[None].unbind(-1), present=present[None])


def _header(instrument: Instrument) -> fits.Header:
    degrees = instrument.pixel_scale / 3600
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [STAMP_SIZE / 2 + 0.5] * 2
    wcs.wcs.crval = POSITION
    wcs.wcs.cd = [[-degrees, 0.0], [0.0, degrees]]
    header = wcs.to_header()
    header["BUNIT"] = ("electron/s", "unit of a pixel")
    header["ABMAGZP"] = (instrument.zero_point, "AB magnitude of unit flux")
    header["SKYRMS"] = (instrument.sky_rms, "standard deviation of the sky's pixels")
    if math.isfinite(instrument.exposure):
        header["EXPOSURE"] = (instrument.exposure, "counts per unit of flux")
    header["ORIGIN"] = ("probdeblend", "simulated with GalSim; the position is made up")
    return header
