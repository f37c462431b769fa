"""The scenes that benchmarks ask about, all drawn from the package's population by its simulator.

Scenes of one call are taken by one camera. Where cameras are drawn at random, a benchmark therefore asks for few at a
time, with the seed of each call its own.
"""

from __future__ import annotations

import numpy as np
import torch

from probdeblend.photometry.detection import auto_flux
from probdeblend.photometry.noise import add_noise
from probdeblend.scene import GALAXY_TYPES, SCENE_FIELDS, Scene, seed_of
from probdeblend.simulation.cameras import Camera, Cameras
from probdeblend.simulation.light import Sources
from probdeblend.simulation.population import Population
from probdeblend.simulation.profiles import Components, render
from probdeblend.simulation.scenes import simulate

__all__ = ["crowded_scenes", "mixed_scenes", "pair_at", "published_pairs", "published_scenes"]

SIDE = 96  # pixels, of scenes of any camera
FAINT_SNR = 2.0  # of sources that are in images but need not be found
DISK = GALAXY_TYPES.index("disk")
# Magnitudes 21.2 and 21.9 in the shallowest CANDELS images: alone, signal-to-noise ratios of 167 and 115 against all
# noise, correlations included.
FLUX, SKY_RMS = (80.0, 40.0), 8e-3  # electrons per second
HALF_LIGHT_RADIUS, SERSIC_INDEX = (0.4, 0.25), (1.2, 3.0)  # arcsec
AXIS_RATIOS, ANGLES = (0.6, 0.75), (0.4, 1.9)  # radians


def published_pairs(count: int, seed: int, *, size: int = 128, sources: Sources | None = None) -> Scene:
    """Draw pairs of the published population in CANDELS F160W, the central galaxy first and in the middle."""
    return simulate(count, sources=sources, size=size, number=2, seed=seed)


def published_scenes(number: int, count: int, seed: int) -> Scene:
    """Draw clustered scenes of CANDELS F160W."""
    population = Population.default().replace(size_scatter=0.0, star_fraction=0.1)
    return simulate(count, population=population, size=128, number=number, seed=seed)


def crowded_scenes(number: int, count: int, seed: int, *, cameras: Cameras | None = None) -> Scene:
    """Draw clustered scenes of a number of sources, taken by one camera of a population."""
    camera = (cameras or Cameras()).sample(np.random.default_rng(seed))
    return simulate(count, population=Population.default(), camera=camera, size=SIDE, number=number, seed=seed)


def mixed_scenes(count: int, seed: int) -> Scene:
    """Draw clustered scenes of 0 to 14 sources, faint ones among them, taken by one camera."""
    population = Population.default().replace(snr=(FAINT_SNR, 300.0))
    return simulate(
        count, population=population, camera=Cameras().sample(np.random.default_rng(seed)), size=SIDE, seed=seed
    )


def pair_at(places: tuple[tuple[float, float], ...], count: int, seed: int) -> Scene:
    """Return images of two galaxies at two places x, y in CANDELS F160W, each with noise of its own."""
    camera = Camera.candels_f160w(sky_rms=SKY_RMS)
    shapes = (FLUX, HALF_LIGHT_RADIUS, SERSIC_INDEX, AXIS_RATIOS, ANGLES, *zip(*places, strict=True))
    columns = [torch.tensor(values)[:, None] for values in shapes]
    drawn = Components(*columns, torch.ones(2, 1, dtype=torch.bool))
    light = render(drawn, camera.psf[0], pixel_scale=camera.pixel_scale)
    auto = torch.tensor([auto_flux(alone, SKY_RMS) for alone in light.double().numpy()])
    taken = ((name, getattr(camera, name)) for name in SCENE_FIELDS[1:])
    known = {name: value.expand(count, *value.shape) for name, value in taken}
    noise = {name: known[name] for name in ("sky_rms", "exposure", "noise_kernel")}
    generator = torch.Generator().manual_seed(seed_of(seed, 1))
    flux, radius, _, ratio, angle, x, y = (column[:, 0].repeat(count) for column in columns)
    return Scene(
        image=add_noise(light.sum(0).expand(count, 1, -1, -1), **noise, generator=generator),
        pixel_scale=camera.pixel_scale,
        zero_point=camera.zero_point,
        scene=torch.arange(count).repeat_interleave(2),
        x=x,
        y=y,
        flux=flux[:, None],
        auto_flux=auto.float().repeat(count)[:, None],
        light=light.repeat(count, 1, 1)[:, None],
        source_type=torch.full((2 * count,), DISK),
        half_light_radius=radius,
        axis_ratio=ratio,
        angle=angle,
        **known,
    )
