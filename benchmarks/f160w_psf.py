"""Make the PSF of F160W that ships: an optical model that is fitted to a measured PSF.

The effective PSF is the response of an image's pixels to a point source. Light passes the telescope (an annular pupil
with four vanes and some hundredths of a wave of aberration), pointing jitter and charge diffusion blur it, and three
boxes average it: the detector's pixel, the drop that drizzling shrinks that pixel to (Fruchter & Hook 2002,
doi:10.1086/338393), and the pixel of the drizzled image. The detector's axes lie at 45 degrees to the vanes.

Only the last box depends on the pixel scale. The PSF of grizli (``psf/f160w.fits`` in the folder that the variable
``PROBDEBLEND_DATA`` names) was measured at 0.04 arcsec: the model is compared with it through a pixel of that size and
then drawn through one of 0.06 arcsec, so that no pixel is counted twice.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import galsim
import numpy as np
from scipy.optimize import least_squares

from benchmarks._command import FILE
from probdeblend._files import output_folder
from probdeblend.photometry.images import read_psf

__all__ = ["OpticsFit", "PsfModel", "fit_psf", "main", "write_psf"]

MEASURED_SCALE = 0.04  # arcsec
FILES = ["psf_f160w.npy", "psf_f160w.json"]
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

    Diameter of the central obscuration and width of the four vanes are in units of the pupil's diameter, the angle of a
    vane in degrees from +x to +y; `jitter` is the standard deviation in arcsec of the Gaussian that stands for jitter
    and charge diffusion. Aberrations are defocus, astigmatism (2), coma (2) and trefoil (2) in waves: Noll's Zernike
    terms 4 to 10. The PSF is the same when defocus and astigmatism change sign together. Pivot wavelength (nm),
    diameter (m), the detector's pixel (arcsec), and the drizzle drop over that pixel are not fitted.
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

    def effective(self, pixel_scale: float) -> galsim.GSObject:
        """Return the effective PSF of pixels of this size in arcsec, to be drawn with ``method="no_pixel"``."""
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
        """Draw the effective PSF ``(y, x)`` on a square of `size` pixels; the sum is below 1 by the light outside.

        The offset ``(x, y)`` from the middle of the square is in pixels.
        """
        image = galsim.ImageD(size, size, scale=pixel_scale)
        self.effective(pixel_scale).drawImage(image=image, method="no_pixel", offset=offset)
        return image.array


@dataclass(frozen=True)
class OpticsFit:
    """A fitted model, and how well it fits.

    The position x, y of the measured PSF, relative to the middle of its image, is in pixels. The largest difference of
    model and measurement is in units of the measurement's peak. Widths (arcsec) of a Gaussian through the core, above
    half the peak, are those of measurement and model.
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


def fit_psf(image: np.ndarray, pixel_scale: float, *, start: PsfModel | None = None) -> OpticsFit:
    """Fit the optical model to a measured effective PSF ``(y, x)``, by least squares with position and flux free.

    By default the fit begins with nominal optics, whose vanes are turned to the spikes in the image.
    """
    image = np.asarray(image, dtype=np.float64)
    image = image / image.sum()
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


def write_psf(fit: OpticsFit, folder: Path) -> None:
    """Write the fitted PSF, of unit sum, as ``psf_f160w.npy``, and the numbers that it was drawn from beside it."""
    psf = fit.model.draw(DRAWN_SCALE, DRAWN_SIZE)
    outside = float(1 - psf.sum())
    numbers = {"pixel_scale": DRAWN_SCALE, "size": DRAWN_SIZE, "light_outside": outside, "fit": asdict(fit)}
    np.save(folder / FILES[0], (psf / psf.sum()).astype(np.float32), allow_pickle=False)
    (folder / FILES[1]).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


@click.command("python -m benchmarks.f160w_psf")
@click.argument("output", type=FILE, default="results/f160w_psf")
@click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
def main(output: Path, *, overwrite: bool) -> None:
    """Write the PSF and its numbers to the folder OUTPUT; both ship in probdeblend/data."""
    if (data := os.environ.get("PROBDEBLEND_DATA")) is None:
        raise click.ClickException("the variable PROBDEBLEND_DATA must name a folder with psf/f160w.fits")
    with output_folder(output, overwrite=overwrite) as folder:
        fit = fit_psf(read_psf(Path(data) / "psf" / "f160w.fits", pixel_scale=MEASURED_SCALE), MEASURED_SCALE)
        write_psf(fit, folder)
    measured, fitted = fit.fwhm
    click.echo(f'FWHM {fitted:.3f}" (measured {measured:.3f}"), largest residual {fit.max_residual:.1%} of the peak')
    click.echo(f"written to {output}: {', '.join(FILES)}")


if __name__ == "__main__":
    main()
