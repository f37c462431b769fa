"""Trained guides in files, and the command that trains one."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path

import torch

from .amortize import train_guide
from .deblender import Deblender
from .guide import JointGuide
from .io import whole_file
from .model import BlendModel
from .nn.heads import StudentTHead
from .prior import Prior
from .readouts import read_readout, training_record, write_readout
from .train import History
from .weights import load

__all__ = ["DEFAULT", "default_guide", "load_guide", "save_guide", "train_default_guide"]

DEFAULT = "guide_f160w.safetensors"
KIND = {"kind": "guide", "version": "1"}
SETTINGS = {"hidden": 256, "dropout": 0.1}


def save_guide(guide: JointGuide, deblender: Deblender, path: Path | str, *, training: dict[str, object]) -> None:
    """Write a guide's file.

    Parameters
    ----------
    guide
        The guide, with a `~probdeblend.nn.heads.StudentTHead`.
    deblender
        The weights whose encoder it stands on.
    path
        Where to; an existing file is replaced.
    training
        How it was trained: numbers and words by name.

    Raises
    ------
    ValueError
        If it has another head, which the file could not name.
    """
    if not isinstance(guide.head, StudentTHead):
        raise ValueError(f"guide must have a StudentTHead to be stored, got a {type(guide.head).__name__}")
    write_readout(guide, deblender, path, **KIND, training=training)


def load_guide(path: Path | str, deblender: Deblender) -> JointGuide:
    """Load a trained guide.

    Parameters
    ----------
    path
        The guide's file.
    deblender
        The weights that it was trained on.

    Returns
    -------
    JointGuide
        In evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, no guide, of another version, or stands on other weights.
    """
    build = partial(JointGuide, deblender.network, pixel_scale=deblender.instrument.pixel_scale)
    return read_readout(path, deblender, build, **KIND)


def default_guide(deblender: Deblender | None = None) -> JointGuide:
    """Load the guide that ships with the package.

    Parameters
    ----------
    deblender
        The weights that ship, where they are loaded already; None loads them.

    Returns
    -------
    JointGuide
        In evaluation mode.

    Raises
    ------
    ValueError
        If the deblender has other weights.
    """
    return load_guide(str(files("probdeblend") / "data" / DEFAULT), deblender or load())


def train_default_guide(
    deblender: Deblender,
    output: Path,
    *,
    blends: int = 100_000,
    steps: int = 12_000,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> History:
    """Train a guide on the encoder of weights, and write its file.

    Parameters
    ----------
    deblender
        Trained weights.
    output
        The guide's file.
    blends
        Number of blends that are drawn from the model.
    steps
        Number of batches.
    seed
        Same seed, same guide.
    overwrite
        Whether a file that exists may be replaced.
    progress
        Show progress bars.

    Returns
    -------
    History
        The losses.

    Raises
    ------
    FileExistsError
        If the file exists and is not to be replaced.
    ValueError
        If there are too few blends.
    """
    model = BlendModel(Prior.default(), deblender.instrument)
    with whole_file(output, overwrite=overwrite) as temporary, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = JointGuide(deblender.network, pixel_scale=deblender.instrument.pixel_scale, **SETTINGS)
        history = train_guide(guide, model, blends=blends, steps=steps, seed=seed, progress=progress)
        described = training_record(history, command="train-guide", blends=blends, seed=seed)
        save_guide(guide, deblender, temporary, training=described)
    return history
