"""Differentiable, batched Sérsic profiles convolved with an effective PSF: pure torch functions.

A source is summed in Fourier space and brought to pixels by one inverse transform, however many components it has. The
transform of a Sérsic profile depends on the index n and on k r_e alone; it is tabulated (from GalSim, by
``python -m benchmarks.sersic_table``) over log n and t = log(k^2 r_e^2 + 1e-4) / 2, the offset making t finite at
k = 0. Cubic splines join the nodes in both directions: across n once per component, then along t by a cubic per pixel.
Ellipticity is an area-preserving shear of k, and the position a product of two one-dimensional phases.

**Band limit.** Frequencies go up to Nyquist, so the PSF must be properly sampled (its transform vanishes there), as
HST's F160W is with pixels of 0.06 arcsec. The effective PSF holds the pixel: no other is applied.

**Wrap-around.** On a grid of L pixels a discrete transform gives sum_m I(x + m L), m over all pairs of integers. The
unwanted terms lie far from their own centers, where the profile is so smooth that the PSF does not change it. They are
therefore taken from the profile in real space, on a few Chebyshev nodes across the stamp, and subtracted. That replaces
the large transforms that extended profiles would need otherwise. L is 1.5 times the stamp, and 2.25 times only for
sources so large, thin and far from the center that a copy is still bright in the stamp.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from numpy.polynomial.chebyshev import chebvander
from scipy.interpolate import CubicSpline
from scipy.special import gammaincinv
from torch import Tensor

from ..scene import STAMP_SIZE, check_positive

__all__ = ["TABLE_INDEX", "TABLE_WAVENUMBER", "Components", "render", "sersic_surface_brightness", "widen_psf"]

_INDEX_RANGE = (0.5, 6.0)
_SOFTENING = 1e-4
_LOG_STEP = 0.05
_LOG_START = 0.5 * np.log(_SOFTENING)
TABLE_INDEX = np.geomspace(*_INDEX_RANGE, 64)
TABLE_WAVENUMBER = np.sqrt(_SOFTENING * np.expm1(2 * _LOG_STEP * np.arange(248)))

_CONTRAST = 2e-3  # brightest copy in the stamp, relative to the center of the profile, that needs no PSF
# Square rings of copies: spacing in grids (one stands for spacing^2), first and last ring, Chebyshev nodes.
_RINGS = ((1, 1, 1, 20), (1, 2, 7, 3), (3, 3, 8, 1))
# Sources at a time, which bounds the memory: few on a CPU, so that they stay in its cache.
_CHUNK, _DEVICE_CHUNK = 8, 256


@dataclass(frozen=True, eq=False)
class Components:
    """The light of sources as elliptical Sérsic components: what `render` draws.

    Every field is a tensor ``(..., component)`` with any leading axes; components of one source are drawn together.

    Parameters
    ----------
    flux
        Total flux (the integral of the profile) in image units.
    half_light_radius
        Circularized half-light radius in arcsec.
    sersic_index
        Sérsic index, 0.5 to 6.
    axis_ratio
        Minor over major axis, in (0, 1].
    angle
        Position angle of the major axis in radians from +x to +y.
    x, y
        Center in pixels of the stamp.
    present
        Which components exist; the others are padding.

    Raises
    ------
    ValueError
        If the fields differ in shape.
    """

    flux: Tensor
    half_light_radius: Tensor
    sersic_index: Tensor
    axis_ratio: Tensor
    angle: Tensor
    x: Tensor
    y: Tensor
    present: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            given = tuple(getattr(self, field.name).shape)
            if given != tuple(self.flux.shape) or not given:
                raise ValueError(f"{field.name} must have the shape (..., component) of flux, got {given}")

    def select(self, index: Tensor | slice) -> "Components":
        """Return the sources at an index into the first axis.

        Parameters
        ----------
        index
            A slice or indices.

        Returns
        -------
        Components
            Some of the sources.
        """
        return Components(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def sersic_surface_brightness(
    radius_squared: Tensor, flux: Tensor, half_light_radius: Tensor, sersic_index: Tensor
) -> Tensor:
    """Return the surface brightness of a Sérsic profile of given total flux, in units of flux per arcsec^2.

    The circularized radius squared is in arcsec^2, the half-light radius in arcsec; arguments broadcast. See Ciotti &
    Bertin (1999), A&A 352, 447, and Graham & Driver (2005), doi:10.1071/AS05001.
    """
    scale = _interpolate_index(_scale_nodes, sersic_index)
    twice = 2 * sersic_index
    log_area = torch.lgamma(twice + 1) - twice * scale.log() + (torch.pi * half_light_radius**2).log()
    reduced = (radius_squared / half_light_radius**2).clamp(min=torch.finfo(flux.dtype).tiny)
    return flux * torch.exp(-scale * reduced ** (1 / twice) - log_area)


def widen_psf(psf: Tensor, growth: Tensor) -> Tensor:
    """Make PSFs ``(..., y, x)`` wider by factors ``(number,)``, as focus and jitter do from image to image.

    The sampled PSF is interpolated with sinc functions, as it is band-limited, and keeps its sum.
    """
    half = psf.shape[-1] // 2
    places = torch.arange(-half, half + 1, dtype=psf.dtype, device=psf.device)
    matrix = torch.sinc(places[:, None] / growth.to(psf)[:, None, None] - places)
    stretched = matrix @ psf @ matrix.mT
    return stretched * (psf.sum((-2, -1), keepdim=True) / stretched.sum((-2, -1), keepdim=True))


def render(components: Components, psf: Tensor, *, pixel_scale: float, size: int = STAMP_SIZE) -> Tensor:
    """Render sources with torch, each alone, convolved with the effective PSF and without noise.

    Differentiable in every floating-point field of `components` and in `psf`.

    Parameters
    ----------
    components
        The light of the sources ``(..., component)``. Centers may lie outside the stamp by a quarter of its size.
    psf
        Effective PSF ``(y, x)``, or one for each element of the first axis of `components`, sampled at `pixel_scale`,
        pixel included: square, with an odd number of pixels on a side, no larger than the stamp.
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
    ValueError
        If a present component has a Sérsic index outside 0.5 to 6, a half-light radius that is not positive, an axis
        ratio outside (0, 1] or a center too far out; if the pixel scale is not positive or the PSF has a wrong shape.
    """
    leading = components.flux.shape[:-1]
    _check_shapes(psf, leading, pixel_scale=pixel_scale, size=size)
    _check_values(components, size)
    *columns, present = (getattr(components, f.name).reshape(-1, components.flux.shape[-1]) for f in fields(components))
    values = torch.stack(columns, -1)
    chunk = _CHUNK if values.device.type == "cpu" else _DEVICE_CHUNK
    short = _grid_length(size)
    extended = _is_extended(values.detach(), present, short, pixel_scale, size)
    stamps, order = [values.new_zeros(0, size, size)], [extended.new_zeros(0, dtype=torch.long)]
    for length, chosen in ((short, ~extended), (_grid_length(short), extended)):
        if not chosen.any():
            continue
        transfer = _transfer(psf.to(values), length)
        for sources in chosen.nonzero()[:, 0].split(chunk):
            seen = transfer if psf.ndim == 2 else transfer[sources // (len(values) // leading[0])]
            stamps.append(_render(values[sources], present[sources], seen, pixel_scale, size))
            order.append(sources)
    images = torch.cat(stamps).index_select(0, torch.cat(order).argsort())
    return images.reshape(*leading, size, size)


def _check_shapes(psf: Tensor, leading: torch.Size, *, pixel_scale: float, size: int) -> None:
    check_positive(pixel_scale=pixel_scale)
    if psf.ndim == 3 and (not leading or len(psf) != leading[0]):
        raise ValueError(f"psf must be one for all or one for each of {tuple(leading)[:1]}, got {len(psf)}")
    shape = tuple(psf.shape)
    if psf.ndim not in (2, 3) or shape[-2] != shape[-1] or shape[-1] % 2 == 0:
        raise ValueError(f"psf must be square with an odd number of pixels on a side, got shape {shape}")
    if shape[-1] > size:
        raise ValueError(f"psf must be no larger than the stamp of {size} pixels, got shape {shape}")


def _check_values(components: Components, size: int) -> None:
    margin = size / 4
    inside = (f"must be within {margin:g} pixels of the stamp", lambda v: (v >= -margin) & (v <= size - 1 + margin))
    rules = {
        "half_light_radius": ("must be positive", lambda v: v > 0),
        "sersic_index": ("must be 0.5 to 6", lambda v: (v >= _INDEX_RANGE[0]) & (v <= _INDEX_RANGE[1])),
        "axis_ratio": ("must be in (0, 1]", lambda v: (v > 0) & (v <= 1)),
        "x": inside,
        "y": inside,
    }
    for name, (rule, valid) in rules.items():
        value = getattr(components, name).detach()
        wrong = components.present & ~valid(value)
        if wrong.any():
            raise ValueError(f"{name} {rule}, got {value[wrong][0]:.6g}")


def _grid_length(size: int) -> int:
    """Length of a grid for the Fourier transform that is half as long again as `size`, or a little longer."""
    return min(number for a in range(1, 16) for b in range(10) if (number := 2**a * 3**b) >= 1.5 * size)


def _is_extended(values: Tensor, present: Tensor, length: int, pixel_scale: float, size: int) -> Tensor:
    """Whether any component of a source is still too bright where its nearest copy meets the stamp."""
    _, radius, index, ratio, _, x, y = values.unbind(-1)
    inside = torch.stack([x, size - 1 - x, y, size - 1 - y]).amin(0)
    distance = pixel_scale * (length - size + 1 + inside) * ratio.sqrt() / radius
    contrast = torch.exp(-_interpolate_index(_scale_nodes, index) * distance.clamp(min=0) ** (1 / index))
    return (present & (contrast > _CONTRAST)).any(-1)


def _render(values: Tensor, present: Tensor, transfer: Tensor, pixel_scale: float, size: int) -> Tensor:
    """Images (source, y, x) from parameters (galaxy, component, parameter) and the transform of the PSF or PSFs."""
    length, number = transfer.shape[-2], len(values)
    values, owner = values[present], present.nonzero()[:, 0]
    spectra = _spectra(values, length, pixel_scale)
    total = spectra.new_zeros(number, *spectra.shape[1:]).index_add(0, owner, spectra)
    periodic = torch.fft.irfft2(total * transfer, s=(length, length))[:, :size, :size]
    return periodic - _copies(values, owner, number, length, pixel_scale, size)


def _transfer(psf: Tensor, length: int) -> Tensor:
    """Transform (..., 2 l, l + 1) of the centered PSF."""
    half = psf.shape[-1] // 2
    padding = length - psf.shape[-1]
    centered = torch.nn.functional.pad(psf, (0, padding, 0, padding)).roll((-half, -half), (-2, -1))
    # The highest frequency of an even grid has no sign, so it cannot carry a shift or a shear.
    keep = torch.ones(length, dtype=psf.dtype, device=psf.device)
    keep[length // 2] = 0
    return torch.fft.rfft2(centered) * keep[:, None] * keep[: length // 2 + 1]


def _spectra(values: Tensor, length: int, pixel_scale: float) -> Tensor:
    """Return the transforms (component, 2 l, l + 1) of the components, before the PSF."""
    flux, radius, index, ratio, angle, x, y = (column[:, None] for column in values.unbind(-1))
    kx = 2 * torch.pi * torch.fft.rfftfreq(length, dtype=values.dtype, device=values.device)
    ky = 2 * torch.pi * torch.fft.fftfreq(length, dtype=values.dtype, device=values.device)
    major = radius / pixel_scale * ratio.rsqrt()
    minor = major * ratio
    along = (major * angle.cos() * kx)[:, None, :] + (major * angle.sin() * ky)[:, :, None]
    across = (minor * angle.cos() * ky)[:, :, None] - (minor * angle.sin() * kx)[:, None, :]
    amplitude = _sersic_transform(along.square() + across.square(), index[:, 0])
    shift_x = torch.complex(flux * (kx * x).cos(), -flux * (kx * x).sin())
    shift_y = torch.complex((ky * y).cos(), -(ky * y).sin())
    return amplitude * (shift_y[:, :, None] * shift_x[:, None, :])


def _sersic_transform(squared: Tensor, index: Tensor) -> Tensor:
    """Transform of the unit profile at (k r_e)^2, given (component, ...), for the index of each component."""
    cubics = _interpolate_index(_table, index)
    cells = cubics.shape[1]
    place = ((squared + _SOFTENING).log() * (0.5 / _LOG_STEP) - _LOG_START / _LOG_STEP).clamp(0, cells)
    cell = place.detach().floor().clamp(max=cells - 1)
    first = cells * torch.arange(len(index), device=index.device)
    rows = cell.int() + first.int().reshape(-1, *(1,) * (squared.ndim - 1))
    constant, linear, square, cube = torch.nn.functional.embedding(rows, cubics.flatten(0, 1)).unbind(-1)
    rest = place - cell
    return constant + rest * (linear + rest * (square + rest * cube))


def _copies(values: Tensor, owner: Tensor, number: int, length: int, pixel_scale: float, size: int) -> Tensor:
    """Light (source, y, x) that the periodic grid brings into the stamp from the copies around it."""
    total = values.new_zeros(number, size, size)
    for spacing, first, last, count in _RINGS:
        steps = torch.arange(-last, last + 1, device=values.device)
        rings = torch.cartesian_prod(steps, steps)
        shifts = spacing * length * rings[rings.abs().amax(1) >= first]
        nodes, basis = (torch.as_tensor(array).to(values) for array in _chebyshev(count, size))
        light = spacing**2 * _light(values, nodes, shifts, pixel_scale).sum(1)
        total = total + basis @ light.new_zeros(number, count, count).index_add(0, owner, light) @ basis.T
    return total


def _light(values: Tensor, nodes: Tensor, shifts: Tensor, pixel_scale: float) -> Tensor:
    """Flux per pixel (component, shift, y, x) of profiles moved by `shifts`, on a square grid of `nodes`."""
    flux, radius, index, ratio, angle, x, y = (column[:, None, None, None] for column in values.unbind(-1))
    dx = nodes - shifts[:, 0, None, None] - x
    dy = nodes[:, None] - shifts[:, 1, None, None] - y
    along = dx * angle.cos() + dy * angle.sin()
    across = dy * angle.cos() - dx * angle.sin()
    squared = pixel_scale**2 * (along.square() * ratio + across.square() / ratio)
    return pixel_scale**2 * sersic_surface_brightness(squared, flux, radius, index)


@cache
def _tensors(table: Callable[[], np.ndarray], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return the values of a table, and their slopes along the index."""
    nodes = table()
    slopes = CubicSpline(np.arange(len(nodes)), nodes)(np.arange(len(nodes)), 1)
    with torch.inference_mode(False):
        return [torch.as_tensor(array, dtype=dtype, device=device) for array in (nodes, slopes)]


def _interpolate_index(table: Callable[[], np.ndarray], index: Tensor) -> Tensor:
    """Evaluate the splines of a table, whose first axis is `TABLE_INDEX`: (*index, *rest)."""
    nodes, slopes = _tensors(table, index.dtype, index.device)
    step = np.log(TABLE_INDEX[1] / TABLE_INDEX[0])
    place = (index / TABLE_INDEX[0]).log() / step
    cell = place.detach().long().clamp(0, len(TABLE_INDEX) - 2)
    rest = (place - cell).reshape(index.shape + (1,) * (nodes.ndim - 1))
    low, high = nodes[cell], nodes[cell + 1]
    bend_low, bend_high = slopes[cell] - (high - low), slopes[cell + 1] - (high - low)
    return low + rest * (high - low) + rest * (1 - rest) * ((1 - rest) * bend_low - rest * bend_high)


def _table() -> np.ndarray:
    """Coefficients (index, cell, power) of the cubics along log k."""
    with (files("probdeblend") / "data" / "sersic_table.npy").open("rb") as file:
        nodes = np.load(file, allow_pickle=False).astype(float)
    return np.ascontiguousarray(CubicSpline(np.arange(nodes.shape[1]), nodes.T).c[::-1].T)


def _scale_nodes() -> np.ndarray:
    """Scale b of exp(-b (r / r_e)^(1/n)) at the nodes of the index."""
    return gammaincinv(2 * TABLE_INDEX, 0.5)


@cache
def _chebyshev(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of Chebyshev nodes over the stamp, and the matrix (pixel, node) that interpolates."""
    nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    weights = np.where(np.arange(count) == 0, 1, 2) / count
    at_pixels = chebvander(np.linspace(-1, 1, size), count - 1)
    return (nodes + 1) * (size - 1) / 2, (at_pixels * weights) @ chebvander(nodes, count - 1).T
