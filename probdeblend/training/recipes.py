"""The recipe of the weights that ship with the package: the scene network on an endless stream of scenes.

What is done is kept in a folder beside the output, so that an interrupted run can be resumed. Every scene is seen once.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
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
from ..simulation.scenes import on_threads
from ..simulation.stream import SceneBatch, SceneStream
from .fit import Schedule, fit

__all__ = ["train"]

VALIDATE_EVERY = 500  # batches, and no more are lost where a run is killed
VALIDATION_SCENES = 512
FAMILIAR_SCENES = 2048  # whose features define what is familiar
HELD_OUT = 2**20  # added to the seed, for the scenes to validate on
PREFETCHED = 8  # batches per worker
RATE, FINE_TUNING = 1.5e-3, 3e-4  # learning rates of new and of trained weights
CAMERAS = 500  # number whose PSFs set the range of widths: fewer than one camera in a hundred is outside of it
SLACK = 0.03  # relative widening of that range, for most of the others


def train(
    output: Path,
    *,
    stream: SceneStream | None = None,
    steps: int = 40_000,
    start: Path | None = None,
    trunk: bool = True,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> Table:
    """Train a scene network, on a GPU if there is one, and write its weights.

    Parameters
    ----------
    output
        The weights file.
    stream
        Scenes to train on, by default simulated ones of all cameras. Its seed is that of the network too.
    steps
        Number of batches.
    start
        Weights to train further, at a fifth of the learning rate. None starts with random ones.
    trunk
        Whether the trunk is trained. Without it, weights to start with go on with their heads alone: its features then
        have never seen the galaxies of this stream, and a few hundred real ones are enough.
    workers
        Processes that make scenes while the network trains; 0 makes them in turn.
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
        If there is nothing to resume, the unfinished run has other settings, or a new trunk is not to be trained.
    FileExistsError
        If the output or an unfinished run exists and is not to be replaced.
    FileNotFoundError
        If there are no weights to start with.
    """
    if not trunk and start is None:
        raise ValueError("start must be weights whose trunk is not to be trained, got None")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begun = None if start is None else load(start)
    stream = SceneStream() if stream is None else stream
    settings = {"steps": steps, "trunk": trunk, "start": begun and begun.digest, "stream": _described(stream)}

    def batches(first: int) -> DataLoader:
        how = {"prefetch_factor": PREFETCHED if workers else None, "pin_memory": device == "cuda"}
        return DataLoader(replace(stream, first=first), batch_size=None, num_workers=workers, **how)

    rate = RATE if begun is None else FINE_TUNING
    schedule = Schedule(steps, learning_rate=rate, validate_every=min(VALIDATE_EVERY, steps))
    other = replace(stream.templates, seed=stream.templates.seed + HELD_OUT)
    held_out = replace(stream, templates=other, seed=stream.seed + HELD_OUT)
    validating = min(steps, math.ceil(VALIDATION_SCENES / stream.batch_size))
    familiar = min(steps, math.ceil(FAMILIAR_SCENES / stream.batch_size))
    later = (batch for batch in map(held_out.batch, count(validating)) if batch.light.shape[1])
    with (
        unfinished_folder(output, settings, resume=resume, overwrite=overwrite) as kept,
        whole_file(output, overwrite=overwrite) as temporary,
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        torch.manual_seed(stream.seed)
        network = SceneNetwork() if begun is None else begun.network.requires_grad_(True)
        network.trunk.requires_grad_(trunk)
        # The processes that make scenes have cores of their own: threads that wait for one another spin.
        with on_threads(max(1, (os.cpu_count() or 1) - workers)):
            loss, validation = SceneLoss(network.to(device)), [held_out.batch(n) for n in range(validating)]
            history = fit(loss, batches, validation, schedule=schedule, checkpoint=kept / "checkpoint.pt")
            ranges, tokens = _familiar(network.cpu(), islice(later, familiar), stream)
        built = {} if begun is None else begun.description.settings
        record = {"command": "probdeblend train", "torch": torch.__version__, "probdeblend": __version__} | settings
        record |= {"steps_done": history.step, "validation_loss": round(history.best, 4)}
        description = Description(settings=built, **ranges, training=record)
        save(Deblender(network, description, tokens=tokens), temporary)
    return history.table()


def _described(stream: SceneStream) -> dict[str, object]:
    """Return what a stream is made of: its numbers, and the names of its real galaxies."""
    templates = stream.templates
    galaxies = sorted({galaxy.identity for galaxy in getattr(templates.sources, "kept", ())})
    plain = replace(stream, templates=replace(templates, sources=None))
    return json.loads(json.dumps(asdict(plain) | {"galaxies": galaxies}))


@torch.no_grad()
def _familiar(
    network: SceneNetwork, batches: Iterator[SceneBatch], stream: SceneStream
) -> tuple[dict[str, object], Tensor]:
    """Return the range of the scenes that a network is trained on, and the features of their sources."""
    rng, brightest, tokens = np.random.default_rng(stream.seed), [], []
    widths = [fwhm_of(stream.templates.cameras.sample(rng).psf).flatten() for _ in range(CAMERAS)]
    for batch in batches:
        maps = network.encode(batch.image, batch.good, batch.psf, batch.noise)
        token = network.read(maps, batch.x, batch.y)[1].token
        tokens.append(token[:, : batch.light.shape[1]].flatten(0, 1))
        brightest.append(batch.log_flux.nan_to_num(-math.inf).flatten())
    fwhm = (float(torch.cat(widths).min()) * (1 - SLACK), float(torch.cat(widths).max()) * (1 + SLACK))
    return {"fwhm": fwhm, "brightest": float(torch.cat(brightest).max())}, torch.cat(tokens)
