"""Detection, segmentation and Kron fluxes, with SEP.

SEP (Barbary 2016, doi:10.21105/joss.00058) is the library form of SExtractor (Bertin & Arnouts 1996,
doi:10.1051/aas:1996164). Sources are detected cold, then hot, with the settings of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056, table 3). A Kron aperture is an ellipse with 2.5 Kron radii, and at least 3.5 isophotal
radii, as with SExtractor's ``PHOT_AUTOPARAMS 2.5, 3.5``: both numbers multiply the semi-axes of the source. Pixels that
belong to other sources count neither for the Kron radius nor for the sum.

SEP's errors hold independent sky noise and, with an exposure, photon noise. Drizzled noise is correlated, and the error
of an aperture is larger by the root of the sum of that correlation.
"""

import threading
from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import ArrayLike, NDArray

__all__ = ["COLD", "HOT", "Detection", "auto_flux", "detect", "detect_cold_hot", "kron_flux", "native_image"]

COLD = {"threshold": 5.0, "minimum_area": 10, "contrast": 0.01}
HOT = {"threshold": 4.0, "minimum_area": 6, "contrast": 1e-4}
DEBLEND_LEVELS = 64
KRON_FACTOR = 2.5
KRON_MINIMUM = 3.5
BUFFER = threading.Lock()  # while SEP's is larger
KRON_EXTENT = 6.0  # semi-axes within which the Kron radius is measured


@dataclass(frozen=True, eq=False)
class Detection:
    """The sources that SEP found in one image.

    Parameters
    ----------
    segmentation
        Label of the source that each pixel ``(y, x)`` belongs to: source ``i`` has label ``i + 1``, the sky 0.
    x, y
        Barycenters in pixels ``(source,)``.
    semi_major, semi_minor
        Isophotal radii (second moments) in pixels ``(source,)``.
    angle
        Position angles of the major axes in radians from +x to +y ``(source,)``.
    flux
        Sum of each source's own pixels ``(source,)`` in image units.
    """

    segmentation: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    semi_major: NDArray[np.float64]
    semi_minor: NDArray[np.float64]
    angle: NDArray[np.float64]
    flux: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def label(self) -> NDArray[np.int32]:
        """Labels of the sources in the segmentation ``(source,)``."""
        return np.arange(1, len(self) + 1, dtype=np.int32)


def native_image(image: ArrayLike) -> NDArray[np.float64]:
    """Return an image ``(y, x)`` of any type as contiguous native floats."""
    pixels = np.ascontiguousarray(image, dtype=np.float64)
    if pixels.ndim != 2:
        raise ValueError(f"image must have the axes (y, x), got shape {pixels.shape}")
    return pixels


def _noise(sky_rms: ArrayLike, shape: tuple[int, ...], exposure: float = np.inf) -> float | NDArray[np.float64]:
    rms = np.ascontiguousarray(sky_rms, dtype=np.float64) if np.ndim(sky_rms) else float(sky_rms)
    if np.ndim(rms) and rms.shape != shape:
        raise ValueError(f"sky_rms must be a number or have the shape of image {shape}, got shape {rms.shape}")
    if not np.all(np.isfinite(rms) & (np.asarray(rms) > 0)):
        raise ValueError(f"sky_rms must be positive and finite, got a minimum of {np.min(rms)}")
    if not exposure > 0:
        raise ValueError(f"exposure must be positive, got {exposure}")
    return rms


def _extract(pixels: NDArray[np.float64], threshold: float, **settings: object) -> tuple[NDArray, NDArray[np.int32]]:
    """Call SEP; where that fills its buffer, again with a larger one, and as both are slow, without deblending.

    The size of the buffer is one of the whole process.
    """
    try:
        return sep.extract(pixels, threshold, **settings)
    except Exception as error:
        if "pixel buffer full" not in str(error):
            raise
        with BUFFER:
            usual = sep.get_extract_pixstack()
            sep.set_extract_pixstack(max(usual, pixels.size))
            try:
                found = sep.extract(pixels, threshold, **settings | {"deblend_nthresh": 1})
            finally:
                sep.set_extract_pixstack(usual)
        if found[1][~settings["mask"]].all():
            raise
        return found


def detect(
    image: ArrayLike,
    sky_rms: ArrayLike,
    *,
    threshold: float = COLD["threshold"],
    minimum_area: int = COLD["minimum_area"],
    contrast: float = COLD["contrast"],
) -> Detection:
    """Find the sources of an image with one set of SEP's settings; the defaults are the cold ones.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``, of any dtype and byte order; those that are not finite are ignored.
    sky_rms
        Sky noise of a pixel in image units: a number or a map ``(y, x)``. With a map, thresholds are multiples of the
        local noise of the unfiltered pixels.
    threshold
        Detection threshold in units of `sky_rms`, on the image smoothed with SEP's default 3 x 3 kernel.
    minimum_area
        Least number of connected pixels above the threshold.
    contrast
        Least fraction of the parent's flux for a branch to become a source of its own; 1 switches deblending off.

    Returns
    -------
    Detection
        The sources, in SEP's order. Where they fill SEP's buffer of 300,000 pixels, none is split.

    Raises
    ------
    ValueError
        If shapes disagree, the noise is not positive and finite, or the image is not sky-subtracted.
    """
    pixels = native_image(image)
    rms, bad = _noise(sky_rms, pixels.shape), ~np.isfinite(pixels)
    deblending = {"minarea": minimum_area, "deblend_cont": contrast, "deblend_nthresh": DEBLEND_LEVELS}
    settings = {"filter_type": "conv", "segmentation_map": True} | deblending
    try:
        found, segmentation = _extract(pixels, threshold, err=rms, mask=bad, **settings)
    except Exception as error:  # SEP raises nothing more specific
        raise ValueError(f"image must be sky-subtracted and not one crowded source, SEP reports: {error}") from error
    ellipse = [found["a"], found["b"], np.clip(found["theta"], -np.pi / 2, np.pi / 2)]
    return Detection(segmentation, found["x"], found["y"], *ellipse, found["flux"])


def detect_cold_hot(image: ArrayLike, sky_rms: ArrayLike) -> Detection:
    """Find the sources of an image cold, or hot if that finds fewer than two (Boucaud et al. 2020, section 5.1)."""
    cold = detect(image, sky_rms, **COLD)
    return cold if len(cold) > 1 else detect(image, sky_rms, **HOT)


def kron_flux(
    image: ArrayLike, detection: Detection, sky_rms: ArrayLike, *, exposure: float = np.inf
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum the pixels in each source's Kron aperture (SExtractor's AUTO flux), without those of other sources.

    An aperture is 2.5 Kron radii (Kron 1980, doi:10.1086/190669) or 3.5 semi-axes large, whichever is more.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``; SEP replaces those that are not finite by the mean of the aperture.
    detection
        The sources.
    sky_rms
        Sky noise of a pixel in image units: a number or a map ``(y, x)``.
    exposure
        Counts per unit of flux for the photon noise; infinite for none.

    Returns
    -------
    flux, error
        Flux and SEP's standard error ``(source,)`` in image units, for independent pixels.

    Raises
    ------
    ValueError
        If shapes disagree, or the noise or the exposure is not positive.
    """
    pixels = native_image(image)
    noise, bad = {"err": _noise(sky_rms, pixels.shape, exposure), "gain": exposure}, ~np.isfinite(pixels)
    ellipses = [getattr(detection, name) for name in ("x", "y", "semi_major", "semi_minor", "angle")]
    # With any mask, even an empty one, SEP would also fill the pixels of other sources with the mean of the aperture.
    owners = {"mask": bad if bad.any() else None, "seg_id": detection.label, "segmap": detection.segmentation}
    radius = np.nan_to_num(sep.kron_radius(pixels, *ellipses, KRON_EXTENT, **owners)[0])
    return sep.sum_ellipse(pixels, *ellipses, np.maximum(KRON_FACTOR * radius, KRON_MINIMUM), **noise, **owners)[:2]


def auto_flux(image: ArrayLike, sky_rms: ArrayLike) -> float:
    """Return the Kron flux of the brightest source of an image, not split into its knots; NaN if nothing is found.

    This is the "true" flux of an isolated galaxy in Boucaud et al. (2020); `sky_rms` sets the detection threshold.
    """
    for settings in (COLD, HOT):
        found = detect(image, sky_rms, **(settings | {"contrast": 1.0}))
        if len(found):
            return float(kron_flux(image, found, sky_rms)[0][np.argmax(found.flux)])
    return float("nan")
