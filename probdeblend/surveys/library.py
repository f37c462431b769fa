"""A library of lone galaxies: pixels, what is known of them, and splits that keep each galaxy on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntFlag

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ..photometry.sky import dilate
from ..scene import GALAXY_TYPES, STAMP_SIZE

__all__ = ["FLUX_KINDS", "Library", "Quality", "describe_quality", "identity_number", "join"]

FLUX_KINDS = ("corrected", "true")


class Quality(IntFlag):
    """What speaks against a cut-out galaxy as a lone one."""

    NEIGHBOR = 1
    ASYMMETRIC = 2
    EDGE = 4
    MISSING = 8
    DOUBLE = 16
    TWO_NOISE_LEVELS = 32


_REASONS = {
    Quality.NEIGHBOR: "neighbor left over",
    Quality.ASYMMETRIC: "asymmetric outskirts",
    Quality.EDGE: "at the edge",
    Quality.MISSING: "missing pixels",
    Quality.DOUBLE: "double nucleus",
    Quality.TWO_NOISE_LEVELS: "two noise levels",
}


def describe_quality(quality: int) -> str:
    """Say in words what a galaxy's quality flags mean.

    Parameters
    ----------
    quality
        Sum of `Quality` bits.

    Returns
    -------
    str
        Reasons, joined by semicolons; empty for none.
    """
    return "; ".join(text for flag, text in _REASONS.items() if flag & int(quality))


def identity_number(identity: str) -> int:
    """Return the number that stands for an identity in a `~probdeblend.scene.Blend`.

    Parameters
    ----------
    identity
        Name of a galaxy.

    Returns
    -------
    int
        63 bits of the name's BLAKE2 hash.
    """
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, eq=False)
class Library:
    """Lone galaxies, each in the middle of a stamp of sky, as they were observed.

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
        Pixels above 3 times the sky noise that SEP gives to the galaxy ``(galaxy, y, x)``.
    sky_rms
        Sky noise of a pixel in image units.
    x, y
        Center in pixels of the stamp.
    ra, dec
        Sky position in degrees; NaN where it is not known.
    auto_flux
        Kron (AUTO) flux in image units.
    flux
        Total flux in image units.
    flux_error
        Its standard error.
    flux_kind
        "corrected": AUTO flux times an aperture correction that was measured on simulations; "true": known.
    half_light_radius
        Half-light radius within the Kron aperture in arcsec, not corrected for the PSF.
    galaxy_type
        Index into `GALAXY_TYPES`, -1 where it is not known.
    quality
        Sum of `Quality` bits.
    keep
        Whether the galaxy is to be used.
    zero_point
        AB magnitude of unit flux; NaN where it is not known.
    exposure
        Counts per unit of flux; infinite where it is not known.

    Raises
    ------
    ValueError
        If the fields do not fit each other.
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
    flux: NDArray[np.float64]
    flux_error: NDArray[np.float64]
    flux_kind: NDArray[np.str_]
    half_light_radius: NDArray[np.float64]
    galaxy_type: NDArray[np.int64]
    quality: NDArray[np.int64]
    keep: NDArray[np.bool_]
    zero_point: NDArray[np.float64]
    exposure: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.identity)
        stamps = (count, STAMP_SIZE, STAMP_SIZE)
        for field in fields(self):
            expected = stamps if field.name in ("pixels", "segmentation") else (count,)
            if (given := np.shape(getattr(self, field.name))) != expected:
                raise ValueError(f"{field.name} must have shape {expected}, got {given}")
        if wrong := sorted(set(self.flux_kind.tolist()) - set(FLUX_KINDS)):
            raise ValueError(f"flux_kind must be one of {', '.join(FLUX_KINDS)}, got {wrong[0]!r}")
        if ((self.galaxy_type < -1) | (self.galaxy_type >= len(GALAXY_TYPES))).any():
            raise ValueError(f"galaxy_type must be from -1 to {len(GALAXY_TYPES) - 1}")

    def __len__(self) -> int:
        return len(self.identity)

    @property
    def magnitude(self) -> NDArray[np.float64]:
        """AB magnitude of the total flux ``(galaxy,)``; NaN without a zero point or a positive flux."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.zero_point - 2.5 * np.log10(np.where(self.flux > 0, self.flux, np.nan))

    @property
    def footprint(self) -> NDArray[np.bool_]:
        """Segmentations grown into the galaxies' wings ``(galaxy, y, x)``: where their light is."""
        grown = [dilate(own.astype(np.int32)) > 0 for own in self.segmentation]
        return np.array(grown, dtype=bool).reshape(self.segmentation.shape)

    def select(self, index: ArrayLike | slice) -> Library:
        """Return some of the galaxies.

        Parameters
        ----------
        index
            Numbers, booleans or a slice that pick galaxies.

        Returns
        -------
        Library
            The picked galaxies.
        """
        rows = index if isinstance(index, slice) else np.asarray(index)
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def split(self, fractions: Sequence[float] = (0.6, 0.2, 0.2), *, seed: int = 0) -> tuple[Library, ...]:
        """Split by galaxy, so that no identity is in two parts.

        Where a galaxy goes depends on its identity and the seed alone: it stays there whatever other galaxies the
        library holds. Parts have the wanted sizes on average.

        Parameters
        ----------
        fractions
            Share of the identities in each part: training, validation, test. How the first ones are divided does not
            move a galaxy into or out of the last one.
        seed
            Same seed, same split.

        Returns
        -------
        tuple of Library
            A library a part.

        Raises
        ------
        ValueError
            If the fractions are not positive with the sum 1, or a part has no galaxy.
        """
        if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"fractions must be positive and sum to 1, got {tuple(fractions)}")
        limits = 1 - np.cumsum(fractions[::-1])[::-1]
        part = np.searchsorted(limits, self._places(seed), side="right") - 1
        parts = tuple(self.select(part == number) for number in range(len(fractions)))
        if not all(len(galaxies) for galaxies in parts):
            distinct = len(np.unique(self.identity))
            raise ValueError(f"a part of the split has no galaxy, the library holds {distinct}: use folds")
        return parts

    def folds(self, count: int = 5, *, seed: int = 0) -> list[tuple[Library, Library]]:
        """Split several times, for few galaxies: each is in the second part of one fold.

        Parameters
        ----------
        count
            Number of folds.
        seed
            Same seed, same folds.

        Returns
        -------
        list of tuple
            Pairs of libraries: the galaxies to train on, and the ones to test on.

        Raises
        ------
        ValueError
            If there are fewer identities than folds, or fewer than two folds.
        """
        if count < 2:
            raise ValueError(f"count must be at least 2, got {count}")
        places, names = self._places(seed), np.unique(self.identity)
        if len(names) < count:
            raise ValueError(f"the library must hold at least {count} galaxies to be split, got {len(names)}")
        order = np.unique(places)
        held = [np.isin(places, order[number::count]) for number in range(count)]
        return [(self.select(~test), self.select(test)) for test in held]

    def _places(self, seed: int) -> NDArray[np.float64]:
        """Numbers from 0 to 1 that identities have by their hash ``(galaxy,)``."""
        return np.array([identity_number(f"{seed}:{name}") for name in self.identity]) / 2.0**63

    def digest(self) -> str:
        """Return a fingerprint of the galaxies that are kept: identities, pixels and fluxes.

        Returns
        -------
        str
            32 hexadecimal digits.
        """
        kept = self.select(self.keep)
        parts = ("\n".join(kept.identity).encode(), kept.pixels.tobytes(), kept.flux.tobytes())
        return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def join(libraries: Sequence[Library], *, radius: float = 0.6) -> Library:
    """Put libraries together; stamps of one sky position become stamps of one galaxy.

    Parameters
    ----------
    libraries
        The libraries, in any units.
    radius
        Largest distance in arcsec between two positions of one galaxy.

    Returns
    -------
    Library
        All galaxies.

    Raises
    ------
    ValueError
        If there is no library.
    """
    if not libraries:
        raise ValueError("libraries must hold at least one, got none")
    whole = Library(**{f.name: np.concatenate([getattr(part, f.name) for part in libraries]) for f in fields(Library)})
    placed = np.flatnonzero(np.isfinite(whole.ra) & np.isfinite(whole.dec))
    ra, dec = np.radians(whole.ra[placed]), np.radians(whole.dec[placed])
    towards = np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    identity = whole.identity.copy()
    for first, second in _close_pairs(towards, np.radians(radius / 3600)):
        old, new = identity[placed[second]], identity[placed[first]]
        identity[identity == old] = new
    return Library(**{f.name: getattr(whole, f.name) for f in fields(Library)} | {"identity": identity})


def _close_pairs(points: NDArray[np.float64], distance: float) -> NDArray[np.int64]:
    return cKDTree(points).query_pairs(distance, output_type="ndarray") if len(points) > 1 else np.empty((0, 2), int)
