"""From mosaics and catalogs to a library: which galaxies are selected, cut out, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from ..scene import GALAXY_TYPES, STAMP_SIZE, Instrument
from .aperture import ApertureCorrection
from .isolated import WINDOW, LoneGalaxy, NotAloneError, cut_galaxy, find_galaxies
from .library import Library

if TYPE_CHECKING:
    from ..photometry.mosaics import Mosaic

__all__ = ["Selection", "cut_galaxies", "find_sources", "library_of", "morphological_type", "positions"]

NEAR_EDGE = 16
TILE, OVERLAP = 1024, 128
SAME_SOURCE = 5.0  # pixels
PROBABILITIES = ("p_sph", "p_disk", "p_irr")


@dataclass(frozen=True)
class Selection:
    """Which galaxies of a catalog are cut out; the defaults are those of Boucaud et al. (2020).

    Parameters
    ----------
    magnitude
        Faintest AB magnitude.
    probability
        Least probability of a morphological type, where the catalog gives them.
    """

    magnitude: float = 23.5
    probability: float = 0.8

    def __post_init__(self) -> None:
        if not np.isfinite(self.magnitude):
            raise ValueError(f"magnitude must be finite, got {self.magnitude}")
        if not 0 < self.probability < 1:
            raise ValueError(f"probability must be between 0 and 1, got {self.probability}")


def morphological_type(catalog: Table, probability: float) -> NDArray[np.int64]:
    """Return the type of each galaxy from the probabilities of being a spheroid, having a disk, being irregular.

    Parameters
    ----------
    catalog
        With the columns ``p_sph``, ``p_disk`` and ``p_irr``, or none of them.
    probability
        Least probability of a type.

    Returns
    -------
    NDArray
        Index into `GALAXY_TYPES`; -1 where no type is probable enough, or the catalog gives no probabilities.

    Raises
    ------
    ValueError
        If only some of the columns are there.
    """
    given = [name for name in PROBABILITIES if name in catalog.colnames]
    if not given:
        return np.full(len(catalog), -1)
    if missing := [name for name in PROBABILITIES if name not in given]:
        wanted = ", ".join(PROBABILITIES)
        raise ValueError(f"the catalog must have all of {wanted} or none, it lacks {', '.join(missing)}")
    known = [np.ma.filled(np.ma.asarray(catalog[name], dtype=float), 0.0) for name in PROBABILITIES]
    sph, disk, irr = (values > probability for values in known)
    chosen = [irr, sph & disk, disk, sph]
    numbers = [GALAXY_TYPES.index(name) for name in ("irr", "sphd", "disk", "sph")]
    return np.select(chosen, numbers, default=-1)


def positions(catalog: Table, mosaic: Mosaic) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixel positions of a catalog's galaxies in a mosaic.

    Parameters
    ----------
    catalog
        With the columns ``x`` and ``y``, pixels counted from 0, or ``ra`` and ``dec`` in degrees.
    mosaic
        The mosaic.

    Returns
    -------
    x, y
        Pixels ``(galaxy,)``.

    Raises
    ------
    ValueError
        If the catalog has neither, or sky positions and the mosaic no world coordinates.
    """
    if {"x", "y"} <= set(catalog.colnames):
        return np.asarray(catalog["x"], dtype=float), np.asarray(catalog["y"], dtype=float)
    if not {"ra", "dec"} <= set(catalog.colnames):
        there = ", ".join(catalog.colnames)
        raise ValueError(f"the catalog must have the columns x and y, or ra and dec, got {there}")
    if mosaic.wcs is None:
        raise ValueError(f"{mosaic.name}: has no world coordinates, so the catalog must give x and y, not ra and dec")
    x, y = mosaic.wcs.world_to_pixel_values(np.asarray(catalog["ra"], float), np.asarray(catalog["dec"], float))
    return np.asarray(x), np.asarray(y)


def cut_galaxies(
    mosaic: Mosaic,
    catalog: Table | None,
    *,
    instrument: Instrument,
    selection: Selection,
    seed: int = 0,
    rms: Mosaic | None = None,
    report: Callable[[str], None] = lambda reason: None,
) -> Iterator[tuple[str, LoneGalaxy, int]]:
    """Cut the selected galaxies out of a mosaic, one at a time.

    Parameters
    ----------
    mosaic
        The image.
    catalog
        Positions as for `positions`, ``magnitude``, and where they are known ``id`` and the probabilities of
        types; None takes what SEP finds, with magnitudes from Kron fluxes.
    instrument
        Zero point, exposure, and the correlation of the noise.
    selection
        Limits.
    seed
        Seed of the sky that replaces neighbors; keyed by the galaxy's number in the catalog.
    rms
        Map of the sky noise, for the test of two noise levels.
    report
        Called with the reason of each galaxy that is left out.

    Yields
    ------
    tuple
        Name, galaxy, and index into `GALAXY_TYPES` or -1.
    """
    if catalog is None:
        catalog = find_sources(mosaic, instrument)
    x, y = positions(catalog, mosaic)
    kind = morphological_type(catalog, selection.probability)
    typed = set(PROBABILITIES) <= set(catalog.colnames)
    magnitude = np.ma.filled(np.ma.asarray(catalog["magnitude"], dtype=float), np.inf)
    names = catalog["id"] if "id" in catalog.colnames else np.arange(len(catalog))
    height, width = mosaic.shape
    centers: list[tuple[float, float]] = []
    for number in range(len(catalog)):
        if not magnitude[number] < selection.magnitude:
            report("too faint")
        elif typed and kind[number] < 0:
            report("no type is probable enough")
        elif not (-0.5 <= x[number] <= width - 0.5 and -0.5 <= y[number] <= height - 0.5):
            report("off the mosaic")
        elif min(x[number], y[number], width - 1 - x[number], height - 1 - y[number]) < NEAR_EDGE:
            report("too near the edge")
        else:
            x0, y0 = (round(center) - WINDOW // 2 for center in (x[number], y[number]))
            place = (x0, y0, WINDOW)
            rng = np.random.default_rng((seed, number))
            noise = None if rms is None else rms.window(*place)
            try:
                cut = cut_galaxy(
                    mosaic.window(*place), x[number] - x0, y[number] - y0, instrument=instrument, rng=rng, rms=noise
                )
            except NotAloneError as error:
                report(str(error))
                continue
            galaxy = _moved(cut, x0, y0)
            center = galaxy.x0 + galaxy.x, galaxy.y0 + galaxy.y
            if any(np.hypot(center[0] - x, center[1] - y) < SAME_SOURCE for x, y in centers):
                report("the same source as that of another row")
                continue
            centers.append(center)
            yield f"{mosaic.name}:{names[number]}", galaxy, int(kind[number])


def _moved(galaxy: LoneGalaxy, x0: int, y0: int) -> LoneGalaxy:
    return replace(galaxy, x0=galaxy.x0 + x0, y0=galaxy.y0 + y0)


def find_sources(mosaic: Mosaic, instrument: Instrument) -> Table:
    """Find sources with SEP, tile by tile; one belongs to the tile whose core holds its center.

    Parameters
    ----------
    mosaic
        The image.
    instrument
        Where the zero point comes from.

    Returns
    -------
    Table
        ``x``, ``y``, ``magnitude`` (Kron) and ``id``, from bright to faint.
    """
    rows = []
    for y0 in range(0, mosaic.shape[0], TILE):
        for x0 in range(0, mosaic.shape[1], TILE):
            window = mosaic.window(x0 - OVERLAP, y0 - OVERLAP, TILE + 2 * OVERLAP)
            if not np.isfinite(window).any() or np.nanstd(window) == 0:
                continue
            good = np.isfinite(window)
            rows_used, columns_used = np.flatnonzero(good.any(1)), np.flatnonzero(good.any(0))
            top, left = rows_used[0], columns_used[0]
            try:
                found, flux = find_galaxies(window[top : rows_used[-1] + 1, left : columns_used[-1] + 1])
            except ValueError:  # no sky in this tile
                continue
            x, y = found.x + left + x0 - OVERLAP, found.y + top + y0 - OVERLAP
            core = (x >= x0 - 0.5) & (x < x0 + TILE - 0.5) & (y >= y0 - 0.5) & (y < y0 + TILE - 0.5) & (flux > 0)
            magnitude = instrument.zero_point - 2.5 * np.log10(np.where(flux > 0, flux, 1.0))
            rows += list(zip(x[core], y[core], magnitude[core], strict=True))
    table = Table(rows=rows, names=("x", "y", "magnitude"), dtype=(float, float, float))
    table.sort("magnitude")
    table["id"] = [f"{x:.0f},{y:.0f}" for x, y in zip(table["x"], table["y"], strict=True)]
    return table


def library_of(
    galaxies: Iterable[tuple[str, LoneGalaxy, int]],
    *,
    origin: str,
    instrument: Instrument,
    correction: ApertureCorrection,
    mosaic: Mosaic | None = None,
    true_flux: ArrayLike | None = None,
) -> Library:
    """Make a library of galaxies that were cut out or re-observed.

    Parameters
    ----------
    galaxies
        Names, galaxies and types.
    origin
        Where they come from.
    instrument
        Pixel scale, zero point and exposure.
    correction
        From Kron to total flux.
    mosaic
        What they were cut out of, for sky positions.
    true_flux
        Total fluxes where they are known, in the order of the galaxies.

    Returns
    -------
    Library
        The galaxies; kept are those without a quality flag.
    """
    rows = list(galaxies)
    cut = [galaxy for _, galaxy, _ in rows]
    auto = np.array([galaxy.auto_flux for galaxy in cut])
    if true_flux is None:
        flux = auto * np.array([correction.factor(galaxy) for galaxy in cut])
        relative = np.array([galaxy.flux_error for galaxy in cut]) / auto
        error = flux * np.hypot(relative, correction.scatter)
    else:
        flux, error = np.asarray(true_flux, dtype=float), np.zeros(len(cut))
    ra, dec = np.full((2, len(cut)), np.nan)
    if mosaic is not None and mosaic.wcs is not None and cut:
        centers = np.array([(galaxy.x0 + galaxy.x, galaxy.y0 + galaxy.y) for galaxy in cut])
        ra, dec = mosaic.wcs.pixel_to_world_values(*centers.T)
    stamps = (len(cut), STAMP_SIZE, STAMP_SIZE)
    return Library(
        identity=np.array([name for name, _, _ in rows], dtype=str),
        origin=np.full(len(cut), origin),
        pixels=np.array([galaxy.pixels for galaxy in cut], dtype=np.float32).reshape(stamps),
        segmentation=np.array([galaxy.segmentation for galaxy in cut], dtype=bool).reshape(stamps),
        sky_rms=np.array([galaxy.sky_rms for galaxy in cut], dtype=float),
        x=np.array([galaxy.x for galaxy in cut], dtype=float),
        y=np.array([galaxy.y for galaxy in cut], dtype=float),
        ra=np.asarray(ra, dtype=float),
        dec=np.asarray(dec, dtype=float),
        auto_flux=auto,
        flux=flux,
        flux_error=error,
        flux_kind=np.full(len(cut), "corrected" if true_flux is None else "true"),
        half_light_radius=instrument.pixel_scale * np.array([galaxy.half_light_radius for galaxy in cut], dtype=float),
        galaxy_type=np.array([kind for _, _, kind in rows], dtype=np.int64),
        quality=np.array([galaxy.quality for galaxy in cut], dtype=np.int64),
        keep=np.array([galaxy.quality == 0 for galaxy in cut], dtype=bool),
        zero_point=np.full(len(cut), float(instrument.zero_point)),
        exposure=np.full(len(cut), float(instrument.exposure)),
    )
