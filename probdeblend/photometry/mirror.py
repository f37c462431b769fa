"""Kron fluxes with the neighbors' light mirrored out, as SExtractor's MASK_TYPE CORRECT does.

A pixel that belongs to another source gets the value of the pixel opposite to it through the center of the galaxy,
which is right for a galaxy that looks the same after half a turn (Bertin & Arnouts 1996, doi:10.1051/aas:1996164).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .detection import Detection, kron_flux

__all__ = ["mirrored", "mirrored_flux"]


def mirrored(image: ArrayLike, detection: Detection, source: int) -> NDArray[np.float64]:
    """Replace the pixels of other sources by those opposite to them.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``.
    detection
        The sources.
    source
        Index of the source whose pixels stay, and through whose center others are mirrored.

    Returns
    -------
    NDArray
        A copy; 0 where the opposite pixel belongs to another source too, or is beyond the image.
    """
    pixels = np.array(image, dtype=np.float64)
    others = (detection.segmentation > 0) & (detection.segmentation != detection.label[source])
    rows, columns = np.nonzero(others)
    centers = (detection.y[source], detection.x[source])
    opposite = [np.rint(2 * at - place).astype(int) for at, place in zip(centers, (rows, columns), strict=True)]
    inside = [(place >= 0) & (place < size) for place, size in zip(opposite, pixels.shape, strict=True)]
    usable = inside[0] & inside[1]
    usable[usable] = ~others[opposite[0][usable], opposite[1][usable]]
    values = np.zeros(len(rows))
    values[usable] = pixels[opposite[0][usable], opposite[1][usable]]
    pixels[rows, columns] = values
    return pixels


def mirrored_flux(
    image: ArrayLike, detection: Detection, sky_rms: ArrayLike, *, exposure: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum the pixels in each source's Kron aperture, those of other sources mirrored.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``.
    detection
        The sources.
    sky_rms
        Sky noise of a pixel in image units: a number or a map ``(y, x)``.
    exposure
        Counts per unit of flux for the photon noise; None or infinite for none.

    Returns
    -------
    flux, error
        Flux and SEP's standard error ``(source,)`` in image units.

    Raises
    ------
    ValueError
        If shapes disagree, or the noise or the exposure is not positive.
    """
    flux, error = np.empty(len(detection)), np.empty(len(detection))
    for source in range(len(detection)):
        one = kron_flux(mirrored(image, detection, source), _alone(detection, source), sky_rms, exposure=exposure)
        flux[source], error[source] = one[0][0], one[1][0]
    return flux, error


def _alone(detection: Detection, source: int) -> Detection:
    own = {name: values[source : source + 1] for name, values in vars(detection).items() if name != "segmentation"}
    return Detection(segmentation=(detection.segmentation == detection.label[source]).astype(np.int32), **own)
