"""Several networks, one posterior: members of an ensemble on the ``chain`` dimension.

Networks of the same kind, trained from other seeds, are wrong in their own ways where training says little. Their
posteriors together are a mixture (Lakshminarayanan et al. 2017, arXiv:1612.01474), and with each member's draws in
chains of their own, r-hat is a measure of how far they disagree. Of a mask it is the mutual information between pixel
and chain: the entropy of the mean probability less the mean entropy of the chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .draws import MASKS, Posterior
from .variance import variance_parts

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
        All chains. Mask probabilities are means over them, with the variance and the information within members and
        between them; positions are the first member's; a flag of one is a flag of all.
        Doubt is the largest one, or, where it is larger, the scatter of the members' mean fluxes over their own width:
        above 1 they contradict each other.

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
    changed["doubt"] = (("blend",), reduce(np.fmax, [*(each.doubt.values for each in posteriors), _apart(posteriors)]))
    changed |= _masks(posteriors)
    kept = first.drop_dims("chain").drop_vars(MASKS, errors="ignore")
    attributes = {name: value for name, value in first.attrs.items() if name not in OF_ONE}
    joined = kept.assign(changed).assign_coords(chain=np.arange(len(flux)))
    joined.attrs = attributes | {"members": len(posteriors)}
    return Posterior(joined)


def _apart(posteriors: Sequence[Posterior]) -> NDArray[np.float64]:
    """Return the scatter of the members' mean fluxes over their own width, the larger of both galaxies."""
    draws = [each.draws("blend", "galaxy", "band") for each in posteriors]
    between = np.var([each.mean(-1) for each in draws], axis=0, ddof=1)
    within = np.mean([each.var(-1) for each in draws], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(between / within).max((1, 2))


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    for name in ("flux_kind", "flux_unit", "pixel_scale"):
        if (given := other.attrs.get(name)) != (wanted := first.attrs.get(name)):
            raise ValueError(f"posteriors must have the same {name}, got {wanted!r} and {given!r}")
    for name in ("draw", "blend", "galaxy", "band"):
        if (given := other.sizes[name]) != (wanted := first.sizes[name]):
            raise ValueError(f"posteriors must have the same number of {name}s, got {wanted} and {given}")


def _masks(posteriors: Sequence[Posterior]) -> dict[str, tuple]:
    known = [name for name in MASKS if all(name in posterior.dataset for posterior in posteriors)]
    if "mask" not in known:
        return {}
    chains = [posterior.flux.sizes["chain"] for posterior in posteriors]

    def mean(values: Sequence[NDArray]) -> NDArray:
        """Average what all chains of a member share over the chains."""
        return np.average(values, axis=0, weights=chains)

    masks = [posterior.mask.values for posterior in posteriors]
    dims, kind, mask = posteriors[0].mask.dims, masks[0].dtype, mean(masks)
    spread = mean((masks - mask) ** 2)
    if "mask_std" in known:
        spread = spread + mean([posterior.mask_std.values**2 for posterior in posteriors])
    joined = {"mask": (dims, mask.astype(kind)), "mask_std": (dims, np.sqrt(spread).astype(kind))}
    if "mask_information" in known:
        agreed = mean([(posterior.mask_entropy - posterior.mask_information).values for posterior in posteriors])
        entropy = Posterior(posteriors[0].dataset.assign(joined)).mask_entropy.values
        joined["mask_information"] = (dims, np.maximum(entropy - agreed, 0).astype(kind))
    return joined
