"""Files of networks that stand on the encoder of trained weights.

A safetensors file: the tensors of all but the encoder, and as JSON what the network was built as, how it was trained,
and the digest of the encoder that it stands on. The encoder itself stays in the file of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from .._files import read_tensors, write_tensors
from .deblender import Deblender

__all__ = ["read_readout", "write_readout"]

ENCODER = "encoder."


def write_readout(
    network: nn.Module,
    deblender: Deblender,
    path: Path | str,
    *,
    kind: str,
    version: str,
    training: dict[str, object],
) -> None:
    """Write the file of a network whose module ``encoder`` is that of trained weights.

    Parameters
    ----------
    network
        The network; its ``settings`` are the numbers that it was built with, by name.
    deblender
        The weights whose encoder it stands on.
    path
        Where to; an existing file is replaced.
    kind
        What it is, in words.
    version
        Version of what such networks are.
    training
        How it was trained: numbers and words by name.
    """
    tensors = {name: value for name, value in network.state_dict().items() if not name.startswith(ENCODER)}
    described = {"settings": network.settings, "encoder": deblender.encoder_digest, "training": training}
    metadata = {"format": f"probdeblend {kind}", "version": version, "description": json.dumps(described)}
    write_tensors(path, tensors, metadata)


def read_readout(
    path: Path | str, deblender: Deblender, build: Callable[..., nn.Module], *, kind: str, version: str
) -> nn.Module:
    """Load a network from its file.

    Parameters
    ----------
    path
        The file.
    deblender
        The weights that it was trained on.
    build
        Makes the network on the encoder of the weights; called with the settings in the file.
    kind, version
        What the file must hold.

    Returns
    -------
    torch.nn.Module
        The network, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of another kind or version, or stands on other weights.
    """
    metadata, tensors = read_tensors(path, kind=kind)
    if metadata.get("format") != f"probdeblend {kind}" or metadata.get("version") != version:
        raise ValueError(f"{path}: not a {kind} of probdeblend, or one of another version than {version}")
    try:
        described = json.loads(metadata["description"])
        encoder, settings = described["encoder"], described["settings"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: a {kind} that does not say what it was built as") from None
    if encoder != deblender.encoder_digest:
        found = f"on the encoder {encoder}, got weights with the encoder {deblender.encoder_digest}"
        raise ValueError(f"{path}: a {kind} {found}: train one for these weights")
    try:
        network = build(**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: a {kind} with settings that no network can have ({error})") from None
    if not _fill(network, tensors):
        raise ValueError(f"{path}: tensors do not fit what the file says of them")
    return network.eval()


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Put tensors into all of a network but its encoder, and say whether that went."""
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except RuntimeError:  # of another shape
        return False
    return not unexpected and all(name.startswith(ENCODER) for name in missing)
