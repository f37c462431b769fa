"""What becomes of a deblended image: a folder of files and a short table."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from .._files import write_catalog, write_pixels
from ..plots.posteriors import plot_blends, plot_field
from ..posterior.draws import Posterior
from ..posterior.flags import describe_flags

__all__ = ["Result", "report", "short_table", "write_results"]

MOST_ROWS = 20
PIXELS = {"masks.fits": ("mask", "mask_std", "mask_information"), "images.fits": ("image", "image_std")}


class Result(Protocol):
    """What deblending a field or stamps gives; see `~probdeblend.deblending.field.FieldResult` for the fields."""

    catalog: QTable
    posterior: Posterior | None
    stamps: NDArray | None
    corners: Table
    image: NDArray | None
    sky_rms: float
    rms_factor: float
    noise_factor: float | None


def write_results(folder: Path, result: Result, *, wcs: WCS | None = None, save_draws: bool = False) -> list[str]:
    """Write the catalog and, where there are any, pictures, masks and draws.

    Parameters
    ----------
    folder
        An empty folder.
    result
        What was found.
    wcs
        World coordinates of the image, for the header of the masks.
    save_draws
        Whether the posterior is written too.

    Returns
    -------
    list of str
        The names of the files.
    """
    write_catalog(result.catalog, folder / "catalog.ecsv")
    if result.image is not None:
        plot_field(result.image, result.catalog).figure.savefig(folder / "field.png", dpi=120)
    if result.posterior is not None:
        plot_blends(result.posterior, result.stamps).savefig(folder / "blends.png", dpi=120)
        header = fits.Header() if wcs is None else wcs.to_header(relax=True)
        for file, names in PIXELS.items():
            arrays = {
                name.upper(): result.posterior.dataset[name] for name in names if name in result.posterior.dataset
            }
            if arrays:
                write_pixels(folder / file, arrays, result.corners, header=header)
        if save_draws:
            result.posterior.save(folder / "draws.nc")
    return sorted(path.name for path in folder.iterdir())


def short_table(catalog: Table, *, most: int = MOST_ROWS) -> str:
    """Return a catalog's main columns as text.

    Parameters
    ----------
    catalog
        As `Posterior.summary` makes it.
    most
        At most so many rows are shown, the first ones.

    Returns
    -------
    str
        The text.
    """
    rows = catalog[:most]
    columns = {"id": [str(number) for number in rows["id"]]}
    columns |= {name: _written(rows[name], ".1f") for name in ("x", "y")}
    flux = zip(_written(rows["flux"], ".4g"), _written(rows["flux_sd"], ".2g"), strict=True)
    unit = getattr(rows["flux"], "unit", None)
    columns["flux" if unit is None else f"flux ({unit})"] = [f"{value} ± {sd}" for value, sd in flux]
    columns |= {"mag": _written(rows["mag"], ".2f"), "correlation": _written(rows["correlation"], ".2f")}
    columns["flags"] = [describe_flags(int(bits)).replace("none", "-") for bits in rows["flags"]]
    lines = Table(columns).pformat(max_width=-1, max_lines=-1, align=[*[">"] * (len(columns) - 1), "<"])
    if len(catalog) > most:
        lines.append(f"... and {len(catalog) - most} more")
    return "\n".join(lines)


def report(result: Result, *, rms: str | None = None) -> str:
    """Say what was found and measured.

    Parameters
    ----------
    result
        What was found.
    rms
        The sky noise as the user gave it, if so.

    Returns
    -------
    str
        The short table, and a line for each thing that was measured.
    """
    lines = [short_table(result.catalog), ""]
    lines.append(f"sky rms of a pixel: {result.sky_rms:.4g}")
    if result.rms_factor != 1:
        lines.append(f"the rms map {rms} was multiplied by {result.rms_factor:.3f} to match the scatter in the image")
    if result.noise_factor is not None:
        lines.append(f"noise is correlated: SEP's errors of lone sources are multiplied by {result.noise_factor:.2f}")
    if result.posterior is None:
        lines.append("no sources overlap: there are no masks and no picture of blends")
    return "\n".join(lines)


def _written(column: ArrayLike, form: str) -> list[str]:
    mask = np.broadcast_to(getattr(column, "mask", False), len(column))
    values = getattr(column, "unmasked", column)
    values = np.asarray(getattr(values, "value", values), dtype=float)
    return ["-" if hidden or np.isnan(value) else f"{value:{form}}" for value, hidden in zip(values, mask, strict=True)]
