"""Does it transfer? Small networks, each trained on one source of blends, each tested on every source.

The sources grow step by step from smooth Sérsic pairs under white noise to real galaxies, so that the table says what
each step buys: read a column to see how well each training set prepares for that sky. Bands are bootstrapped over
galaxies, of which the real ones are few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from probdeblend._files import output_folder, write_catalog
from probdeblend.metrics.arrays import ONE_SIGMA
from probdeblend.metrics.fluxes import nmad
from probdeblend.metrics.resampling import bootstrap
from probdeblend.networks.composite import Blend2Mask2Flux
from probdeblend.networks.dropout import draw
from probdeblend.networks.losses import NegativeLogLikelihood
from probdeblend.plots.sets import plot_matrix
from probdeblend.scene import Instrument
from probdeblend.simulation.conditions import training_batch
from probdeblend.simulation.prior import Prior
from probdeblend.surveys.library import Library
from probdeblend.training.fit import Schedule, fit
from probdeblend.training.streams import LibraryStream, Mixture, SimulatedStream

__all__ = ["SMALL_NETWORK", "TestSet", "report", "sources", "transfer"]

SMALL_NETWORK = {"patch": 2, "unet_filters": 8, "depth": 4, "first_filters": 32, "hidden": 64, "dropout": 0.1}
"""Keyword arguments of the `~probdeblend.networks.composite.Blend2Mask2Flux` that is trained on each source."""

PARTS = (0.6, 0.4)
MAGNITUDES = 2.5 / np.log(10)
FILES = ("transfer.ecsv", "transfer.png")
CHUNK = 50
STATISTICS = ("nmad_mag", "coverage_68", "width")


@dataclass(frozen=True, eq=False)
class TestSet:
    """Blends of one source to test on.

    Parameters
    ----------
    image
        Pixels over sky noise ``(blend, band, y, x)``.
    log_flux
        True ``log(flux / sky_rms)`` ``(blend, galaxy)``.
    galaxies
        What the bootstrap draws: the galaxy where it is real, the blend otherwise ``(blend, galaxy)``.
    distinct
        Number of distinct galaxies.
    """

    __test__ = False

    image: Tensor
    log_flux: NDArray[np.float64]
    galaxies: NDArray[np.int64]
    distinct: int


def sources(library: Library | None = None) -> dict[str, tuple[Mixture, Mixture]]:
    """Return the sources of blends, to train and to test on, from the simplest to the richest.

    Parameters
    ----------
    library
        Lone real galaxies, split here by galaxy; without them the sources with real galaxies are left out.

    Returns
    -------
    dict
        Mixtures to train and to test on by the source's name: "Sérsic, white noise"; "Sérsic" with correlated
        noise; "realistic", with arms, knots and PSFs that vary; "real"; "mixture", half realistic and half real.
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
        training, test = library.select(library.keep).split(PARTS)
        for name, fraction in (("real", 1.0), ("mixture", 0.5)):
            parts = (replace(realistic, library=part, real_fraction=fraction) for part in (training, test))
            found[name] = tuple(parts)
    return found


def transfer(
    output: Path,
    *,
    library: Library | None = None,
    steps: int = 2000,
    batch_size: int = 16,
    count: int = 500,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Table:
    """Train a small network on each source, test each on every source, and write the matrix as table and picture.

    Networks that an interrupted run has trained stand in ``OUTPUT.partial`` and are taken from there.

    Parameters
    ----------
    output
        Folder for ``transfer.ecsv`` and ``transfer.png``.
    library
        Lone real galaxies.
    steps, batch_size
        Batches that each network sees, and blends in each.
    count
        Blends of each source to test on.
    seed
        Same seed, same matrix.
    overwrite
        Replace an earlier output.
    progress
        Show progress bars.

    Returns
    -------
    Table
        A row a pair of sources: ``trained_on``, ``tested_on``, the scatter ``nmad_mag``, ``coverage_68``, the median
        half ``width`` of the 68 % interval in ln flux, each with ``_low`` and ``_high``, and ``galaxies``, the number
        of distinct ones.

    Raises
    ------
    FileExistsError
        If the output exists and `overwrite` is not set.
    """
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output}: exists already")
    found = sources(library)
    work = output.with_name(output.name + ".partial")
    work.mkdir(parents=True, exist_ok=True)
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed}
    tests = {name: _test_set(test, count, seed=seed + 1000) for name, (_, test) in found.items()}
    rows = []
    for number, (name, (training, _)) in enumerate(found.items()):
        path = work / f"network-{number}.safetensors"
        network = _trained(training, path, name, settings, progress=progress)
        rows += [{"trained_on": name, "tested_on": tested} | _scores(network, test) for tested, test in tests.items()]
    table = Table(rows)
    with output_folder(output, overwrite=overwrite, files=FILES) as folder:
        write_catalog(table, folder / FILES[0])
        _picture(table, list(found)).savefig(folder / FILES[1], dpi=120)
    for entry in work.iterdir():
        entry.unlink()
    work.rmdir()
    return table


def _test_set(mixture: Mixture, count: int, *, seed: int) -> TestSet:
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
    return TestSet(torch.cat(images), np.concatenate(fluxes), owner, distinct + len(np.unique(owner[count - real :])))


def _trained(
    mixture: Mixture, path: Path, name: str, settings: Mapping[str, int], *, progress: bool
) -> Blend2Mask2Flux:
    torch.manual_seed(settings["seed"])
    network = Blend2Mask2Flux(**SMALL_NETWORK)
    network.end_to_end = False
    real = mixture.library.digest() if mixture.real_fraction else None
    described = json.dumps({"name": name, "library": real} | dict(settings))
    record = path.with_suffix(".json")
    if path.exists() and record.exists() and record.read_text(encoding="utf-8") == described:
        network.load_state_dict(load_file(path))
        return network.eval()
    steps, work = settings["steps"], {"batch_size": settings["batch_size"]}
    validation = islice(mixture.stream(seed=settings["seed"] + 1, **work), max(1, 256 // settings["batch_size"]))
    fit(
        NegativeLogLikelihood(network),
        lambda first: _loader(mixture, seed=settings["seed"], first=first, **work),
        list(validation),
        schedule=Schedule(steps, validate_every=max(1, steps // 5)),
        progress=progress,
    )
    record.unlink(missing_ok=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    record.write_text(described, encoding="utf-8")
    return network.eval()


def _loader(mixture: Mixture, **settings: int) -> Iterable:
    return DataLoader(mixture.stream(**settings), batch_size=None, num_workers=1)


def _scores(network: Blend2Mask2Flux, test: TestSet) -> dict[str, float]:
    chunks = enumerate(test.image.split(CHUNK))
    parts = [draw(network, image, draws=256, passes=8, first=CHUNK * number) for number, image in chunks]
    drawn = torch.cat([part.log_flux for part in parts], 2).flatten(0, 1).double().numpy()
    low, middle, high = np.quantile(drawn, ONE_SIGMA, axis=0).reshape(3, -1)
    truth, owner = test.log_flux.ravel(), test.galaxies.ravel()
    error, inside, width = MAGNITUDES * (middle - truth), (low <= truth) & (truth <= high), (high - low) / 2
    statistics: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "nmad_mag": lambda rows: nmad(error[rows]),
        "coverage_68": lambda rows: float(inside[rows].mean()),
        "width": lambda rows: float(np.median(width[rows])),
    }
    scores = {}
    for name, statistic in statistics.items():
        scores[name] = statistic(np.arange(len(truth)))
        scores[f"{name}_low"], scores[f"{name}_high"] = bootstrap(statistic, owner)
    return scores | {"galaxies": test.distinct}


def _picture(table: Table, names: list[str]) -> object:
    values = {}
    for name in STATISTICS:
        shape = (len(names), len(names))
        values[name] = tuple(np.reshape(table[name + end], shape) for end in ("", "_low", "_high"))
    titles = {
        "nmad_mag": "scatter [mag]",
        "coverage_68": "coverage of the 68 % interval",
        "width": "half width of the 68 % interval [ln flux]",
    }
    return plot_matrix({titles[name]: value for name, value in values.items()}, names)


def report(table: Table) -> str:
    """Return the matrix as text.

    Parameters
    ----------
    table
        What `transfer` returns.

    Returns
    -------
    str
        A row a pair of sources: each statistic with its band.
    """
    short = Table({name: table[name] for name in ("trained_on", "tested_on")})
    for name in STATISTICS:
        columns = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        short[name] = [f"{value:.3f} ({low:.3f}-{high:.3f})" for value, low, high in columns]
    return "\n".join(short.pformat(max_width=-1, max_lines=-1))
