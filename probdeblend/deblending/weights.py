"""Read and write weights files, and files of networks that use their frozen encoder.

A weights file is a safetensors file: the tensors of the network, the PSF and noise kernel of the instrument that it was
trained for, the usual range of its features, and as JSON the architecture, the instrument, what it was trained on, and
the calibrator that was fitted to it. The file of a guide or count network holds the tensors of all but the encoder,
and as JSON how it was built and trained and the digest of that encoder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

from numpy.typing import ArrayLike
from torch import Tensor, nn

from .._files import read_tensors, write_tensors
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior
from ..scene import Instrument
from .deblender import FAMILIAR, Deblender, Description

__all__ = ["deblend", "load", "read_readout", "save", "write_readout"]

KIND = "weights file"
DEFAULT = "weights_f160w.safetensors"
ENCODER = "encoder."


def load(path: Path | str | None = None, *, calibrator: Path | str | None = None) -> Deblender:
    """Load trained weights.

    Parameters
    ----------
    path
        A weights file; None for the weights that ship with the package.
    calibrator
        File of a calibrator to use instead of the one inside the weights.

    Returns
    -------
    Deblender
        On the CPU; ``.to("cuda")`` moves it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, is not a weights file of this version, or does not fit its own description; or if the
        calibrator is damaged or was fitted on other weights.
    """
    path = Path(str(files("probdeblend") / "data" / DEFAULT)) if path is None else Path(path)
    metadata, tensors = read_tensors(path, kind=KIND)
    with _described(path, KIND):
        deblender = _assemble(metadata, tensors)
    if calibrator is not None:
        deblender.use(Calibrator.open(calibrator))
    return deblender


def deblend(
    image: ArrayLike, *, sky_rms: ArrayLike, draws: int = 1000, passes: int = 32, seed: int = 0, calibrate: bool = True
) -> Posterior:
    """Deblend stamps with the weights that ship, which are loaded at the first call.

    Parameters
    ----------
    image, sky_rms, draws, passes, seed, calibrate
        As for `Deblender.forward`: one stamp of 128 x 128 pixels or an array of them, and their sky noise.

    Returns
    -------
    Posterior
        Total fluxes in the image's units, mask probabilities, light-weighted positions and flags.
    """
    return _shipped()(image, sky_rms=sky_rms, draws=draws, passes=passes, seed=seed, calibrate=calibrate)


@cache
def _shipped() -> Deblender:
    return load()


def _assemble(metadata: dict[str, str], tensors: dict[str, Tensor]) -> Deblender:
    description = Description.parse(metadata["description"])
    given = json.loads(metadata["instrument"])
    instrument = Instrument(
        psf=tensors.pop("instrument.psf"),
        noise_kernel=tensors.pop("instrument.noise_kernel", None),
        **given | {"exposure": given["exposure"] or math.inf},
    )
    deblender = Deblender(description.build(), instrument, description)
    for name in FAMILIAR:
        setattr(deblender, name, tensors[name])
    deblender.load_state_dict(tensors)
    if "calibrator" in metadata:
        deblender.use(Calibrator.parse(metadata["calibrator"]))
    return deblender


def save(deblender: Deblender, path: Path | str) -> None:
    """Write a weights file; an existing one is replaced."""
    tensors = deblender.state_dict() | {"instrument.psf": deblender.instrument.psf}
    if deblender.instrument.noise_kernel is not None:
        tensors["instrument.noise_kernel"] = deblender.instrument.noise_kernel
    metadata = {"description": deblender.description.describe(), "instrument": deblender.instrument.describe()}
    if deblender.calibrator is not None:
        metadata["calibrator"] = deblender.calibrator.describe()
    write_tensors(path, tensors, metadata, kind=KIND)


def write_readout(
    network: nn.Module, deblender: Deblender, path: Path | str, *, kind: str, training: dict[str, object]
) -> None:
    """Write a network whose module ``encoder`` is that of trained weights, with its ``settings`` and its training."""
    tensors = {name: value for name, value in network.state_dict().items() if not name.startswith(ENCODER)}
    described = {"settings": network.settings, "encoder": deblender.encoder_digest, "training": training}
    write_tensors(path, tensors, {"description": json.dumps(described)}, kind=kind)


def read_readout(path: Path | str, deblender: Deblender, build: Callable[..., nn.Module], *, kind: str) -> nn.Module:
    """Load a network that `write_readout` wrote, in evaluation mode; `build` makes it from the stored settings."""
    metadata, tensors = read_tensors(path, kind=kind)
    with _described(path, kind):
        described = json.loads(metadata["description"])
        encoder, settings = described["encoder"], described["settings"]
    if encoder != (known := deblender.encoder_digest):
        raise ValueError(f"{path}: the {kind} must be trained on encoder {known}, that of the weights, got {encoder}")
    with _described(path, kind):
        network = build(**settings)
        shared = {name: value for name, value in network.state_dict().items() if name.startswith(ENCODER)}
        network.load_state_dict(shared | tensors)
    return network.eval()


@contextmanager
def _described(path: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever a file raises that does not fit its description into one sentence."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path}: tensors must match the stored description of the {kind} ({reason})") from None
