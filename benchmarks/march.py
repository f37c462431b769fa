"""March a companion past its primary, and compare the errors of both fluxes with those quoted.

The scene of each step is fixed, its noise is drawn again and again: z is the error of ln flux over the standard
deviation of its posterior. Of many scenes drawn from the prior, z has unit scatter; of one it has less where a
posterior includes what all noise draws have in common, such as light that can be divided in several ways, and that
moves the mean of z instead. The bar is therefore one-sided where the image is not informative: the scatter of z is at
most 1.15 everywhere; where the posterior is narrower than half the population, at least 0.85, with the mean within 0.3.

The companion comes along a fixed direction, oblique to pixels and to both galaxies. Where the two are closer than the
PSF is wide, a method may take one for the other; their total is unaffected.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import click
import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, kept_arrays, sized_option, weights_option
from benchmarks._populations import pair_at
from benchmarks._scenes import flat_draws, formatted, match, positions
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.plots.images import EXACT_COLOR, PALETTE
from probdeblend.scene import Scene, seed_of

__all__ = ["QUANTITIES", "main", "scores", "tabulate"]

SEPARATIONS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 13.0, 18.0, 25.0)  # pixels; the PSF's FWHM is three
SMALL_SEPARATIONS = (3.0, 18.0)
QUANTITIES = ("central", "companion", "total")
DIRECTION = 1.0  # radians
MOST_SCATTER, LEAST_SCATTER, MOST_BIAS, INFORMED = 1.15, 0.85, 0.3, 0.5
POPULATION_SD = 0.9  # of ln flux among the published galaxies
REFINED = 40  # noise draws of a step, at seconds each
APART = 0.06  # of a factor of e, between the points of two methods at one separation


@benchmark("march")
@sized_option("--noise-draws", 12, 500, least=10, help="Images of each step.")
@click.option("--refine", is_flag=True, help="Refine up to 40 images of each step as well: seconds each.")
@weights_option
def main(run: Run, noise_draws: int, refine: bool, weights: Path | None) -> None:
    """March a companion past its primary, and compare the errors of both fluxes with those quoted, SEP's beside.

    One row per method, galaxy and step: the fraction that was not measured, mean and standard deviation of z with their
    errors, the median relative error quoted, and whether the bar holds: scatter of z at most 1.15, and, where the
    posterior is narrower than half the population, at least 0.85, with the mean of z within 0.3.
    """
    deblender, steps = load(weights), SEPARATIONS if run.full else SMALL_SEPARATIONS
    methods: dict[str, Deblends] = {"network": deblender, "SEP": SepDeblender()}
    if refine:
        from probdeblend.refinement.refiner import Refiner

        methods["refined"] = Refiner(deblender)
    found: dict[str, list[NDArray]] = {name: [] for name in methods}
    with run.unfinished(deblender=deblender, noise_draws=noise_draws, refine=refine, full=run.full) as kept:
        for number, apart in enumerate(tqdm(steps, desc="march", unit="step", leave=False)):
            make = partial(_step, methods, apart, noise_draws, seed_of(run.seed, number))
            for method, values in kept_arrays(kept / f"step-{number:02d}.npz", make).items():
                found[method].append(values)
        table = tabulate(found, steps)
        run.write(table, figure=plot(table))


def _step(methods: dict[str, Deblends], apart: float, count: int, seed: int) -> dict[str, NDArray]:
    """Return `scores` of every method, for all images of a step."""
    center = (64.3, 63.8)
    place = center, (center[0] + apart * math.cos(DIRECTION), center[1] + apart * math.sin(DIRECTION))
    scene = pair_at(place, count, seed=seed)
    some = scene.select(slice(REFINED))
    return {name: scores(some if name == "refined" else scene, deblender) for name, deblender in methods.items()}


def scores(scene: Scene, deblender: Deblends) -> NDArray[np.float64]:
    """Return z and the standard deviation of ln flux ``(2, image, quantity)``, NaN where a galaxy was missed.

    SEP, which answers in Kron flux alone, is judged in that, and its z is of flux, which may be negative.
    """
    sep = isinstance(deblender, SepDeblender)
    posterior = deblender.scenes(scene, positions=None if sep else positions(scene))
    draws = flat_draws(posterior, "auto" if sep else "total")[..., 0]
    row = match(scene, posterior) if sep else np.arange(len(scene.scene))
    flux = np.column_stack([draws, np.full(len(draws), np.nan)])[:, row].reshape(-1, len(scene), 2)
    true = (scene.auto_flux if sep else scene.flux)[:, 0].double().numpy().reshape(len(scene), 2)
    flux, true = (np.concatenate([v, v.sum(-1, keepdims=True)], -1) for v in (flux, true))
    if not sep:
        flux, true = np.log(flux), np.log(true)
    mean, sd = flux.mean(0), flux.std(0, ddof=1)
    return np.stack([(mean - true) / sd, sd / np.abs(mean) if sep else sd])


def tabulate(found: dict[str, list[NDArray]], separation: tuple[float, ...]) -> Table:
    """Judge the `scores` of every method and step."""
    rows = []
    for method, steps in found.items():
        for apart, (all_z, all_sd) in zip(separation, steps, strict=True):
            for number, quantity in enumerate(QUANTITIES):
                z, sd = (v[np.isfinite(all_z[:, number]), number] for v in (all_z, all_sd))
                row = {"method": method, "galaxy": quantity, "separation": apart, "count": len(z)}
                rows.append(row | {"missed": 1 - len(z) / len(all_z)} | _judged(z, sd))
    return formatted(rows)


def _judged(z: NDArray, sd: NDArray) -> dict[str, object]:
    few = len(z) < 2
    mean, scatter = (np.nan, np.nan) if few else (z.mean(), z.std(ddof=1))
    width = np.nan if few else np.median(sd)
    informed = bool(width < INFORMED * POPULATION_SD)
    right = abs(mean) <= MOST_BIAS and scatter >= LEAST_SCATTER
    errors = {"mean_error": scatter / math.sqrt(max(len(z), 1)), "sd_error": scatter / math.sqrt(max(2 * len(z), 1))}
    holds = bool(scatter <= MOST_SCATTER and (right or not informed))
    return {"mean": mean, "sd": scatter} | errors | {"posterior_sd": width, "informed": informed, "holds": holds}


def plot(table: Table) -> Figure:
    """Show scatter and mean of z against separation, one column per galaxy and one for the total flux.

    Gray lines are where right errors are on average, dashed ones the bar. Where symbols are open, the posterior is not
    much narrower than the population, and the lower end of the bar and that of the mean do not count.
    """
    figure = Figure(figsize=(11.8, 6.2), layout="constrained")
    panels = figure.subplots(2, len(QUANTITIES), sharex=True, sharey="row")
    bars = {"sd": (LEAST_SCATTER, 1.0, MOST_SCATTER), "mean": (-MOST_BIAS, 0.0, MOST_BIAS)}
    for axes_of, (name, lines) in zip(panels, bars.items(), strict=True):
        for axes, galaxy in zip(axes_of, QUANTITIES, strict=True):
            for line in lines:
                axes.axhline(line, color=EXACT_COLOR, lw=1, ls="-" if line == lines[1] else "--")
            methods = list(dict.fromkeys(table["method"]))
            for number, (method, color) in enumerate(zip(methods, PALETTE, strict=False)):
                rows = table[(table["galaxy"] == galaxy) & (table["method"] == method)]
                x = rows["separation"] * np.exp(APART * (number - (len(methods) - 1) / 2))
                axes.errorbar(x, rows[name], rows[f"{name}_error"], fmt="o-", ms=4, lw=1, color=color, label=method)
                vague = ~rows["informed"]
                axes.plot(x[vague], rows[name][vague], "o", ms=4, mfc="w", mec=color, zorder=3)
            axes.set(xscale="log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
    for axes, galaxy in zip(panels[0], QUANTITIES, strict=True):
        axes.set(title=galaxy)
    for axes in panels[1]:
        axes.set(xlabel="separation [pixel]")
    panels[0, 0].set(ylabel="standard deviation of z", yscale="log")
    panels[1, 0].set_yscale("symlog", linthresh=1.0)
    panels[1, 0].set(ylabel="mean of z")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
