"""Effective PSFs as users have them, as stamps of one size."""

import math
from os import PathLike

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from ..photometry.images import check_psf, read_psf
from ..photometry.stars import measure_psf
from ..scene import PSF_SIZE
from ..simulation.cameras import CAMERAS, Camera
from .pixels import BandPixels, numbers

__all__ = ["REACH", "PsfLike", "band_psfs", "camera_of", "gaussian", "smooth", "widening"]

NARROWEST = 1.2  # pixels; of a narrower PSF, pixels hold too little to be smoothed
DARK, BRIGHT = 1e-3, 5e-3  # of the peak: what a PSF may have at its rim
REACH = 6  # pixels that the Gaussians reach with which images are smoothed
CENTERS = (("x_0", "y_0"), ("x_mean", "y_mean"))  # parameters of models that are their centers

PsfLike = ArrayLike | str | PathLike | object


def camera_of(psf: PsfLike | None) -> Camera | None:
    """Return the camera that a PSF names, or None."""
    return CAMERAS[psf]() if isinstance(psf, str) and psf in CAMERAS else None


def band_psfs(psf: PsfLike | None, bands: list[BandPixels], pixel_scale: float, notes: list[str]) -> Tensor:
    """Return the effective PSF of each band ``(band, y, x)``, measured from stars where none is given."""
    if psf is None:
        try:
            arrays = [measure_psf(band.middle(), 1.0) for band in bands]
        except ValueError as error:
            form = f"an array, a FITS file or the name of a camera ({', '.join(CAMERAS)})"
            raise ValueError(f"psf must be given, as {form}, where it cannot be measured from stars: {error}") from None
        notes.append("the PSF was measured from stars of the image")
    elif isinstance(psf, (list, tuple)) and psf and (isinstance(psf[0], (str, PathLike)) or np.ndim(psf[0]) != 1):
        arrays = [_psf_array(one, pixel_scale) for one in psf]
    else:
        array = _psf_array(psf, pixel_scale)
        arrays = list(array) if array.ndim == 3 else [array]
    if len(arrays) not in (1, len(bands)):
        raise ValueError(f"psf must be one or one for each of {len(bands)} bands, got {len(arrays)}")
    stamps = torch.stack([_stamp(array) for array in arrays]).expand(len(bands), -1, -1)
    rims = [np.mean([psf[0], psf[-1], psf[:, 0], psf[:, -1]]) / psf.max() for psf in arrays]
    if not -DARK < min(rims) <= max(rims) < BRIGHT:
        notes.append(
            f"the PSF has {max(rims, key=abs):.1%} of its peak at its rim: it holds sky, or its array is small"
        )
    return stamps


def _psf_array(psf: PsfLike, pixel_scale: float) -> NDArray[np.float64]:
    """Effective PSF ``(y, x)``, or one per band, from whatever users have."""
    if (camera := camera_of(psf)) is not None:
        return camera.psf[0].double().numpy()
    if isinstance(psf, (str, PathLike)):
        try:
            return read_psf(psf, pixel_scale=pixel_scale if pixel_scale != 1.0 else None)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, nor a camera that is known by name ({', '.join(CAMERAS)})") from None
    if hasattr(psf, "drawImage"):
        import galsim

        drawn = galsim.Convolve(psf, galsim.Pixel(pixel_scale))
        return drawn.drawImage(nx=PSF_SIZE, ny=PSF_SIZE, scale=pixel_scale, method="no_pixel", dtype=float).array
    if callable(psf):
        half = PSF_SIZE // 2
        y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
        names = next((pair for pair in CENTERS if all(hasattr(psf, name) for name in pair)), ())
        center = [float(getattr(psf, name).value) for name in names] or [0.0, 0.0]
        return np.asarray(psf(x + center[0], y + center[1]), dtype=np.float64)
    return np.asarray(numbers("psf", psf.detach().cpu() if isinstance(psf, Tensor) else psf), dtype=np.float64)


def _stamp(psf: NDArray) -> Tensor:
    """Bring an effective PSF to the size that networks know, with unit sum."""
    check_psf("psf", psf)
    if (side := len(psf)) % 2 == 0:
        raise ValueError(f"psf must have an odd number of pixels on a side, got shape {psf.shape}")
    size = min(side, PSF_SIZE)
    cut = slice((side - size) // 2, (side + size) // 2)
    stamp = np.pad(psf[cut, cut], (PSF_SIZE - size) // 2)
    return torch.from_numpy(stamp / stamp.sum()).float()


def gaussian(sigma: float) -> Tensor:
    """Return a Gaussian ``(y, x)`` of unit sum and a standard deviation in pixels."""
    along = torch.arange(-REACH, REACH + 1, dtype=torch.float32) / max(sigma, 1e-3)
    line = torch.softmax(-0.5 * along.square(), 0)
    return line[:, None] * line


def smooth(images: Tensor, gaussians: Tensor) -> Tensor:
    """Convolve images ``(band, y, x)`` with Gaussians ``(band, y, x)``, as if there were nothing beyond the edges."""
    return functional.conv2d(images[None], gaussians[:, None], padding=REACH, groups=len(images))[0]


def widening(psf: Tensor, fwhm: tuple[float, float], band: str) -> float:
    """Return the standard deviation of the narrowest Gaussian that brings a PSF into a range of widths; 0 for none."""

    def width(sigma: float = 0.0) -> float:
        """FWHM in pixels of the Gaussian that has the noise-equivalent area of the smoothed PSF."""
        return math.sqrt(2 * math.log(2) / math.pi / float(smooth(psf[None], gaussian(sigma)[None]).square().sum()))

    least, (low, high) = max(NARROWEST, fwhm[0] / 2), fwhm
    if least <= width() <= high:
        return 0.0 if width() >= low else optimize.brentq(lambda sigma: width(sigma) - low, 0, REACH)
    binning = math.ceil(width() / math.sqrt(high**2 - 0.5))  # bins of k pixels add 0.5 k^2 to the square of the width
    advice = f"bin the image by a factor of {binning}" if width() > high else "the pixels are too coarse for it"
    wide = f"{least:.2g} to {high:.2g} pixels wide (FWHM of a Gaussian of its area)"
    raise ValueError(f"psf must be {wide}, got {width():.2f}{band and ' in band '}{band}: {advice}")
