"""Posteriors against GalSim: draws of the fluxes, rendered by GalSim, beside the image that they were drawn from.

A network answers with fluxes; the shapes, which GalSim needs too, are the true ones of the simulation. Three models of
each image are compared with it inside the galaxies' footprints, as residuals over the noise of sky and photons:

- the truth, whose mean square is 1 if GalSim and the noise are what they are taken to be;
- the fluxes that fit best under GalSim's shapes, by least squares;
- the posterior: its median, and single draws.

The best fit is not in the network's sight, and better than the network can do without the shapes. If posteriors are
right, their intervals hold it about as often as they hold the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from probdeblend.metrics.arrays import ONE_SIGMA
from probdeblend.photometry.noise import add_noise, noise_rms
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import MASK_THRESHOLD, Blend, Instrument
from probdeblend.simulation.galsim import render_galsim, render_torch
from probdeblend.simulation.prior import Prior

__all__ = ["Predictive", "predictive_check", "zero_point_error"]

BATCH = 16


@dataclass(frozen=True, eq=False)
class Predictive:
    """How posteriors, rendered by GalSim, compare with their images.

    Parameters
    ----------
    chi_square
        Mean squared residual over noise inside the footprints by model ("truth", "best fit", "median", "draw")
        ``(blend,)``.
    covers_fit
        Whether the 68 % interval of each flux holds the flux that fits best ``(blend, galaxy)``.
    covers_truth
        Whether it holds the true one ``(blend, galaxy)``.
    image, residual
        Some images, and their residuals over noise from the median model ``(blend, y, x)``.
    """

    chi_square: dict[str, NDArray[np.float64]]
    covers_fit: NDArray[np.bool_]
    covers_truth: NDArray[np.bool_]
    image: NDArray[np.float64]
    residual: NDArray[np.float64]


def predictive_check(
    deblender: Callable[..., Posterior],
    *,
    count: int = 100,
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Predictive:
    """Render posterior draws with GalSim and compare them with the images.

    Parameters
    ----------
    deblender
        Called as a `~probdeblend.deblending.deblender.Deblender`.
    count
        Number of blends.
    draws, passes, seed
        Given to the deblender; the seed draws the blends too.
    progress
        Show a progress bar.

    Returns
    -------
    Predictive
        Of blends that GalSim drew from the published population.

    Raises
    ------
    ValueError
        If `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    instrument, prior = Instrument.candels_f160w(), Prior.published()
    parts = []
    for start in tqdm(range(0, count, BATCH), desc="GalSim", unit="batch", disable=not progress, leave=False):
        size = min(BATCH, count - start)
        pairs = prior.sample(size, seed=1000 * (seed + 1) + start)
        components = prior.components(pairs, instrument, seed=1000 * (seed + 1) + start + 1)
        isolated = render_galsim(components, instrument).double()
        noise = {name: torch.full((size,), getattr(instrument, name)) for name in ("sky_rms", "exposure")}
        generator = torch.Generator().manual_seed(1000 * (seed + 1) + start + 2)
        image = add_noise(isolated.sum(1, keepdim=True).float(), instrument, **noise, generator=generator)
        answer = deblender(image, sky_rms=noise["sky_rms"], draws=draws, passes=passes, seed=seed + start)
        flux = answer.draws("blend", "galaxy", "band")[:, :, 0]
        parts.append(_compared(image[:, 0].double(), isolated, components.total_flux.double(), flux, instrument))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    models = ("truth", "best fit", "median", "draw")
    return Predictive(
        {model: joined.pop(model) for model in models},
        image=joined["image"][:BATCH],
        residual=joined["residual"][:BATCH],
        covers_fit=joined["covers_fit"],
        covers_truth=joined["covers_truth"],
    )


def _compared(
    image: torch.Tensor, isolated: torch.Tensor, truth: torch.Tensor, flux: NDArray, instrument: Instrument
) -> dict[str, NDArray]:
    shape = isolated / truth[..., None, None]  # light of unit flux
    light = isolated.sum(1)
    ones = torch.ones(len(image))
    sky, exposure = instrument.sky_rms * ones, instrument.exposure * ones
    rms = noise_rms(light, sky[:, None, None], exposure[:, None, None], kernel=instrument.noise_kernel).double()
    inside = (isolated > MASK_THRESHOLD * instrument.sky_rms).any(1)
    weighted = shape / rms[:, None] * inside[:, None]
    scaled = image / rms * inside
    normal = torch.einsum("bgyx,bhyx->bgh", weighted, weighted)
    fit = torch.linalg.solve(normal, torch.einsum("bgyx,byx->bg", weighted, scaled)).numpy()
    low, middle, high = np.quantile(flux, ONE_SIGMA, axis=-1)
    models = {"truth": truth.numpy(), "best fit": fit, "median": middle, "draw": flux[..., 0]}
    found = {}
    for name, value in models.items():
        residual = (image - (torch.from_numpy(value)[..., None, None] * shape).sum(1)) / rms
        found[name] = ((residual.square() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).numpy()
        if name == "median":
            found["residual"] = residual.numpy()
    covers = {
        f"covers_{name}": (low <= value) & (value <= high) for name, value in (("fit", fit), ("truth", truth.numpy()))
    }
    return found | covers | {"image": image.numpy()}


def zero_point_error(deblender: Callable[..., Posterior], *, zero_point: float = 31.4, seed: int = 0) -> float:
    """Follow sources of known AB magnitude through images with two zero points, down to their catalogs.

    Parameters
    ----------
    deblender
        Called as a `~probdeblend.deblending.deblender.Deblender`.
    zero_point
        The other zero point; 31.4 is that of images in nJy.
    seed
        Seed of the blends.

    Returns
    -------
    float
        Largest difference of the two catalogs' magnitudes.
    """
    instrument, prior = Instrument.candels_f160w(), Prior.published()
    pairs = prior.sample(8, seed=seed)
    isolated = render_torch(prior.components(pairs, instrument, seed=seed + 1), instrument)
    sky = torch.full((8,), instrument.sky_rms)
    exposure = torch.full((8,), instrument.exposure)
    generator = torch.Generator().manual_seed(seed + 2)
    image = add_noise(isolated.sum(1, keepdim=True), instrument, sky_rms=sky, exposure=exposure, generator=generator)
    blend = Blend(image=image, sky_rms=sky)
    magnitudes = []
    for point in (instrument.zero_point, zero_point):
        unit = 10 ** (0.4 * (point - instrument.zero_point))
        answer = deblender(unit * blend.image, sky_rms=unit * blend.sky_rms, draws=200, passes=4, seed=seed)
        table = Posterior(answer.dataset.assign_attrs(zero_point=point)).summary()
        magnitudes.append(np.ma.filled(np.ma.asarray(table["mag"].value, dtype=float), np.nan))
    return float(np.nanmax(np.abs(magnitudes[0] - magnitudes[1])))
