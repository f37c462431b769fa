"""Tests of real galaxies that need no truth: one galaxy measured twice, by the same network.

What two measurements have in common cancels: the light that a model of galaxies leaves out of a faint halo is left out
of both. The difference over the two errors, added in quadrature, scatters by 1 if the errors are those of noise and of
blending alone, and by less if they allow for more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._scenes import flat_draws, positions
from probdeblend.deblending.deblender import Deblends
from probdeblend.photometry.noise import add_noise
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import SCENE_FIELDS, Scene, seed_of
from probdeblend.training.evaluation import signal_to_noise

__all__ = ["blending_excess", "difference", "isolated", "ln_flux"]

LOW, MIDDLE, HIGH = 0.15866, 0.5, 0.84134  # one sigma of a normal distribution
FAINTEST = 1e-30


def blending_excess(deblender: Deblends, scenes: Scene, *, kind: str = "auto", seed: int = 0) -> dict[str, NDArray]:
    """Measure the sources of scenes in their blend and alone, in noise of the same level.

    The scenes must know the light of each source; total and Kron fluxes are not looked at. Positions are the true ones.

    Returns
    -------
    dict
        Per source its scene, the number of sources there, the signal-to-noise ratio alone, and what `difference` finds
        between the blend and alone. Sources of a scene of one are measured twice alone.
    """
    alone = isolated(scenes, seed_of(seed, 1))
    blended = deblender.scenes(scenes, positions=positions(scenes), seed=seed)
    single = deblender.scenes(alone, positions=positions(alone), seed=seed)
    known = {"scene": scenes.scene.numpy(), "number": scenes.count[scenes.scene].numpy()}
    return known | {"snr": signal_to_noise(scenes)} | difference(blended, single, kind=kind)


def isolated(scenes: Scene, seed: int) -> Scene:
    """Return one scene for each source, with its light alone and fresh noise of the level of the scene it is from."""
    shared = {name: getattr(scenes, name)[scenes.scene] for name in SCENE_FIELDS}
    noise = {name: shared[name] for name in ("sky_rms", "exposure", "noise_kernel")}
    shared["image"] = add_noise(scenes.light, **noise, generator=torch.Generator().manual_seed(seed))
    return replace(scenes, scene=torch.arange(len(scenes.scene)), **shared)


def difference(first: Posterior, second: Posterior, *, kind: str = "auto") -> dict[str, NDArray]:
    """Compare the fluxes of the same sources in two posteriors, in the first band.

    Returns
    -------
    dict
        ``difference`` of ln flux, ``spread`` of each of the two as the half-width of its 68 % interval, and ``z``.
    """
    (one, one_spread), (two, two_spread) = (ln_flux(flat_draws(part, kind)[..., 0]) for part in (first, second))
    apart = one - two
    known = {"difference": apart, "spread": one_spread, "second_spread": two_spread}
    return known | {"z": apart / np.hypot(one_spread, two_spread)}


def ln_flux(draws: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return median and half-width of the 68 % interval of ln flux, over the first axis of draws of the flux."""
    low, middle, high = np.quantile(np.log(np.maximum(draws, FAINTEST)), (LOW, MIDDLE, HIGH), axis=0)
    return middle, (high - low) / 2
