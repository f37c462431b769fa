"""Repeat measurements: the same blends in two exposures test the errors on real sky, where no truth is known.

Two images show the same sky on the same pixels. Every blend is deblended in both. For each galaxy,

    z = (f_A - f_B) / sqrt(e_A**2 + e_B**2 - 2 r e_A e_B)

has mean 0 and standard deviation 1 if the errors are right; those of SDSS turned out too small in this way (Scranton et
al. 2005, arXiv:astro-ph/0508564). Fluxes f are medians of the draws, errors e half of their central 68 % intervals, as
posteriors of blended fluxes have heavy tails. For both galaxies of a pair jointly, ``chi2`` is the squared difference
over its covariance, with two degrees of freedom.

r is the correlation of the noise of the two images: 0 where they share no exposure. If A is the mean of n_A exposures,
B of n_B, and n_c of them are in both, r = n_c / sqrt(n_A n_B). Between two pairs of fluxes with the covariances
L_A L_A^T and L_B L_B^T the covariance is r L_A L_B^T, which is exact where the two are proportional to each other.

z tests the noise, not the bias. Errors that both images have in common cancel: those of galaxies unlike the training
set, of light that can be divided in several ways, and the pull of the prior. A posterior that rightly includes them has
a z that scatters by less than 1; a scatter above 1 means that errors are too small. An error of an image's background
moves z of many galaxies together.

Blends are found in the mean of the two images, weighted as in the best linear combination of correlated numbers (Lyons
et al. 1988, doi:10.1016/0168-9002(88)90018-6): w_A is proportional to s_B**2 - r s_A s_B. The noise of that mean is
uncorrelated with the difference of the images, so that neither is favored by what is found, where, and with which
neighbors. Neighbors are replaced by sky from the same places in both images, and the dropout passes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.stats import mad_std
from astropy.table import QTable, Table, vstack
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from scipy.spatial import cKDTree

from ..deblending.deblender import Deblends
from ..deblending.field import deblend_field
from ..deblending.products import DeblendedImage
from ..deblending.sep import sep_posterior
from ..metrics.coverage import bootstrap, expected_coverage
from ..photometry.images import FieldImage, read_image, uncovered
from ..photometry.sky import dilate, replace_with_sky, subtract_sky
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import STAMP_SIZE

__all__ = ["Repeat", "compare_exposures", "mean_image", "read_exposures"]

SIGMAS = (1, 2, 3)
BAND = 0.95
ENDS = ("", "_low", "_high")
CHUNK = 64
LARGEST_SHIFT = 0.5  # pixels


@dataclass(frozen=True, eq=False)
class Repeat:
    """Fluxes of the same galaxies in two exposures, A and B.

    `table` has one row per galaxy and method: ``blend``, ``galaxy``, ``x`` and ``y`` in the images (pixels), ``method``
    ("network": total fluxes; "sep": Kron fluxes with the errors that SEP quotes), ``flux_a``, ``flux_b``, ``error_a``
    and ``error_b`` in units of A, ``z``, ``chi2`` of the pair, and ``flags`` of either image. Numbers are NaN where a
    galaxy was not found in both images, ``chi2`` also where one of the pair counts in another blend. `sky_rms` is the
    median sky noise of a pixel of A and of B in units of A, `noise_factor` the factor by which the correlation of
    neighboring pixels raises SEP's errors, which lack it.
    """

    table: Table
    sky_rms: tuple[float, float]
    noise_factor: float

    def pulls(self) -> dict[str, NDArray[np.float64]]:
        """Return z by method."""
        return {rows["method"][0]: np.asarray(rows["z"]) for rows in self.table.group_by("method").groups}

    def summary(self) -> Table:
        """Summarize z of all galaxies and of those without flags, one row per method.

        Columns are ``count``; ``mean``, ``sd`` and ``nmad`` of z; ``within_1``, ``within_2`` and ``within_3``, the
        fractions inside so many errors; ``pairs``, and ``joint``, the fraction of them inside the joint 68.3 % region.
        ``_low`` and ``_high`` are the ends of 95 % bands: for mean and sd of the bootstrap over blends, for fractions
        those of right errors of independent galaxies.
        """
        rows = []
        for method in dict.fromkeys(self.table["method"]):
            measured = self.table[(self.table["method"] == method) & np.isfinite(self.table["z"])]
            for galaxies, chosen in (("all", measured), ("without flags", measured[measured["flags"] == 0])):
                if len(chosen):
                    rows.append({"method": method, "galaxies": galaxies} | _numbers(chosen))
        table = Table(rows)
        for name in table.colnames[2:]:
            if table[name].dtype.kind == "f":
                table[name].info.format = ".3f"
        return table


def _numbers(rows: Table) -> dict[str, float]:
    score, blend = np.asarray(rows["z"]), np.asarray(rows["blend"])
    _, first, galaxies = np.unique(blend, return_index=True, return_counts=True)
    rank = stats.chi2.cdf(rows["chi2"][first[galaxies == 2]], 2)
    levels = special.erf(np.array(SIGMAS) / np.sqrt(2))
    found = {
        "mean": (score.mean(), *bootstrap(lambda picked: float(score[picked].mean()), blend, level=BAND)),
        "sd": (score.std(), *bootstrap(lambda picked: float(score[picked].std()), blend, level=BAND)),
    }
    inside = expected_coverage(special.ndtr(score), levels=levels, band=BAND)[:, 1:]
    found |= {f"within_{sigma}": values for sigma, values in zip(SIGMAS, inside, strict=True)}
    region = {"levels": levels[:1], "central": False, "band": BAND}
    found["joint"] = expected_coverage(rank, **region)[0, 1:] if len(rank) else (np.nan,) * 3
    row = {"count": len(score), "pairs": len(rank), "nmad": float(mad_std(score))}
    return row | {f"{name}{end}": float(values[i]) for name, values in found.items() for i, end in enumerate(ENDS)}


def read_exposures(path_a: Path, path_b: Path, *, hdu: int | str | None = None) -> tuple[FieldImage, FieldImage]:
    """Read two images of the same sky; their world coordinates must put them on the same pixels."""
    first, second = read_image(path_a, hdu=hdu), read_image(path_b, hdu=hdu)
    rows, columns = first.data.shape
    if first.wcs is not None and second.wcs is not None:
        corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1]])
        there = second.wcs.world_to_pixel(first.wcs.pixel_to_world(*corners))
        shift = np.hypot(*(there - corners)).max()
        if not shift <= LARGEST_SHIFT:
            raise ValueError(f"{path_b}: must be on the pixels of {path_a}, got one shifted by {shift:.1f} pixels")
    return first, second


def compare_exposures(
    image_a: ArrayLike,
    image_b: ArrayLike,
    deblender: Deblends,
    *,
    correlation: float = 0.0,
    zero_points: tuple[float | None, float | None] = (None, None),
    exposures: tuple[float, float] = (np.inf, np.inf),
    **sampling: int,
) -> Repeat:
    """Deblend the blends of two images ``(y, x)`` of the same sky and compare the fluxes.

    The backgrounds are subtracted here, and blends whose stamps reach over the edge are left out. Pixels that are bad
    in one image are bad in both. `deblender` has an ``instrument`` and answers ``deblender(stamps, sky_rms=...,
    **sampling)``; `sampling` is its draws, passes, seed and calibrate. `correlation` is that of the images' noise,
    n_c / sqrt(n_A n_B). `zero_points` are AB magnitudes of unit flux, None for both where the unit is the same;
    `exposures` are counts per unit of flux in the image's own unit, for photon noise in SEP's errors.
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must be at least 0 and below 1, got {correlation}")
    if zero_points != (None, None) and (None in zero_points or not np.isfinite(zero_points).all()):
        raise ValueError(f"zero_points must be finite for both images or None for both, got {tuple(zero_points)}")
    scale = 1.0 if None in zero_points else float(10 ** (0.4 * (zero_points[0] - zero_points[1])))
    images = _checked(image_a, image_b, scale)
    subtracted = [subtract_sky(image) for image in images]
    if not all(noise.all() for _, noise in subtracted):
        raise ValueError("image_a and image_b must have nonzero sky noise, got 0")
    field = deblend_field(mean_image(*subtracted, correlation), _unanswered, instrument=deblender.instrument)
    blends, owner = _blends_inside(field), dilate(field.detection.segmentation)
    counts = (exposures[0], exposures[1] / scale)
    answers = [_answers(*each, blends, owner, deblender, sampling) for each in zip(images, counts, strict=True)]
    network, sep, sky_rms = zip(*answers, strict=True)
    table = vstack([_table(blends, *pair, correlation) for pair in (network, sep)])
    return Repeat(table, sky_rms, field.noise_factor)


def _checked(image_a: ArrayLike, image_b: ArrayLike, scale: float) -> list[NDArray[np.float64]]:
    """Return both images in units of the first, NaN where either is bad."""
    first, second = (np.ma.filled(np.ma.asarray(image, dtype=np.float64), np.nan) for image in (image_a, image_b))
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"image_b must have the shape (y, x) of image_a {first.shape}, got {second.shape}")
    bad = ~np.isfinite(first + second) | uncovered(first) | uncovered(second)
    return [np.where(bad, np.nan, image) for image in (first, scale * second)]


def mean_image(
    first: tuple[NDArray, NDArray], second: tuple[NDArray, NDArray], correlation: float
) -> NDArray[np.float64]:
    """Return the mean of two images, each given with its noise, whose noise is uncorrelated with their difference."""
    shared = correlation * first[1] * second[1]
    weights = [np.maximum(noise**2 - shared, 0) for noise in (second[1], first[1])]
    return (weights[0] * first[0] + weights[1] * second[0]) / (weights[0] + weights[1])


def _unanswered(stamps: NDArray, **_: object) -> Posterior:
    """Return a posterior without answers, where only the positions of the blends are needed."""
    return Posterior.from_draws(np.ones((1, 2, len(stamps), 2, 1)), flux_kind="total", method="none")


def _blends_inside(field: DeblendedImage) -> Table:
    """Return the blends whose stamps lie inside the image, one per row.

    Columns are ``corner``, x and y of the stamp's first pixel; and per galaxy its ``position`` (x and y in the image),
    the ``label`` of its source, whether it is ``kept``, as one galaxy may be in two blends but counts in one, and
    ``crowded``, its flag.
    """
    flags = np.zeros((0, 2), dtype=int) if field.posterior is None else field.posterior.flags.values
    inside = ~(flags & Flag.TRUNCATED).any(-1)
    if not inside.any():
        raise ValueError("image_a and image_b must show blends at least half a stamp from the edge, got none")
    corner = np.stack([field.corners["x0"], field.corners["y0"]], -1)
    position = np.stack([field.posterior.dataset[name] for name in "xy"], -1) + corner[:, None]
    label = cKDTree(np.stack([field.detection.x, field.detection.y], -1)).query(position)[1] + 1
    rows = field.catalog[~np.ma.getmaskarray(field.catalog["blend"])]
    kept = np.zeros(flags.shape, dtype=bool)
    kept[rows["blend"], rows["galaxy"]] = True
    columns = {"corner": corner, "position": position, "label": label, "kept": kept, "crowded": flags & Flag.CROWDED}
    return Table(columns)[inside]


def _answers(
    image: NDArray, exposure: float, blends: Table, owner: NDArray[np.int32], deblender: Deblends, sampling: dict
) -> tuple[QTable, QTable, float]:
    """Return the rows of the network and of SEP, and the median sky noise; `owner` has the sources of both images."""
    pixels, noise = subtract_sky(image, mask=owner > 0)
    noise = noise * mad_std((pixels / noise)[owner == 0], ignore_nan=True)
    kernel, seed = deblender.instrument.noise_kernel, sampling.get("seed", 0)
    filling = {"kernel": None if kernel is None else kernel.cpu(), "sky_rms": 1.0}
    stamps, sky_rms = np.empty((len(blends), STAMP_SIZE, STAMP_SIZE), dtype=np.float32), np.empty(len(blends))
    for i, (x0, y0) in enumerate(blends["corner"]):
        window = (slice(y0, y0 + STAMP_SIZE), slice(x0, x0 + STAMP_SIZE))
        sources, rms, rng = owner[window], noise[window], np.random.default_rng([seed, i])
        others = ~np.isin(sources, [0, *blends["label"][i]])
        stamps[i] = replace_with_sky(pixels[window] / rms, others, rng, blank=sources == 0, **filling) * rms
        sky_rms[i] = np.median(rms)
    parts = []
    for start in range(0, len(stamps), CHUNK):
        part = slice(start, start + CHUNK)
        answer = deblender(stamps[part], sky_rms=sky_rms[part], **(sampling | {"seed": seed + start}))
        parts.append(answer.without_pixels())
    x, y = np.transpose(blends["position"] - blends["corner"][:, None], (2, 0, 1))
    drawn = {name: sampling[name] for name in ("draws", "seed") if name in sampling}
    sep = sep_posterior(stamps, sky_rms, x=x, y=y, exposure=exposure, **drawn)
    return Posterior.concatenate(parts).summary(), sep.summary(), float(np.median(noise))


def _table(blends: Table, first: QTable, second: QTable, correlation: float) -> Table:
    """Return one row per galaxy from the rows of a method in both images."""
    rows, kept = (first, second), blends["kept"]
    table = Table({name: first[name] for name in ("blend", "galaxy", "method")})
    table["x"], table["y"] = blends["position"].reshape(-1, 2).T
    flux, error = ([each["flux"] for each in rows], [(each["flux_84"] - each["flux_16"]) / 2 for each in rows])
    for name, values in (("flux", flux), ("error", error)):
        table[f"{name}_a"], table[f"{name}_b"] = values
    difference = flux[0] - flux[1]
    table["z"] = difference / np.sqrt(error[0] ** 2 + error[1] ** 2 - 2 * correlation * error[0] * error[1])
    table["flags"] = first["flags"] | second["flags"] | blends["crowded"].ravel()
    roots = [_root(each["correlation"], width) for each, width in zip(rows, error, strict=True)]
    between = correlation * roots[0] @ roots[1].swapaxes(1, 2)
    covariance = sum(root @ root.swapaxes(1, 2) for root in roots) - between - between.swapaxes(1, 2)
    away = np.reshape(difference, (-1, 2, 1))
    chi2 = (away * np.linalg.solve(covariance, away)).sum((1, 2))
    table["chi2"] = np.where(kept.all(-1), chi2, np.nan).repeat(2)
    return table[kept.ravel()]


def _root(correlation: ArrayLike, error: ArrayLike) -> NDArray[np.float64]:
    """Return the lower triangular root ``(blend, 2, 2)`` of the covariance of both fluxes of each pair."""
    tied = np.ma.filled(correlation, np.nan)[::2]
    rows = [[np.ones_like(tied), np.zeros_like(tied)], [tied, np.sqrt(1 - tied**2)]]
    return np.moveaxis(np.array(rows), -1, 0) * np.reshape(error, (-1, 2, 1))
