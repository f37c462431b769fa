"""The folder of files that the posterior of an image is written to."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from ..posterior.draws import Posterior
from ..posterior.flags import Flag

__all__ = ["short_table", "write_products"]

SHAPE = ("half_light_radius", "axis_ratio", "angle")
MAIN = re.compile(r"label|id|x|y|(flux|flux_err|mag|correlation)(_(?!\d\d|err|auto|sep).*)?|existence|star|group|flags")


def write_products(folder: Path, posterior: Posterior, *, save_draws: bool = False) -> list[str]:
    """Write the catalog, the sources as regions for DS9, the segmentation map and the sum of the deblended images.

    Parameters
    ----------
    folder
        An empty folder.
    posterior
        Posterior of one image.
    save_draws
        Also write the whole posterior.

    Returns
    -------
    list of str
        Names of the files.
    """
    posterior.catalog().write(folder / "catalog.ecsv", format="ascii.ecsv")
    (folder / "sources.reg").write_text(_regions(posterior), encoding="utf-8")
    if posterior.cutouts is not None:
        header = None if posterior.wcs is None else posterior.wcs.to_header(relax=True)
        fits.PrimaryHDU(posterior.label_image(), header=header).writeto(folder / "segmentation.fits")
        fits.PrimaryHDU(posterior.model_image(), header=header).writeto(folder / "model.fits")
    if save_draws:
        posterior.save(folder / "draws.nc")
    return sorted(path.name for path in folder.iterdir())


def _regions(posterior: Posterior) -> str:
    """Return ellipses of two half-light radii, or points where the shape is not known, labeled; DS9 counts from 1."""
    known = posterior.dataset
    radius, ratio, angle = (known[name].values if name in known else np.full(len(posterior), np.nan) for name in SHAPE)
    major = 2 * radius / known.attrs["pixel_scale"] / np.sqrt(ratio)
    shapes = np.stack([major, major * ratio, np.degrees(angle)], 1)
    lines = ["# Region file format: DS9", "image"]
    for label, x, y, shape in zip(*(known[name].values for name in ("label", "x", "y")), shapes, strict=True):
        kind, numbers = ("ellipse", shape) if np.isfinite(shape).all() else ("point", [])
        lines.append(f"{kind}({','.join(f'{v:.3f}' for v in (x + 1, y + 1, *numbers))}) # text={{{label}}}")
    return "\n".join(lines) + "\n"


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
