"""Sources drawn by GalSim, the other rendering engine.

A source is a sum of sheared and shifted Sérsic profiles, convolved with the effective PSF, which holds the pixel.
GalSim (Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002) interpolates the PSF with a wide Lanczos kernel here, which
keeps it band-limited as its sampling implies; GalSim's default kernel differs by up to 3e-3 of a galaxy's peak. Sérsic
indices are not rounded: GalSim computes the table of a new index once, which takes most of the time.
"""

import numpy as np
import torch
from torch import Tensor

from ..scene import STAMP_SIZE
from .profiles import Components

__all__ = ["render_galsim"]


def render_galsim(components: Components, psf: Tensor, *, pixel_scale: float, size: int = STAMP_SIZE) -> Tensor:
    """Render sources with GalSim, each alone, without noise.

    Parameters
    ----------
    components
        The light of the sources ``(..., component)``.
    psf
        Effective PSF ``(y, x)``.
    pixel_scale
        Size of a pixel in arcsec.
    size
        Number of pixels on a side of the stamp.

    Returns
    -------
    Tensor
        Images ``(..., y, x)`` in flux per pixel, of the dtype of ``components.flux``.

    Raises
    ------
    galsim.GalSimRangeError
        If a Sérsic index or an axis ratio is out of GalSim's range.
    """
    import galsim

    accuracy = galsim.GSParams(
        folding_threshold=2e-3, stepk_minimum_hlr=10, maxk_threshold=1e-3, kvalue_accuracy=1e-6, maximum_fft_size=16384
    )
    kernel = galsim.Image(psf.double().cpu().numpy(), scale=pixel_scale)
    effective = galsim.InterpolatedImage(kernel, x_interpolant=galsim.Lanczos(31), gsparams=accuracy)
    grid = {"nx": size, "ny": size, "scale": pixel_scale, "method": "no_pixel", "dtype": float}
    names = ("flux", "half_light_radius", "sersic_index", "axis_ratio", "angle", "x", "y")
    values = torch.stack([getattr(components, name) for name in names], -1).double()
    middle = (size - 1) / 2
    images = np.zeros((*components.flux.shape[:-1], size, size))
    for source in np.ndindex(*images.shape[:-2]):
        parts = []
        for flux, radius, index, ratio, angle, x, y in values[source][components.present[source]].tolist():
            part = galsim.Sersic(index, half_light_radius=radius, flux=flux, gsparams=accuracy)
            part = part.shear(q=ratio, beta=angle * galsim.radians)
            parts.append(part.shift(pixel_scale * (x - middle), pixel_scale * (y - middle)))
        if parts:
            convolved = galsim.Convolve(galsim.Sum(parts), effective, gsparams=accuracy)
            images[source] = convolved.drawImage(**grid).array
    return torch.from_numpy(images).to(components.flux)
