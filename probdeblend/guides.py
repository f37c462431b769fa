"""Trained guides in files, and the command that trains one.

A guide's file is a safetensors file: its hidden layers and head, and as JSON what it was built as, how it was trained,
and the digest of the weights whose encoder it stands on. The encoder itself stays where it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from .amortize import train_guide
from .deblender import Deblender
from .guide import JointGuide
from .io import whole_file
from .model import BlendModel
from .prior import Prior
from .train import History

__all__ = ["load_guide", "save_guide", "train_default_guide"]

FORMAT = "probdeblend guide"
VERSION = "1"
SETTINGS = {"hidden": 256, "dropout": 0.1}


def save_guide(guide: JointGuide, deblender: Deblender, path: Path | str, *, training: dict[str, object]) -> None:
    """Write a guide's file.

    Parameters
    ----------
    guide
        The guide, built with the settings of this module.
    deblender
        The weights whose encoder it stands on.
    path
        Where to; an existing file is replaced.
    training
        How it was trained: numbers and words by name.
    """
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in guide.state_dict().items()
        if not name.startswith("encoder.")
    }
    described = {"settings": SETTINGS, "encoder": deblender.digest, "training": training}
    metadata = {"format": FORMAT, "version": VERSION, "description": json.dumps(described)}
    Path(path).write_bytes(serialize(tensors, metadata))


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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such guide")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(f"{path}: not a guide of probdeblend, or one of another version than {VERSION}")
    described = json.loads(metadata["description"])
    if described["encoder"] != deblender.digest:
        raise ValueError(
            f"{path}: a guide on the encoder of the weights {described['encoder']}, got {deblender.digest}: train one "
            "for these weights"
        )
    guide = JointGuide(deblender.network, pixel_scale=deblender.instrument.pixel_scale, **described["settings"])
    missing, unexpected = guide.load_state_dict(tensors, strict=False)
    if unexpected or any(not name.startswith("encoder.") for name in missing):
        raise ValueError(f"{path}: tensors do not fit what the file says of them")
    return guide.eval()


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
    with whole_file(output, overwrite=overwrite) as partial, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = JointGuide(deblender.network, pixel_scale=deblender.instrument.pixel_scale, **SETTINGS)
        history = train_guide(guide, model, blends=blends, steps=steps, seed=seed, progress=progress)
        described = {"blends": blends, "steps": history.step, "seed": seed, "torch": torch.__version__}
        described |= {"command": "probdeblend train-guide", "validation_loss": round(history.best, 4)}
        if not math.isfinite(history.best):
            raise ValueError(f"loss must stay finite, got {history.best}")
        save_guide(guide, deblender, partial, training=described)
    return history
