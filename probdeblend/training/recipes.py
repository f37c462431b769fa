"""The recipe of the weights that ship with the package: the scene network on an endless stream of scenes.

What is done is kept in a folder beside the output, so that an interrupted run can be resumed. Every scene is seen once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch
from astropy.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from .. import __version__
from .._files import unfinished_folder, whole_file
from ..deblending.deblender import Deblender, Description
from ..deblending.weights import load, save
from ..networks.scene_loss import SceneLoss
from ..networks.scenes import SceneNetwork
from ..refinement.mode import fwhm_of
from ..simulation.bank import Templates
from ..simulation.light import SimulatedSources, Sources
from ..simulation.stream import SceneBatch, SceneStream
from ..simulation.workers import on_threads
from ..surveys.library import Galaxy
from ..surveys.templates import RealGalaxies
from .fit import Schedule, fit

__all__ = ["train"]

VALIDATE_EVERY = 500  # batches, and no more are lost where a run is killed
VALIDATION_SCENES = 512
FAMILIAR_SCENES = 2048  # whose features define what is familiar
HELD_OUT = 2**20  # added to the seed, for the scenes to validate on
PREFETCHED = 8  # batches per worker
REAL = 0.5  # fraction of the galaxies that are real ones, where there are any
RATE, FINE_TUNING = 1.5e-3, 3e-4  # learning rates of new and of trained weights
SLACK = 0.03  # relative, of the range of PSFs: rare ones were not among those that were looked at


def train(
    output: Path,
    *,
    steps: int = 40_000,
    batch_size: int = 32,
    workers: int = 1,
    seed: int = 0,
    start: Path | None = None,
    galaxies: Sequence[Galaxy] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> Table:
    """Train a scene network, on a GPU if there is one, and write its weights.

    Parameters
    ----------
    output
        The weights file.
    steps
        Number of batches.
    batch_size
        Scenes per batch.
    workers
        Processes that make scenes while the network trains; 0 makes them in turn.
    seed
        Seed of the network and of the scenes.
    start
        Weights to train further, at a fifth of the learning rate. None starts with random ones.
    galaxies
        Real galaxies, which then take the place of half of the simulated ones. Only what follows the trunk is trained
        on them, so that weights to start with are needed.
    resume
        Resume an interrupted run; on as many threads, the result is that of a run without interruption.
    overwrite
        Replace an existing output or unfinished run.

    Returns
    -------
    Table
        One row per validation: ``step``, ``training`` and ``validation`` loss, and the terms of the latter. The
        metadata has ``steps`` and ``validation_loss``, the lowest one.

    Raises
    ------
    ValueError
        If there is nothing to resume, the unfinished run has other settings, or there are real galaxies but no weights
        to start with.
    FileExistsError
        If the output or an unfinished run exists and is not to be replaced.
    FileNotFoundError
        If there are no weights to start with.
    """
    if galaxies and start is None:
        raise ValueError("start must be weights to train further on galaxies, got None")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begun = None if start is None else load(start)
    sources = RealGalaxies(galaxies, REAL) if galaxies else SimulatedSources()
    stream = partial(_stream, batch_size, sources)
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed, "start": begun and begun.digest}
    settings["stream"] = json.loads(json.dumps(asdict(_stream(batch_size, None, seed))))
    settings["galaxies"] = sorted(galaxy.identity for galaxy in galaxies)

    def batches(first: int) -> DataLoader:
        return DataLoader(
            stream(seed, first),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=device == "cuda",
        )

    held_out = stream(seed + HELD_OUT)
    validating = min(steps, math.ceil(VALIDATION_SCENES / batch_size))
    familiar = min(steps, math.ceil(FAMILIAR_SCENES / batch_size))
    later = (batch for batch in map(held_out.batch, count(validating)) if batch.light.shape[1])
    with (
        unfinished_folder(output, settings, resume=resume, overwrite=overwrite) as kept,
        whole_file(output, overwrite=overwrite) as temporary,
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        torch.manual_seed(seed)
        network = SceneNetwork() if begun is None else begun.network.requires_grad_(True)
        network.trunk.requires_grad_(not galaxies)
        # The processes that make scenes have cores of their own: threads that wait for one another spin.
        with on_threads(max(1, (os.cpu_count() or 1) - workers)):
            history = fit(
                SceneLoss(network.to(device)),
                batches,
                [held_out.batch(number) for number in range(validating)],
                schedule=Schedule(
                    steps,
                    learning_rate=RATE if begun is None else FINE_TUNING,
                    validate_every=min(VALIDATE_EVERY, steps),
                ),
                checkpoint=kept / "checkpoint.pt",
            )
            ranges, tokens = _familiar(network.cpu(), islice(later, familiar))
        built = {} if begun is None else begun.description.settings
        record = {"command": "probdeblend train", "torch": torch.__version__, "probdeblend": __version__} | settings
        record["galaxies"] = len(set(settings["galaxies"]))
        record |= {"steps_done": history.step, "validation_loss": round(history.best, 4)}
        description = Description(settings=built, **ranges, training=record)
        save(Deblender(network, description, tokens=tokens), temporary)
    return history.table()


def _stream(batch_size: int, sources: Sources | None, seed: int, first: int = 0) -> SceneStream:
    return SceneStream(Templates(sources=sources, seed=seed), batch_size=batch_size, seed=seed, first=first)


@torch.no_grad()
def _familiar(network: SceneNetwork, batches: Iterator[SceneBatch]) -> tuple[dict[str, object], Tensor]:
    """Return the range of the scenes that a network is trained on, and the features of their sources."""
    widths, brightest, tokens = [], [], []
    for batch in batches:
        widths.append(fwhm_of(batch.psf).flatten())
        maps = network.encode(batch.image, batch.good, batch.psf, batch.noise)
        token = network.read(maps, batch.x, batch.y)[1].token
        tokens.append(token[:, : batch.light.shape[1]].flatten(0, 1))
        brightest.append(batch.log_flux.nan_to_num(-math.inf).flatten())
    fwhm = (float(torch.cat(widths).min()) * (1 - SLACK), float(torch.cat(widths).max()) * (1 + SLACK))
    return {"fwhm": fwhm, "brightest": float(torch.cat(brightest).max())}, torch.cat(tokens)
