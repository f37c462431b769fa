"""Compare simulated galaxies with real ones: how irregular, concentrated and unlike Sérsic profiles they are.

Real galaxies (`benchmarks.real_library`), simulated ones and single Sérsic profiles are seen one by one by CANDELS
F160W, in white noise. All have the sizes and signal-to-noise ratios that one population draws. Each is measured by
statmorph (Rodriguez-Gomez et al. 2019, doi:10.1093/mnras/sty3345), and by SEP: its AUTO flux over that of the Sérsic
fit tells how an aperture correction fares. The table holds, of every measure, medians and the distance of Kolmogorov
and Smirnov from the real galaxies.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

import click
import numpy as np
from astropy.table import Table
from numpy.typing import NDArray
from scipy import ndimage, special, stats
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, kept_arrays, sized_option
from benchmarks._held_out import data_folder
from benchmarks.real_library import BY_EYE, cosmos_galaxies, goods_galaxies
from probdeblend.photometry.detection import auto_flux
from probdeblend.simulation.light import SimulatedSources, Sources
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import simulate
from probdeblend.surveys import Galaxy, RealGalaxies

__all__ = ["compared", "main", "measure", "measured"]

SIZE = 160  # pixels
# Magnitudes as of those real galaxies whose images are deep enough for such signal-to-noise ratios.
BRIGHTEST, FAINTEST, SNR = 18.0, 22.5, (40.0, 120.0)
SMOOTHING, THRESHOLD = 1.5, 1.0  # Gaussian in pixels, and least light in it over the noise of a pixel
LEAST_AREA, LEAST_SNR = 60, 2.5  # pixels of a segment, and signal-to-noise ratio of a pixel of it
CHANCE = 1.36  # the distance of two samples of n is below this times sqrt(2 / n) in 95 % of cases
# Name in the table, and statmorph's.
MEASURES = {
    "asymmetry": "asymmetry",
    "smoothness": "smoothness",
    "concentration": "concentration",
    "Gini": "gini",
    "M20": "m20",
    "shape asymmetry": "shape_asymmetry",
    "outer asymmetry": "outer_asymmetry",
    "multimode": "multimode",
    "intensity": "intensity",
    "deviation": "deviation",
    "Sersic index": "sersic_n",
    "Sersic chi-square": "sersic_chi2_dof",
    "radius (pixels)": "r50",
    "S/N per pixel": "sn_per_pixel",
}
AUTO = "ln AUTO over Sersic"


@benchmark("irregularity")
@sized_option("--count", 24, 300, help="Galaxies of each kind, of which statmorph measures about two thirds.")
def main(run: Run, count: int) -> None:
    """Compare how irregular real and simulated galaxies are. Needs statmorph and PROBDEBLEND_DATA."""
    statmorph = _statmorph()
    with run.unfinished(count=count) as kept:
        kinds = {
            "real": RealGalaxies(_real(data_folder())),
            "simulated": SimulatedSources(),
            "single profiles": SimulatedSources(smooth=True),
        }
        found = {
            kind: kept_arrays(kept / f"{kind}.npz", partial(measured, statmorph, sources, count, seed=run.seed))
            for kind, sources in kinds.items()
        }
        run.write(compared(found))


def _statmorph() -> ModuleType:
    try:
        import statmorph
    except ImportError as error:
        raise click.ClickException("statmorph is needed: pip install 'probdeblend[benchmarks]'") from error
    return statmorph


def _real(data: Path) -> list[Galaxy]:
    """Return the sets of bright galaxies without those that were rejected."""
    every = [*goods_galaxies(data), *cosmos_galaxies(data / "cosmos_f814w_bright")]
    return [galaxy for galaxy in every if not galaxy.flags and galaxy.identity not in BY_EYE]


def compared(found: Mapping[str, Mapping[str, NDArray]]) -> Table:
    """Return a row per measure: its median for each kind of galaxies, and the distances from the first kind."""
    (first, reference), *others = found.items()
    rows = []
    for name, values in reference.items():
        row = {"measure": name, first: np.nanmedian(values)}
        for kind, measures in others:
            other = measures[name]
            row |= {kind: np.nanmedian(other), f"{kind}: distance": _distance(values, other)}
        rows.append(row)
    table = Table(rows=rows)
    for name in table.colnames[1:]:
        table[name].info.format = ".3f"
    counts = {kind: len(measures[AUTO]) for kind, measures in found.items()}
    table.meta = {f"galaxies, {kind}": count for kind, count in counts.items()}
    table.meta["distance by chance, 95 %"] = CHANCE * math.sqrt(1 / counts[first] + 1 / min(counts.values()))
    return table


def _distance(one: NDArray, two: NDArray) -> float:
    return stats.ks_2samp(*(values[np.isfinite(values)] for values in (one, two)), method="asymp").statistic


def measured(statmorph: ModuleType, sources: Sources, count: int, *, seed: int) -> dict[str, NDArray]:
    """Simulate galaxies one by one, and measure those that are bright and large enough."""
    limits = {"magnitude_range": (BRIGHTEST, FAINTEST), "snr": SNR, "size_scatter": 0.0, "star_fraction": 0.0}
    population = Population.default().replace(layout="centered", **limits)
    scenes = simulate(count, population=population, sources=sources, size=SIZE, number=1, seed=seed)
    light, psf, rms = (values.double().numpy() for values in (scenes.light[:, 0], scenes.psf[0, 0], scenes.sky_rms))
    images = light + rms[:, :, None] * np.random.default_rng(seed).normal(size=light.shape)
    answers = [measure(statmorph, image, float(rms[0, 0]), psf) for image in tqdm(images, leave=False)]
    good = [answer for answer in answers if answer is not None]
    if not good:
        raise ValueError(f"statmorph measures none of {count} galaxies: ask for more with --count")
    return {name: np.array([answer[name] for answer in good]) for name in good[0]}


def measure(
    statmorph: ModuleType, image: NDArray[np.float64], rms: float, psf: NDArray[np.float64]
) -> dict[str, float] | None:
    """Measure the galaxy in the middle of an image; None where it is too small or faint, or statmorph gives up."""
    labels, _ = ndimage.label(ndimage.gaussian_filter(image, SMOOTHING) > THRESHOLD * rms)
    segment = labels == labels[tuple(side // 2 for side in image.shape)]
    if not labels[segment].any() or segment.sum() < LEAST_AREA:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            told = statmorph.SourceMorphology(
                image, segment.astype(int), 1, weightmap=np.full(image.shape, rms), psf=psf
            )
        except (ValueError, RuntimeError, IndexError, AssertionError):
            return None
    if told.flag >= 2 or not told.sn_per_pixel > LEAST_SNR:
        return None
    answer = {name: float(getattr(told, theirs)) for name, theirs in MEASURES.items()}
    with np.errstate(all="ignore"):  # of fits that run away
        total = _sersic_flux(told.sersic_amplitude, told.sersic_rhalf, told.sersic_n, 1 - told.sersic_ellip)
        return answer | {AUTO: float(np.log(np.divide(auto_flux(image, rms), total)))}


def _sersic_flux(amplitude: float, radius: float, index: float, axis_ratio: float) -> float:
    """Total flux of a Sérsic profile from its brightness at the major-axis half-light radius."""
    scale = special.gammaincinv(2 * index, 0.5)
    ln_shape = scale - 2 * index * np.log(scale) + special.gammaln(2 * index)
    return float(2 * np.pi * index * amplitude * radius**2 * axis_ratio * np.exp(ln_shape))


if __name__ == "__main__":
    main()
