"""The table of pairs that Boucaud et al. (2020, doi:10.1093/mnras/stz3056) published, and its prior."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

import numpy as np
from astropy.table import Table

from .prior import fit_prior

__all__ = ["describe_fit", "read_blends_table", "read_galaxies"]

PIXEL_SCALE = 0.06
FITTED = ("type_probabilities", "weights", "means", "covariances", "magnitude_range")
COLUMNS = ("id", "mag", "rad", "type")


def read_galaxies(path: str | PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the distinct galaxies of a table of pairs.

    Parameters
    ----------
    path
        CSV file with the columns ``g1_id``, ``g1_mag``, ``g1_rad`` (half-light radius in pixels of 0.06
        arcsec) and ``g1_type``, and the same for ``g2``, a row a pair.

    Returns
    -------
    tuple of numpy.ndarray
        Types, AB magnitudes and major-axis half-light radii in arcsec, one a galaxy.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no CSV table, or columns are missing.
    """
    pairs = _read_pairs(path)
    columns = (np.concatenate([np.asarray(pairs[f"g{galaxy}_{name}"]) for galaxy in (1, 2)]) for name in COLUMNS)
    number, magnitude, radius, kind = columns
    first = np.sort(np.unique(number, return_index=True)[1])
    return kind[first], magnitude[first], PIXEL_SCALE * radius[first]


def read_blends_table(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Read what is known of the pairs of the table, for comparison with a set of blends.

    Parameters
    ----------
    path
        CSV file as for `read_galaxies`, with the columns ``distance`` in pixels and ``detection``, the number of
        sources that SExtractor found.

    Returns
    -------
    dict
        ``magnitude``, ``half_light_radius`` (arcsec) and ``type`` of both galaxies of every pair, and
        ``separation`` (pixels) and ``detected`` (number of sources found) a pair.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no CSV table, or columns are missing.
    """
    pairs = _read_pairs(path, "distance", "detection")
    both = {name: np.concatenate([np.asarray(pairs[f"g{galaxy}_{name}"]) for galaxy in (1, 2)]) for name in COLUMNS}
    return {
        "magnitude": both["mag"].astype(float),
        "half_light_radius": PIXEL_SCALE * both["rad"].astype(float),
        "type": both["type"],
        "separation": np.asarray(pairs["distance"], dtype=float),
        "detected": np.asarray(pairs["detection"], dtype=int),
    }


def _read_pairs(path: str | PathLike[str], *others: str) -> Table:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        pairs = Table.read(path, format="ascii.csv")
    except ValueError as error:
        raise ValueError(f"{path}: not a CSV table") from error
    wanted = [f"g{galaxy}_{name}" for galaxy in (1, 2) for name in COLUMNS] + list(others)
    if missing := [name for name in wanted if name not in pairs.colnames]:
        raise ValueError(f"{path}: the table must have the columns of both galaxies, it lacks {', '.join(missing)}")
    return pairs


def describe_fit(types: np.ndarray, magnitudes: np.ndarray, radii: np.ndarray, *, seed: int = 0) -> tuple[str, int]:
    """Fit the prior and describe it as the JSON that ships with the package.

    Parameters
    ----------
    types, magnitudes, radii, seed
        As for `~probdeblend.prior.fit_prior`.

    Returns
    -------
    tuple
        The text, and the number of galaxies.

    Raises
    ------
    ValueError
        As by `~probdeblend.prior.fit_prior`.
    """
    prior = fit_prior(types, magnitudes, radii, seed=seed)
    numbers = {name: getattr(prior, name) for name in FITTED}
    return json.dumps({"prior": numbers, "galaxies": len(types)}, indent=1), len(types)
