"""A library of isolated real galaxies: pixels in any number of bands, one name per galaxy, folds, and files.

A library is a list of `Galaxy`, and on disk a folder. ``library.h5`` holds one group per galaxy. ``keep.csv`` has one
row per galaxy for the user to edit: its column ``keep``, yes or no, is what counts. Contact sheets show the galaxies
with the outlines of their footprints, in green frames if they are kept and red ones if not.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from numpy.typing import NDArray

from .._files import header, open_hdf5, output_folder, read_table, whole_bytes
from ..photometry.images import check_psf
from ..plots.images import plot_stamps

__all__ = ["Galaxy", "fold_of", "identity_number", "keep_table", "read_library", "write_library"]

LIBRARY_FILE, KEEP_FILE = "library.h5", "keep.csv"
BAND_ARRAYS = {"pixels": "f4", "psf": "f4", "sky_rms": "f8", "zero_point": "f8", "wavelength": "f8"}
ARRAYS = BAND_ARRAYS | {"footprint": "?"}
ATTRIBUTES = {"identity": str, "origin": str, "flags": str, "pixel_scale": float, "ra": float, "dec": float}
PER_SHEET = 48
KEPT, REJECTED = "#009E73", "#D55E00"
SAME_GALAXY = 2.0  # arcsec within which two galaxies share pixels, if they are not one


@dataclass(frozen=True, eq=False)
class Galaxy:
    """An isolated real galaxy, as it was observed.

    Parameters
    ----------
    identity
        Name of the galaxy: images of one galaxy share it, and no fold separates them.
    origin
        Where the image comes from.
    pixels
        Sky-subtracted pixels ``(band, y, x)`` in image units, with the galaxy anywhere in them; noise is part of them.
    footprint
        Pixels ``(y, x)`` that are the galaxy's and can be trusted in all bands. Beyond it, there may be sky, other
        sources, zeros or NaN.
    psf
        Effective PSFs ``(band, y, x)``, the pixel included, on the image's own pixels, with unit sum.
    sky_rms
        Sky noise of a pixel ``(band,)`` in image units; NaN where unknown.
    zero_point
        AB magnitude of unit flux ``(band,)``; NaN where unknown.
    wavelength
        In micron ``(band,)``; NaN where unknown.
    pixel_scale
        Size of a pixel in arcsec.
    ra, dec
        Position on the sky in degrees; NaN where unknown.
    flags
        Reasons to reject the galaxy, in words.
    keep
        Whether the galaxy is to be used.

    Raises
    ------
    ValueError
        If shapes disagree, the footprint is empty or holds a pixel that is not finite, or another value is not allowed.
    """

    identity: str
    origin: str
    pixels: NDArray[np.float32]
    footprint: NDArray[np.bool_]
    psf: NDArray[np.float32]
    sky_rms: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    wavelength: NDArray[np.float64]
    pixel_scale: float
    ra: float = math.nan
    dec: float = math.nan
    flags: tuple[str, ...] = ()
    keep: bool = True

    def __post_init__(self) -> None:
        bands = len(self.pixels)
        shapes = dict.fromkeys(BAND_ARRAYS, (bands,)) | {"psf": (bands, *np.shape(self.psf)[1:])}
        for name, shape in (shapes | {"pixels": (bands, *np.shape(self.footprint))}).items():
            if np.shape(values := getattr(self, name)) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {np.shape(values)}")
        for psf in self.psf:
            check_psf("psf", psf)
            if len(psf) % 2 == 0 or not abs(psf.sum() - 1) < 1e-3:
                raise ValueError(f"psf must have an odd side and unit sum, got side {len(psf)} and sum {psf.sum():.4g}")
        good = np.isfinite(self.pixels).all(0)[self.footprint]
        if not (good.size and good.all()):
            raise ValueError(f"footprint must hold finite pixels alone, got {good.sum()} of {good.size}")
        if not 0 < self.pixel_scale < math.inf or (self.sky_rms <= 0).any():
            raise ValueError(f"pixel_scale and sky_rms must be positive, got {self.pixel_scale} and {self.sky_rms}")

    @property
    def magnitude(self) -> NDArray[np.float64]:
        """AB magnitude of the light in the footprint ``(band,)``; NaN without a zero point or light."""
        light = self.pixels[:, self.footprint].sum(1, dtype=np.float64)
        return self.zero_point - 2.5 * np.log10(np.where(light > 0, light, np.nan))


def identity_number(identity: str) -> int:
    """Return the number for an identity in a `~probdeblend.scene.Scene`: 63 bits of the name's BLAKE2 hash."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1


def fold_of(identity: str, folds: int = 5) -> int:
    """Return the fold of a galaxy, which depends on its name alone, not on what else is in a library.

    Parameters
    ----------
    identity
        Name of the galaxy.
    folds
        Number of folds; keep it the same for training, calibration and test.

    Returns
    -------
    int
        From 0 to `folds` - 1, all about equally often.

    Raises
    ------
    ValueError
        If `folds` is not positive.
    """
    if folds < 1:
        raise ValueError(f"folds must be positive, got {folds}")
    return identity_number(identity) % folds


def keep_table(galaxies: Sequence[Galaxy]) -> Table:
    """Return the list of galaxies for the user to edit.

    Parameters
    ----------
    galaxies
        The library.

    Returns
    -------
    Table
        One row per galaxy: ``number`` (from 1, as on the contact sheet), ``keep``, ``identity``, ``origin``,
        ``magnitude`` (of the light in the footprint, in the band where that is brightest), ``reasons``.
    """
    columns = {
        "number": range(1, len(galaxies) + 1),
        "keep": ["yes" if galaxy.keep else "no" for galaxy in galaxies],
        "identity": [galaxy.identity for galaxy in galaxies],
        "origin": [galaxy.origin for galaxy in galaxies],
        "magnitude": np.round([np.fmin.reduce(galaxy.magnitude) for galaxy in galaxies], 3),
        "reasons": ["; ".join(galaxy.flags) for galaxy in galaxies],
    }
    return Table(columns)


def write_library(path: str | PathLike[str], galaxies: Sequence[Galaxy], *, overwrite: bool = False) -> list[str]:
    """Write a library, the list of galaxies to keep, and contact sheets.

    Parameters
    ----------
    path
        The folder.
    galaxies
        The library.
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
    ValueError
        If there is no galaxy.
    """
    if not galaxies:
        raise ValueError("galaxies must be at least one, got none")
    table = keep_table(galaxies)
    with output_folder(path, overwrite=overwrite) as folder:
        with whole_bytes(folder / LIBRARY_FILE) as stored, h5py.File(stored, "w") as file:
            file.attrs.update(header("library"))
            for number, galaxy in enumerate(galaxies):
                group = file.create_group(f"{number:06d}")
                told = vars(galaxy) | {"flags": "; ".join(galaxy.flags)}
                group.attrs.update({name: told[name] for name in ATTRIBUTES})
                for name, kind in ARRAYS.items():
                    group.create_dataset(name, data=told[name].astype(kind), compression="lzf")
        table.write(folder / KEEP_FILE, format="ascii.csv")
        titles = [f"{row['number']}: mag {row['magnitude']:.2f}\n{row['reasons'] or row['keep']}" for row in table]
        colors = [KEPT if galaxy.keep else REJECTED for galaxy in galaxies]
        for start in range(0, len(galaxies), PER_SHEET):
            part = slice(start, start + PER_SHEET)
            light = [galaxy.pixels.sum(0) for galaxy in galaxies[part]]
            outlines = [[galaxy.footprint] for galaxy in galaxies[part]]
            panels = plot_stamps(light, titles[part], outlines=outlines, colors=colors[part])
            panels[0].figure.savefig(folder / f"contact-{start // PER_SHEET + 1:03d}.png", dpi=100)
        return sorted(file.name for file in folder.iterdir())


def read_library(*paths: str | PathLike[str]) -> list[Galaxy]:
    """Read libraries as one, with the choice of galaxies in their lists.

    Galaxies within 2 arcsec of one another on the sky are one, or share pixels: they share the first of their names in
    the alphabet, and so a fold.

    Parameters
    ----------
    *paths
        Their folders.

    Returns
    -------
    list of Galaxy
        All galaxies; `Galaxy.keep` is what the lists say.

    Raises
    ------
    FileNotFoundError
        If a folder or one of its files is missing.
    ValueError
        If it is not a library, of another version, or its list does not fit.
    """
    galaxies = [galaxy for path in paths for galaxy in _read(Path(path))]
    names = np.array([galaxy.identity for galaxy in galaxies], dtype=object)
    placed = np.flatnonzero([math.isfinite(galaxy.ra + galaxy.dec) for galaxy in galaxies])
    if len(placed) > 1:
        sky = SkyCoord([(galaxies[i].ra, galaxies[i].dec) for i in placed], unit="deg")
        for pair in zip(*sky.search_around_sky(sky, SAME_GALAXY * u.arcsec)[:2], strict=True):
            first, second = sorted(names[placed[list(pair)]])
            names[names == second] = first
    return [replace(galaxy, identity=name) for galaxy, name in zip(galaxies, names, strict=True)]


def _read(path: Path) -> list[Galaxy]:
    if not (path / LIBRARY_FILE).is_file():
        raise FileNotFoundError(f"{path}: not a library of galaxies, it has no {LIBRARY_FILE}")
    galaxies = []
    with open_hdf5(path / LIBRARY_FILE, "library") as file:
        for group in file.values():
            arrays = {name: group[name][()] for name in ARRAYS}
            if wrong := [name for name, kind in ARRAYS.items() if arrays[name].dtype != kind]:
                raise ValueError(f"{wrong[0]} must be of another type, got {arrays[wrong[0]].dtype}")
            told = {name: kind(group.attrs[name]) for name, kind in ATTRIBUTES.items()}
            told["flags"] = tuple(filter(None, told["flags"].split("; ")))
            galaxies.append(Galaxy(**arrays, **told))
    kept = _kept(path / KEEP_FILE, [galaxy.identity for galaxy in galaxies])
    return [replace(galaxy, keep=keep) for galaxy, keep in zip(galaxies, kept, strict=True)]


def _kept(path: Path, identities: list[str]) -> list[bool]:
    table = read_table(path, converters={"*": [str]})
    if not {"identity", "keep"} <= set(table.colnames) or list(table["identity"]) != identities:
        rows = f"one row per galaxy of the library, {len(identities)}, in its order"
        raise ValueError(f"{path}: must have the columns identity and keep, and {rows}")
    answers = [str(answer).strip().lower() for answer in np.ma.filled(table["keep"].astype(str), "")]
    if wrong := sorted(set(answers) - {"yes", "no"}):
        raise ValueError(f"{path}: keep must be yes or no, got {wrong[0]!r}")
    return [answer == "yes" for answer in answers]
