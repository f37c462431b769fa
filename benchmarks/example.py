"""Make the example that ships with the package, and the picture of a real field in the README.

The example is a crowded field of galaxies and stars, drawn from the package's population and rendered by GalSim in the
conditions of CANDELS F160W: correlated sky noise and photon noise. The position in the sky is made up.
"""

from __future__ import annotations

import math
import os
from importlib.resources import files
from pathlib import Path

import click
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import probdeblend
from probdeblend._files import whole_file
from probdeblend.photometry import measure_psf, subtract_sky
from probdeblend.plots import plot_field, plot_rgb
from probdeblend.scene import SOURCE_TYPES, Scene
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.galsim import render_galsim
from probdeblend.simulation.light import SimulatedSources
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import simulate

__all__ = ["EXAMPLE_PATH", "PICTURE_PATH", "main", "write_example", "write_picture"]

EXAMPLE_PATH = Path(str(files("probdeblend") / "data" / "example.fits"))
PICTURE_PATH = Path(__file__).parent.parent / "docs" / "images" / "field.png"

HSC = "deepdisc_fields/hsc/{}-10054-0,2-c1_scarlet_img.fits"
REGION = (slice(500, 720), slice(500, 720))
SEED = 3
SIZE, SOURCES = 192, 40
POSITION = (53.1227, -27.8051)


def write_example(path: Path, *, overwrite: bool = False) -> None:
    """Simulate the example and write it as FITS, with its noise in the header and the truth as a table."""
    population = Population.default().replace(layout="anywhere", size_scatter=0.0, star_fraction=0.1, snr=(20.0, 500.0))
    camera = Camera.candels_f160w()
    sources = SimulatedSources(engine=render_galsim)
    scene = simulate(1, population=population, camera=camera, size=SIZE, number=SOURCES, seed=SEED, sources=sources)
    image = fits.PrimaryHDU(scene.image[0, 0].float().numpy(), _header(camera))
    with whole_file(path, overwrite=overwrite) as temporary:
        fits.HDUList([image, fits.table_to_hdu(_truth(scene))]).writeto(temporary)


def write_picture(path: Path, folder: Path) -> None:
    """Deblend a part of a real field with the weights that ship and draw it in colors beside its sources.

    The field is one of Hyper Suprime-Cam in g, r and i (Aihara et al. 2022, doi:10.1093/pasj/psab122), from the test
    data of DeepDISC; its PSFs are measured on the whole image.
    """
    bands = [fits.getdata(folder / HSC.format(band)).astype(float) for band in "GRI"]
    psf = [measure_psf(*subtract_sky(band)) for band in bands]
    pixels = [band[REGION] for band in bands]
    panels = plot_field(probdeblend.deblend(pixels, psf=psf, zero_point=27.0), pixels, band=2)
    panels[0].images[0].remove()
    plot_rgb(pixels, axes=panels[0])
    for panel in panels:
        panel.set(xlabel="", ylabel="", xticks=[], yticks=[])
    panels[0].figure.savefig(path, dpi=120)


def _truth(scene: Scene) -> Table:
    names = {"x": scene.x, "y": scene.y, "flux": scene.flux[:, 0], "flux_auto": scene.auto_flux[:, 0]}
    table = Table({name: value.float().numpy() for name, value in names.items()})
    table["type"] = [SOURCE_TYPES[kind] for kind in scene.source_type.tolist()]
    table.meta["EXTNAME"] = "TRUTH"
    return table


def _header(camera: Camera) -> fits.Header:
    degrees = camera.pixel_scale / 3600
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [SIZE / 2 + 0.5] * 2
    wcs.wcs.crval = POSITION
    wcs.wcs.cd = [[-degrees, 0.0], [0.0, degrees]]
    header = wcs.to_header()
    header["BUNIT"] = ("electron/s", "unit of a pixel")
    header["ABMAGZP"] = (camera.zero_point[0], "AB magnitude of unit flux")
    header["SKYRMS"] = (round(float(camera.sky_rms[0]), 6), "standard deviation of the sky's pixels")
    if math.isfinite(exposure := float(camera.exposure[0])):
        header["EXPOSURE"] = (exposure, "counts per unit of flux")
    header["ORIGIN"] = ("probdeblend", "simulated with GalSim; the position is made up")
    return header


@click.command("python -m benchmarks.example")
@click.option("--output", type=click.Path(path_type=Path), default=EXAMPLE_PATH, help="FITS file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@click.option("--picture", is_flag=True, help="Draw the picture of the README instead.")
def main(output: Path, overwrite: bool, picture: bool) -> None:
    """Simulate the example that ships with the package, or draw the picture of a real field."""
    if picture:
        if not (folder := os.environ.get("PROBDEBLEND_DATA")):
            raise click.ClickException("PROBDEBLEND_DATA must name the folder of survey data for the picture, got none")
        write_picture(PICTURE_PATH, Path(folder))
        click.echo(f"written to {PICTURE_PATH}")
        return
    try:
        write_example(output, overwrite=overwrite)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
