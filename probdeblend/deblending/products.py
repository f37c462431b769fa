"""What deblending an image gives, and the folder of files it is written to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from ..photometry.detection import Detection
from ..posterior.draws import Posterior
from ..posterior.flags import Flag

__all__ = ["FILES", "DeblendedImage", "short_table", "write_products"]

PIXELS = {"masks.fits": ("mask", "mask_std", "mask_information"), "images.fits": ("image", "image_std")}
FILES = ("catalog.ecsv", *PIXELS, "blends.png", "field.png", "draws.nc")
"""Names of the files that `write_products` may write."""


@dataclass(frozen=True, eq=False)
class DeblendedImage:
    """What `deblend_field` or `deblend_stamps` found.

    Parameters
    ----------
    catalog
        One row per galaxy, with the columns of `Posterior.summary`: first the deblended ones, then the isolated ones,
        both from bright to faint. x and y are positions in the image; ``blend`` is masked for isolated sources.
    posterior
        Posterior of the stamps, with positions x and y in the stamp. None where no sources overlap.
    stamps
        Stamps ``(blend, y, x)`` in image units as they were deblended, NaN for bad pixels. None where no sources
        overlap.
    corners
        One row per blend: ``blend`` and the position ``x0``, ``y0`` of the stamp's first pixel in the image, which is
        negative where the stamp extends beyond the edge, and 0 for stamps that were given as such.
    sky_rms
        Median sky noise of a pixel in image units.
    rms_factor
        Factor that scaled an rms map to the scatter of the sky.
    noise_factor
        Factor by which correlated noise increases SEP's errors, 1 for white noise; None for stamps.
    image
        The image ``(y, x)`` without its sky, NaN for bad pixels; None for stamps.
    detection
        The sources of the image; None for stamps.
    """

    catalog: QTable
    posterior: Posterior | None
    stamps: NDArray[np.floating] | None
    corners: Table
    sky_rms: float
    rms_factor: float = 1.0
    noise_factor: float | None = None
    image: NDArray[np.float64] | None = field(default=None, repr=False)
    detection: Detection | None = field(default=None, repr=False)


def write_products(
    folder: Path, result: DeblendedImage, *, wcs: WCS | None = None, save_draws: bool = False
) -> list[str]:
    """Write the catalog, figures, masks and draws to an empty folder, as far as there are any; return their names."""
    from ..plots.posteriors import plot_blends, plot_field

    result.catalog.write(folder / "catalog.ecsv", format="ascii.ecsv")
    if result.image is not None:
        plot_field(result.image, result.catalog).figure.savefig(folder / "field.png", dpi=120)
    if result.posterior is not None:
        plot_blends(result.posterior, result.stamps)[0, 0].figure.savefig(folder / "blends.png", dpi=120)
        header = None if wcs is None else wcs.to_header(relax=True)
        found = result.posterior.dataset
        for file, names in PIXELS.items():
            if chosen := [name for name in names if name in found]:
                hdus = [fits.ImageHDU(np.float32(found[name].values), name=name.upper()) for name in chosen]
                places = fits.table_to_hdu(result.corners)
                places.name = "STAMPS"
                fits.HDUList([fits.PrimaryHDU(header=header), *hdus, places]).writeto(folder / file)
        if save_draws:
            result.posterior.save(folder / "draws.nc")
    return sorted(path.name for path in folder.iterdir())


def short_table(catalog: Table, *, most: int = 20) -> Table:
    """Return the main columns of the first rows of a catalog as text, to be printed."""
    rows = catalog[:most]
    flux = zip(_formatted(rows["flux"], ".4g"), _formatted(rows["flux_err"], ".2g"), strict=True)
    unit = getattr(rows["flux"], "unit", None)
    columns = {"id": [str(number) for number in rows["id"]]}
    columns |= {name: _formatted(rows[name], ".1f") for name in ("x", "y")}
    columns["flux" if unit is None else f"flux ({unit})"] = [f"{value} ± {sd}" for value, sd in flux]
    columns |= {name: _formatted(rows[name], ".2f") for name in ("mag", "correlation")}
    columns["flags"] = [str(Flag(bits)).replace("none", "-") for bits in rows["flags"]]
    table = Table(columns)
    table["flags"].info.format = "<"  # aligned to the left
    return table


def _formatted(column: Table.Column, form: str) -> list[str]:
    mask = np.broadcast_to(getattr(column, "mask", False), len(column))
    values = getattr(column, "unmasked", column)
    values = np.asarray(getattr(values, "value", values), dtype=float)
    return ["-" if hidden or np.isnan(value) else f"{value:{form}}" for value, hidden in zip(values, mask, strict=True)]
