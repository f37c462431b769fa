"""Trained weights in files.

A weights file is a safetensors file: the network's tensors, the PSF and noise kernel of the instrument that it was
trained for, the moments of its features on its training family, and as JSON the architecture, the instrument, the
prior, how it was trained, and the calibrator that was fitted to it.
"""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from .._files import read_tensors, write_tensors
from ..posterior.calibrator import Calibrator
from ..scene import Instrument
from .deblender import Deblender, Description

__all__ = ["load", "save"]

FORMAT = "probdeblend weights"
VERSION = 1
DEFAULT = "weights_f160w.safetensors"


def load(path: Path | str | None = None, *, calibrator: Path | str | None = None) -> Deblender:
    """Load trained weights.

    Parameters
    ----------
    path
        A weights file; None for the weights that ship with the package.
    calibrator
        A calibrator's file, to be used instead of the one inside the weights.

    Returns
    -------
    Deblender
        On the CPU; ``.to("cuda")`` moves it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, no weights file, of another version, or holds other shapes than it says; or if the
        calibrator is damaged or was fitted on other weights.
    """
    other = None if calibrator is None else Calibrator.open(calibrator)
    path = Path(str(files("probdeblend") / "data" / DEFAULT)) if path is None else Path(path)
    metadata, tensors = read_tensors(path, kind="weights file")
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not weights of probdeblend")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path}: weights of version {metadata.get('version')}, this one reads {VERSION}")
    try:
        deblender = _assemble(metadata, tensors)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: weights do not fit what the file says of them ({reason})") from None
    if other is not None:
        deblender.use(other)
    return deblender


def _assemble(metadata: dict[str, str], tensors: dict[str, Tensor]) -> Deblender:
    description = Description.parse(metadata["description"])
    given = json.loads(metadata["instrument"])
    instrument = Instrument(
        psf=tensors.pop("instrument.psf"),
        noise_kernel=tensors.pop("instrument.noise_kernel", None),
        **given | {"exposure": given["exposure"] or math.inf},
    )
    names = ("feature_mean", "feature_whitening", "feature_limit")
    familiar = tuple(tensors[name] for name in names)
    network = description.build()
    deblender = Deblender(network, instrument, description, familiar=familiar)
    deblender.load_state_dict(tensors)
    if "calibrator" in metadata:
        deblender.use(Calibrator.parse(metadata["calibrator"]))
    return deblender


def save(deblender: Deblender, path: Path | str) -> None:
    """Write a weights file.

    Parameters
    ----------
    deblender
        What to write.
    path
        Where to; an existing file is replaced.
    """
    tensors = deblender.state_dict() | {"instrument.psf": deblender.instrument.psf}
    if deblender.instrument.noise_kernel is not None:
        tensors["instrument.noise_kernel"] = deblender.instrument.noise_kernel
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "description": deblender.description.describe(),
        "instrument": deblender.instrument.describe(),
    }
    if deblender.calibrator is not None:
        metadata["calibrator"] = deblender.calibrator.describe()
    write_tensors(path, tensors, metadata)
