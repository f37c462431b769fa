"""Trained networks that count galaxies: their files, the command that trains one, and their answers for stamps."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from astropy.table import QTable
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..metrics.arrays import ONE_SIGMA, distribution_arrays
from ..networks.count import CountNetwork
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import Instrument
from . import weights
from .deblender import Deblender
from .inputs import filled, noise_pixels, stamp_pixels
from .readouts import read_readout, write_readout

__all__ = [
    "DEFAULT",
    "CountingDeblender",
    "count_stamps",
    "count_table",
    "default_counts",
    "flag_counts",
    "load_counts",
    "marginal_central_flux",
    "save_counts",
]

KIND = {"kind": "count network", "version": "1"}
DEFAULT = "counts_f160w.safetensors"
LIKELY = 0.5  # probability of two galaxies below which an answer that takes them for granted is flagged


def save_counts(network: CountNetwork, deblender: Deblender, path: Path | str, *, training: dict[str, object]) -> None:
    """Write a count network's file.

    Parameters
    ----------
    network
        The network.
    deblender
        The weights whose encoder it stands on.
    path
        Where to; an existing file is replaced.
    training
        How it was trained: numbers and words by name.
    """
    write_readout(network, deblender, path, **KIND, training=training)


def load_counts(path: Path | str, deblender: Deblender) -> CountNetwork:
    """Load a trained count network.

    Parameters
    ----------
    path
        The network's file.
    deblender
        The weights that it was trained on.

    Returns
    -------
    CountNetwork
        In evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, no count network, of another version, or stands on other weights.
    """
    return read_readout(path, deblender, partial(CountNetwork, deblender.network), **KIND)


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
    FileNotFoundError
        If none ships.
    ValueError
        If it stands on other weights.
    """
    return load_counts(str(files("probdeblend") / "data" / DEFAULT), deblender or weights.load())


def count_stamps(image: ArrayLike, network: CountNetwork, *, sky_rms: ArrayLike) -> NDArray[np.float64]:
    """Say how probable one galaxy, two, and more are in stamps.

    Parameters
    ----------
    image
        Sky-subtracted stamps, as a `~probdeblend.deblending.deblender.Deblender` takes them.
    network
        A trained network.
    sky_rms
        Standard deviation of the sky's pixels in the image's units: a number, one a blend, or a map.

    Returns
    -------
    NDArray
        Probabilities ``(blend, class)`` of one galaxy, two, ..., and as many as there are classes or more.

    Raises
    ------
    ValueError
        If a stamp has another size or no good pixel, or the noise another shape or no positive value.
    TypeError
        If the image is not an array of numbers.
    """
    pixels, unit = stamp_pixels(image)
    ratio = pixels / noise_pixels(sky_rms, pixels, unit=unit)
    empty = ~np.isfinite(ratio).any((1, 2, 3))
    if empty.any():
        raise ValueError(f"image must have good pixels, got none in stamp {int(empty.argmax())}")
    return network.probability(torch.from_numpy(filled(ratio).astype(np.float32)).to(network.temperature.device))


class CountingDeblender:
    """A deblender that says how many galaxies it sees, and where that is not two: called as the deblender.

    Parameters
    ----------
    deblender
        Trained weights.
    counter
        A count network on their encoder.
    """

    def __init__(self, deblender: Deblender, counter: CountNetwork) -> None:
        self.deblender, self.counter = deblender, counter

    @property
    def network(self) -> nn.Module:
        """The deblender's network."""
        return self.deblender.network

    @property
    def digest(self) -> str:
        """Hexadecimal digits that name the network's weights."""
        return self.deblender.digest

    @property
    def instrument(self) -> Instrument:
        """What the deblender was trained for."""
        return self.deblender.instrument

    def check_pixel_scale(self, pixel_scale: float) -> None:
        """Refuse images that are sampled otherwise than the training set.

        Parameters
        ----------
        pixel_scale
            Size of a pixel in arcsec.
        """
        self.deblender.check_pixel_scale(pixel_scale)

    def __call__(self, image: ArrayLike, *, sky_rms: ArrayLike, **sampling: int) -> Posterior:
        """Deblend stamps, and count.

        Parameters
        ----------
        image, sky_rms, **sampling
            As for the deblender.

        Returns
        -------
        Posterior
            What `flag_counts` returns.
        """
        posterior = self.deblender(image, sky_rms=sky_rms, **sampling)
        return flag_counts(posterior, count_stamps(image, self.counter, sky_rms=sky_rms))


def flag_counts(posterior: Posterior, probability: ArrayLike) -> Posterior:
    """Say in a posterior of pairs how many galaxies there are.

    Parameters
    ----------
    posterior
        The posterior.
    probability
        What `count_stamps` returns of the same stamps.

    Returns
    -------
    Posterior
        With ``count_probability (blend, count)``, of one galaxy, two, ..., and as many as there are classes or more;
        blends that are not likely to be of two have `Flag.OTHER_COUNT`, and a ``doubt`` above 1.
    """
    probability = np.asarray(probability)
    flags = posterior.flags.values | (Flag.OTHER_COUNT * (probability[:, 1] < LIKELY))[:, None]
    changed = {"count_probability": (("blend", "count"), probability), "flags": (("blend", "galaxy"), flags)}
    return posterior.doubting((1 - probability[:, 1]) / (1 - LIKELY), **changed)


def marginal_central_flux(draws: ArrayLike, probability: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Marginalize the central galaxy's flux over the number of galaxies.

    If there is one galaxy, all light that a posterior of pairs divides is its own: the pair's total, which is the
    simplest honest flux of a single galaxy that such a posterior can give, though it has never seen one. If there are
    two or more, the central galaxy's flux is that of the posterior, which has not seen three or more either: there it
    is off, and so is the answer, the mixture of both.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, galaxy)`` of the fluxes of pairs, the central galaxy first; not logarithms.
    probability
        Probabilities of one galaxy, two, ... ``(blend, class)``.
    seed
        Same seed, same draws; those of a blend depend on it and on the number of the blend alone.

    Returns
    -------
    NDArray
        Draws ``(draw, blend)`` of the central galaxy's flux.

    Raises
    ------
    ValueError
        If shapes disagree, or a row of the probabilities is no distribution.
    """
    draws = np.asarray(draws, dtype=np.float64)
    if draws.ndim != 3 or draws.shape[2] != 2:
        raise ValueError(f"draws must have the shape (draw, blend, 2), got {draws.shape}")
    probability = distribution_arrays(probability, draws.shape[1])
    uniform = [np.random.default_rng([seed, blend]).random(len(draws)) for blend in range(draws.shape[1])]
    single = probability[:, 0] > np.reshape(uniform, draws.shape[1::-1]).T
    return np.where(single, draws.sum(2), draws[:, :, 0])


def count_table(probability: ArrayLike, posterior: Posterior | None = None, *, seed: int = 0) -> QTable:
    """Put the number of galaxies, and the central flux whatever it is, in a table.

    Parameters
    ----------
    probability
        What `count_stamps` returns.
    posterior
        Of the same stamps as pairs; None leaves the flux out.
    seed
        Same seed, same quantiles.

    Returns
    -------
    QTable
        A row a blend: ``blend``; ``probability_1``, ``probability_2``, ..., the last one ``probability_3_or_more``;
        with a posterior ``central_flux_16``, ``central_flux_50`` and ``central_flux_84`` in its unit, as
        `~probdeblend.training.counting.marginal_central_flux` has them.

    Raises
    ------
    ValueError
        If probabilities have not two axes, or there is not a row of them for each blend of the posterior.
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
