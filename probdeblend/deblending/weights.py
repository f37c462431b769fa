"""Read and write weights files.

A weights file is a safetensors file: the tensors of the network and the usual range of its features, and as JSON the
settings that it was built with, what it was trained on, and the calibrator that was fitted to it.
"""

from functools import cache
from importlib.resources import files
from inspect import signature
from pathlib import Path

import torch

from .._files import read_tensors, readable, write_tensors
from ..networks.scenes import SceneNetwork
from ..networks.sources import TOKEN
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior
from ..scene import seeded
from .deblender import Deblender, Description
from .inputs import Image

__all__ = ["deblend", "load", "loaded", "save"]

KIND = "weights file"
DEFAULT = "weights.safetensors"


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
        If the file is damaged, is not a weights file of this version, or does not fit its own description.
    """
    path = Path(str(files("probdeblend") / "data" / DEFAULT)) if path is None else Path(path)
    metadata, tensors = read_tensors(path, kind=KIND)
    wanted = f"tensors must match the stored description of the {KIND}"
    with readable(path, wanted), seeded(0):  # a network is made of random weights before it gets its own
        description = Description.parse(metadata["description"])
        (low, high), known = description.fwhm, signature(SceneNetwork).parameters
        numbers = [(value, 0.0) for value in (low, high, description.brightest)]
        numbers += [(value, known[name].default) for name, value in description.settings.items()]
        if not 0 < low < high or any(isinstance(value, bool) != isinstance(usual, bool) for value, usual in numbers):
            raise ValueError("fwhm must be a range, and settings those of the network")
        if not all(value.is_floating_point() for value in tensors.values()):
            raise TypeError("tensors must hold floating-point numbers")
        stated = torch.tensor([value for value, _ in numbers])
        if not all(bool(values.isfinite().all()) for values in (stated, *tensors.values())):
            raise ValueError("numbers must be finite, got NaN or infinity")
        deblender = Deblender(SceneNetwork(**description.settings), description, tokens=torch.zeros(2, TOKEN))
        deblender.load_state_dict({name: value.float() for name, value in tensors.items()})
        if "calibrator" in metadata:
            deblender.use(Calibrator.parse(metadata["calibrator"]))
    if calibrator is not None:
        deblender.use(Calibrator.open(calibrator))
    return deblender


@cache
def loaded(path: Path | str | None = None, calibrator: Path | str | None = None) -> Deblender:
    """Load weights once in each process."""
    return load(path, calibrator=calibrator)


def deblend(image: Image, **options: object) -> Posterior:
    """Deblend an image with the weights that ship, which are loaded at the first call.

    Parameters
    ----------
    image
        Pixels ``(y, x)`` or ``(band, y, x)``, or the path of a FITS file, as for `Deblender`.
    **options
        What `Deblender` takes: ``psf``, ``sky_rms``, ``positions``, ``wcs``, ``zero_point``, ``gain``, ``mask``,
        ``dq``, ``wavelength``, ``draws``, ``passes``, ``seed``, ``calibrate``, ``tile`` and ``progress``.

    Returns
    -------
    Posterior
        Fluxes in the image's unit, masks, deblended images, positions, shapes and flags, one row per source.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        As `Deblender` does.
    """
    return loaded()(image, **options)


def save(deblender: Deblender, path: Path | str) -> None:
    """Write a weights file; an existing one is replaced.

    Parameters
    ----------
    deblender
        The network, with its description and calibrator.
    path
        The file.
    """
    metadata = {"description": deblender.description.describe()}
    if deblender.calibrator is not None:
        metadata["calibrator"] = deblender.calibrator.describe()
    write_tensors(path, deblender.state_dict(), metadata, kind=KIND)
