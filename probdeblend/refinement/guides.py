"""Trained guides in files."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path

from ..deblending.deblender import Deblender
from ..deblending.weights import load, read_readout, write_readout
from ..networks.heads import StudentTHead
from .guide import JointGuide

__all__ = ["DEFAULT", "default_guide", "load_guide", "save_guide"]

DEFAULT = "guide_f160w.safetensors"
KIND = "guide"


def save_guide(guide: JointGuide, deblender: Deblender, path: Path | str, *, training: dict[str, object]) -> None:
    """Write a guide's file.

    Parameters
    ----------
    guide
        The guide, with a `~probdeblend.networks.heads.StudentTHead`.
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
    write_readout(guide, deblender, path, kind=KIND, training=training)


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
    return read_readout(path, deblender, build, kind=KIND)


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
