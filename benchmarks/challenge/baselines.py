"""Baselines: what SEP and the scene network submit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from benchmarks._scenes import column, flat_draws
from benchmarks.challenge.submission import LEVELS, Answer
from probdeblend.deblending.deblender import Deblends
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Scene, seed_of

__all__ = ["answer_scenes"]


def answer_scenes(deblender: Deblends, scenes: Iterable[Scene], *, flux: str = "total", seed: int = 0) -> Answer:
    """Deblend the images of a test, without any position given.

    Parameters
    ----------
    deblender
        The method.
    scenes
        Batches of images.
    flux
        The kind of flux, "total" or "auto".
    seed
        Seed of the draws.

    Returns
    -------
    Answer
        Positions, quantiles of fluxes and mask probabilities of all sources that were measured in every band.
    """
    rows, masks = [], []
    for batch, scene in enumerate(scenes):
        posterior = deblender.scenes(scene, seed=seed_of(seed, batch))
        quantiles = np.moveaxis(np.quantile(flat_draws(posterior, flux), LEVELS, axis=0), 0, -1)
        measured, number = np.isfinite(quantiles).all((1, 2)), column(posterior, "scene")
        rows.append([number[measured] + len(masks)])
        rows[-1] += [values[measured] for values in (column(posterior, "x"), column(posterior, "y"), quantiles)]
        masks += [_masks(posterior, np.flatnonzero(measured & (number == own))) for own in range(len(scene))]
    return Answer(*(np.concatenate(values) for values in zip(*rows, strict=True)), masks)


def _masks(posterior: Posterior, sources: Iterable[int]) -> np.ndarray:
    """Return mask probabilities ``(source, y, x)`` in the whole image."""
    sources = list(sources)
    masks = np.zeros((len(sources), *posterior.cutouts.shape), dtype=np.float16)
    for whole, source in zip(masks, sources, strict=True):
        cutout = posterior.cutouts.cutout("mask", source)
        whole[cutout.slices] = cutout.data
    return masks
