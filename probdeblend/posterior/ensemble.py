"""Several networks, one posterior: members of an ensemble on the ``chain`` dimension.

Networks of the same kind, trained from other seeds, are wrong in their own ways where training says little. Their
posteriors together are a mixture (Lakshminarayanan et al. 2017, arXiv:1612.01474), and with each member's draws in
chains of their own, r-hat is a measure of how far they disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import xarray as xr

from .draws import Posterior, variance_parts

__all__ = ["combine"]

OF_ONE = ("network", "flux_prior")


def combine(posteriors: Sequence[Posterior]) -> Posterior:
    """Join the posteriors of several networks for the same blends.

    Parameters
    ----------
    posteriors
        Posteriors of equal numbers of draws a chain, not calibrated: a calibrator is fitted to the ensemble.

    Returns
    -------
    Posterior
        All chains. Mask probabilities are means, with the variance within members and between them; positions are the
        first member's; a flag of one is a flag of all.

    Raises
    ------
    ValueError
        If there are fewer than two, or they differ in blends, draws, kind of flux or unit, or one is calibrated.
    """
    if len(posteriors) < 2:
        raise ValueError(f"posteriors must be at least two, got {len(posteriors)}")
    datasets = [posterior.dataset for posterior in posteriors]
    first = datasets[0]
    for other in datasets:
        if "calibrated" in other.attrs:
            raise ValueError("posteriors must not be calibrated: ask for them with calibrate=False")
        _check_alike(first, other)
    flux = np.concatenate([dataset["flux"].values for dataset in datasets])
    changed = {"flux": (first["flux"].dims, flux, first["flux"].attrs)}
    for name, part in zip(("within", "between"), variance_parts(flux), strict=True):
        changed[f"flux_variance_{name}"] = (("blend", "galaxy", "band"), part)
    if all("flags" in dataset for dataset in datasets):
        changed["flags"] = reduce(np.bitwise_or, [dataset["flags"] for dataset in datasets])
    changed |= _masks(datasets)
    kept = first.drop_dims("chain").drop_vars(["mask", "mask_std"], errors="ignore")
    attributes = {name: value for name, value in first.attrs.items() if name not in OF_ONE}
    joined = kept.assign(changed).assign_coords(chain=np.arange(len(flux)))
    joined.attrs = attributes | {"members": len(posteriors)}
    return Posterior(joined)


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    for name in ("flux_kind", "flux_unit", "pixel_scale"):
        if (given := other.attrs.get(name)) != (wanted := first.attrs.get(name)):
            raise ValueError(f"posteriors must have the same {name}, got {wanted!r} and {given!r}")
    for name in ("draw", "blend", "galaxy", "band"):
        if (given := other.sizes[name]) != (wanted := first.sizes[name]):
            raise ValueError(f"posteriors must have the same number of {name}s, got {wanted} and {given}")


def _masks(datasets: list[xr.Dataset]) -> dict[str, tuple]:
    if not all("mask" in dataset for dataset in datasets):
        return {}
    masks = np.stack([dataset["mask"].values for dataset in datasets])
    spread = masks.var(0)
    if all("mask_std" in dataset for dataset in datasets):
        spread = spread + np.mean([dataset["mask_std"].values ** 2 for dataset in datasets], 0)
    dims = datasets[0]["mask"].dims
    return {"mask": (dims, masks.mean(0)), "mask_std": (dims, np.sqrt(spread))}
