"""Isolated galaxies from mosaics and catalogs: selection, cutouts, and the reasons why others are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from os import PathLike
from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from scipy import ndimage
from tqdm.auto import tqdm

from .._files import read_table
from ..photometry.detection import kron_flux
from ..photometry.images import FieldImage, open_mosaic
from ..scene import GALAXY_TYPES, PIXEL_SCALE_TOLERANCE
from ..simulation.cameras import Camera
from .cutouts import WINDOW, Galaxy, NotIsolatedError, cut_galaxy, find_galaxies
from .stamps import Library, join

__all__ = ["Collection", "collect", "cut_galaxies", "in_units_of", "isolate_galaxies", "read_catalog"]

NEAR_EDGE = 16
TILE, OVERLAP = 1024, 128
SAME_SOURCE = 5.0  # pixels


@dataclass(frozen=True, eq=False)
class Collection:
    """Galaxies that were cut out, and the number left out by reason."""

    library: Library
    skipped: Counter[str]

    def summary(self) -> Table:
        """Count the galaxies that were kept, rejected and left out.

        Returns
        -------
        Table
            The ``galaxies`` of each ``state`` and ``reason``. Its ``meta`` holds the number of ``distinct`` galaxies
            that were kept.
        """
        library = self.library
        rows = [("kept", "", int(library.keep.sum()))]
        rejected = Counter(library.reasons[library.quality > 0].tolist())
        rows += [("rejected", reason, number) for reason, number in rejected.most_common()]
        rows += [("left out", reason, number) for reason, number in self.skipped.most_common()]
        meta = {"distinct": len(set(library.identity[library.keep]))}
        return Table(rows=rows, names=("state", "reason", "galaxies"), meta=meta)


def isolate_galaxies(
    images: Sequence[Path],
    *,
    instrument: Camera,
    catalog: Path | None = None,
    columns: Mapping[str, str] | None = None,
    hdu: str | None = None,
    faintest: float = 23.5,
    seed: int = 0,
) -> Collection:
    """Cut isolated galaxies out of images.

    Parameters
    ----------
    images
        FITS images with pixels of the instrument's size.
    instrument
        PSF, noise correlation, and the zero point of images whose header has none; the exposure is that of fluxes at
        this zero point, and is converted for images with another.
    catalog
        Table of the galaxies of a single image; without it, SEP finds them.
    columns
        The catalog's column names, by the names used here: x and y (from 0) or ra and dec, magnitude, id, and type,
        one of `GALAXY_TYPES`.
    hdu
        Number or name of the HDU of each image.
    faintest
        AB magnitude down to which galaxies are cut out, by default that of Boucaud et al. (2020).
    seed
        Seed of the sky that replaces neighbors.

    Returns
    -------
    Collection
        Its `library` of galaxies, and a `summary` of which were kept, rejected or left out, and why.

    Raises
    ------
    ValueError
        If a file cannot be used, a column is missing, or no galaxy is left.
    """
    if len(images) > 1 and catalog:
        raise ValueError(f"catalog requires a single image, got {len(images)}")
    if columns and catalog is None:
        raise ValueError("columns require a catalog, got None")
    table = None if catalog is None else read_catalog(catalog, columns or {})
    skipped: Counter[str] = Counter()
    galaxies: list[Galaxy] = []
    for path in images:
        with open_mosaic(path, hdu=hdu) as mosaic:
            own = {"instrument": in_units_of(mosaic, instrument), "skipped": skipped}
            seen = cut_galaxies(mosaic, table, faintest=faintest, seed=seed, **own)
            galaxies += tqdm(seen, desc=mosaic.name, unit="galaxy", leave=False)
    return collect(galaxies, skipped, instrument.pixel_scale)


def collect(galaxies: Sequence[Galaxy], skipped: Counter[str], pixel_scale: float) -> Collection:
    """Make a library of galaxies, of which those without a quality flag are kept; refuse none, and give the reasons."""
    if not galaxies:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        raise ValueError(f"no galaxy is left to cut out: {reasons or 'none was found'}")
    names = {field.name for field in fields(Library)} - {"keep"}
    columns = {name: np.array([galaxy[name] for galaxy in galaxies]) for name in names}
    columns["half_light_radius"] *= pixel_scale
    return Collection(join([Library(**columns, keep=columns["quality"] == 0)]), skipped)


def read_catalog(path: str | PathLike[str], columns: Mapping[str, str]) -> Table:
    """Read a catalog (FITS, ECSV, CSV) with our names of the columns; `columns` maps ours to theirs."""
    table = read_table(path)
    names = {name: columns.get(name, name) for name in {*columns, "magnitude", *table.colnames}}
    if missing := sorted(names[name] for name in {*columns, "magnitude"} if names[name] not in table.colnames):
        wanted = ", ".join(map(repr, missing))
        raise ValueError(f"{path}: the columns {wanted} are missing, there are {', '.join(table.colnames)}")
    if not len(table):
        raise ValueError(f"{path}: the catalog must have rows, got none")
    if {"ra", "dec"} <= set(columns) and not {"x", "y"} & set(columns):
        names = {name: column for name, column in names.items() if name not in ("x", "y")}
    return Table({name: table[column] for name, column in names.items() if column in table.colnames})


def in_units_of(mosaic: FieldImage, instrument: Camera) -> Camera:
    """Return the instrument in the units of an image, if these are known; refuse pixels of another size."""
    scale = mosaic.pixel_scale
    if scale is not None and abs(scale / instrument.pixel_scale - 1) > PIXEL_SCALE_TOLERANCE:
        raise ValueError(f'{mosaic.name}: pixels must be {instrument.pixel_scale}" within 2%, got {scale:.4g}"')
    if mosaic.zero_point is None:
        return instrument
    unit = 10 ** (0.4 * (mosaic.zero_point - instrument.zero_point[0]))
    return replace(instrument, zero_point=(mosaic.zero_point,), exposure=instrument.exposure / unit)


def positions(catalog: Table, mosaic: FieldImage) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixel positions ``(galaxy,)`` of a catalog with x and y (from 0), or ra and dec (degrees)."""
    if {"x", "y"} <= set(catalog.colnames):
        return np.asarray(catalog["x"], dtype=float), np.asarray(catalog["y"], dtype=float)
    if not {"ra", "dec"} <= set(catalog.colnames):
        raise ValueError(f"the catalog must have the columns x and y, or ra and dec, got {', '.join(catalog.colnames)}")
    if mosaic.wcs is None:
        raise ValueError(f"{mosaic.name}: has no world coordinates, so the catalog must give x and y, not ra and dec")
    return mosaic.wcs.world_to_pixel_values(np.asarray(catalog["ra"], float), np.asarray(catalog["dec"], float))


def cut_galaxies(
    mosaic: FieldImage,
    catalog: Table | None,
    *,
    instrument: Camera,
    faintest: float,
    skipped: Counter[str],
    seed: int = 0,
) -> Iterator[Galaxy]:
    """Cut the galaxies of a catalog, or of what SEP finds if None, out of a mosaic, one at a time.

    `skipped` counts the reasons for which galaxies are left out. The seed of the sky that replaces neighbors is keyed
    by the galaxy's number in the catalog.
    """
    catalog = find_sources(mosaic, instrument) if catalog is None else catalog
    x, y = positions(catalog, mosaic)
    names = catalog["id"] if "id" in catalog.colnames else np.arange(len(catalog))
    kinds = list(map(str, catalog["type"])) if "type" in catalog.colnames else [""] * len(catalog)
    inside = np.min([x, y, mosaic.shape[1] - 1 - x, mosaic.shape[0] - 1 - y], axis=0)
    magnitude = np.ma.filled(np.ma.asarray(catalog["magnitude"], dtype=float), np.inf)
    why = ["too faint", "off the mosaic", "too near the edge"]
    refused = np.select([~(magnitude < faintest), ~(inside >= -0.5), inside < NEAR_EDGE], why, default="")
    centers: list[tuple[float, float]] = []
    skipped.update(filter(None, refused.tolist()))
    for number in np.flatnonzero(refused == "").tolist():
        try:
            left, top = round(x[number]) - WINDOW // 2, round(y[number]) - WINDOW // 2
            place, rng = (x[number] - left, y[number] - top), np.random.default_rng((seed, number))
            cut = cut_galaxy(mosaic.window(left, top, WINDOW), *place, instrument=instrument, rng=rng)
            cut |= {"x0": cut["x0"] + left, "y0": cut["y0"] + top}
            center = cut["x0"] + cut["x"], cut["y0"] + cut["y"]
            if any(np.hypot(center[0] - x, center[1] - y) < SAME_SOURCE for x, y in centers):
                raise NotIsolatedError("the same source as that of another row")
        except NotIsolatedError as error:
            skipped[str(error)] += 1
            continue
        centers.append(center)
        ra, dec = (np.nan, np.nan) if mosaic.wcs is None else mosaic.wcs.pixel_to_world_values(*center)
        kind = GALAXY_TYPES.index(kinds[number]) if kinds[number] in GALAXY_TYPES else -1
        told = {"identity": f"{mosaic.name}:{names[number]}", "origin": mosaic.name, "galaxy_type": kind}
        yield cut | told | {"ra": float(ra), "dec": float(dec), "zero_point": instrument.zero_point[0]}


def find_sources(mosaic: FieldImage, instrument: Camera) -> Table:
    """Find sources with SEP, from bright to faint: ``x``, ``y``, Kron ``magnitude`` and ``id``.

    SEP works tile by tile; a source belongs to the tile whose core holds its center.
    """
    rows = []
    for y0, x0 in product(*(range(0, side, TILE) for side in mosaic.shape)):
        window = mosaic.window(x0 - OVERLAP, y0 - OVERLAP, TILE + 2 * OVERLAP)
        try:
            (good,) = ndimage.find_objects(np.isfinite(window).astype(int))
            pixels, sky_rms, found = find_galaxies(window[good])
        except ValueError:  # no pixel or no sky in this tile
            continue
        flux, _ = kron_flux(pixels, found, sky_rms)
        x, y = (at + side.start - OVERLAP for at, side in ((found.x, good[1]), (found.y, good[0])))
        core = (np.minimum(x, y) >= -0.5) & (np.maximum(x, y) < TILE - 0.5) & (flux > 0)
        magnitude = instrument.zero_point[0] - 2.5 * np.log10(flux[core])
        rows += list(zip(x[core] + x0, y[core] + y0, magnitude, strict=True))
    table = Table(rows=rows, names=("x", "y", "magnitude"), dtype=(float, float, float))
    table.sort("magnitude")
    table["id"] = [f"{x:.0f},{y:.0f}" for x, y in zip(table["x"], table["y"], strict=True)]
    return table
