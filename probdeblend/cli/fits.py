"""Fit the models behind the simulations to measurements."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, overwrite_option, seed_option

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
    from .. import optics
    from ..io import output_folder, read_psf

    files = [f"psf_{name}.npy", f"psf_{name}.json"]
    with output_folder(output, overwrite=overwrite, files=files) as folder:
        fit = optics.fit_psf(read_psf(image, pixel_scale=pixel_scale), pixel_scale)
        optics.write_psf(fit, folder, name=name)
    measured, fitted = fit.fwhm
    click.echo(f'FWHM {fitted:.3f}" (measured {measured:.3f}")')
    click.echo(f"largest residual {fit.max_residual:.1%} of the peak")
    click.echo(f"written to {output}: {', '.join(files)}")


@click.command("fit-prior")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="prior.json", show_default=True, help="File to write.")
@seed_option
@overwrite_option
def fit_prior(table: Path, output: Path, seed: int, overwrite: bool) -> None:
    """Fit the prior of types, magnitudes and radii to the distinct galaxies in TABLE.

    TABLE is the published table of pairs of Boucaud et al. (2020) as CSV: its columns g1_id, g1_mag, g1_rad
    (pixels of 0.06 arcsec) and g1_type, and the same for g2, are used.

    \b
    Example:
      probdeblend fit-prior test_results.csv --output prior.json
    """  # noqa: D301
    from ..io import whole_file
    from ..published import describe_fit, read_galaxies

    with whole_file(output, overwrite=overwrite) as temporary:
        text, count = describe_fit(*read_galaxies(table), seed=seed)
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"prior of {count} galaxies written to {output}")


@click.command("summarize-published")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="results.json", show_default=True, help="File to write.")
@overwrite_option
def summarize_published(table: Path, output: Path, overwrite: bool) -> None:
    """Measure the methods in TABLE, the published results of Boucaud et al. (2020), for `validate` to compare with.

    \b
    Example:
      probdeblend summarize-published test_results.csv --output results.json
    """  # noqa: D301
    import json

    from ..io import whole_file
    from ..published import summarize_results

    with whole_file(output, overwrite=overwrite) as temporary:
        results = summarize_results(table)
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for method, numbers in results.items():
        flux = numbers["pair"][0]
        rest = f"{flux['nmad_mag']:.3f} mag NMAD, {flux['outliers']:.2%} beyond 0.75 mag"
        click.echo(f"{method}: MAPE {flux['mape']:.1f} %, {rest}, {flux['detected']:.1%} detected")
    click.echo(f"written to {output}")
