"""The vocabulary of the package: scenes of any number of sources, and groups of sources that overlap.

Axes are always ``(scene, band, y, x)`` for images and ``(source, band)`` for fluxes. Pixel (0, 0) is the center of the
first pixel, angles are in radians from +x toward +y, sizes in arcsec.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "GALAXY_TYPES", "LN_FLUX_UNIT", "MASK_THRESHOLD", "PIXEL_SCALE_TOLERANCE", "PSF_SIZE", "SOURCE_TYPES", "STAMP_SIZE",
    "Scene", "drizzle_kernel", "on_cpu", "overlap_groups", "seed_of", "seeded",
]  # fmt: skip

STAMP_SIZE = 128
PSF_SIZE = 41  # pixels on a side of the PSFs that networks see
MASK_THRESHOLD = 3.0  # a pixel is in the mask of a galaxy whose own light exceeds so many times the sky noise
PIXEL_SCALE_TOLERANCE = 0.02  # relative; a larger mismatch biases sizes and fluxes
LN_FLUX_UNIT = 2.5 / math.log(10)  # magnitudes in a factor of e in flux
GALAXY_TYPES = ("sph", "disk", "sphd", "irr")
SOURCE_TYPES = (*GALAXY_TYPES, "star")
ALONE = threading.RLock()  # held while a state of the whole process is changed
SCENE_FIELDS = ("image", "sky_rms", "psf", "exposure", "noise_kernel", "wavelength")
SOURCE_FIELDS = ("scene", "x", "y", "flux", "auto_flux", "light")
SOURCE_FIELDS += ("source_type", "half_light_radius", "axis_ratio", "angle", "identity")


def drizzle_kernel(strength: float) -> Tensor:
    """Return a kernel of the noise of drizzled images.

    Parameters
    ----------
    strength
        How correlated neighboring pixels are, relative to the mosaics of CANDELS; 0 is white noise.

    Returns
    -------
    Tensor
        Kernel ``(3, 3)`` that turns white noise into such noise, with 1 in the middle.
    """
    edge, corner = strength * 0.2910, strength * 0.1252
    return torch.from_numpy(np.float32([[corner, edge, corner], [edge, 1.0, edge], [corner, edge, corner]]))


def correlation_sum(kernel: Tensor) -> Tensor:
    """Return the variance ``(...)`` of sums over large areas relative to that of white noise with the same rms.

    The noise is white noise convolved with kernels ``(..., y, x)``.
    """
    return kernel.sum((-2, -1)).square() / kernel.square().sum((-2, -1))


@dataclass(frozen=True, eq=False)
class Scene:
    """A batch of scenes: images of one shape, how they were taken, and the sources in them where they are known.

    Sources stand in one flat list, whatever their number in each scene, ordered by scene.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(scene, band, y, x)``.
    sky_rms
        Sky noise of a pixel ``(scene, band)`` in image units.
    psf
        Effective PSF ``(scene, band, y, x)`` of unit sum, with an odd number of pixels on a side.
    pixel_scale
        Size of a pixel in arcsec.
    exposure
        Counts per unit of flux ``(scene, band)``; infinite, as by default, where photon noise does not matter.
    noise_kernel
        Kernel ``(scene, band, y, x)`` that turns white noise into the noise of the sky; by default the noise is white.
    wavelength
        Wavelength of each band in micron ``(scene, band)``; NaN, as by default, where unknown.
    zero_point
        AB magnitude of unit flux, for each band; empty if unknown.
    scene
        The scene of each source ``(source,)``, not decreasing.
    x, y
        Centers ``(source,)`` in pixels.
    flux
        Total flux ``(source, band)``: the integral of the profile; NaN where unknown, as of real galaxies.
    auto_flux
        Kron flux ``(source, band)`` that SEP would measure were the source isolated; NaN where unknown.
    light
        Noiseless image ``(source, band, y, x)`` of each source alone.
    source_type
        Index into `SOURCE_TYPES` ``(source,)``.
    half_light_radius
        Circularized half-light radius ``(source,)`` in arcsec; NaN for stars.
    axis_ratio, angle
        Minor over major axis, and angle of the major axis in radians from +x to +y ``(source,)``.
    identity
        Number of the source in its library ``(source,)``, -1 for none.

    Raises
    ------
    ValueError
        If shapes disagree, a sky noise is not positive and finite, or sources are not ordered by scene.
    """

    image: Tensor
    sky_rms: Tensor
    psf: Tensor
    pixel_scale: float
    exposure: Tensor | None = None
    noise_kernel: Tensor | None = None
    wavelength: Tensor | None = None
    zero_point: tuple[float, ...] = ()
    scene: Tensor | None = None
    x: Tensor | None = None
    y: Tensor | None = None
    flux: Tensor | None = None
    auto_flux: Tensor | None = None
    light: Tensor | None = None
    source_type: Tensor | None = None
    half_light_radius: Tensor | None = None
    axis_ratio: Tensor | None = None
    angle: Tensor | None = None
    identity: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 4:
            raise ValueError(f"image must have the axes (scene, band, y, x), got shape {tuple(self.image.shape)}")
        scenes, bands, *pixels = self.image.shape
        check_conditions(vars(self), scenes, bands)
        if self.scene is None:
            return
        number = self.scene.tolist()
        if number != sorted(number) or (number and not 0 <= number[0] <= number[-1] < scenes):
            raise ValueError(f"scene must not decrease and be below {scenes}")
        sources = len(self.scene)
        shapes = dict.fromkeys(("flux", "auto_flux"), (sources, bands)) | {"light": (sources, bands, *pixels)}
        for name in SOURCE_FIELDS[1:]:
            value, shape = getattr(self, name), shapes.get(name, (sources,))
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def count(self) -> Tensor:
        """Number of sources in each scene ``(scene,)``."""
        return torch.bincount(self.scene, minlength=len(self))

    @property
    def photon(self) -> Tensor:
        """Variance that light of one sky rms in a pixel adds, over that of the sky ``(scene, band)``."""
        return 1 / (self.exposure * self.sky_rms * correlation_sum(self.noise_kernel))

    @property
    def mask(self) -> Tensor:
        """Pixels ``(source, y, x)`` where the noiseless light of a source alone exceeds 3 sky rms, all bands together.

        The bands add in quadrature, each over its own sky noise.
        """
        if self.light is None:
            raise ValueError("light of each source must be known to tell its mask, got a scene without")
        over = self.light / self.sky_rms[self.scene][..., None, None]
        return over.square().sum(1) > MASK_THRESHOLD**2

    @property
    def group(self) -> Tensor:
        """Number of the group ``(source,)`` of each source: sources of a scene whose masks share a pixel, and so on."""
        groups, start, number = torch.zeros(len(self.scene), dtype=torch.long), 0, 0
        for masks in self.mask.flatten(1).split(self.count.tolist()):
            for members in overlap_groups(masks.float() @ masks.float().T, link=0.5):
                groups[start + torch.tensor(members)] = number
                number += 1
            start += len(masks)
        return groups

    def select(self, scenes: Tensor | slice) -> Self:
        """Return some of the scenes, with their sources.

        Parameters
        ----------
        scenes
            A slice, or increasing indices.

        Returns
        -------
        Scene
            The scenes, renumbered.
        """
        index = torch.arange(len(self))[scenes]
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: values[name][index] for name in SCENE_FIELDS}
        if self.scene is not None:
            number = torch.full((len(self),), -1)
            number[index] = torch.arange(len(index))
            kept = number[self.scene] >= 0
            values |= {name: values[name][kept] for name in SOURCE_FIELDS if values[name] is not None}
            values["scene"] = number[values["scene"]]
        return type(self)(**values)

    @classmethod
    def join(cls, batches: Iterable[Self]) -> Self:
        """Return the scenes of several batches, with the same known fields, as one batch.

        Parameters
        ----------
        batches
            Batches that know the same fields.

        Returns
        -------
        Scene
            All scenes, in the order of the batches.
        """
        batches = list(batches)
        values = {f.name: getattr(batches[0], f.name) for f in fields(cls)}
        known = [name for name in SCENE_FIELDS + SOURCE_FIELDS if values[name] is not None]
        values |= {name: torch.cat([getattr(batch, name) for batch in batches]) for name in known}
        if batches[0].scene is not None:
            start = np.cumsum([0, *map(len, batches)])
            values["scene"] = torch.cat([batch.scene + int(n) for batch, n in zip(batches, start, strict=False)])
        return cls(**values)


def check_conditions(known: dict[str, Any], *axes: int) -> None:
    """Check what is known of how images were taken, and fill in the rest: white noise, no photon noise, no wavelength.

    Values are arrays with the lengths of `axes`, of which the last one is that of the bands.
    """
    white = torch.ones_like(known["sky_rms"])
    usual = {"exposure": white * math.inf, "noise_kernel": white[..., None, None], "wavelength": white * math.nan}
    known |= {name: value for name, value in usual.items() if known[name] is None}
    for name in SCENE_FIELDS[1:]:
        value, pixels = known[name], 2 * (name in ("psf", "noise_kernel"))
        if tuple(value.shape[: len(axes)]) != axes or value.ndim != len(axes) + pixels:
            raise ValueError(f"{name} must begin with the axes {axes}, got {tuple(value.shape)}")
    rms, exposure, wavelength = (known[name] for name in ("sky_rms", "exposure", "wavelength"))
    wrong = {"sky_rms": ~((rms > 0) & rms.isfinite()), "exposure": ~(exposure > 0), "wavelength": wavelength <= 0}
    for name, bad in wrong.items():
        if bool(bad.any()):
            number = "positive and finite" if name == "sky_rms" else "positive"
            raise ValueError(f"{name} must be {number}, got {float(known[name][bad][0])}")
    scale, points = known["pixel_scale"], known["zero_point"]
    if not 0 < scale < math.inf or len(points) not in (0, axes[-1]):
        one = f"one for each of {axes[-1]} bands"
        raise ValueError(f"pixel_scale must be positive, and zero_point {one}, got {scale} and {points}")


def check_least(least: int, **values: int) -> None:
    """Refuse numbers that are below the least one."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_positive(**values: float) -> None:
    """Refuse numbers that are not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def overlap_groups(overlap: Tensor, *, link: float = 1.0, most: int = 16) -> list[list[int]]:
    """Return the groups of sources that overlap, each in increasing order: friends of friends.

    Links count from the strongest to the weakest; one that would make a group larger than `most` is left out.

    Parameters
    ----------
    overlap
        Expected number of pixels ``(source, source)`` that the masks of two sources share.
    link
        Two sources with a larger overlap belong together.
    most
        Largest group.

    Returns
    -------
    list of list of int
        The members of each group, ordered by the first member.
    """
    group = {source: [source] for source in range(len(overlap))}
    first, second = torch.nonzero(torch.triu(overlap, 1) > link, as_tuple=True)
    order = torch.argsort(overlap[first, second], descending=True, stable=True)
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if group[i] is not group[j] and len(group[i]) + len(group[j]) <= most:
            merged = sorted(group[i] + group[j])
            for source in merged:
                group[source] = merged
    return [members for source, members in group.items() if source == members[0]]


def seed_of(*key: int) -> int:
    """Return a seed for torch that depends on a key; zeros at the end of the key do not count.

    Parameters
    ----------
    *key
        Integers, at least 0.

    Returns
    -------
    int
        63 random bits.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def on_cpu() -> AbstractContextManager:
    """Make the CPU torch's default device, if it is not: a device that is asked for slows each operation down.

    Returns
    -------
    context manager
        In whose ``with`` block new tensors are on the CPU.
    """
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator in the ``with`` block, which only one thread at a time may be in.

    Pyro and torch's distributions draw from the generator of the process, and with its default type and device: these
    are float32 and the CPU in the block, and as before afterwards.

    Parameters
    ----------
    seed
        Same seed, same random numbers.

    Yields
    ------
    None
        While the generator is seeded.
    """
    with ALONE, torch.random.fork_rng(devices=[]), on_cpu(), torch.autocast("cpu", enabled=False):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
