"""Files of networks that stand on the encoder of trained weights.

A safetensors file: the tensors of all but the encoder, and as JSON what the network was built as, how it was trained,
and the digest of the weights whose encoder it stands on. The encoder itself stays in the file of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

__all__ = ["read_readout", "write_readout"]

ENCODER = "encoder."


def write_readout(
    network: nn.Module,
    path: Path | str,
    *,
    kind: str,
    version: str,
    settings: dict[str, int | float],
    digest: str,
    training: dict[str, object],
) -> None:
    """Write the file of a network whose module ``encoder`` is that of trained weights.

    Parameters
    ----------
    network
        The network.
    path
        Where to; an existing file is replaced.
    kind
        What it is, in words.
    version
        Version of what such networks are.
    settings
        The numbers that it was built with, by name.
    digest
        Names the weights whose encoder it stands on.
    training
        How it was trained: numbers and words by name.
    """
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if not name.startswith(ENCODER)
    }
    described = {"settings": settings, "encoder": digest, "training": training}
    metadata = {"format": f"probdeblend {kind}", "version": version, "description": json.dumps(described)}
    Path(path).write_bytes(serialize(tensors, metadata))


def read_readout(
    path: Path | str, build: Callable[..., nn.Module], *, kind: str, version: str, digest: str
) -> nn.Module:
    """Load a network from its file.

    Parameters
    ----------
    path
        The file.
    build
        Makes the network on the encoder of the weights; called with the settings in the file.
    kind, version
        What the file must hold.
    digest
        Names the weights.

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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind}")
    metadata, tensors = _contents(path)
    if metadata.get("format") != f"probdeblend {kind}" or metadata.get("version") != version:
        raise ValueError(f"{path}: not a {kind} of probdeblend, or one of another version than {version}")
    try:
        described = json.loads(metadata["description"])
        encoder, settings = described["encoder"], described["settings"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: a {kind} that does not say what it was built as") from None
    if encoder != digest:
        raise ValueError(
            f"{path}: a {kind} on the encoder of the weights {encoder}, got {digest}: train one for these weights"
        )
    try:
        network = build(**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: a {kind} with settings that no network can have ({error})") from None
    if not _fill(network, tensors):
        raise ValueError(f"{path}: tensors do not fit what the file says of them")
    return network.eval()


def _contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from None


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Put tensors into all of a network but its encoder, and say whether that went."""
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except RuntimeError:  # of another shape
        return False
    return not unexpected and all(name.startswith(ENCODER) for name in missing)
