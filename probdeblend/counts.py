"""Trained networks that count galaxies: their files, the command that trains one, and their answers for stamps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from astropy.table import QTable, Table
from numpy.typing import ArrayLike, NDArray
from torch import nn

from . import weights
from .calibration import count_reliability, count_scores
from .counting import CROWDING, counted_blends, marginal_central_flux, train_counts
from .deblender import Deblender
from .inputs import filled, noise_pixels, stamp_pixels
from .io import whole_file
from .nn.count import CountNetwork
from .posterior import Flag, Posterior
from .posterior.tables import QUANTILES
from .prior import Prior
from .readouts import read_readout, training_record, write_readout
from .scene import Instrument
from .streams import SimulatedStream

__all__ = [
    "DEFAULT",
    "CountingDeblender",
    "count_stamps",
    "count_table",
    "default_counts",
    "flag_counts",
    "load_counts",
    "report",
    "save_counts",
    "train_default_counts",
]

KIND = {"kind": "count network", "version": "1"}
SETTINGS = {"hidden": 128, "dropout": 0.1, "concrete": False, "classes": 3}
DEFAULT = "counts_f160w.safetensors"
LIKELY = 0.5  # probability of two galaxies below which an answer that takes them for granted is flagged
COLUMNS = ["low", "high", "pairs", "probability_two", "unrecognized"]


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


def train_default_counts(
    deblender: Deblender,
    output: Path,
    *,
    blends: int = 40_000,
    steps: int = 4000,
    test_blends: int = 4000,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[Table, Table]:
    """Train a count network on the encoder of weights, test it on fresh blends, and write its file.

    Parameters
    ----------
    deblender
        Trained weights.
    output
        The network's file.
    blends
        Number of blends that are simulated, with one galaxy to five as `~probdeblend.counting.CROWDING` says.
    steps
        Number of batches.
    test_blends
        Number of blends to test on.
    seed
        Same seed, same network.
    overwrite
        Whether a file that exists may be replaced.
    progress
        Show progress bars.

    Returns
    -------
    scores, by_separation
        What `~probdeblend.calibration.counts.count_scores` and `~probdeblend.calibration.counts.count_reliability` say
        of blends that the network has not learned from; the separation is the true one.

    Raises
    ------
    FileExistsError
        If the file exists and is not to be replaced.
    ValueError
        If there are too few blends.
    """
    with whole_file(output, overwrite=overwrite) as temporary, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CountNetwork(deblender.network, **SETTINGS)
        work = {"steps": steps, "seed": seed, "progress": progress}
        history = train_counts(network, _stream(deblender, seed), blends=blends, **work)
        described = training_record(history, command="train-counts", blends=blends, seed=seed)
        tables = _tested(network, deblender, test_blends, seed=seed + 1, progress=progress)
        described |= {f"test_{name}": round(value, 4) for name, value in tables[0].meta.items()}
        save_counts(network, deblender, temporary, training=described)
    return tables


def _stream(deblender: Deblender, seed: int) -> SimulatedStream:
    return SimulatedStream(replace(Prior.default(), crowding=CROWDING), deblender.instrument, seed=seed)


def _tested(
    network: CountNetwork, deblender: Deblender, blends: int, *, seed: int, progress: bool
) -> tuple[Table, Table]:
    counted = counted_blends(network, _stream(deblender, seed), blends, progress=progress)
    with torch.no_grad():
        probability = network.logits(counted.features).double().softmax(1).numpy()
    count, separation = counted.count.numpy(), counted.separation.numpy() / deblender.instrument.fwhm
    return count_scores(probability, count), count_reliability(probability, count, separation)


def report(scores: Table, by_separation: Table) -> str:
    """Say how well galaxies are counted.

    Parameters
    ----------
    scores, by_separation
        What `train_default_counts` returns.

    Returns
    -------
    str
        Accuracy, expected calibration error, and a row a bin of the pairs' true separation over the FWHM.
    """
    short = by_separation[COLUMNS]
    for name in COLUMNS[3:]:
        short[name].info.format = ".3f"
    overall = "accuracy {accuracy:.3f}, expected calibration error {calibration_error:.3f}, {blends} blends"
    return "\n".join([overall.format(**scores.meta), *short.pformat(max_width=-1, max_lines=-1)])


def count_stamps(image: ArrayLike, network: CountNetwork, *, sky_rms: ArrayLike) -> NDArray[np.float64]:
    """Say how probable one galaxy, two, and more are in stamps.

    Parameters
    ----------
    image
        Sky-subtracted stamps, as a `~probdeblend.deblender.Deblender` takes them.
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
        `~probdeblend.counting.marginal_central_flux` has them.

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
        for level, value in zip((16, 50, 84), np.quantile(flux, QUANTILES, axis=0), strict=True):
            table[f"central_flux_{level}"] = value if unit is None else value * unit
            table[f"central_flux_{level}"].info.format = ".5g"
    return table
