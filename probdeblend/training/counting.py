"""How many galaxies a stamp holds: training, and fluxes whatever their number.

A galaxy counts if it can be seen: if its own noiseless light exceeds 3 sky rms, the threshold of masks, in at least
`VISIBLE_PIXELS` pixels of the stamp, as a galaxy alone must to be segmented (``probdeblend.photometry.detection.SEGMENTATION``).
This is a little more than the core of a PSF; what is fainter is sky to every method. Its center may lie off the stamp.

The loss is the cross-entropy, a proper score, on stamps of one, two, three and more galaxies; probabilities are under
the shares of these in the training, ``crowding``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from astropy.table import Table
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._files import whole_file
from ..deblending.counts import save_counts
from ..deblending.deblender import Deblender
from ..metrics.counts import count_reliability, count_scores
from ..networks.count import CountNetwork
from ..photometry.detection import SEGMENTATION
from ..scene import Blend
from ..simulation.prior import Prior
from .fit import History, Schedule, fit_tensors, held_out, training_record
from .streams import EndlessStream, SimulatedStream

__all__ = [
    "CROWDING",
    "VISIBLE_PIXELS",
    "CountLikelihood",
    "CountedBlends",
    "counted_blends",
    "report",
    "train_counts",
    "train_default_counts",
    "visible_galaxies",
]

SETTINGS = {"hidden": 128, "dropout": 0.1, "concrete": False, "classes": 3}
COLUMNS = ["low", "high", "pairs", "probability_two", "unrecognized"]
VISIBLE_PIXELS: int = SEGMENTATION["minimum_area"]
CROWDING = (6 / 18, 6 / 18, 3 / 18, 2 / 18, 1 / 18)
"""Shares of one to five galaxies in the training: as many of one as of two, and as of three or more."""


class CountedBlends(NamedTuple):
    """What is learned from.

    Parameters
    ----------
    features
        What the network's ``encode`` says of each blend ``(blend, feature)``.
    count
        Number of visible galaxies, at least 1 ``(blend,)``.
    separation
        Least distance between two visible galaxies in pixels ``(blend,)``; NaN where there are not two.
    """

    features: Tensor
    count: Tensor
    separation: Tensor


class CountLikelihood(nn.Module):
    """Cross-entropy of the number of galaxies, given features.

    In training, a network that learns its dropout adds what that costs a blend.

    Parameters
    ----------
    network
        The network.
    blends
        Number of blends that are learned from; infinite where none is seen twice.
    """

    def __init__(self, network: CountNetwork, *, blends: float = math.inf) -> None:
        super().__init__()
        self.network = network
        self.blends = blends

    def forward(self, features: Tensor, count: Tensor) -> Tensor:
        """Return the loss a blend in nat.

        Parameters
        ----------
        features
            What the network's ``encode`` returns.
        count
            True numbers of galaxies ``(blend,)``, from 1.

        Returns
        -------
        Tensor
            Scalar.
        """
        loss = nn.functional.cross_entropy(self.network.logits(features), self.network.label(count))
        return loss + self.network.readout.divergence() / self.blends if self.training else loss


def visible_galaxies(blend: Blend) -> tuple[Tensor, Tensor]:
    """Count the galaxies that can be seen, and measure how close they are.

    Parameters
    ----------
    blend
        Blends with true masks and positions.

    Returns
    -------
    count, separation
        Number of visible galaxies ``(blend,)``, and the least distance between two of them in pixels ``(blend,)``,
        NaN where there are not two.

    Raises
    ------
    ValueError
        If there are no masks or no positions.
    """
    if blend.mask is None or blend.x is None or blend.y is None:
        raise ValueError("blend must have masks and positions to count galaxies, got one without")
    visible = blend.mask.sum((-2, -1)) >= VISIBLE_PIXELS
    places = torch.stack([blend.x, blend.y], -1)
    itself = torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
    two = visible[:, :, None] & visible[:, None] & ~itself
    least = torch.cdist(places, places).masked_fill(~two, math.inf).amin((-2, -1))
    return visible.sum(-1), least.masked_fill(least.isinf(), math.nan)


def counted_blends(
    network: CountNetwork, stream: EndlessStream, blends: int, *, progress: bool = True
) -> CountedBlends:
    """Encode the first blends of a stream, and count what they show.

    Parameters
    ----------
    network
        Its encoder is used.
    stream
        Blends with masks and positions.
    blends
        Number of blends.
    progress
        Show a progress bar.

    Returns
    -------
    CountedBlends
        On the network's device. A stamp in which nothing can be seen counts as one galaxy, the one that is asked for.

    Raises
    ------
    ValueError
        If there are no blends to encode.
    """
    if blends < 1:
        raise ValueError(f"blends must be at least 1, got {blends}")
    device, done, parts = network.temperature.device, 0, []
    with tqdm(total=blends, disable=not progress, desc="blends", unit="blend", leave=False) as bar:
        while done < blends:
            blend = stream.blend(len(parts))
            count, separation = visible_galaxies(blend)
            features = network.encode((blend.image / blend.sky_rms[:, None, None, None]).to(device))
            parts.append((features, count.clamp(min=1).to(device), separation.to(device)))
            done += len(blend)
            bar.update(len(blend))
    return CountedBlends(*(torch.cat(values)[:blends] for values in zip(*parts, strict=True)))


def train_counts(
    network: CountNetwork,
    stream: EndlessStream,
    *,
    blends: int = 40_000,
    steps: int = 4000,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a network on blends of a stream, a tenth of them to validate on and to fit the temperature.

    Parameters
    ----------
    network
        The network; it is left trained, with its temperature, and in evaluation mode.
    stream
        Blends with masks and positions: a `~probdeblend.training.streams.SimulatedStream` whose prior has `CROWDING`.
    blends
        Number of blends, the first ones of the stream.
    steps, batch_size
        Number of batches, and blends in each.
    seed
        Seed of the batches and of dropout.
    progress
        Show progress bars.

    Returns
    -------
    History
        The losses.

    Raises
    ------
    ValueError
        If there are too few blends for a batch and a tenth to validate on.
    """
    held = held_out(blends, batch_size)
    counted = counted_blends(network, stream, blends, progress=progress)
    network.readout.normalize(counted.features[held:])
    network.temperature.fill_(1.0)
    schedule = Schedule(steps, learning_rate=1e-3, weight_decay=1e-2, validate_every=max(1, steps // 20))
    sampling = {"batch_size": batch_size, "seed": seed, "progress": progress}
    history = fit_tensors(CountLikelihood(network, blends=blends - held), counted[:2], schedule=schedule, **sampling)
    network.fit_temperature(counted.features[:held], counted.count[:held])
    return history


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
        Number of blends that are simulated, with one galaxy to five as `~probdeblend.training.counting.CROWDING` says.
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
        What `~probdeblend.metrics.counts.count_scores` and `~probdeblend.metrics.counts.count_reliability` say
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
