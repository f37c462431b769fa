"""Libraries of lone galaxies from files: cut out of mosaics or observed anew, written with contact sheets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from tqdm.auto import tqdm

from .._files import output_folder
from ..photometry.mosaics import Mosaic, open_mosaic, read_columns
from ..plots.images import plot_stamps
from ..scene import PIXEL_SCALE_TOLERANCE, Instrument
from .aperture import ApertureCorrection, fit_aperture_correction
from .files import read_library, write_library
from .library import Library, describe_quality, join
from .reobserve import observe_real_galaxies, observe_stamps
from .selection import Selection, cut_galaxies, library_of

__all__ = [
    "Collection",
    "check_mosaic",
    "collect_mosaics",
    "collect_reobserved",
    "in_units_of",
    "read_libraries",
    "report",
    "write_collection",
]

PER_SHEET = 48
KEPT, REJECTED = "#009E73", "#D55E00"
STAMP_COLUMNS = ("mag_ab", "zero_point", "pixel_scale")


@dataclass(frozen=True, eq=False)
class Collection:
    """Galaxies that were collected, and why others were not.

    Parameters
    ----------
    library
        The galaxies.
    skipped
        Number of candidates by the reason for which they were left out.
    correction
        What total fluxes were made of AUTO fluxes with.
    """

    library: Library
    skipped: Counter[str]
    correction: ApertureCorrection


def collect_mosaics(
    paths: Sequence[Path],
    *,
    catalog: Path | None = None,
    columns: Mapping[str, str] | None = None,
    hdu: str | None = None,
    rms: Path | None = None,
    instrument: Instrument | None = None,
    selection: Selection | None = None,
    seed: int = 0,
) -> Collection:
    """Cut lone galaxies out of mosaics.

    Parameters
    ----------
    paths
        FITS images with pixels of the instrument's size.
    catalog
        Table of the galaxies of the one mosaic; without it, SEP finds them.
    columns
        The catalog's name of a column by ours: x and y (from 0) or ra and dec, magnitude, id, p_sph, p_disk, p_irr.
    hdu
        Number or name of the HDU of each image.
    rms
        Map of the sky noise of the one mosaic.
    instrument
        PSF, noise correlation, and a zero point for images whose header has none; the exposure is that of fluxes at
        this zero point, and is converted for images with another. CANDELS F160W if None.
    selection
        Limits of magnitude and type.
    seed
        Seed of the sky that replaces neighbors.

    Returns
    -------
    Collection
        The galaxies.

    Raises
    ------
    ValueError
        If a file cannot be used, a column is missing, or no galaxy is left.
    """
    instrument, selection = instrument or Instrument.candels_f160w(), selection or Selection()
    if len(paths) > 1 and (catalog or rms):
        raise ValueError(f"a catalog and an rms map belong to one image, got {len(paths)} images")
    table = None if catalog is None else read_columns(catalog, columns or {}, required=("magnitude",))
    if columns and table is None:
        raise ValueError("columns belong to a catalog, got none")
    if columns and {"ra", "dec"} <= set(columns) and not {"x", "y"} & set(columns):
        table.remove_columns([name for name in ("x", "y") if name in table.colnames])
    if table is not None and not len(table):
        raise ValueError(f"{catalog}: the catalog must have rows, got none")
    skipped: Counter[str] = Counter()
    cut_out = []
    for path in paths:
        with ExitStack() as stack:
            mosaic = stack.enter_context(open_mosaic(path, hdu=hdu))
            noise = None if rms is None else stack.enter_context(open_mosaic(rms))
            check_mosaic(mosaic, noise, instrument)
            seen = in_units_of(mosaic, instrument)
            cut = cut_galaxies(
                mosaic, table, instrument=seen, selection=selection, seed=seed, rms=noise, report=_counting(skipped)
            )
            galaxies = list(tqdm(cut, desc=mosaic.name, unit="galaxy", leave=False))
            if galaxies:
                cut_out.append((mosaic, seen, galaxies))
    _check_some(cut_out, skipped)
    # What the correction depends on is in units of the noise, so that one depth serves for all.
    depths = [galaxy.sky_rms / _unit(seen, instrument) for _, seen, galaxies in cut_out for _, galaxy, _ in galaxies]
    depth = float(np.median(depths))
    correction = fit_aperture_correction(instrument.replace(sky_rms=depth))
    parts = [
        library_of(galaxies, origin=mosaic.name, instrument=seen, correction=correction, mosaic=mosaic)
        for mosaic, seen, galaxies in cut_out
    ]
    return Collection(join(parts), skipped, correction)


def collect_reobserved(
    path: Path, *, identity: str | None = None, instrument: Instrument | None = None, seed: int = 0
) -> Collection:
    """Observe galaxies of another survey or of a simulation anew.

    Parameters
    ----------
    path
        A catalog in GalSim's RealGalaxy format, its images beside it; or a FITS file whose first HDU is a cube of
        stamps of one galaxy and whose second is a table with the columns mag_ab, zero_point and pixel_scale.
    identity
        Name of the one galaxy of a cube; the file's name if None.
    instrument
        What to observe with; CANDELS F160W if None.
    seed
        Seed of the noise.

    Returns
    -------
    Collection
        The galaxies.

    Raises
    ------
    ValueError
        If the file is neither, or no galaxy is left.
    """
    import galsim

    instrument = instrument or Instrument.candels_f160w()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    skipped: Counter[str] = Counter()
    correction = fit_aperture_correction(instrument)
    settings = {"instrument": instrument, "seed": seed, "report": _counting(skipped)}
    known = {"origin": path.name, "instrument": instrument, "correction": correction}
    cube = _cube(path)
    if cube is not None:
        pixels, table = cube
        name = path.stem if identity is None else identity
        described = (table[column] for column in STAMP_COLUMNS[:2])
        seen = observe_stamps(pixels, *described, pixel_scale=table["pixel_scale"], identity=name, **settings)
        rows = list(tqdm(seen, total=len(pixels), desc=path.name, unit="galaxy", leave=False))
        library = library_of([row[:3] for row in rows], **known, true_flux=[row[3] for row in rows])
        _check_some(rows, skipped)
        return Collection(library, skipped, correction)
    try:
        catalog = galsim.RealGalaxyCatalog(path.name, dir=str(path.parent))
    except Exception as error:  # GalSim and astropy raise many kinds
        form = "neither GalSim's RealGalaxy catalog nor a cube of stamps with their table"
        raise ValueError(f"{path}: {form} ({' '.join(str(error).split())[:80]})") from error
    seen = observe_real_galaxies(catalog, **settings)
    library = library_of(tqdm(seen, desc=path.name, unit="galaxy", leave=False), **known)
    _check_some(library, skipped)
    return Collection(join([_placed(library, path)]), skipped, correction)


def _placed(library: Library, path: Path) -> Library:
    """Give galaxies the sky positions of their catalog, so that the same ones elsewhere are known as such."""
    table = Table.read(path, hdu=1)
    if not {"IDENT", "RA", "DEC"} <= set(table.colnames):
        return library
    rows = {f"cosmos:{name}": row for row, name in enumerate(table["IDENT"])}
    index = [rows[name] for name in library.identity]
    return replace(library, ra=np.asarray(table["RA"], float)[index], dec=np.asarray(table["DEC"], float)[index])


def _cube(path: Path) -> tuple[np.ndarray, Table] | None:
    try:
        with fits.open(path) as hdus:
            data = hdus[0].data
            if data is None or data.ndim != 3 or len(hdus) < 2:
                return None
            table = Table(hdus[1].data)
    except OSError as error:
        raise ValueError(f"{path}: not a FITS file, or damaged") from error
    if missing := [name for name in STAMP_COLUMNS if name not in table.colnames]:
        there = ", ".join(table.colnames)
        raise ValueError(f"{path}: the columns {', '.join(missing)} are missing, there are {there}")
    if len(table) != len(data):
        raise ValueError(f"{path}: the table must have a row for each of {len(data)} stamps, got {len(table)}")
    return np.asarray(data, dtype=np.float64), table


def _counting(skipped: Counter[str]) -> object:
    def count(reason: str) -> None:
        skipped[reason] += 1

    return count


def _unit(seen: Instrument, instrument: Instrument) -> float:
    """Return what a flux of the instrument is multiplied with to be one of the image."""
    return 10 ** (0.4 * (seen.zero_point - instrument.zero_point))


def in_units_of(mosaic: Mosaic, instrument: Instrument) -> Instrument:
    """Return an instrument whose zero point and exposure are in the units of an image.

    Parameters
    ----------
    mosaic
        The image; without a zero point it is taken to have the instrument's.
    instrument
        The instrument.

    Returns
    -------
    Instrument
        A copy.
    """
    if mosaic.zero_point is None:
        return instrument
    seen = instrument.replace(zero_point=mosaic.zero_point)
    return seen.replace(exposure=instrument.exposure / _unit(seen, instrument))


def check_mosaic(mosaic: Mosaic, rms: Mosaic | None, instrument: Instrument) -> None:
    """Refuse an image whose pixels have another size, or whose map of the noise another shape.

    Parameters
    ----------
    mosaic
        The image.
    rms
        Map of its sky noise, or None.
    instrument
        What it is to be like.

    Raises
    ------
    ValueError
        If it does not fit.
    """
    scale = mosaic.pixel_scale
    if scale is not None and abs(scale / instrument.pixel_scale - 1) > PIXEL_SCALE_TOLERANCE:
        raise ValueError(f'{mosaic.name}: pixels must be {instrument.pixel_scale}" within 2%, got {scale:.4g}"')
    if rms is not None and rms.shape != mosaic.shape:
        raise ValueError(f"{rms.name}: the rms map must have the mosaic's shape {mosaic.shape}, got {rms.shape}")


def _check_some(found: Sized, skipped: Counter[str]) -> None:
    if not len(found):
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        raise ValueError(f"no galaxy is left to cut out: {reasons or 'none was found'}")


def write_collection(path: Path, collection: Collection, *, overwrite: bool = False) -> list[str]:
    """Write a library with its list of galaxies to keep, and contact sheets.

    Parameters
    ----------
    path
        The folder.
    collection
        The galaxies.
    overwrite
        Whether an earlier library may be replaced.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    FileExistsError
        If the folder exists and is not to be, or must not be, replaced.
    """
    library = collection.library
    earlier = [entry.name for entry in path.glob("contact-*.png")] if path.is_dir() else []
    with output_folder(path, overwrite=overwrite, files=["library.h5", "keep.csv", *earlier]) as folder:
        names = write_library(folder, library)
        for page, start in enumerate(range(0, len(library), PER_SHEET), start=1):
            names.append(f"contact-{page:03d}.png")
            part = library.select(slice(start, start + PER_SHEET))
            panels = plot_stamps(
                part.pixels,
                [_title(part, row, start + row + 1) for row in range(len(part))],
                outlines=part.segmentation[:, None],
                colors=[KEPT if keep else REJECTED for keep in part.keep],
            )
            panels[0].figure.savefig(folder / names[-1], dpi=100)
    return names


def _title(library: Library, row: int, number: int) -> str:
    reasons = describe_quality(library.quality[row]) or "keep"
    return f"{number}: mag {library.magnitude[row]:.2f}\n{reasons}"


def report(collection: Collection) -> str:
    """Say what was collected, kept and rejected, and why.

    Parameters
    ----------
    collection
        The galaxies.

    Returns
    -------
    str
        A few lines.
    """
    library = collection.library
    kept = library.identity[library.keep]
    lines = [f"{len(library)} galaxies cut out, {len(kept)} to keep ({len(set(kept))} distinct)"]
    rejected = Counter(describe_quality(quality) for quality in library.quality if quality)
    lines += [f"  rejected, {reasons}: {count}" for reasons, count in rejected.most_common()]
    lines += [f"  left out, {reason}: {count}" for reason, count in collection.skipped.most_common()]
    if (corrected := library.flux_kind == "corrected").any():
        factor = np.median((library.flux / library.auto_flux)[corrected])
        scatter = collection.correction.scatter
        lines.append(f"aperture correction: total over AUTO flux {factor:.3f}, scatter {scatter:.3f}")
    return "\n".join(lines)


def read_libraries(paths: Iterable[Path]) -> Library:
    """Read libraries as one.

    Parameters
    ----------
    paths
        Their folders.

    Returns
    -------
    Library
        All galaxies, those in the lists to keep marked.
    """
    return join([read_library(path) for path in paths])
