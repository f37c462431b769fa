"""The folder of files that the posterior of an image is written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from ..posterior.draws import Posterior
from ..posterior.flags import Flag

__all__ = ["FILES", "short_table", "write_products"]

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
    cutouts = posterior.cutouts
    if cutouts is not None:
        header = None if posterior.wcs is None else posterior.wcs.to_header(relax=True)
        labels = posterior.label_image()
        fits.PrimaryHDU(labels, header=header).writeto(folder / "segmentation.fits")
        fits.PrimaryHDU(posterior.model_image().astype(np.float32), header=header).writeto(folder / "model.fits")
    if image is not None:
        from ..plots.sources import plot_field

        plot_field(posterior, image)[0].figure.savefig(folder / "field.png", dpi=120)
    if save_draws:
        posterior.save(folder / "draws.nc")
    return sorted(path.name for path in folder.iterdir())


def short_table(catalog: Table, *, most: int = 20) -> Table:
    """Return the main columns of the first rows of a catalog as text, to be printed.

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
    rows = catalog[:most]
    table = Table({"label": [str(number) for number in rows["label"]]})
    for name in ("x", "y"):
        table[name] = _formatted(rows[name], ".1f")
    for name in (n for n in rows.colnames if n == "flux" or n.startswith("flux_err")):
        band = name.removeprefix("flux").removeprefix("_err")
        error = rows[f"flux_err{band}"]
        unit = getattr(rows[f"flux{band}"], "unit", None)
        pairs = zip(_formatted(rows[f"flux{band}"], ".4g"), _formatted(error, ".2g"), strict=True)
        table[f"flux{band}" if unit is None else f"flux{band} ({unit})"] = [f"{value} ± {sd}" for value, sd in pairs]
    for name, form in (("mag", ".2f"), ("existence", ".2f"), ("star", ".2f"), ("correlation", ".2f")):
        if name in rows.colnames:
            table[name] = _formatted(rows[name], form)
    table["group"] = [str(number) for number in rows["group"]]
    table["flags"] = [str(Flag(int(bits))).replace("none", "-") for bits in rows["flags"]]
    table["flags"].info.format = "<"  # aligned to the left
    return table


def _formatted(column: Table.Column, form: str) -> list[str]:
    mask = np.broadcast_to(getattr(column, "mask", False), len(column))
    values = getattr(column, "unmasked", column)
    values = np.asarray(getattr(values, "value", values), dtype=float)
    return ["-" if hidden or np.isnan(value) else f"{value:{form}}" for value, hidden in zip(values, mask, strict=True)]
