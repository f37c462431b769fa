"""Images in; sources, noise and apertures out."""

from .detection import Detection, detect, kron_flux
from .images import FieldImage, open_mosaic, read_image, read_psf
from .noise import add_noise, autocorrelation
from .sky import estimate_noise_kernel, subtract_sky
from .stars import measure_psf

__all__ = [
    "Detection", "FieldImage", "add_noise", "autocorrelation", "detect", "estimate_noise_kernel", "kron_flux",
    "measure_psf", "open_mosaic", "read_image", "read_psf", "subtract_sky",
]  # fmt: skip
