"""The folder of files that the posterior of an image is written to."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from ..posterior.draws import Posterior
from ..posterior.flags import Flag

__all__ = ["FILES", "short_table", "write_products"]

MAIN = re.compile(r"label|x|y|(flux|flux_err|mag)(_(?!\d\d|err|auto|sep).*)?|existence|star|correlation|group|flags")
FILES = ("catalog.ecsv", "segmentation.fits", "model.fits", "field.png", "draws.nc")
"""Names of the files that `write_products` may write."""


def write_products(
    folder: Path, posterior: Posterior, image: np.ndarray | None = None, *, save_draws: bool = False
) -> list[str]:
    """Write the catalog, the segmentation map, the sum of the deblended images and a figure.

    Parameters
    ----------
    folder
        An empty folder.
    posterior
        Posterior of one image.
    image
        Sky-subtracted pixels ``(y, x)`` for the figure; None for no figure.
    save_draws
        Also write the whole posterior.

    Returns
    -------
    list of str
        Names of the files.
    """
    posterior.catalog().write(folder / "catalog.ecsv", format="ascii.ecsv")
    if posterior.cutouts is not None:
        header = None if posterior.wcs is None else posterior.wcs.to_header(relax=True)
        fits.PrimaryHDU(posterior.label_image(), header=header).writeto(folder / "segmentation.fits")
        fits.PrimaryHDU(posterior.model_image().astype(np.float32), header=header).writeto(folder / "model.fits")
    if image is not None:
        from ..plots.sources import plot_field

        plot_field(posterior, image)[0].figure.savefig(folder / "field.png", dpi=120)
    if save_draws:
        posterior.save(folder / "draws.nc")
    return sorted(path.name for path in folder.iterdir())


def short_table(catalog: Table, *, most: int = 20) -> Table:
    """Return the main columns of the first rows of a catalog, to be printed.

    Parameters
    ----------
    catalog
        What `Posterior.catalog` returns.
    most
        Number of rows.

    Returns
    -------
    Table
        One row per source.
    """
    table = Table(catalog[[name for name in catalog.colnames if MAIN.fullmatch(name)]][:most])
    table["flags"] = [str(Flag(int(bits))).replace("none", "-") for bits in table["flags"]]
    return table
