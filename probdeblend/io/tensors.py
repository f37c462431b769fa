"""Tensors in safetensors files, with words beside them."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

__all__ = ["read_tensors", "write_tensors"]


def read_tensors(path: str | PathLike[str], *, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file.

    Parameters
    ----------
    path
        The file.
    kind
        What it should be, in words.

    Returns
    -------
    metadata, tensors
        Words and tensors by name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no safetensors file, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from None


def write_tensors(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    tensors, metadata
        Tensors and words by name.
    """
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    Path(path).write_bytes(serialize(stored, dict(metadata)))
