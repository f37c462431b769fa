"""A library of isolated galaxies: pixels, measurements, splits in which no galaxy is in two parts, and files.

A library is a folder. ``library.h5`` holds a table with a column for each field of `Library`. ``keep.csv`` has one row
per galaxy for the user to edit: its column ``keep``, yes or no, is what counts. Contact sheets show the galaxies with
their segmentations, in green frames if they are kept and red ones if not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntFlag
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .._files import header, open_hdf5, output_folder, read_table, whole_bytes
from ..photometry.sky import dilate
from ..scene import GALAXY_TYPES, STAMP_SIZE

__all__ = ["Library", "Quality", "identity_number", "join", "keep_table", "read_library", "write_library"]

LIBRARY_FILE, KEEP_FILE = "library.h5", "keep.csv"
KINDS = dict.fromkeys(("identity", "origin"), "U") | dict.fromkeys(("segmentation", "keep"), "b")
KINDS |= dict.fromkeys(("galaxy_type", "quality"), "i")  # of arrays; all others hold floating-point numbers
PER_SHEET = 48
KEPT, REJECTED = "#009E73", "#D55E00"
PART_LIMITS = (0.6, 0.8)  # fractions of the identities below which those for training and validation lie
SAME_GALAXY = 0.6  # arcsec within which two positions are those of one galaxy


class Quality(IntFlag):
    """Reasons to reject a cutout as isolated.

    - ``NEIGHBOR``: another source is still found in the stamp, or the neighbors took more than a twentieth of the
      galaxy's footprint;
    - ``ASYMMETRIC``: beyond the half-light radius, more than a quarter of the light has no counterpart on the opposite
      side of the center (Conselice et al. 2000, doi:10.1086/308300), noise allowed for;
    - ``MISSING_PIXELS``: bad pixels, or the edge of the mosaic, within 4 pixels of the footprint, or in a tenth of the
      stamp;
    - ``DOUBLE_NUCLEUS``: another source lies within 8 pixels of the center, or SEP splits the galaxy in two at a
      contrast of 0.1;
    - ``TWO_NOISE_LEVELS``: the noise differs by more than a factor of 1.5 between two quarters of the window.
    """

    NEIGHBOR = 1
    ASYMMETRIC = 2
    MISSING_PIXELS = 8
    DOUBLE_NUCLEUS = 16
    TWO_NOISE_LEVELS = 32


def identity_number(identity: str) -> int:
    """Return the number for an identity in a `~probdeblend.scene.Scene`: 63 bits of the name's BLAKE2 hash."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, eq=False)
class Library:
    """Isolated galaxies, each in the middle of a stamp of sky, as they were observed.

    Every field is an array whose first axis counts galaxies.

    Parameters
    ----------
    identity
        Name of the galaxy: stamps of one galaxy share it, and no split separates them.
    origin
        Where the stamp comes from.
    pixels
        Sky-subtracted stamps ``(galaxy, y, x)`` in image units, sky and photon noise included.
    segmentation
        Pixels above 3 times the sky noise that SEP assigns to the galaxy ``(galaxy, y, x)``.
    sky_rms
        Sky noise of a pixel in image units.
    x, y, ra, dec
        Center in pixels of the stamp, and on the sky in degrees (NaN if unknown).
    auto_flux, flux_error
        Kron (AUTO) flux and its standard error in image units; the total flux of a real galaxy is not known.
    half_light_radius
        Half-light radius within the Kron aperture in arcsec, not corrected for the PSF.
    galaxy_type
        Index into `GALAXY_TYPES`, -1 if unknown.
    quality, keep
        Sum of `Quality` bits, and whether the galaxy is to be used.
    zero_point, exposure
        AB magnitude of unit flux (NaN if unknown), and counts per unit of flux (infinite if unknown).

    Raises
    ------
    ValueError
        If the fields disagree in length, or a galaxy type is unknown.
    """

    identity: NDArray[np.str_]
    origin: NDArray[np.str_]
    pixels: NDArray[np.float32]
    segmentation: NDArray[np.bool_]
    sky_rms: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    auto_flux: NDArray[np.float64]
    flux_error: NDArray[np.float64]
    half_light_radius: NDArray[np.float64]
    galaxy_type: NDArray[np.int64]
    quality: NDArray[np.int64]
    keep: NDArray[np.bool_]
    zero_point: NDArray[np.float64]
    exposure: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.identity)
        for name, values in vars(self).items():
            expected = (count, STAMP_SIZE, STAMP_SIZE) if name in ("pixels", "segmentation") else (count,)
            if np.shape(values) != expected:
                raise ValueError(f"{name} must have shape {expected}, got {np.shape(values)}")
            if values.dtype.kind != KINDS.get(name, "f"):
                raise ValueError(f"{name} must be of another type, got {values.dtype}")
        if ((self.galaxy_type < -1) | (self.galaxy_type >= len(GALAXY_TYPES))).any():
            raise ValueError(f"galaxy_type must be from -1 to {len(GALAXY_TYPES) - 1}")

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def magnitude(self) -> NDArray[np.float64]:
        """AB magnitude of the Kron flux ``(galaxy,)``; NaN without a zero point or a positive flux."""
        return self.zero_point - 2.5 * np.log10(np.where(self.auto_flux > 0, self.auto_flux, np.nan))

    @property
    def footprint(self) -> NDArray[np.bool_]:
        """Segmentations grown into the galaxies' wings ``(galaxy, y, x)``: where their light is."""
        return np.array([dilate(own.astype(np.int32)) > 0 for own in self.segmentation], dtype=bool)

    @property
    def reasons(self) -> NDArray[np.str_]:
        """Reasons to reject each galaxy in words ``(galaxy,)``, joined by semicolons; empty for none."""
        names = [[flag.name.lower().replace("_", " ") for flag in Quality(bits)] for bits in self.quality.tolist()]
        return np.array(["; ".join(reasons) for reasons in names], dtype=str)

    def select(self, index: ArrayLike | slice) -> Library:
        """Return the galaxies that an index picks: numbers, booleans or a slice.

        Parameters
        ----------
        index
            Numbers ``(galaxy,)``, booleans ``(galaxy,)``, or a slice.

        Returns
        -------
        Library
            These galaxies.
        """
        return Library(**{name: values[index] for name, values in vars(self).items()})

    def split(self, *, seed: int = 0) -> tuple[Library, ...]:
        """Split by galaxy into parts for training, validation and test, so that no identity is in two parts.

        The part of a galaxy depends on its identity and the seed alone, whatever other galaxies the library holds. On
        average, 60, 20 and 20 % of the identities are in the parts.

        Parameters
        ----------
        seed
            Same seed, same split.

        Returns
        -------
        tuple of Library
            One library per part.

        Raises
        ------
        ValueError
            If a part has no galaxy.
        """
        place = np.array([identity_number(f"{seed}:{name}") for name in self.identity]) / 2.0**63
        part = np.searchsorted(PART_LIMITS, place, side="right")
        parts = tuple(self.select(part == number) for number in range(len(PART_LIMITS) + 1))
        if not all(len(galaxies) for galaxies in parts):
            raise ValueError(f"library must hold galaxies for each of {len(parts)} parts, got {len(self)} in all")
        return parts

    def digest(self) -> str:
        """Return a fingerprint, 32 hexadecimal digits, of the kept galaxies: identities, pixels and fluxes."""
        kept = self.select(self.keep)
        parts = "\n".join(kept.identity).encode(), kept.pixels.tobytes(), kept.auto_flux.tobytes()
        return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def join(libraries: Sequence[Library]) -> Library:
    """Put libraries together; stamps within 0.6 arcsec of one another become stamps of one galaxy."""
    if not libraries:
        raise ValueError("libraries must hold at least one, got none")
    whole = Library(**{f.name: np.concatenate([getattr(part, f.name) for part in libraries]) for f in fields(Library)})
    placed = np.flatnonzero(np.isfinite(whole.ra) & np.isfinite(whole.dec))
    sky = SkyCoord(whole.ra[placed], whole.dec[placed], unit="deg")
    identity = whole.identity.copy()
    for first, second in zip(*sky.search_around_sky(sky, SAME_GALAXY * u.arcsec)[:2], strict=True):
        if first < second:
            identity[identity == identity[placed[second]]] = identity[placed[first]]
    return replace(whole, identity=identity)


def keep_table(library: Library) -> Table:
    """Return the list of galaxies for the user to edit.

    Parameters
    ----------
    library
        The galaxies.

    Returns
    -------
    Table
        One row per galaxy: ``number`` (from 1, as on the contact sheet), ``keep``, ``identity``, ``origin``,
        ``type``, ``magnitude``, ``half_light_radius``, ``reasons``.
    """
    kinds = [*GALAXY_TYPES, ""]
    return Table(
        {
            "number": np.arange(1, len(library) + 1),
            "keep": np.where(library.keep, "yes", "no"),
            "identity": library.identity,
            "origin": library.origin,
            "type": np.array([kinds[kind] for kind in library.galaxy_type], dtype=str),
            "magnitude": np.round(library.magnitude, 3),
            "half_light_radius": np.round(library.half_light_radius, 4),
            "reasons": library.reasons,
        }
    )


def write_library(path: str | PathLike[str], library: Library, *, overwrite: bool = False) -> list[str]:
    """Write a library, the list of galaxies to keep, and contact sheets.

    Parameters
    ----------
    path
        The folder.
    library
        The galaxies.
    overwrite
        Replace an earlier library.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    FileExistsError
        If the folder exists and must not be replaced.
    """
    with output_folder(path, overwrite=overwrite) as folder:
        with whole_bytes(folder / LIBRARY_FILE) as stored, h5py.File(stored, "w") as file:
            file.attrs.update(header("library"))
            Table(vars(library)).write(file, path="galaxies", compression="lzf")
        keep_table(library).write(folder / KEEP_FILE, format="ascii.csv")
        return [LIBRARY_FILE, KEEP_FILE, *_contact_sheets(folder, library)]


def _contact_sheets(folder: Path, library: Library) -> list[str]:
    from ..plots.images import plot_stamps

    titled = enumerate(zip(library.magnitude, library.reasons, strict=True), start=1)
    titles = [f"{number}: mag {magnitude:.2f}\n{reasons or 'keep'}" for number, (magnitude, reasons) in titled]
    names: list[str] = []
    for start in range(0, len(library), PER_SHEET):
        part, own = library.select(slice(start, start + PER_SHEET)), titles[start : start + PER_SHEET]
        colors = np.where(part.keep, KEPT, REJECTED).tolist()
        panels = plot_stamps(part.pixels, own, outlines=part.segmentation[:, None], colors=colors)
        names.append(f"contact-{len(names) + 1:03d}.png")
        panels[0].figure.savefig(folder / names[-1], dpi=100)
    return names


def read_library(*paths: str | PathLike[str]) -> Library:
    """Read libraries as one, with the choice of galaxies in their lists.

    Parameters
    ----------
    *paths
        Their folders.

    Returns
    -------
    Library
        All galaxies; `Library.keep` is what the lists say.

    Raises
    ------
    FileNotFoundError
        If a folder or one of its files is missing.
    ValueError
        If it is not a library, of another version, or its list does not fit.
    """
    return join([_read(Path(path)) for path in paths])


def _read(path: Path) -> Library:
    if not (path / LIBRARY_FILE).is_file():
        raise FileNotFoundError(f"{path}: not a library of galaxies, it has no {LIBRARY_FILE}")
    with open_hdf5(path / LIBRARY_FILE, "library") as file:
        table = Table.read(file, path="galaxies", character_as_bytes=False)
        library = Library(**{name: np.asarray(table[name]) for name in table.colnames})
    return replace(library, keep=_kept(path / KEEP_FILE, library))


def _kept(path: Path, library: Library) -> NDArray[np.bool_]:
    table = read_table(path, converters={"*": [str]})
    if missing := {"identity", "keep"} - set(table.colnames):
        raise ValueError(f"{path}: the columns {', '.join(sorted(missing))} are missing")
    if list(table["identity"]) != library.identity.tolist():
        raise ValueError(f"{path}: must have one row per galaxy of the library, {len(library)}, in its order")
    answers = np.char.lower(np.char.strip(np.ma.filled(table["keep"].astype(str), "").astype(str)))
    if wrong := sorted(set(answers.tolist()) - {"yes", "no"}):
        raise ValueError(f"{path}: keep must be yes or no, got {wrong[0]!r}")
    return answers == "yes"
