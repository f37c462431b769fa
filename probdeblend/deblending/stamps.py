"""Stamps with a blend in the middle: their sky noise, their posteriors and one catalog."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from astropy.units import Quantity
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from ..photometry.detection import detect_cold_hot
from ..photometry.sky import sky_scatter
from ..posterior.draws import Posterior
from .deblender import Deblends
from .products import DeblendedImage

__all__ = ["EXAMPLE_PATH", "deblend_stamps", "stamp_noise"]

EXAMPLE_PATH = Path(str(files("probdeblend") / "data" / "example.fits"))
"""A stamp in electrons per second, simulated with GalSim; the header has its sky noise and the true total fluxes."""


def deblend_stamps(
    stamps: NDArray[np.floating] | Quantity,
    deblender: Deblends,
    *,
    rms: ArrayLike | None = None,
    rms_as_is: bool = False,
    zero_point: float | None = None,
    wcs: WCS | None = None,
    **sampling: int,
) -> DeblendedImage:
    """Deblend sky-subtracted stamps whose central galaxy is in the middle.

    Parameters
    ----------
    stamps
        Pixels ``(blend, y, x)``, also as a Quantity; those that are not finite are bad.
    deblender
        A callable that returns a `Posterior`, such as a `Deblender` or a `Refiner`.
    rms
        Sky noise of a pixel in image units, a number or a map ``(blend, y, x)``; None measures it in each stamp.
    rms_as_is
        Whether a map is used as given. Otherwise it is scaled to the scatter of the sky.
    zero_point
        AB magnitude of unit flux; None leaves magnitudes out.
    wcs
        World coordinates, if there is one stamp; adds ra and dec to the catalog.
    **sampling
        ``draws``, ``passes`` and ``seed`` for the deblender.

    Returns
    -------
    DeblendedImage
        Catalog, posterior and sky noise.

    Raises
    ------
    ValueError
        If the noise is to be measured in a stamp whose sky has no scatter or too few pixels, or if the deblender
        raises it.
    """
    pixels = np.asarray(stamps)
    noise, factor = stamp_noise(pixels, rms, rms_as_is=rms_as_is)
    posterior = deblender(stamps, sky_rms=noise, **sampling)
    if zero_point is not None:
        posterior = Posterior(posterior.dataset.assign_attrs(zero_point=zero_point))
    corners = Table({"blend": np.arange(len(stamps)), "x0": [0] * len(stamps), "y0": [0] * len(stamps)})
    return DeblendedImage(posterior.summary(wcs=wcs), posterior, pixels, corners, float(np.median(noise)), factor)


def stamp_noise(
    stamps: NDArray[np.floating], rms: ArrayLike | None = None, *, rms_as_is: bool = False
) -> tuple[NDArray[np.float64], float]:
    """Return the sky noise of stamps as `deblend_stamps` takes or measures it, and the factor that scaled a map."""
    noise = np.asarray([_measured(stamp) for stamp in stamps] if rms is None else rms, dtype=np.float64)
    if noise.ndim < 3 or rms_as_is:
        return noise, 1.0
    factor = float(np.median([_scatter(*pair) for pair in zip(stamps, noise, strict=True)]))
    return noise * factor, factor


def _measured(stamp: NDArray[np.floating]) -> float:
    noise = float(mad_std(stamp[np.isfinite(stamp)]))
    for _ in range(2):  # the sources found depend on the noise, and the noise on the sources
        if not noise > 0:
            raise ValueError(
                "rms must be given if the sky noise cannot be measured, got None and a sky without scatter"
            )
        noise *= _scatter(stamp, noise)
    return noise


def _scatter(stamp: NDArray[np.floating], noise: ArrayLike) -> float:
    """Scatter of a stamp's sky in units of its noise."""
    return sky_scatter(stamp / noise, detect_cold_hot(stamp, noise).segmentation)
