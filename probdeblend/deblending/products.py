"""The folder of files that an image is deblended into, for one image or many.

A folder appears whole or not at all, and one that a run has finished is not made again. So a run over many images, or
one of its workers, may be killed at any time: nothing is lost, and nothing is done twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table

from .._files import RECORD, TABLES, output_folder
from ..photometry.images import open_mosaic
from ..plots.sources import plot_field
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from . import weights as files
from .deblender import Deblender
from .positions import read_positions

if TYPE_CHECKING:
    from dask.distributed import Client

__all__ = ["deblend_files", "short_table", "write_products"]

Images = str | PathLike[str] | Sequence[str | PathLike[str]]

SHAPE = ("half_light_radius", "axis_ratio", "angle")
MAIN = re.compile(r"label|id|x|y|(flux|flux_err|mag|correlation)(_(?!\d\d|err|auto|sep).*)?|existence|star|group|flags")


def write_products(
    folder: Path,
    posterior: Posterior,
    *,
    image: str | PathLike[str] | None = None,
    table: str = "ecsv",
    save_draws: bool = False,
) -> list[str]:
    """Write the catalog, the sources as regions for DS9, the segmentation map and the sum of the deblended images.

    Parameters
    ----------
    folder
        An empty folder.
    posterior
        Posterior of one image.
    image
        File of the image, or of its first band, for a figure of the sources; None leaves it out.
    table
        Format of the catalog: "ecsv", "fits", "vot" (VOTable) or "parquet", which needs pyarrow.
    save_draws
        Also write the whole posterior.

    Returns
    -------
    list of str
        Names of the files.
    """
    catalog = posterior.catalog()
    catalog = catalog.filled(np.nan) if table == "parquet" else catalog  # it has no masks
    catalog.write(folder / f"catalog.{table}", format=TABLES[f".{table}"])
    (folder / "sources.reg").write_text(_regions(posterior), encoding="utf-8")
    if posterior.cutouts is not None:
        header = None if posterior.wcs is None else posterior.wcs.to_header(relax=True)
        fits.PrimaryHDU(posterior.label_image(), header=header).writeto(folder / "segmentation.fits")
        fits.PrimaryHDU(posterior.model_image(), header=header).writeto(folder / "model.fits")
    if save_draws:
        posterior.save(folder / "draws.nc")
    if image is not None:
        _draw(folder / "field.png", posterior, image)
    return sorted(path.name for path in folder.iterdir())


def _draw(target: Path, posterior: Posterior, path: str | PathLike[str]) -> None:
    """Draw a field, whatever settings the user has; a failure is a note of the posterior, and costs nothing else."""
    try:
        from matplotlib import style

        with open_mosaic(path) as image, style.context("default"):
            plot_field(posterior, image.data)[0].figure.savefig(target, dpi=180)
    except Exception as error:
        target.unlink(missing_ok=True)
        known, failure = posterior.dataset.attrs, f"{target.name} could not be drawn: {' '.join(str(error).split())}"
        known["notes"] = "; ".join(filter(None, [known.get("notes"), failure.replace(";", ",")]))


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


def deblend_files(
    folders: Mapping[str | PathLike[str], Images],
    *,
    weights: str | PathLike[str] | None = None,
    calibrator: str | PathLike[str] | None = None,
    client: Client | None = None,
    table: str = "ecsv",
    save_draws: bool = False,
    overwrite: bool = False,
    **options: object,
) -> Iterator[tuple[Path, QTable | Exception | None]]:
    """Deblend many images, each into a folder of its own; folders that are finished are left out.

    Parameters
    ----------
    folders
        The file of an image, or the files of its bands, by the folder to write.
    weights, calibrator
        Files, as for `load`.
    client
        A Dask cluster, whose workers see the files under the same names; each loads the weights once. If a worker dies,
        only the image in progress is lost, and another worker restarts it. None deblends one image after the other,
        here.
    table, save_draws
        What is written, as for `write_products`.
    overwrite
        Deblend images whose folders exist again, and replace them.
    **options
        What `Deblender` takes.

    Yields
    ------
    folder, catalog
        Each folder as soon as it is done, and its catalog; None where it was finished already; the exception where the
        image could not be deblended.

    Raises
    ------
    TypeError
        If there is no such option.
    ValueError
        If there is no such format of a table, or the weights do not fit.
    ImportError
        If the format of the table needs a package that is not installed.
    """
    signature(Deblender.forward).bind_partial(**options)  # what is wrong for every image is told before the first
    if f".{table}" not in TABLES:
        raise ValueError(f"table must be one of {', '.join(name[1:] for name in TABLES)}, got {table}")
    if table == "parquet":
        import_module("pyarrow")
    values = (weights, calibrator, *options.values())
    given = (one for value in values for one in (value if isinstance(value, list | tuple) else [value]))
    how = {"table": table, "save_draws": save_draws, "overwrite": overwrite, "options": options}
    how["inputs"] = [path for path in given if isinstance(path, str | PathLike)]
    if isinstance(path := options.get("positions"), str | PathLike):
        options["positions"] = read_positions(path)
    left = {folder: own for folder, own in folders.items() if overwrite or not (Path(folder) / RECORD).is_file()}
    yield from ((Path(folder), None) for folder in folders if folder not in left)
    if client is None:
        deblender = files.load(weights, calibrator=calibrator)
        yield from ((Path(item[0]), _deblended(lambda: deblender, *item, **how)) for item in left.items())
        return
    from dask.distributed import as_completed

    deblend = partial(_deblended, partial(files.loaded, weights, calibrator), **how)
    futures = {client.submit(deblend, *item, pure=False): Path(item[0]) for item in left.items()}
    for future in as_completed(futures):
        yield futures.pop(future), future.exception() or future.result()


def _deblended(
    loaded: Callable[[], Deblender],
    folder: str | PathLike[str],
    images: Images,
    *,
    inputs: list[str | PathLike[str]],
    overwrite: bool,
    options: Mapping[str, object],
    **how: object,
) -> QTable | Exception:
    """Deblend one image into a folder."""
    images = [images] if isinstance(images, str | PathLike) else list(images)
    if (Path(folder) / RECORD).is_file() and not overwrite:  # by a worker that died before it could say so
        return QTable.read(Path(folder) / f"catalog.{how['table']}", format=TABLES[f".{how['table']}"])
    try:
        with output_folder(folder, overwrite=overwrite, inputs=[*images, *inputs]) as temporary:
            posterior = loaded()(images, **options)
            write_products(temporary, posterior, image=images[0], **how)
    except Exception as error:  # of this image; the others go on
        return error
    return posterior.catalog()
