"""Condensed catalogs: one catalog with existence probabilities from many sampled ones.

A sampler of catalogs answers with a set of them, each of another number of sources. Which sources of different samples
are the same one is decided by position, following Portillo et al. (2017, doi:10.3847/1538-3881/aa8565): a list of seeds
is made where most samples have a source, and in each sample every seed is matched with one source at most.
"""

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from ..metrics.arrays import ONE_SIGMA
from ..metrics.detections import match_sources

__all__ = ["condensed_catalog"]


def condensed_catalog(
    sample: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    flux: ArrayLike,
    *,
    radius: float,
    samples: int = 0,
    least: float = 0.05,
) -> Table:
    """Condense sampled catalogs into one, whose sources have existence probabilities.

    Parameters
    ----------
    sample
        Number of the catalog ``(source,)`` that each source belongs to, from 0.
    x, y
        Positions ``(source,)`` in pixels.
    flux
        Fluxes ``(source,)`` or, in several bands, ``(source, band)``.
    radius
        Largest distance in pixels between a source and the one that it is counted as. Half of the PSF's FWHM suits
        point sources; sources that are closer than that are two only where the same sample has both.
    samples
        Number of catalogs, with those that have no source; 0 for those up to the last that has one.
    least
        Sources of smaller existence probability are left out.

    Returns
    -------
    Table
        One row per source: ``existence``, the fraction of the catalogs that have it, ``x`` and ``y``, their standard
        deviations ``x_err`` and ``y_err``, and quantiles of its flux, ``flux_16``, ``flux_50`` and ``flux_84``, in the
        catalogs that have it. Those that most catalogs have come first.

    Raises
    ------
    ValueError
        If the radius is not positive, lengths differ, positions are not finite, or a sample is not below the number of
        samples.

    References
    ----------
    Portillo et al. (2017), AJ 154, 132.

    Examples
    --------
    Of four catalogs, three see the source:

    >>> condensed = condensed_catalog([0, 1, 3], [5.0, 5.1, 4.9], [7.0, 7.0, 7.0], [9.0, 8.0, 10.0], radius=1.0)
    >>> condensed["existence"].tolist(), condensed["flux_50"].tolist()
    ([0.75], [9.0])
    """
    sample, place, flux = np.asarray(sample, dtype=int), np.stack([x, y], -1).astype(float), np.asarray(flux)
    if not len(sample) == len(place) == len(flux) or not np.isfinite(place).all():
        raise ValueError(f"x and y must be finite and one for each of {len(sample)} samples and {len(flux)} fluxes")
    samples = samples or int(sample.max(initial=-1)) + 1
    if not 0 <= sample.min(initial=0) <= sample.max(initial=-1) + 1 <= samples:
        raise ValueError(f"sample must be 0 to below {samples}, got {sample.min()} to {sample.max()}")
    seeds = _seeds(sample, place, radius, least * samples)
    every = np.repeat(np.arange(samples), len(seeds)), *np.tile(seeds.T, samples)
    matched = match_sources((sample, *place.T), every, radius=radius).reshape(samples, len(seeds))
    parts = [own[own >= 0] for own in matched.T if (own >= 0).sum() >= max(least * samples, 1)]
    parts.sort(key=len, reverse=True)
    columns = {"existence": [len(own) / samples for own in parts]}
    for name, values in zip("xy", place.T, strict=True):
        columns |= {name: [values[own].mean() for own in parts], f"{name}_err": [values[own].std() for own in parts]}
    columns |= {f"flux_{100 * q:.0f}": [np.quantile(flux[own], q, axis=0) for own in parts] for q in ONE_SIGMA}
    return Table({name: np.array(values, dtype=float) for name, values in columns.items()})


def _seeds(sample: NDArray, place: NDArray, radius: float, least: float) -> NDArray[np.float64]:
    """Return positions ``(seed, 2)`` near which at least so many samples have a source, which counts for one alone."""
    tree, free, seeds = KDTree(place), np.ones(len(place), dtype=bool), []
    for source in np.argsort(-tree.query_ball_point(place, radius, return_length=True), kind="stable"):
        if free[source]:
            near = np.intersect1d(np.flatnonzero(free), tree.query_ball_point(place[source], radius)).astype(int)
            near = near[np.linalg.norm(place[near] - place[source], axis=1).argsort(kind="stable")]
            own = near[np.unique(sample[near], return_index=True)[1]]
            free[own] = False
            seeds += [place[own].mean(0)] if len(own) >= least else []
    return np.reshape(seeds, (-1, 2))
