"""Small networks, each trained on one source of blends and tested on every source.

The sources grow step by step from smooth Sérsic pairs under white noise to real galaxies, so that the table tells what
each step buys: a column compares how well each training set prepares for one sky. Bands are bootstrapped over galaxies,
of which there are few real ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from astropy.stats import mad_std
from astropy.table import Table
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._command import Run, benchmark, sized_option
from probdeblend._files import kept_arrays
from probdeblend.cli.options import FILE
from probdeblend.metrics.arrays import ONE_SIGMA
from probdeblend.metrics.coverage import bootstrap
from probdeblend.networks.composite import Blend2Mask2Flux
from probdeblend.networks.dropout import draw
from probdeblend.networks.losses import NegativeLogLikelihood
from probdeblend.scene import LN_FLUX_UNIT, Instrument
from probdeblend.simulation.conditions import training_batch
from probdeblend.simulation.prior import Prior
from probdeblend.surveys import Library, read_library
from probdeblend.training.fit import Schedule, fit
from probdeblend.training.streams import LibraryStream, Mixture, SimulatedStream

__all__ = ["main", "sample_blends", "sources"]

SETTINGS = {"patch": 2, "depth": 4, "dropout": 0.1}  # of every network; the rest follows from its number of filters
PARTS = (0.6, 0.4)  # of the real galaxies, to train and to test on
VALIDATION = 256  # blends, fewer where training sees fewer
CHUNK = 50
STATISTICS = {
    "nmad_mag": "scatter [mag]",
    "coverage_68": "coverage of the 68 % interval",
    "width": "half-width of the 68 % interval [ln flux]",
}


@dataclass(frozen=True, eq=False)
class Sample:
    """Blends of one source to test on.

    Pixels are over sky noise ``(blend, band, y, x)``, fluxes true ``log(flux / sky_rms)`` ``(blend, galaxy)``;
    `galaxies` is what the bootstrap draws, the galaxy where it is real and the blend otherwise.
    """

    image: Tensor
    log_flux: NDArray[np.float64]
    galaxies: NDArray[np.int64]
    distinct: int


def sources(library: Library | None = None) -> dict[str, tuple[Mixture, Mixture]]:
    """Return the sources of blends to train and to test on, from the simplest to the richest.

    Real galaxies are split between training and test; "mixture" is half realistic and half real.
    """
    instrument = Instrument.candels_f160w()
    smooth = Mixture(replace(Prior.default(), smooth=True), instrument)
    realistic = Mixture(Prior.default(), instrument)
    found = {
        "Sérsic, white noise": (replace(smooth, instrument=instrument.replace(noise_kernel=None)),) * 2,
        "Sérsic": (smooth,) * 2,
        "realistic": (realistic,) * 2,
    }
    if library is not None:
        parts = library.select(library.keep).split(PARTS)
        for name, fraction in (("real", 1.0), ("mixture", 0.5)):
            found[name] = tuple(replace(realistic, library=part, real_fraction=fraction) for part in parts)
    return found


def sample_blends(mixture: Mixture, count: int, *, seed: int) -> Sample:
    """Draw blends of a source, the real ones last."""
    images, fluxes, owners, distinct = [], [], [], 0
    real = round(count * mixture.real_fraction)
    for number, wanted in enumerate((count - real, real)):
        for start in range(0, wanted, CHUNK):
            size, key = min(CHUNK, wanted - start), start // CHUNK
            if number == 0:
                settings = {"conditions": mixture.conditions, "batch_size": CHUNK, "seed": seed}
                blend = SimulatedStream(mixture.prior, mixture.instrument, **settings).blend(key).select(slice(size))
                owner = np.arange(start, start + size).repeat(2).reshape(-1, 2)
                distinct += 2 * size
            else:
                settings = {"rules": mixture.rules, "batch_size": size, "seed": seed}
                blend = LibraryStream(mixture.library, mixture.instrument, **settings).blend(key)
                owner = blend.identity.numpy()
            batch = training_batch(blend)
            images.append(batch.image)
            fluxes.append(batch.flux.double().log().numpy())
            owners.append(owner)
    owner = np.concatenate(owners)
    return Sample(torch.cat(images), np.concatenate(fluxes), owner, distinct + len(np.unique(owner[count - real :])))


def _network(mixture: Mixture, kept: Path, *, steps: int, batch_size: int, filters: int, seed: int) -> Blend2Mask2Flux:
    """Train a network on a source, or take the one that an interrupted run has kept."""
    torch.manual_seed(seed)
    sizes = {"unet_filters": filters, "first_filters": 4 * filters, "hidden": 8 * filters}
    network = Blend2Mask2Flux(**SETTINGS, **sizes)
    network.end_to_end = False

    def batches(first: int) -> DataLoader:
        return DataLoader(mixture.stream(batch_size=batch_size, seed=seed, first=first), batch_size=None, num_workers=1)

    def trained() -> dict[str, NDArray]:
        stream = mixture.stream(seed=seed + 1, batch_size=batch_size)
        validation = list(islice(stream, max(1, min(VALIDATION, steps * batch_size) // batch_size)))
        schedule = Schedule(steps, validate_every=max(1, steps // 5))
        fit(NegativeLogLikelihood(network), batches, validation, schedule=schedule)
        return {name: value.numpy() for name, value in network.state_dict().items()}

    arrays = kept_arrays(kept, trained)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return network.eval()


def _scores(network: Blend2Mask2Flux, sample: Sample) -> dict[str, float]:
    """Return each statistic with its band, and the number of distinct galaxies."""
    chunks = enumerate(sample.image.split(CHUNK))
    parts = [draw(network, image, draws=256, passes=8, first=CHUNK * number) for number, image in chunks]
    drawn = torch.cat([part.log_flux for part in parts], 2).flatten(0, 1).double().numpy()
    low, middle, high = np.quantile(drawn, ONE_SIGMA, axis=0).reshape(3, -1)
    truth, owner = sample.log_flux.ravel(), sample.galaxies.ravel()
    error, inside, width = LN_FLUX_UNIT * (middle - truth), (low <= truth) & (truth <= high), (high - low) / 2
    statistics = {
        "nmad_mag": lambda rows: mad_std(error[rows], ignore_nan=True),
        "coverage_68": lambda rows: float(inside[rows].mean()),
        "width": lambda rows: float(np.median(width[rows])),
    }
    scores = {}
    for name, statistic in statistics.items():
        scores[name] = statistic(np.arange(len(truth)))
        scores[f"{name}_low"], scores[f"{name}_high"] = bootstrap(statistic, owner)
    return scores | {"galaxies": sample.distinct}


def plot_matrix(values: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], names: Sequence[str]) -> Figure:
    """Show matrices of scores with their bands ``(trained on, tested on)``, one panel each."""
    size = 1.15 * len(names) + 1.5
    figure = Figure(figsize=(size * len(values), size), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (title, arrays) in zip(panels, values.items(), strict=True):
        value, low, high = (np.asarray(array, dtype=float) for array in arrays)
        axes.imshow(value, cmap="Blues", vmin=0, vmax=1.4 * np.nanmax(value))
        for (row, column), number in np.ndenumerate(value):
            text = f"{number:.2f}\n{low[row, column]:.2f}-{high[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(title=title, xlabel="tested on", ylabel="trained on")
    return figure


def _figure(table: Table, names: list[str]) -> Figure:
    ends, shape = ("", "_low", "_high"), (len(names), len(names))
    values = {title: tuple(np.reshape(table[name + end], shape) for end in ends) for name, title in STATISTICS.items()}
    return plot_matrix(values, names)


@benchmark("transfer")
@click.argument("libraries", type=FILE, nargs=-1)
@sized_option("--steps", 60, 2000, help="Batches that each network is trained on.")
@sized_option("--count", 100, 500, least=2, help="Blends of each source to test on.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Blends per batch.")
@click.option("--filters", type=click.IntRange(1), default=8, show_default=True, help="Filters of a network's U-Net.")
def main(run: Run, libraries: tuple[Path, ...], steps: int, count: int, batch_size: int, filters: int) -> None:
    """Train small networks on each source of blends and test each on every source, real ones from LIBRARIES."""
    library = read_library(*libraries) if libraries else None
    training = {"steps": steps, "batch_size": batch_size, "filters": filters}
    with run.unfinished(library=library and library.digest(), **training) as kept:
        found = sources(library)
        samples = {name: sample_blends(test, count, seed=run.seed + 1000) for name, (_, test) in found.items()}
        rows = []
        for number, (name, (mixture, _)) in enumerate(found.items()):
            network = _network(mixture, kept / f"network-{number}.npz", seed=run.seed, **training)
            rows += [{"trained_on": name, "tested_on": key} | _scores(network, part) for key, part in samples.items()]
        table = Table(rows)
        for name in table.colnames[2:-1]:
            table[name].info.format = ".3f"
        run.write(table, figure=_figure(table, list(found)))


if __name__ == "__main__":
    main()
