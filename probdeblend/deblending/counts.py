"""The number of galaxies in stamps: files of count networks, their answers, and a deblender that flags by them."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from astropy.table import QTable
from numpy.typing import ArrayLike, NDArray

from ..metrics.arrays import ONE_SIGMA, distribution_arrays
from ..networks.count import CountNetwork
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from .deblender import Deblender
from .inputs import scaled_stamps
from .weights import load, read_readout, write_readout

__all__ = [
    "CountingDeblender",
    "count_stamps",
    "count_table",
    "default_counts",
    "flag_counts",
    "load_counts",
    "marginal_central_flux",
    "save_counts",
]

KIND = "count network"
DEFAULT = "counts_f160w.safetensors"
LIKELY = 0.5  # probability of two galaxies below which a posterior of a pair is flagged


def save_counts(network: CountNetwork, deblender: Deblender, path: Path | str, *, training: dict[str, object]) -> None:
    """Write the file of a count network on the encoder of `deblender`, with how it was trained."""
    write_readout(network, deblender, path, kind=KIND, training=training)


def load_counts(path: Path | str, deblender: Deblender) -> CountNetwork:
    """Load a count network that was trained on the encoder of `deblender`."""
    return read_readout(path, deblender, partial(CountNetwork, deblender.network), kind=KIND)


def default_counts(deblender: Deblender | None = None) -> CountNetwork:
    """Load the count network that ships with the package.

    Parameters
    ----------
    deblender
        The weights that ship with the package; None loads them.

    Returns
    -------
    CountNetwork
        In evaluation mode.

    Raises
    ------
    ValueError
        If the deblender has another encoder.
    """
    return load_counts(str(files("probdeblend") / "data" / DEFAULT), deblender or load())


def count_stamps(image: ArrayLike, network: CountNetwork, *, sky_rms: ArrayLike) -> NDArray[np.float64]:
    """Estimate the number of galaxies in stamps.

    Parameters
    ----------
    image
        Sky-subtracted stamps, in any form that a `Deblender` takes.
    network
        A trained count network.
    sky_rms
        Standard deviation of the sky's pixels in image units: a number, one per blend, or a map.

    Returns
    -------
    NDArray
        Probabilities ``(blend, class)`` of one galaxy, two, ...; the last class is that many or more.

    Raises
    ------
    ValueError
        If a stamp has another size or no good pixel, or if the noise has another shape or is not positive.
    TypeError
        If the image is not an array of numbers.
    """
    ratio = scaled_stamps(image, sky_rms)[0]
    return network.probability(torch.from_numpy(ratio).to(network.temperature.device))


class CountingDeblender:
    """A deblender that also estimates the number of galaxies, and flags stamps unlikely to hold two.

    Parameters
    ----------
    deblender
        Trained weights.
    counter
        A count network on their encoder.
    """

    def __init__(self, deblender: Deblender, counter: CountNetwork) -> None:
        self.deblender, self.counter = deblender, counter
        self.network, self.instrument = deblender.network, deblender.instrument
        self.check_pixel_scale = deblender.check_pixel_scale

    def __call__(self, image: ArrayLike, *, sky_rms: ArrayLike, **sampling: int) -> Posterior:
        """Deblend stamps, and count; arguments are those of the deblender."""
        posterior = self.deblender(image, sky_rms=sky_rms, **sampling)
        return flag_counts(posterior, count_stamps(image, self.counter, sky_rms=sky_rms))


def flag_counts(posterior: Posterior, probability: ArrayLike) -> Posterior:
    """Add ``count_probability (blend, count)``, from `count_stamps`, to a posterior of pairs.

    Blends that are unlikely to be of two galaxies get `Flag.OTHER_COUNT`, and an ``anomaly`` above 1.
    """
    probability = np.asarray(probability)
    flags = posterior.flags.values | (Flag.OTHER_COUNT * (probability[:, 1] < LIKELY))[:, None]
    changed = {"count_probability": (("blend", "count"), probability), "flags": (("blend", "galaxy"), flags)}
    return posterior.with_anomaly((1 - probability[:, 1]) / (1 - LIKELY), **changed)


def marginal_central_flux(draws: ArrayLike, probability: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Marginalize the central galaxy's flux, from ``(draw, blend, galaxy)``, over the number of galaxies.

    If there is only one galaxy, its flux is the total flux of the posterior of the pair; otherwise it is that of the
    posterior. With three or more galaxies this is biased, because the network was trained on pairs. Draws of a blend
    depend only on the seed and on its number.
    """
    draws = np.asarray(draws, dtype=np.float64)
    if draws.ndim != 3 or draws.shape[2] != 2:
        raise ValueError(f"draws must have the shape (draw, blend, 2), got {draws.shape}")
    probability = distribution_arrays(probability, draws.shape[1])
    uniform = [np.random.default_rng([seed, blend]).random(len(draws)) for blend in range(draws.shape[1])]
    single = probability[:, 0] > np.reshape(uniform, draws.shape[1::-1]).T
    return np.where(single, draws.sum(2), draws[:, :, 0])


def count_table(probability: ArrayLike, posterior: Posterior | None = None, *, seed: int = 0) -> QTable:
    """Return the probabilities from `count_stamps`, one row per blend, as ``probability_1`` and so on.

    With a posterior of the same stamps as pairs it also has ``central_flux_16``, ``_50`` and ``_84``, quantiles of
    `marginal_central_flux` in the posterior's unit.
    """
    probability = np.asarray(probability)
    if probability.ndim != 2:
        raise ValueError(f"probability must have the shape (blend, class), got {probability.shape}")
    names = [f"probability_{number}" for number in range(1, probability.shape[1] + 1)]
    columns = {"blend": np.arange(len(probability))}
    columns |= zip([*names[:-1], f"{names[-1]}_or_more"], probability.T, strict=True)
    table = QTable(columns)
    for name in table.colnames[1:]:
        table[name].info.format = ".4f"
    if posterior is not None:
        draws = posterior.draws("band", "blend", "galaxy")[0]
        flux = marginal_central_flux(np.moveaxis(draws, -1, 0), probability, seed=seed)
        summary = posterior.summary()
        table.meta, unit = summary.meta, getattr(summary["flux"], "unit", None)
        for level, value in zip((16, 50, 84), np.quantile(flux, ONE_SIGMA, axis=0), strict=True):
            table[f"central_flux_{level}"] = value if unit is None else value * unit
            table[f"central_flux_{level}"].info.format = ".5g"
    return table
