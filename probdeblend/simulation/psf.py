"""The effective PSF of drizzled HST/WFC3 F160W images: an optical model that is fitted to a measured PSF.

The effective PSF is the response of an image's pixels to a point source. Light passes the telescope (an
annular pupil with four vanes and some hundredths of a wave of aberration), pointing jitter and charge
diffusion blur it, and three boxes average it: the detector's pixel, the drop that drizzling shrinks that
pixel to (Fruchter & Hook 2002, doi:10.1086/338393), and the pixel of the drizzled image. The detector's
axes lie at 45 degrees to the vanes.

Only the last box depends on the pixel scale. A PSF measured at 0.04 arcsec holds a 0.04 arcsec pixel; the
model is compared with it through that pixel and then drawn through a 0.06 arcsec one: no pixel is counted
twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares

if TYPE_CHECKING:
    import galsim

__all__ = ["OpticsFit", "PsfModel", "fit_psf", "write_psf"]

DRAWN_SCALE, DRAWN_SIZE = 0.06, 65  # arcsec and pixels, of the array that is written
# Free parameters of the fit: these, seven aberrations, and the position. Steps of the numerical derivatives are wide
# enough for the sampled pupil to change.
FITTED = ("obscuration", "strut_width", "strut_angle", "jitter")
STEPS = np.array([0.02, 0.01, 2.0, 0.004, *7 * [0.01], 0.05, 0.05])
LOWER = np.array([0.05, 1e-3, -np.inf, 1e-3, *7 * [-0.3], -np.inf, -np.inf])
UPPER = np.array([0.7, 0.2, np.inf, 0.2, *7 * [0.3], np.inf, np.inf])


@dataclass(frozen=True)
class PsfModel:
    """Optics, blur and pixels that make the effective PSF of a drizzled image.

    Parameters
    ----------
    obscuration
        Diameter of the central obscuration over that of the pupil.
    strut_width
        Width of each of the four vanes over the diameter of the pupil.
    strut_angle
        Angle of a vane in degrees from +x to +y.
    jitter
        Standard deviation in arcsec of the Gaussian that stands for jitter and charge diffusion.
    aberrations
        Defocus, astigmatism (2), coma (2) and trefoil (2) in waves: Noll's Zernike terms 4 to 10. The PSF is
        the same when defocus and astigmatism change sign together.
    wavelength
        Pivot wavelength in nm.
    diameter
        Diameter of the pupil in m.
    native_pixel
        Size of the detector's pixel in arcsec.
    pixfrac
        Size of the drizzle drop over that of the detector's pixel.

    Raises
    ------
    ValueError
        If a width is not positive, the obscuration is not below 1, or there are not seven aberrations.
    """

    obscuration: float = 0.36
    strut_width: float = 0.04
    strut_angle: float = 45.0
    jitter: float = 0.02
    aberrations: tuple[float, ...] = (0.03, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    wavelength: float = 1537.0
    diameter: float = 2.4
    native_pixel: float = 0.128
    pixfrac: float = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "aberrations", tuple(float(value) for value in self.aberrations))
        if not 0 <= self.obscuration < 1:
            raise ValueError(f"obscuration must be at least 0 and below 1, got {self.obscuration}")
        for name in ("strut_width", "jitter", "wavelength", "diameter", "native_pixel", "pixfrac"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if len(self.aberrations) != 7:
            raise ValueError(f"aberrations must be seven numbers, got {len(self.aberrations)}")

    def effective(self, pixel_scale: float) -> galsim.GSObject:
        """Return the effective PSF of pixels of this size in arcsec, to be drawn with ``method="no_pixel"``.

        Parameters
        ----------
        pixel_scale
            Arcsec per pixel.

        Returns
        -------
        galsim.GSObject
            Optics, charge diffusion and pixel.

        Raises
        ------
        ValueError
            If the pixel scale is not positive.
        """
        import galsim

        if not pixel_scale > 0:
            raise ValueError(f"pixel_scale must be positive, got {pixel_scale}")
        optics = galsim.OpticalPSF(
            lam=self.wavelength,
            diam=self.diameter,
            aberrations=[0.0, 0.0, 0.0, 0.0, *self.aberrations],
            obscuration=self.obscuration,
            nstruts=4,
            strut_thick=self.strut_width,
            strut_angle=self.strut_angle * galsim.degrees,
            pad_factor=2.0,
        )
        detector_axes = (self.strut_angle + 45.0) * galsim.degrees
        boxes = [galsim.Pixel(self.native_pixel * size).rotate(detector_axes) for size in (1.0, self.pixfrac)]
        return galsim.Convolve([optics, galsim.Gaussian(sigma=self.jitter), *boxes, galsim.Pixel(pixel_scale)])

    def draw(self, pixel_scale: float, size: int, *, offset: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """Draw the effective PSF ``(y, x)`` in float64 on a square of `size` pixels of `pixel_scale` arcsec.

        The offset ``(x, y)`` from the middle of the square is in pixels. The sum is below 1 by the light outside.

        Parameters
        ----------
        pixel_scale
            Arcsec per pixel.
        size
            Pixels per side.
        offset
            Offset of the PSF ``(x, y)`` from the middle of the square, in pixels.

        Returns
        -------
        ndarray
            Response of each pixel.
        """
        import galsim

        image = galsim.ImageD(size, size, scale=pixel_scale)
        self.effective(pixel_scale).drawImage(image=image, method="no_pixel", offset=offset)
        return image.array


@dataclass(frozen=True)
class OpticsFit:
    """A `PsfModel` fitted to a measured PSF, and how well it fits.

    Parameters
    ----------
    model
        The fitted model.
    x, y
        Position of the measured PSF relative to the middle of its image, in pixels.
    max_residual
        Largest difference of model and measurement over the measurement's peak.
    fwhm
        FWHM in arcsec of a Gaussian through the core (above half the peak): measurement and model.
    """

    model: PsfModel
    x: float
    y: float
    max_residual: float
    fwhm: tuple[float, float]


def _unpack(values: np.ndarray, start: PsfModel) -> tuple[PsfModel, tuple[float, float]]:
    """Return the model, and the position, of the parameters of the fit in units of `STEPS`."""
    *optics, x, y = (values * STEPS).tolist()
    fitted = dict(zip(FITTED, optics, strict=False))
    return replace(start, **fitted, aberrations=tuple(optics[len(FITTED) :])), (x, y)


def _spike_angle(image: np.ndarray, pixel_scale: float, x: float, y: float) -> float:
    """Angle of the diffraction spikes in degrees: the phase of the fourfold harmonic from 0.8 to 1.8 arcsec."""
    rows, columns = np.indices(image.shape) - (len(image) - 1) / 2
    radius = np.hypot(columns - x, rows - y) * pixel_scale
    ring = (radius > 0.8) & (radius < 1.8)
    harmonic = np.sum(image[ring] * np.exp(4j * np.arctan2(rows - y, columns - x)[ring]))
    return float(np.degrees(np.angle(harmonic)) / 4)


def _core_fwhm(image: np.ndarray, pixel_scale: float) -> float:
    """FWHM in arcsec of a Gaussian that is fitted to the pixels above half the peak."""
    rows, columns = np.nonzero(image > image.max() / 2)
    terms = np.stack([np.ones(len(rows)), columns, rows, columns**2, rows * columns, rows**2], axis=1)
    light = image[rows, columns]
    *_, xx, xy, yy = np.linalg.lstsq(terms * light[:, None], np.log(light) * light, rcond=None)[0]
    # The Gaussian's inverse covariance is [[-2 xx, -xy], [-xy, -2 yy]]: its determinant gives the mean width.
    return float(np.sqrt(8 * np.log(2)) * (4 * xx * yy - xy**2) ** -0.25 * pixel_scale)


def _normalized(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, dtype=np.float64)
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise ValueError(f"image must be a square PSF, got shape {image.shape}")
    if not np.isfinite(image).all():
        raise ValueError(f"image must be finite, got {int((~np.isfinite(image)).sum())} non-finite pixels")
    if not image.sum() > 0:
        raise ValueError(f"image must have a positive sum, got {image.sum():.6g}")
    core = int((image > image.max() / 2).sum())
    if core < 6:
        raise ValueError(f"image must have at least 6 pixels above half its peak, got {core}")
    return image / image.sum()


def fit_psf(image: np.ndarray, pixel_scale: float, *, start: PsfModel | None = None) -> OpticsFit:
    """Fit the optical model to a measured effective PSF.

    Least squares over all pixels, with the position and the flux free as well.

    Parameters
    ----------
    image
        Effective PSF ``(y, x)``, square, in any unit: a point source as the image's pixels see it.
    pixel_scale
        Size of its pixels in arcsec.
    start
        Where to begin; by default nominal optics, with the vanes turned to the spikes in the image.

    Returns
    -------
    OpticsFit
        The fitted model and the quality of the fit.

    Raises
    ------
    ValueError
        If the image is not a square of finite pixels with a positive sum, has a core of less than 6 pixels,
        or `pixel_scale` is not positive.
    """
    image = _normalized(image)
    peak, middle = image.max(), (len(image) - 1) / 2
    y, x = (index - middle for index in np.unravel_index(image.argmax(), image.shape))
    start = start or PsfModel(strut_angle=_spike_angle(image, pixel_scale, x, y))

    def scaled_model(values: np.ndarray) -> np.ndarray:
        model, offset = _unpack(values, start)
        drawn = model.draw(pixel_scale, len(image), offset=offset)
        return drawn * (np.vdot(drawn, image) / np.vdot(drawn, drawn))

    def residuals(values: np.ndarray) -> np.ndarray:
        return ((scaled_model(values) - image) / peak).ravel()

    def jacobian(values: np.ndarray) -> np.ndarray:
        here = residuals(values)
        return np.stack([residuals(values + step) - here for step in np.eye(len(values))], axis=1)

    first = np.array([*(getattr(start, name) for name in FITTED), *start.aberrations, x, y])
    settings = {"bounds": (LOWER / STEPS, UPPER / STEPS), "xtol": 1e-4, "ftol": 1e-5, "max_nfev": 30}
    found = least_squares(residuals, first / STEPS, jac=jacobian, **settings)
    model, (x, y) = _unpack(found.x, start)
    fitted = scaled_model(found.x)
    fwhm = (_core_fwhm(image, pixel_scale), _core_fwhm(fitted, pixel_scale))
    return OpticsFit(model, x, y, float(np.abs(fitted - image).max() / peak), fwhm)


def write_psf(fit: OpticsFit, directory: str | Path, *, name: str = "f160w") -> tuple[Path, Path]:
    """Write a fitted PSF as an array, and the numbers that it was drawn from.

    The array has 65 pixels of 0.06 arcsec on a side and unit sum, so that fluxes count the light within it.

    Parameters
    ----------
    fit
        What `fit_psf` returned.
    directory
        Where to write ``psf_{name}.npy`` (float32) and ``psf_{name}.json``; it is made if it does not exist. The
        fraction of the light outside the array is stored as ``light_outside``.
    name
        Name of the filter in the names of the files.

    Returns
    -------
    tuple of Path
        The files of the array and of the numbers.
    """
    psf = fit.model.draw(DRAWN_SCALE, DRAWN_SIZE)
    outside = float(1 - psf.sum())
    numbers = {"pixel_scale": DRAWN_SCALE, "size": DRAWN_SIZE, "light_outside": outside, "fit": asdict(fit)}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    array_path, numbers_path = (directory / f"psf_{name}.{suffix}" for suffix in ("npy", "json"))
    np.save(array_path, (psf / psf.sum()).astype(np.float32), allow_pickle=False)
    numbers_path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return array_path, numbers_path
