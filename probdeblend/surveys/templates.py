"""Real galaxies as the light of sources: their rims extended, turned, zoomed and observed anew by another camera.

An isolated galaxy is known as far as its footprint reaches. Beyond it, its light goes on from the level of the nearest
rim and falls exponentially, with the scale length of the galaxy's own outer profile. Its transform, over that of the
PSF that it was observed with and times that of the camera's, is summed at the camera's pixels. That is possible only
where the new PSF is the broader one, which limits how far a galaxy can be magnified; its own noise limits how bright it
can be.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..photometry.images import cut_stamps
from ..scene import SOURCE_TYPES
from ..simulation.cameras import Camera
from ..simulation.light import Light, Seen, SimulatedSources, Sources
from .library import Galaxy, identity_number

__all__ = ["RealGalaxies", "extended"]

NARROWER = 0.9  # largest width of a galaxy's own PSF, over that of the camera's
LEAST = 5.0  # signal-to-noise ratio of sources that a galaxy can stand for
NOISELESS = 1 / 3  # largest signal-to-noise ratio of a source, over that of the galaxy's own image
LARGEST = 0.1  # fraction of the galaxies that sources are made of that none can be magnified to
RIM = 3.0  # sky noise of a pixel at the rim of a footprint, where it is not known
SMOOTHING, FAINT_RIM = 2.0, 6.0  # pixels, and noise of smoothed pixels: fainter rims are replaced
CLEAR = 1e4  # sky noise
EXTENSION = 0.75  # of the frame beyond the footprint, over its size
TAPER = 0.12  # of the frame, over which light falls to zero at its edge
SCALE_LENGTHS = (0.1, 0.6)  # of the wings, over the radius of the footprint
POINT = 0.6  # half-light radius of a PSF, over 1 / sqrt(sum of its squares)
LEAST_TRANSFER = 0.02  # of a galaxy's own PSF: no frequency is divided by less
BAND_LIMIT = 1.5  # of what a camera sees, over its pixels' highest frequency


class _Template(NamedTuple):
    """What is known of a galaxy, in pixels of its own.

    - `light`, `psf (band, y, x)`: its extended light, of unit flux, and the PSFs that it was observed with.
    - `center`, `radius`: x, y in the frame, and the half-light radius.
    - `flux (band,)`, `snr (band,)`: its light in image units, and its signal-to-noise ratio.
    - `width`: of the broadest of its PSFs, 1 / sqrt(sum of its squares).
    """

    light: NDArray[np.float32]
    psf: NDArray[np.float32]
    center: NDArray[np.float64]
    radius: float
    flux: NDArray[np.float64]
    snr: NDArray[np.float64]
    width: float

    def bands(self, wanted: int) -> list[int]:
        """Return which bands stand for those of a camera: the reddest for one, otherwise from blue to red."""
        last = len(self.flux) - 1
        return [last] if wanted == 1 else np.linspace(0, last, wanted).round().astype(int).tolist()

    def limit(self, wanted: int) -> float:
        """Return the largest signal-to-noise ratio of a source in so many bands."""
        return NOISELESS * self.snr[self.bands(wanted)].min()


@dataclass(frozen=True, eq=False)
class RealGalaxies:
    """Sources made of isolated real galaxies, in place of simulated ones.

    Each source has the size that the population draws for it, as far as a galaxy can be magnified. Its total flux is
    not known, its AUTO flux is.

    Parameters
    ----------
    galaxies
        A library, of which those to keep are used.
    fraction
        Fraction of the galaxies that are real; stars are simulated.
    others
        What makes the light of the others.

    Raises
    ------
    ValueError
        If the library has no galaxy to keep.
    """

    galaxies: Sequence[Galaxy]
    fraction: float = 1.0
    others: Sources = field(default_factory=SimulatedSources)

    def __post_init__(self) -> None:
        if not self.kept:
            raise ValueError(f"galaxies must hold one to keep, got none of {len(self.galaxies)}")

    @cached_property
    def kept(self) -> list[Galaxy]:
        """The galaxies to use."""
        return [galaxy for galaxy in self.galaxies if galaxy.keep]

    @cached_property
    def templates(self) -> list[_Template]:
        """What is known of each galaxy to use."""
        return [_template(galaxy) for galaxy in self.kept]

    def __call__(self, drawn: Mapping[str, Tensor], camera: Camera) -> Light:
        """Choose galaxies, and how each is turned and zoomed.

        Parameters
        ----------
        drawn
            Values ``(source,)`` of `Population.source`, and centers ``x``, ``y`` in pixels.
        camera
            What sees them.

        Returns
        -------
        Light
            The light.
        """
        others, count = self.others(drawn, camera), len(drawn["x"])
        real = (drawn["source_type"] != SOURCE_TYPES.index("star")) & (torch.rand(count) < self.fraction)
        turn, choice = torch.randint(8, (count,)), torch.rand(count)
        radius = drawn["half_light_radius"] * drawn["axis_ratio"].sqrt() / camera.pixel_scale
        wanted = drawn["ln_snr"].exp() if "ln_snr" in drawn else torch.zeros(count)
        width = float(camera.psf.square().sum((1, 2)).rsqrt().min())
        limits = [(t.radius, NARROWER * width / t.width, t.limit(len(camera))) for t in self.templates]
        own, largest, snr = np.array(limits).T
        if not (enough := snr >= LEAST).any():
            raise ValueError(
                f"galaxies must hold one with a signal-to-noise ratio of {LEAST / NOISELESS:.0f}, got none"
            )
        reach = own * largest
        far = reach >= np.quantile(reach, 1 - LARGEST)
        number, zoom = torch.full((count,), -1), torch.ones(count)
        for i in real.nonzero()[:, 0].tolist():
            fits = ((reach >= float(radius[i])) | far) & enough
            fits = fits if fits.any() else enough
            bright = fits & (snr >= float(wanted[i]))
            among = np.flatnonzero(bright if bright.any() else fits)
            number[i] = int(among[int(choice[i] * len(among))])
            zoom[i] = min(float(radius[i]) / own[number[i]], largest[number[i]])
        return _RealLight(others, number, torch.stack([drawn["slope"], drawn["x"], drawn["y"], zoom, turn], 1), self)


@dataclass(frozen=True, eq=False)
class _RealLight:
    """The light of all sources as if they were simulated, the number of each one's galaxy, and how that is seen.

    A galaxy is seen at x, y, zoomed, and turned in one of eight ways; if its colors are not known, they follow the
    slope of ln flux with ln wavelength that stands before ``(source, 5)``.
    """

    others: Light
    number: Tensor
    placed: Tensor
    how: RealGalaxies

    @property
    def identity(self) -> Tensor:
        names = torch.tensor([identity_number(galaxy.identity) for galaxy in self.how.kept])
        return torch.where(self.number >= 0, names[self.number], self.others.identity)

    @property
    def ln_index(self) -> Tensor:
        return self.others.ln_index.masked_fill(self.number >= 0, torch.nan)

    def select(self, index: Tensor | slice) -> Self:
        chosen = {"number": self.number[index], "placed": self.placed[index]}
        return replace(self, others=self.others.select(index), **chosen)

    def seen(self, camera: Camera, *, corner: Tensor, size: int) -> Seen:
        real, bands = self.number >= 0, len(camera)
        rest = self.others.select(~real).seen(camera, corner=corner[~real], size=size)
        image, color, brightest = (v.new_zeros(len(real), *v.shape[1:]).index_put((~real,), v) for v in rest)
        for i in real.nonzero()[:, 0].tolist():
            number, (slope, x, y, *how) = int(self.number[i]), self.placed[i].tolist()
            own, place = self.how.templates[number], (x - float(corner[i, 0]), y - float(corner[i, 1]))
            image[i] = torch.from_numpy(_observed(own, camera, place, *how, size=size))
            brightest[i] = own.limit(bands)
            flux = (own.flux * 10 ** (-0.4 * self.how.kept[number].zero_point))[own.bands(bands)]
            known = np.isfinite(flux).all() and len(own.flux) >= bands
            usual = slope * (camera.wavelengths / camera.wavelengths[0]).log()
            color[i] = torch.from_numpy(np.log(flux / flux[0])) if known else usual
        return Seen(image, color, brightest)


def _observed(
    own: _Template, camera: Camera, place: tuple[float, float], zoom: float, turn: float, *, size: int
) -> NDArray[np.float32]:
    """Sum a galaxy's transform ``(band, y, x)`` at a camera's pixels, with its center at x, y."""
    psfs, scale, limit = (camera.psf, 1.0, 1.0) if camera.fine_psf is None else (camera.fine_psf, 0.5, BAND_LIMIT)
    first, second, swap = (bool(int(turn) >> bit & 1) for bit in range(3))
    sides = [np.arange(size) - value for value in (place[::-1] if swap else place)]
    turned = zip(sides, (first, second), own.center, strict=True)
    x, y = ((-1) ** flip * side / zoom + middle for side, flip, middle in turned)
    # A transform is periodic: the frame has room for the camera's PSF.
    side = own.light.shape[-1]
    frame = side + math.ceil(psfs.shape[-1] * scale / zoom)
    wave = 2 * np.pi / frame * np.arange(-(most := int(min(limit * zoom, 1.0) * (frame - 1) / 2)), most + 1)
    within = (np.abs(values - (side - 1) / 2) < frame / 2 for values in (x, y))
    at_x, at_y = (
        (known[:, None] * np.exp(1j * np.outer(values, wave))).astype(np.complex64)
        for values, known in zip((x, y), within, strict=True)
    )
    into, drawn = np.exp(-1j * np.outer(wave, np.arange(side))).astype(np.complex64), []
    for band, psf in zip(own.bands(len(camera)), psfs, strict=True):
        kernel = np.asarray(psf, dtype=float).T if swap else np.asarray(psf, dtype=float)
        blur, mine = _transfer(kernel[:: -1 if second else 1, :: -1 if first else 1], wave, scale / zoom), own.psf[band]
        sharp = (known := _transfer(mine, wave, 1.0)).conj() / np.maximum(np.abs(known), LEAST_TRANSFER) ** 2
        spectrum = into @ own.light[band] @ into.T * (blur * sharp / frame**2)
        image = (at_y @ spectrum @ at_x.T).real / zoom**2
        drawn.append(image.T if swap else image)
    return np.stack(drawn)


def _transfer(psf: NDArray[np.float64], wave: NDArray[np.float64], scale: float) -> NDArray[np.complex64]:
    """Transform of a PSF ``(y, x)`` around its middle, whose pixels have sides of `scale`, at some wavenumbers."""
    offset = scale * (np.arange(len(psf)) - (len(psf) - 1) / 2)
    at = np.exp(-1j * np.outer(wave, offset))
    return (at @ psf @ at.T / psf.sum()).astype(np.complex64)


def _template(galaxy: Galaxy) -> _Template:
    """Extend a galaxy and measure it."""
    light = extended(galaxy)
    widths = 1 / np.sqrt(np.square(galaxy.psf, dtype=float).sum((1, 2)))
    image = light.sum(0)
    bright = np.where(image > 0.2 * ndimage.gaussian_filter(image, 1).max(), image, 0)
    center = np.array([(bright * axis).sum() / bright.sum() for axis in np.indices(image.shape)[::-1]])
    ordered = np.sort(image.ravel())[::-1].cumsum()
    radius = math.sqrt(np.searchsorted(ordered, ordered[-1] / 2) / math.pi)
    radius = max(radius**2 - (POINT * widths.mean()) ** 2, (0.3 * radius) ** 2) ** 0.5
    pixels = galaxy.pixels[:, galaxy.footprint].astype(float)
    rim = [np.quantile(band[band > 0], 0.05) / RIM if (band > 0).any() else np.inf for band in pixels]
    rms = np.where(np.isfinite(galaxy.sky_rms), galaxy.sky_rms, rim)
    flux = light.sum((1, 2))
    snr = np.sqrt(np.maximum((np.square(pixels / rms[:, None]) - 1).sum(1), 0)) * (flux > 0)
    light = light / np.where(flux > 0, flux, np.inf)[:, None, None]
    return _Template(light.astype(np.float32), galaxy.psf, center, radius, flux, snr, widths.max())


def extended(galaxy: Galaxy) -> NDArray[np.float64]:
    """Return a galaxy's light in a larger frame, with what lies beyond its footprint.

    Parameters
    ----------
    galaxy
        The galaxy.

    Returns
    -------
    ndarray
        Light ``(band, y, x)`` in image units; beyond the footprint and where that is but noise, exponentials
        that end smoothly at the edge of the frame.
    """
    trusted = _above_noise(galaxy)
    filled = ndimage.binary_fill_holes(trusted)
    ends = [np.flatnonzero(filled.any(axis))[[0, -1]] for axis in (0, 1)]
    reach = max(int(last - first) + 1 for first, last in ends)
    side = reach + 2 * int(EXTENSION * reach)
    corner = [int(first + last + 1 - side) // 2 for first, last in ends]
    known = (trusted, filled, *galaxy.pixels)
    inside, filled, *pixels = (cut_stamps(values.astype(float), corner, side)[0] for values in known)
    ramp = np.sin(np.pi / 2 * np.clip(np.minimum(np.arange(side), np.arange(side)[::-1]) / (TAPER * side), 0, 1)) ** 2
    return np.stack([ramp[:, None] * ramp * _with_wings(band, inside == 1, filled == 1) for band in pixels])


def _above_noise(galaxy: Galaxy) -> NDArray[np.bool_]:
    """Return the part of a footprint, around its brightest pixels, where the light exceeds the noise once smoothed."""
    rms = np.where(np.isfinite(galaxy.sky_rms), galaxy.sky_rms, 0.0)[:, None, None]
    ratio = np.divide(galaxy.pixels, rms, out=np.full(galaxy.pixels.shape, np.inf), where=rms > 0)
    inside = galaxy.footprint.astype(float)
    ratio = np.where(galaxy.footprint, np.minimum(ratio, CLEAR).sum(0) / len(rms) ** 0.5, 0.0)
    smooth = ndimage.gaussian_filter(ratio, SMOOTHING) / np.maximum(ndimage.gaussian_filter(inside, SMOOTHING), 0.1)
    bright = galaxy.footprint & (2 * SMOOTHING * math.pi**0.5 * smooth > FAINT_RIM)
    labels, some = ndimage.label(bright, np.ones((3, 3)))
    place = np.unravel_index(np.argmax(np.where(labels > 0, smooth, -np.inf)), labels.shape)
    return labels == labels[place] if some else galaxy.footprint


def _with_wings(
    pixels: NDArray[np.float64], inside: NDArray[np.bool_], filled: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Continue the light inside of a footprint beyond it and in its holes."""
    distance, nearest = ndimage.distance_transform_edt(~inside, return_indices=True)
    pixels, depth = np.where(inside, pixels, 0.0), ndimage.distance_transform_edt(filled)
    radius = math.sqrt(filled.sum() / math.pi)
    edges = pairwise(np.linspace(0, 0.5, 6) * radius)
    rings = [((low + high) / 2, inside & (depth > low) & (depth <= high)) for low, high in edges]
    known = [(middle, pixels[ring].mean()) for middle, ring in rings if ring.any()]
    at, means = np.array(known or [(0.0, 0.0)]).T
    lit = len(at) > 1 and means.max() > 0
    slope = np.polyfit(at, np.log(np.maximum(means, 1e-3 * means.max())), 1)[0] if lit else 0.0
    scale = 1 / np.clip(slope, *(1 / (limit * radius) for limit in reversed(SCALE_LENGTHS)))
    rim = inside & (depth < 0.2 * radius + 1)
    weight, level = (ndimage.gaussian_filter(np.where(rim, v, 0.0), 0.1 * radius, truncate=3) for v in (1.0, pixels))
    level = np.maximum(level / np.maximum(weight, 1e-3), 0)
    wings = ndimage.gaussian_filter(level[tuple(nearest)] * np.exp(-distance / scale), 1.0)
    return np.where(inside, pixels, wings)
