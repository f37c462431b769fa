"""Make the example stamp that ships with the package, from a GalSim simulation.

A bulge with a disk overlaps a fainter disk, in the conditions of CANDELS F160W: correlated sky noise and photon noise.
The position in the sky is made up.
"""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import click
import torch
from astropy.io import fits
from astropy.wcs import WCS

from probdeblend._files import whole_file
from probdeblend.photometry.noise import add_noise
from probdeblend.scene import STAMP_CENTER, STAMP_SIZE, Instrument
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.galsim import render_galsim
from probdeblend.simulation.profiles import Components

__all__ = ["EXAMPLE_PATH", "main", "write_example"]

EXAMPLE_PATH = Path(str(files("probdeblend") / "data" / "example.fits"))

SEED = 4
POSITION = (53.1227, -27.8051)
GALAXIES = (
    # magnitude, half-light radius in arcsec, Sérsic index, axis ratio, angle, offset (x, y) from the center
    ((22.3, 0.14, 3.0, 0.85, 0.6, (0.3, -0.2)), (21.15, 0.52, 1.0, 0.55, 0.6, (0.3, -0.2))),
    ((21.4, 0.36, 1.0, 0.6, 2.2, (11.4, 8.6)),),
)


def write_example(path: Path, *, overwrite: bool = False) -> None:
    """Simulate the example and write it as FITS, with its noise and the true total fluxes in the header."""
    instrument = Instrument.candels_f160w()
    camera = Camera.of(instrument)
    light = _components(instrument)
    isolated = render_galsim(light, instrument.psf, pixel_scale=instrument.pixel_scale)
    noise = {name: getattr(camera, name)[None] for name in ("sky_rms", "exposure", "noise_kernel")}
    generator = torch.Generator().manual_seed(SEED)
    image = add_noise(isolated.sum(0)[None, None], **noise, generator=generator)
    header = _header(instrument)
    for galaxy, flux in enumerate((light.flux * light.present).sum(-1).tolist()):
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
    return Components(*rows.unbind(-1), present=present)


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


@click.command("python -m benchmarks.example")
@click.option("--output", type=click.Path(path_type=Path), default=EXAMPLE_PATH, help="FITS file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def main(output: Path, overwrite: bool) -> None:
    """Simulate the example stamp that ships with the package."""
    try:
        write_example(output, overwrite=overwrite)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
