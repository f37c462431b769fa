"""Scenes of isolated real galaxies, put into sky.

A library galaxy is turned by quarters and flipped, made fainter within limits, and moved by whole pixels. It brings the
pixels of its footprint, which hold its own sky noise; there, the noise of the sky that it is put into is reduced by as
much. The sky is noise with the instrument's correlation, as deep as the shallowest of the galaxies' images. How many
galaxies a scene holds, and where, is drawn as in simulations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ..photometry.images import cut_stamps
from ..photometry.sky import draw_noise
from ..scene import STAMP_SIZE, Scene, seeded
from ..simulation.cameras import Camera
from ..simulation.population import Population
from ..simulation.positions import Frame
from ..simulation.workers import in_batches
from .stamps import Library, identity_number

__all__ = ["Injector"]

TRIES = 1000  # to find galaxies of magnitudes that differ little enough


@dataclass(frozen=True, eq=False)
class Injector:
    """Isolated real galaxies, and how scenes are made of them.

    Parameters
    ----------
    library
        The galaxies, of which those with `Library.keep` are used.
    instrument
        PSF, pixel scale, zero point and noise correlation of the scenes; the library's images must have this PSF.
    population
        Gives the number of galaxies, the law of their positions and the largest difference of magnitudes.
    size
        Pixels on a side of the images.
    dimming
        Largest number of magnitudes by which galaxies are made fainter.

    Raises
    ------
    ValueError
        If the library has too few galaxies with magnitudes for the largest scene, or a number is out of its range.
    """

    library: Library
    instrument: Camera
    population: Population = field(default_factory=Population.default)
    size: int = STAMP_SIZE
    dimming: float = 1.0

    def __post_init__(self) -> None:
        if not self.dimming >= 0:
            raise ValueError(f"dimming must not be negative, got {self.dimming}")
        if self.size < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        if (found := len(self._stamps_of)) < (most := len(self.population.number) - 1):
            raise ValueError(f"library must hold {most} galaxies to keep, with magnitudes, got {found}")

    @cached_property
    def _kept(self) -> Library:
        """The galaxies to use, zero beyond their footprints."""
        kept = self.library.select(self.library.keep & np.isfinite(self.library.magnitude))
        return replace(kept, pixels=kept.pixels * kept.footprint)

    @cached_property
    def _stamps_of(self) -> list[NDArray[np.int64]]:
        """The stamps of each galaxy."""
        return [np.flatnonzero(self._kept.identity == name) for name in np.unique(self._kept.identity)]

    def batches(
        self, count: int, *, seed: int = 0, batch_size: int = 64, first: int = 0, workers: int = 0
    ) -> Iterator[Scene]:
        """Make scenes batch by batch; batch i depends on the seed and i alone.

        Parameters
        ----------
        count
            Number of scenes.
        seed
            Same seed, same scenes.
        batch_size
            Scenes per batch; the last one holds the remainder.
        first
            Number of the first batch to make.
        workers
            Number of processes; the scenes do not depend on it.

        Returns
        -------
        iterator of Scene
            Scenes with their truth: AUTO fluxes (total ones are NaN), each galaxy's light with its own noise,
            positions, types (-1 if unknown) and identities.

        Raises
        ------
        ValueError
            If a number is negative, or no galaxies of magnitudes that differ little enough are found.
        """
        return in_batches(self._batch, count, seed=seed, batch_size=batch_size, first=first, workers=workers)

    def _batch(self, key: tuple[int, int], count: int) -> Scene:
        rng = np.random.default_rng(key)
        return Scene.join([self._scene(rng) for _ in range(count)])

    def _scene(self, rng: np.random.Generator) -> Scene:
        """Make one scene."""
        chosen, dimmed = self._choose(rng)
        own, instrument = self._kept.select(chosen), self.instrument
        unit = 10 ** (0.4 * (instrument.zero_point[0] - own.zero_point))
        factor = unit * 10 ** (-0.4 * dimmed)
        center = self._places(own, rng)
        light, variance = np.zeros((len(own), self.size, self.size)), np.zeros((self.size, self.size))
        for i, index in enumerate(chosen):
            turn = int(rng.integers(4)), bool(rng.integers(2))
            inside = _turned_center(own.x[i], own.y[i], *turn)
            corner = np.rint(center[i] - inside).astype(int)
            pixels = np.nan_to_num(cut_stamps(_turned(self._kept.pixels[index], *turn), -corner, self.size)[0])
            center[i] = corner + inside
            light[i] = factor[i] * pixels
            variance += (pixels != 0) * (factor[i] * own.sky_rms[i]) ** 2
        sky_rms = float(max(unit * own.sky_rms, default=instrument.sky_rms[0]))
        noise = sky_rms * draw_noise(variance.shape, instrument.noise_kernel[0], rng)
        image = light.sum(0) + noise * np.sqrt(np.clip(1 - variance / sky_rms**2, 0, None))
        exposure = np.median(own.exposure / unit) if len(own) else instrument.exposure[0]
        truth = {"x": center[:, 0], "y": center[:, 1], "light": light[:, None]}
        truth |= {"auto_flux": (factor * own.auto_flux)[:, None], "flux": np.full((len(own), 1), np.nan)}
        return Scene(
            image=torch.from_numpy(image)[None, None].float(),
            sky_rms=torch.tensor([[sky_rms]]),
            exposure=torch.tensor([[float(exposure)]]),
            psf=instrument.psf[None].cpu(),
            noise_kernel=instrument.noise_kernel[None].cpu(),
            pixel_scale=instrument.pixel_scale,
            zero_point=instrument.zero_point,
            scene=torch.zeros(len(own), dtype=torch.long),
            source_type=torch.from_numpy(own.galaxy_type),
            identity=torch.tensor([identity_number(name) for name in own.identity], dtype=torch.long),
            **{name: torch.from_numpy(values).float() for name, values in truth.items()},
        )

    def _choose(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw distinct galaxies, all identities equally likely, and their dimming."""
        number = int(rng.choice(len(self.population.number), p=self.population.number))
        most = self.population.max_difference
        for _ in range(TRIES):
            picked = rng.choice(len(self._stamps_of), size=number, replace=False)
            chosen = np.array([rng.choice(self._stamps_of[identity]) for identity in picked], dtype=int)
            dimmed = rng.uniform(0.0, self.dimming, number)
            magnitude = self._kept.magnitude[chosen] + dimmed
            if (np.abs(magnitude - magnitude[:1]) < most).all():
                return chosen, dimmed
        raise ValueError(f"library must contain {number} galaxies within {most} mag of each other, found none")

    def _places(self, own: Library, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw centers ``(galaxy, 2)``, x before y."""
        if not len(own):
            return np.zeros((0, 2))
        radius = torch.from_numpy(own.half_light_radius)[None].float()
        values = {"half_light_radius": radius, "axis_ratio": torch.ones_like(radius), "source_type": 0 * radius.long()}
        frame = Frame((self.size, self.size), self.instrument.pixel_scale, self.instrument.blur)
        with seeded(int(rng.integers(2**62))):
            return self.population.positions(values, frame)[0].double().numpy()


def _turned(pixels: NDArray, quarters: int, flip: bool) -> NDArray:
    return np.rot90(pixels[:, ::-1] if flip else pixels, -quarters)


def _turned_center(x: float, y: float, quarters: int, flip: bool) -> NDArray[np.float64]:
    x = STAMP_SIZE - 1 - x if flip else x
    for _ in range(quarters):
        x, y = STAMP_SIZE - 1 - y, x
    return np.array([x, y])
