"""Detection, segmentation, isophotal and Kron fluxes, and the background, with SEP.

SEP (Barbary 2016, doi:10.21105/joss.00058) is the library form of SExtractor (Bertin & Arnouts 1996,
doi:10.1051/aas:1996164). Sources are detected cold, then hot, with the settings of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056, table 3). A Kron aperture is an ellipse with 2.5 Kron radii, and at least 3.5
isophotal radii, as SExtractor's ``PHOT_AUTOPARAMS 2.5, 3.5``: both numbers multiply the semi-axes of the
source. Pixels that belong to other sources count neither for the Kron radius nor for the sum.

SEP's errors hold independent sky noise and, with an exposure, photon noise. Drizzled noise is correlated, and
the error of an aperture is larger by the factor that `~probdeblend.photometry.sky.noise_correlation_factor` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ..scene import MASK_THRESHOLD

__all__ = [
    "Detection",
    "auto_flux",
    "detect",
    "detect_cold_hot",
    "estimate_background",
    "isophotal_flux",
    "kron_flux",
    "kron_radius",
]

COLD = {"threshold": 5.0, "minimum_area": 10, "contrast": 0.01}
SEGMENTATION = {"threshold": MASK_THRESHOLD, "minimum_area": 10, "contrast": 1.0}
HOT = {"threshold": 4.0, "minimum_area": 6, "contrast": 1e-4}
DEBLEND_LEVELS = 64
KRON_FACTOR = 2.5
KRON_MINIMUM = 3.5
KRON_EXTENT = 6.0
BACKGROUND_MARGIN = 8


@dataclass(frozen=True, eq=False)
class Detection:
    """The sources that SEP found in one image.

    Parameters
    ----------
    segmentation
        Label of the source that each pixel ``(y, x)`` belongs to: source ``i`` has label ``i + 1``, the sky
        0.
    x, y
        Barycenters in pixels ``(source,)``.
    semi_major, semi_minor
        Isophotal radii (second moments) in pixels ``(source,)``.
    angle
        Position angles of the major axes in radians from +x to +y ``(source,)``.
    flux
        Sum of each source's own pixels ``(source,)`` in image units.
    area
        Number of each source's own pixels ``(source,)``.
    """

    segmentation: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    semi_major: NDArray[np.float64]
    semi_minor: NDArray[np.float64]
    angle: NDArray[np.float64]
    flux: NDArray[np.float64]
    area: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def label(self) -> NDArray[np.int32]:
        """Labels of the sources in the segmentation ``(source,)``."""
        return np.arange(1, len(self) + 1, dtype=np.int32)


def _native(image: ArrayLike) -> NDArray[np.float64]:
    pixels = np.ascontiguousarray(image, dtype=np.float64)
    if pixels.ndim != 2:
        raise ValueError(f"image must have the axes (y, x), got shape {pixels.shape}")
    return pixels


def _noise(sky_rms: ArrayLike, shape: tuple[int, ...]) -> float | NDArray[np.float64]:
    rms = np.ascontiguousarray(sky_rms, dtype=np.float64)
    if np.ndim(sky_rms) and rms.shape != shape:
        raise ValueError(f"sky_rms must be a number or have the shape of image {shape}, got shape {rms.shape}")
    if not (rms > 0).all() or not np.isfinite(rms).all():
        raise ValueError(f"sky_rms must be positive and finite, got a minimum of {rms.min()}")
    return rms if np.ndim(sky_rms) else rms.item()


def _flags(mask: ArrayLike | None, pixels: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    bad = ~np.isfinite(pixels)
    if mask is not None:
        if np.shape(mask) != pixels.shape:
            raise ValueError(f"mask must have the shape of image {pixels.shape}, got {np.shape(mask)}")
        bad |= np.asarray(mask, dtype=bool)
    return bad if bad.any() else None


def _gain(exposure: float | None) -> float | None:
    if exposure is not None and not exposure > 0:
        raise ValueError(f"exposure must be positive, got {exposure}")
    return exposure if exposure is not None and np.isfinite(exposure) else None


def detect(
    image: ArrayLike,
    sky_rms: ArrayLike,
    *,
    threshold: float = COLD["threshold"],
    minimum_area: int = COLD["minimum_area"],
    contrast: float = COLD["contrast"],
    mask: ArrayLike | None = None,
) -> Detection:
    """Find sources with one set of SEP's settings; the defaults are the cold ones.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``, of any dtype and byte order.
    sky_rms
        Sky noise of a pixel in image units: a number or a map ``(y, x)``. A map acts as the same number
        everywhere does: thresholds are multiples of the local noise of the unfiltered pixels.
    threshold
        Detection threshold in units of `sky_rms`, on the image smoothed with SEP's default 3 x 3 kernel.
    minimum_area
        Least number of connected pixels above the threshold.
    contrast
        Least fraction of the parent's flux that a branch needs to be a source of its own; 1 switches
        deblending off.
    mask
        Bad pixels ``(y, x)`` to ignore; pixels that are not finite always are.

    Returns
    -------
    Detection
        The sources, in SEP's order.

    Raises
    ------
    ValueError
        If shapes disagree, the noise is not positive and finite, or the image is not sky-subtracted.
    """
    pixels = _native(image)
    rms = _noise(sky_rms, pixels.shape)
    try:
        found, segmentation = sep.extract(
            pixels,
            threshold,
            err=rms,
            mask=_flags(mask, pixels),
            minarea=minimum_area,
            filter_type="conv",
            deblend_nthresh=DEBLEND_LEVELS,
            deblend_cont=contrast,
            segmentation_map=True,
        )
    except Exception as error:  # SEP raises nothing more specific
        raise ValueError(f"image must be sky-subtracted and not one crowded source, SEP says: {error}") from error
    angle = np.clip(found["theta"], -np.pi / 2, np.pi / 2)
    shape = (found["a"], found["b"], angle)
    return Detection(segmentation, found["x"], found["y"], *shape, found["flux"], found["npix"].astype(np.int64))


def detect_cold_hot(image: ArrayLike, sky_rms: ArrayLike, *, mask: ArrayLike | None = None) -> Detection:
    """Find the sources of a stamp cold, and hot where cold finds fewer than two.

    Parameters
    ----------
    image, sky_rms, mask
        As in `detect`.

    Returns
    -------
    Detection
        The cold sources if there are at least two, else the hot ones.

    References
    ----------
    Boucaud et al. (2020), doi:10.1093/mnras/stz3056, section 5.1 and table 3.
    """
    cold = detect(image, sky_rms, mask=mask, **COLD)
    return cold if len(cold) > 1 else detect(image, sky_rms, mask=mask, **HOT)


def isophotal_flux(
    image: ArrayLike, detection: Detection, sky_rms: ArrayLike, *, exposure: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum each source's own pixels.

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
        Flux and its standard error ``(source,)`` in image units, pixels taken as independent.

    Raises
    ------
    ValueError
        If shapes disagree, or the noise or the exposure is not positive.
    """
    pixels = _native(image)
    rms = np.broadcast_to(_noise(sky_rms, pixels.shape), pixels.shape)
    gain = _gain(exposure)
    good = np.where(np.isfinite(pixels), pixels, 0.0)
    flux = np.atleast_1d(ndimage.sum_labels(good, detection.segmentation, detection.label))
    variance = np.atleast_1d(ndimage.sum_labels(rms**2, detection.segmentation, detection.label))
    if gain is not None:
        variance = variance + np.maximum(flux, 0) / gain
    return flux, np.sqrt(variance)


def kron_radius(image: ArrayLike, detection: Detection, *, mask: ArrayLike | None = None) -> NDArray[np.float64]:
    """Radius of the Kron aperture of each source.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``.
    detection
        The sources.
    mask
        Bad pixels ``(y, x)`` to ignore.

    Returns
    -------
    NDArray
        2.5 Kron radii or 3.5, whichever is larger ``(source,)``, in units of the source's semi-axes.

    References
    ----------
    Kron (1980), doi:10.1086/190669.
    """
    pixels = _native(image)
    bad = _flags(mask, pixels)
    radius, _ = sep.kron_radius(
        pixels,
        *_ellipses(detection),
        KRON_EXTENT,
        mask=bad,
        seg_id=detection.label,
        segmap=detection.segmentation,
    )
    return np.maximum(KRON_FACTOR * np.nan_to_num(radius), KRON_MINIMUM)


def _ellipses(detection: Detection) -> tuple[NDArray[np.float64], ...]:
    return detection.x, detection.y, detection.semi_major, detection.semi_minor, detection.angle


def kron_flux(
    image: ArrayLike,
    detection: Detection,
    sky_rms: ArrayLike,
    *,
    exposure: float | None = None,
    mask: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum the pixels in each source's Kron aperture (SExtractor's AUTO flux), without those of other sources.

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
    mask
        Bad pixels ``(y, x)``: SEP gives them the mean of the aperture.

    Returns
    -------
    flux, error
        Flux and SEP's standard error ``(source,)`` in image units, pixels taken as independent.

    Raises
    ------
    ValueError
        If shapes disagree, or the noise or the exposure is not positive.
    """
    pixels = _native(image)
    flux, error, _ = sep.sum_ellipse(
        pixels,
        *_ellipses(detection),
        kron_radius(pixels, detection, mask=mask),
        err=_noise(sky_rms, pixels.shape),
        gain=_gain(exposure),
        mask=_flags(mask, pixels),
        seg_id=detection.label,
        segmap=detection.segmentation,
    )
    return flux, error


def auto_flux(image: ArrayLike, sky_rms: ArrayLike) -> float:
    """Kron flux of the galaxy that a stamp holds alone, the "true" flux of Boucaud et al. (2020).

    The galaxy is not split into its knots, and is the brightest source of the stamp.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)`` of an isolated galaxy, with or without noise.
    sky_rms
        Sky noise of a pixel in image units, which sets the detection threshold.

    Returns
    -------
    float
        AUTO flux in image units; NaN where nothing is found.
    """
    for settings in (COLD, HOT):
        found = detect(image, sky_rms, **(settings | {"contrast": 1.0}))
        if len(found):
            return float(kron_flux(image, found, sky_rms)[0][np.argmax(found.flux)])
    return float("nan")


def estimate_background(
    image: ArrayLike, *, mask: ArrayLike | None = None, box: int = 64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate the sky and its scatter by SEP's mesh of clipped modes, with the sources taken out.

    Parameters
    ----------
    image
        Pixels ``(y, x)``.
    mask
        Bad pixels ``(y, x)`` to ignore.
    box
        Side of a mesh cell in pixels.

    Returns
    -------
    sky, rms
        Level and scatter of the sky ``(y, x)`` in image units.

    Raises
    ------
    ValueError
        If every pixel is bad or all are equal.
    """
    pixels = _native(image)
    bad = np.zeros(pixels.shape, dtype=bool) if (flags := _flags(mask, pixels)) is None else flags
    if bad.all() or np.ptp(pixels[~bad]) == 0:
        raise ValueError("image must have good pixels that differ, got none")
    pixels = np.where(bad, 0.0, pixels)
    first = sep.Background(pixels, mask=bad, bw=box, bh=box)
    found = detect(pixels - first.back(), first.globalrms or pixels.std(), mask=bad, **HOT).segmentation > 0
    skip = bad | ndimage.binary_dilation(found, iterations=BACKGROUND_MARGIN)
    sky = first if skip.all() else sep.Background(pixels, mask=skip, bw=box, bh=box)
    return sky.back(), sky.rms()
