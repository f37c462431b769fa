"""Fit the models behind the simulations to measurements."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, overwrite_option

__all__: list[str] = []  # what is here is used from the command line


@click.command("fit-psf")
@click.argument("image", type=FILE)
@click.option("--pixel-scale", type=float, required=True, help="Arcsec a pixel of IMAGE.")
@click.option("--output", type=FILE, default="probdeblend-psf", show_default=True, help="Folder to write.")
@click.option("--name", default="f160w", show_default=True, help="Name of the filter in the files' names.")
@overwrite_option
def fit_psf(image: Path, pixel_scale: float, output: Path, name: str, overwrite: bool) -> None:
    """Fit the optical model to IMAGE, an effective PSF; write the model and its PSF at 0.06" a pixel.

    \b
    Example:
      probdeblend fit-psf f160w.fits --pixel-scale 0.04 --output psf
    """  # noqa: D301
    from .._files import output_folder
    from ..photometry.images import read_psf
    from ..simulation import psf as optics

    files = [f"psf_{name}.npy", f"psf_{name}.json"]
    with output_folder(output, overwrite=overwrite, files=files) as folder:
        fit = optics.fit_psf(read_psf(image, pixel_scale=pixel_scale), pixel_scale)
        optics.write_psf(fit, folder, name=name)
    measured, fitted = fit.fwhm
    click.echo(f'FWHM {fitted:.3f}" (measured {measured:.3f}")')
    click.echo(f"largest residual {fit.max_residual:.1%} of the peak")
    click.echo(f"written to {output}: {', '.join(files)}")
