"""Accuracy and coverage on any set of blends with truth, for the network and for SEP side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy.table import Table
from tqdm.auto import tqdm

from .baseline import sep_posterior
from .io import count_blends, read_blends
from .metrics import accuracy_table
from .posterior import Posterior
from .scene import Blend

__all__ = ["evaluate", "report"]

CHUNK = 128
COLUMNS = [
    "method",
    "detected",
    "mape",
    "nmad_mag",
    "bias_mag",
    "outliers",
    "coverage_68",
    "coverage_90",
    "width",
    "crps_ln",
    "residual_correlation",
    "iou",
]


def evaluate(
    path: Path,
    deblender: Callable[..., Posterior],
    *,
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Table:
    """Measure a network and SEP on a stored set of blends with truth.

    The network is scored against the total fluxes. SEP is given the true positions to match its detections with, and
    is scored against the AUTO fluxes of the isolated galaxies, which are what it measures.

    Parameters
    ----------
    path
        A set that ``probdeblend simulate`` wrote.
    deblender
        Called as a `~probdeblend.deblender.Deblender`.
    draws, passes, seed
        Given to the deblender, and draws and seed to SEP.
    progress
        Show a progress bar.

    Returns
    -------
    Table
        The columns of `~probdeblend.metrics.accuracy_table`, a row a method.

    Raises
    ------
    ValueError
        If the set is empty or has no truth.
    """
    total = count_blends(path)
    if total == 0:
        raise ValueError(f"{path}: the set must hold blends, got none")
    network, sep, truth = [], [], []
    for start in tqdm(range(0, total, CHUNK), disable=not progress, desc="evaluate", unit="chunk"):
        blend = read_blends(path, start, min(start + CHUNK, total))
        truth.append(_truth(blend, path))
        answer = deblender(blend.image, sky_rms=blend.sky_rms, draws=draws, passes=passes, seed=seed + start)
        network.append(_scored(answer))
        sep.append(_scored(_sep(blend, draws=draws, seed=seed + start)))
    true = {name: np.concatenate([chunk[name] for chunk in truth]) for name in truth[0]}
    posteriors = {"network": Posterior.concatenate(network), "sep": Posterior.concatenate(sep)}
    return accuracy_table(posteriors, {"network": true["flux"], "sep": true["auto_flux"]}, mask=true["mask"])


def _truth(blend: Blend, path: Path) -> dict[str, np.ndarray]:
    names = ("flux", "auto_flux", "mask")
    if missing := [name for name in names if getattr(blend, name) is None]:
        raise ValueError(f"{path}: the set must have truth, got one without {', '.join(missing)}")
    if blend.flux.shape[1] != 2 or bool(blend.flux.isnan().any()):
        raise ValueError(f"{path}: the set must hold pairs, got other numbers of galaxies")
    return {name: getattr(blend, name).numpy() for name in names}


def _sep(blend: Blend, *, draws: int, seed: int) -> Posterior:
    x, y, exposure = (None if value is None else value.numpy() for value in (blend.x, blend.y, blend.exposure))
    return sep_posterior(
        blend.image.numpy(), blend.sky_rms.numpy(), x=x, y=y, exposure=exposure, draws=draws, seed=seed
    )


def _scored(posterior: Posterior) -> Posterior:
    """Keep what is scored: the fluxes, and masks as bits, so that memory stays bounded by the draws."""
    kept = posterior.dataset[["flux", "mask"]]
    return Posterior(kept.assign(mask=kept["mask"] > 0.5))


def report(table: Table) -> str:
    """Return the table as text, a row a method, with the columns that matter most.

    Parameters
    ----------
    table
        What `evaluate` returns.

    Returns
    -------
    str
        The text.
    """
    short = table[COLUMNS]
    for name in COLUMNS[1:]:
        short[name].info.format = ".3f"
    short["mape"].info.format = ".2f"
    return "\n".join(short.pformat(max_width=-1, max_lines=-1))
