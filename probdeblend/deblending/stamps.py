"""Ready stamps, each with a blend in its middle: their sky noise, their answers and one catalog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from astropy.stats import mad_std
from astropy.table import QTable, Table
from astropy.units import Quantity
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from ..photometry.detection import detect_cold_hot
from ..photometry.sky import sky_scatter
from ..posterior.draws import Posterior

__all__ = ["StampResult", "deblend_stamps", "stamp_noise"]

ROUNDS = 2


@dataclass(frozen=True, eq=False)
class StampResult:
    """What `deblend_stamps` found.

    Parameters
    ----------
    catalog
        A row a galaxy, as `Posterior.summary` makes it.
    posterior
        The posterior of all stamps.
    stamps
        The stamps ``(blend, y, x)`` in image units.
    corners
        A row a blend: ``blend``, ``x0`` and ``y0``, which are 0 as positions are those in the stamp.
    sky_rms
        Median sky noise of a pixel in image units.
    rms_factor
        What a map of the rms was multiplied with to match the scatter in the stamps.
    image, noise_factor
        None: they belong to fields.
    """

    catalog: QTable
    posterior: Posterior
    stamps: NDArray[np.floating]
    corners: Table
    sky_rms: float
    rms_factor: float = 1.0
    image: None = None
    noise_factor: None = None


def deblend_stamps(
    stamps: NDArray[np.floating] | Quantity,
    deblender: Callable[..., Posterior],
    *,
    rms: ArrayLike | None = None,
    rms_as_is: bool = False,
    zero_point: float | None = None,
    wcs: WCS | None = None,
    **sampling: int,
) -> StampResult:
    """Deblend stamps whose central galaxy is in the middle and whose sky is subtracted.

    Parameters
    ----------
    stamps
        Pixels ``(blend, y, x)``, also as a Quantity; those that are not finite are bad.
    deblender
        Called as ``deblender(stamps, sky_rms=..., **sampling)``; answers with a `Posterior`.
    rms
        Sky noise of a pixel in image units, a number or a map ``(blend, y, x)``; None measures it in each.
    rms_as_is
        Whether a map is taken at its word. Otherwise it is scaled to the scatter of the stamps' sky.
    zero_point
        AB magnitude of unit flux; None leaves magnitudes out.
    wcs
        World coordinates, where there is one stamp; adds ra and dec to the catalog.
    **sampling
        ``draws``, ``passes`` and ``seed`` for the deblender.

    Returns
    -------
    StampResult
        Catalog, posterior and sky noise.

    Raises
    ------
    ValueError
        If the noise is to be measured where the sky does not scatter or there is too little of
        it, or where the deblender raises it.
    """
    pixels = np.asarray(stamps)
    noise, factor = stamp_noise(pixels, rms, rms_as_is=rms_as_is)
    posterior = deblender(stamps, sky_rms=noise, **sampling)
    if zero_point is not None:
        posterior = Posterior(posterior.dataset.assign_attrs(zero_point=zero_point))
    corners = Table({"blend": np.arange(len(stamps)), "x0": [0] * len(stamps), "y0": [0] * len(stamps)})
    return StampResult(posterior.summary(wcs=wcs), posterior, pixels, corners, float(np.median(noise)), factor)


def stamp_noise(
    stamps: NDArray[np.floating], rms: ArrayLike | None = None, *, rms_as_is: bool = False
) -> tuple[NDArray[np.float64], float]:
    """Say how noisy the sky of stamps is.

    Parameters
    ----------
    stamps
        Pixels ``(blend, y, x)``.
    rms
        Sky noise of a pixel, a number or a map ``(blend, y, x)``; None measures it in each.
    rms_as_is
        Whether a map is taken at its word. Otherwise it is scaled to the scatter of the stamps' sky.

    Returns
    -------
    noise, factor
        A number, one a blend, or a map; and what a map was multiplied with.

    Raises
    ------
    ValueError
        If the noise is to be measured where the sky does not scatter or there is too little of it.
    """
    noise = np.asarray([_measured(stamp) for stamp in stamps] if rms is None else rms, dtype=np.float64)
    if noise.ndim < 3 or rms_as_is:
        return noise, 1.0
    factor = float(np.median([_scatter(*pair) for pair in zip(stamps, noise, strict=True)]))
    return noise * factor, factor


def _measured(stamp: NDArray[np.floating]) -> float:
    good = stamp[np.isfinite(stamp)]
    noise = float(mad_std(good))
    for _ in range(ROUNDS):
        if not noise > 0:
            raise ValueError("rms must be given for a stamp whose sky does not scatter, got None")
        noise *= _scatter(stamp, noise)
    return noise


def _scatter(stamp: NDArray[np.floating], noise: ArrayLike) -> float:
    """Scatter of a stamp's sky in units of its noise."""
    return sky_scatter(stamp / noise, detect_cold_hot(stamp, noise).segmentation)
