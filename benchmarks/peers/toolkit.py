"""Deblend the Blending ToolKit's own blends with its SEP deblenders and with the network, judged by its own metrics.

Blends are those of the ToolKit's tutorial on metrics (Mendoza et al. 2025, doi:10.33232/001c.129699): one to seven
galaxies brighter than 25.3 in i within 3 arcsec of the middle of 24 by 24 arcsec, seen by ten years of LSST in six
bands. With the ToolKit's file ``data/input_catalog.fits``, which its package does not contain, the first ten blends of
seed 0 are the tutorial's own. Without it, galaxies are those of COSMOS in the same form: bulges and disks fitted to
F814W images (Leauthaud et al. 2007 as in GalSim's sample, doi:10.1086/516598), with the magnitude in F814W as that in
i, and the colors of the galaxy nearest in redshift among a hundred that HSC measured in grizy; u - g is taken as g - r.

The metrics are as the ToolKit computes them, of sources that it matches within five pixels: ``mse`` is the root of a
mean square over the whole stamp, and `psnr` and `ssim` divide each image by its own maximum, so that neither sees an
error of flux. Masks are compared with the pixels where the light of a galaxy alone exceeds three times the sky noise
in r; those of the network with several bands have these in quadrature, and are larger.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import NDArray

from benchmarks._command import FILE, Run, benchmark, kept_arrays, sized_option, weights_option
from benchmarks._held_out import data_folder
from benchmarks._scenes import formatted
from probdeblend.deblending.toolkit import ToolkitDeblender, toolkit_scene
from probdeblend.deblending.weights import load
from probdeblend.scene import LN_FLUX_UNIT, seed_of

if TYPE_CHECKING:
    from btk.blend_batch import BlendBatch, DeblendBatch
    from btk.draw_blends import CatsimGenerator

__all__ = ["batches", "cosmos_catalog", "main", "measure", "summary"]

BATCH, MOST = 10, 7  # blends that are drawn together, and galaxies in one
STAMP, SHIFT, FAINTEST = 24.0, 3.0, 25.3  # arcsec; magnitudes in i
ROOM = 40  # sources that a deblender may find
THRESHOLD = 3.0  # of SEP, over the noise
REACH = 5.0  # pixels
BANDS, R = ("u", "g", "r", "i", "z", "y"), 2
LARGEST = 2.0  # arcsec, half-light radius; larger fits are of several galaxies
PUBLISHED = "recall 0.537, precision 1, iou 0.770, mse 90.7"  # of SEP in r, for the tutorial's ten blends
Arrays = dict[str, NDArray]


def cosmos_catalog(folder: Path) -> Table:
    """Return galaxies of COSMOS as a CatSim catalog has them: magnitudes, semi-axes in arcsec, angles in degrees."""
    fits = Table.read(folder / "cosmos_252_catalog" / "src_cosmos.fits.gz")
    measured = Table.read(folder / "cosmos_f814w" / "photometry.fits")
    both, single, double = (np.asarray(fits[name]) for name in ("use_bulgefit", "sersicfit", "bulgefit"))
    flux, radius = np.asarray(fits["flux"]), np.asarray(fits["hlr"])
    both, steep = both > 0, single[:, 2] > 2
    light = {"bulge": np.where(both, flux[:, 1], steep), "disk": np.where(both, flux[:, 2], ~steep)}
    axes = {"bulge": (radius[:, 1], double[:, 11]), "disk": (radius[:, 2], double[:, 3])}
    angle = np.degrees(np.where(both, double[:, 7], single[:, 7]))
    table = Table({"ra": fits["ra"], "dec": fits["dec"], "redshift": fits["zphot"]})
    table["fluxnorm_agn"], good = 0.0, np.isfinite(fits["mag_auto"])
    for name, letter in (("bulge", "b"), ("disk", "d")):
        own = (np.where(both, *pair) for pair in zip(axes[name], (radius[:, 0], single[:, 3]), strict=True))
        size, ratio = (np.where(light[name] > 0, values, 1.0) for values in own)
        good &= (light[name] >= 0) & (size > 0) & (size < LARGEST) & (ratio > 0.05) & (ratio <= 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            table[f"a_{letter}"], table[f"b_{letter}"] = size / np.sqrt(ratio), size * np.sqrt(ratio)
        table[f"fluxnorm_{name}"], table[f"pa_{name}"] = light[name], angle
    order = np.argsort(measured["ZPHOT"])
    middle = (measured["ZPHOT"][order][1:] + measured["ZPHOT"][order][:-1]) / 2
    alike = measured[order[np.searchsorted(middle, fits["zphot"])]]
    for band in BANDS[1:]:
        table[f"{band}_ab"] = fits["mag_auto"] + alike[f"HSC_{band}"] - alike["HSC_i"]
    table["u_ab"] = 2 * table["g_ab"] - table["r_ab"]
    return table[np.asarray(good)]


def batches(catalog: Table, seed: int) -> CatsimGenerator:
    """Return a generator of batches of blends as the tutorial makes them."""
    from btk.catalog import CatsimCatalog
    from btk.draw_blends import CatsimGenerator
    from btk.sampling_functions import DefaultSampling
    from btk.survey import get_surveys

    sampling = DefaultSampling(STAMP, MOST, max_shift=SHIFT, max_mag=FAINTEST, seed=seed)
    return CatsimGenerator(CatsimCatalog(catalog), sampling, get_surveys("LSST"), batch_size=BATCH, seed=seed)


def sep_in_all_bands(batch: BlendBatch) -> DeblendBatch:
    """Ask the ToolKit's SEP deblender of several bands, which only tells right ascension and declination."""
    from btk.deblend import SepMultiBand

    found = SepMultiBand(ROOM, thresh=THRESHOLD)(batch)
    for table in found.catalog_list:
        sky = (np.asarray(table[name], dtype=float) / 3600 for name in ("ra", "dec"))
        table["x_peak"], table["y_peak"] = batch.wcs.world_to_pixel_values(*sky)
    return found


def measure(method: Callable[[BlendBatch], DeblendBatch], band: int, batch: BlendBatch) -> Arrays:
    """Judge what a method finds by the metrics of the ToolKit, and its fluxes in r, which is its band number `band`.

    Per blend ``found``, ``true`` and ``matched`` sources, and CPU seconds; per matched source what the metrics of the
    ToolKit tell, the true flux, the one that was found, and the rank of the truth among the draws.
    """
    from btk.match import PixelHungarianMatcher
    from btk.metrics.reconstruction import MSE, PSNR, StructSim
    from btk.metrics.segmentation import IoU
    from btk.metrics.utils import get_segmentation

    began = time.process_time()
    answer = method(batch)
    seconds = (time.process_time() - began) / batch.batch_size
    matching = PixelHungarianMatcher(pixel_max_sep=REACH)(batch.catalog_list, answer.catalog_list)
    found = {"found": matching.p, "true": matching.t, "matched": matching.tp}
    found["seconds"] = np.full(batch.batch_size, seconds)
    if answer.deblended_images is None or not matching.tp.sum():
        return found | dict.fromkeys(("iou", "mse", "psnr", "ssim", "flux", "estimate", "rank"), np.zeros(0))
    seen = toolkit_scene(batch, 0, ["r"])
    light = batch.isolated_images[:, :, R]
    segments = get_segmentation(light, float(seen.sky_rms) ** 2, sigma_noise=3)
    images = light, answer.deblended_images[:, :, band]
    judged = {"iou": (IoU, segments == 1, answer.segmentation)}
    judged |= {"mse": (MSE, *images), "psnr": (PSNR, *images), "ssim": (StructSim, *images)}
    for name, (metric, true, own) in judged.items():
        judge, pair = metric(batch.batch_size), (matching.match_true_arrays(true), matching.match_pred_arrays(own))
        with np.errstate(invalid="ignore", divide="ignore"):  # masks may be empty, and images alike
            judge(*(values.astype(true.dtype) for values in pair))
        values = judge.all_data[0][name].ravel()
        found[name] = values[np.isfinite(values)]
    return found | _fluxes(answer, band, batch, matching.true_matches, matching.pred_matches, seen.zero_point[0])


def _fluxes(
    answer: DeblendBatch, band: int, batch: BlendBatch, true: list[NDArray], own: list[NDArray], zero_point: float
) -> Arrays:
    """Return true and estimated fluxes in r of matched sources; those of a method without fluxes are sums of pixels."""
    flux, estimate, rank = ([np.zeros(0)] for _ in range(3))
    for number, (rows, chosen) in enumerate(zip(true, own, strict=True)):
        flux.append(10 ** (0.4 * (zero_point - np.asarray(batch.catalog_list[number]["r_ab"][rows]))))
        if answer.extra_data is None or answer.extra_data[number] is None:
            estimate.append(answer.deblended_images[number, chosen, band].sum((1, 2)))
            rank.append(np.full(len(rows), np.nan))
        else:
            draws = np.concatenate(answer.extra_data[number]["draws"].values[..., chosen, band])
            estimate.append(np.median(draws, 0))
            rank.append(((draws < flux[-1]).sum(0) + 0.5) / (len(draws) + 1))
    return {"flux": np.concatenate(flux), "estimate": np.concatenate(estimate), "rank": np.concatenate(rank)}


def summary(found: Mapping[str, NDArray]) -> dict[str, float]:
    """Return the metrics of all blends of a method: of the ToolKit, and of fluxes.

    ``mape`` is in percent, ``bias_mag`` and ``nmad_mag`` in magnitudes, coverage a fraction of matched sources.
    """
    recall, precision = (found["matched"].sum() / max(found[name].sum(), 1) for name in ("true", "found"))
    row = {"sources": int(found["true"].sum()), "recall": float(recall), "precision": float(precision)}
    row["f1"] = float(2 * recall * precision / max(recall + precision, 1e-12))
    row |= {name: _of(np.mean, found[name]) for name in ("iou", "mse", "psnr", "ssim")}
    ratio = found["estimate"] / found["flux"]
    error = -LN_FLUX_UNIT * np.log(np.maximum(ratio, 0.01))
    row |= {"mape": 100 * _of(np.mean, np.abs(ratio - 1)), "bias_mag": _of(np.median, error)}
    row["nmad_mag"] = _of(mad_std, error)
    for level in (50, 68, 95):
        row[f"coverage_{level}"] = _of(
            np.mean, np.where(np.isnan(found["rank"]), np.nan, _inside(found["rank"], level))
        )
    return row | {"seconds": _of(np.mean, found["seconds"])}


def _inside(rank: NDArray, level: float) -> NDArray[np.bool_]:
    return np.abs(2 * rank - 1) <= level / 100


def _of(statistic: Callable[[NDArray], float], values: NDArray) -> float:
    known = values[np.isfinite(values)]
    return float(statistic(known)) if known.size else math.nan


@benchmark("peers.toolkit")
@sized_option("--count", 10, 1000, help="Blends, of which ten are drawn together.")
@click.option("--catalog", type=FILE, help="CatSim catalog of the ToolKit.  [default: galaxies of COSMOS]")
@weights_option
def main(run: Run, count: int, catalog: Path | None, weights: Path | None) -> None:
    """Deblend blends of the Blending ToolKit by its SEP deblenders and by the network. Needs the ToolKit.

    Without `--catalog`, galaxies are those of COSMOS under PROBDEBLEND_DATA. Recall, precision, `f1`, `iou`, `mse`,
    `psnr` and `ssim` are as the ToolKit defines them, in r. Fluxes are those in r of sources that were matched: sums of
    pixels for SEP, total fluxes for the network; "given" has the true positions. Seconds are CPU time per blend.
    """
    try:
        from btk.deblend import SepSingleBand
    except ImportError:
        raise click.ClickException("needs the Blending ToolKit: pip install 'probdeblend[toolkit]'") from None
    deblender = load(weights)
    three, one = (ToolkitDeblender(ROOM, deblender, bands) for bands in (("g", "r", "i"), ("r",)))
    methods = {"SEP, r": (SepSingleBand(ROOM, thresh=THRESHOLD, use_band=R), 0), "SEP, all": (sep_in_all_bands, 0)}
    methods |= {"network, r": (one, 0), "network, gri": (three, 1)}
    methods["network, gri, given"] = (lambda batch: three(batch, catalogs=batch.catalog_list), 1)
    table = cosmos_catalog(data_folder()) if catalog is None else Table.read(catalog)
    numbers = range(math.ceil(count / BATCH))
    with run.unfinished(deblender=deblender, catalog=catalog and catalog.name, batches=len(numbers)) as kept:
        make = partial(_batch, table, methods)
        parts = [
            kept_arrays(kept / f"{n:04d}.npz", partial(make, seed_of(run.seed, n) if n else run.seed)) for n in numbers
        ]
        rows = []
        for name in methods:
            keys = [key for key in parts[0] if key.startswith(f"{name}/")]
            found = {key.split("/")[1]: np.concatenate([part[key] for part in parts]) for key in keys}
            rows.append({"method": name} | summary(found))
        result = formatted(rows)
        result.meta = {"blends": BATCH * len(numbers), "catalog": catalog.name if catalog else "COSMOS"}
        result.meta["tutorial_sep_r"] = PUBLISHED
        run.write(result)


def _batch(table: Table, methods: Mapping[str, tuple[Callable, int]], seed: int) -> Arrays:
    """Draw a batch of blends and ask all methods about it."""
    batch = next(batches(table, seed))
    found = {name: measure(method, band, batch) for name, (method, band) in methods.items()}
    return {f"{name}/{key}": values for name, arrays in found.items() for key, values in arrays.items()}


if __name__ == "__main__":
    main()
