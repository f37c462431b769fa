"""March a companion past its primary, with many noise draws of each scene.

Two galaxies of known fluxes, sizes and shapes stand in an image; step by step the companion comes nearer. At each step
the same noiseless light gets fresh sky and photon noise many times over, and for each image every method states both
fluxes and their errors. The error in units of the quoted one,

    z = (mean of the posterior of ln flux - ln of the true flux) / its standard deviation,

has mean 0 and standard deviation 1 *on average over the population* if the posterior is right, whatever its shape,
where it has a variance. For SEP it is the flux's error over the error that is quoted; SEP is given the true positions
to match its detections with, and is judged by the noiseless Kron flux of each galaxy alone, which is what it measures.

In one fixed scene that is more than a right posterior promises. A scatter of z above 1 means that errors are too small
for the noise alone. A scatter below 1 is right where a posterior includes what all noise draws have in common: galaxies
unlike each other, light that can be divided in several ways. What they have in common moves the mean of z, and so does
the pull of the prior. The bar is therefore one-sided where the image is not informative: the scatter of z is at most
1.15 everywhere; where the posterior is narrower than half the prior, it is at least 0.85 and the mean of z within 0.3.

The companion comes along a fixed direction, oblique to pixels and to both galaxies, so that the scatter of z at a step
is that of noise. The primary stays in the middle of the stamp and is galaxy 0. Where the two are closer than the PSF is
wide, a method may take one for the other; the total flux is unaffected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, guide_option, load_with_guide, sized_option
from probdeblend._files import kept_arrays
from probdeblend.cli.options import weights as weights_option
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.sep import sep_posterior
from probdeblend.photometry.detection import auto_flux
from probdeblend.photometry.noise import add_noise
from probdeblend.plots.images import EXACT_COLOR, PALETTE
from probdeblend.posterior.draws import Posterior
from probdeblend.refinement.guide import JointGuide
from probdeblend.refinement.importance import refine
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.scene import STAMP_CENTER, Blend, Components, Instrument, seed_of
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.profiles import render

__all__ = ["QUANTITIES", "Scenes", "judge", "main", "scores", "tabulate"]

SEPARATIONS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 13.0, 18.0, 25.0)  # pixels; the PSF's FWHM is three
SMALL_SEPARATIONS = (2.0, 5.5, 18.0)
QUANTITIES = ("central", "companion", "total")
# Magnitudes 21.2 and 21.9 in the shallowest CANDELS images: alone, signal-to-noise ratios of 167 and 115 against all
# noise, correlations included.
FLUX, SKY_RMS = (80.0, 40.0), 8e-3  # electrons per second
HALF_LIGHT_RADIUS, SERSIC_INDEX = (0.4, 0.25), (1.2, 3.0)  # arcsec
AXIS_RATIOS, ANGLES, DIRECTION = (0.6, 0.75), (0.4, 1.9), 1.0  # radians
MOST_SCATTER, LEAST_SCATTER, MOST_BIAS, INFORMED = 1.15, 0.85, 0.3, 0.5
CHUNK = 64
REFINED = 40  # noise draws of a step, at a few seconds each
PRIOR_DRAWS = 20_000
RESAMPLES = 200
APART = 0.06  # of a factor of e, between the points of two methods at one separation


@benchmark("march")
@sized_option("--noise-draws", 20, 500, least=10, help="Images of each step.")
@click.option("--draws", type=click.IntRange(2), default=1000, show_default=True, help="Draws of each flux.")
@click.option("--refine", is_flag=True, help="Refine up to 40 images of each step as well: seconds each.")
@weights_option
@guide_option
def main(run: Run, noise_draws: int, draws: int, refine: bool, weights: Path | None, guide: Path | None) -> None:
    """Move a companion past its primary, and compare the errors of both fluxes with those quoted, SEP's beside.

    One row per method, galaxy and step: fractions abstained and flagged, mean and standard deviation of z with
    bootstrap errors, the median relative error quoted, and whether the bar holds. The bar: scatter of z at most 1.15;
    where the posterior is narrower than half the prior, at least 0.85, and the mean of z within 0.3.
    """
    deblender, start = load_with_guide(weights, guide)
    scenes = Scenes.along(SEPARATIONS if run.full else SMALL_SEPARATIONS, deblender.instrument)
    sampling = {"noise_draws": noise_draws, "draws": draws}
    answer = partial(_step, scenes, deblender, start if refine else None, seed=run.seed, **sampling)
    found: dict[str, list[NDArray]] = {}
    settings = sampling | {"guide": str(guide), "refine": refine, "full": run.full}
    with run.unfinished(deblender=deblender, **settings) as kept:
        for step in tqdm(range(len(scenes.separation)), desc="march", unit="step", leave=False):
            for method, values in kept_arrays(kept / f"step-{step:02d}.npz", partial(answer, step)).items():
                found.setdefault(method, []).append(values)
        table = tabulate(found, scenes.separation, fwhm=deblender.instrument.fwhm, seed=run.seed)
        run.write(table, figure=plot(table))


@dataclass(frozen=True, eq=False)
class Scenes:
    """The light of both galaxies without noise at every step, and what is true of them."""

    instrument: Instrument
    separation: tuple[float, ...]  # pixels
    center: Tensor  # (2, step, galaxy): x before y, pixels of the stamp
    light: Tensor  # (step, galaxy, y, x)
    auto: Tensor  # (step, galaxy): Kron fluxes of the galaxies alone

    @classmethod
    def along(cls, separation: tuple[float, ...], instrument: Instrument) -> Scenes:
        """Render every step."""
        distance = torch.tensor([[0.0, value] for value in separation])
        x, y = center = STAMP_CENTER + torch.stack([math.cos(DIRECTION) * distance, math.sin(DIRECTION) * distance])
        shapes = (FLUX, HALF_LIGHT_RADIUS, SERSIC_INDEX, AXIS_RATIOS, ANGLES)
        values = [torch.tensor(value).expand_as(x) for value in shapes]
        fields = [value[..., None] for value in (*values, x, y, torch.ones_like(x, dtype=torch.bool))]
        light = render(Components(*fields), instrument.psf, pixel_scale=instrument.pixel_scale)
        auto = [[auto_flux(alone, SKY_RMS) for alone in step] for step in light.numpy()]
        return cls(instrument, separation, center, light, torch.tensor(auto))

    def blends(self, step: int, count: int, *, seed: int) -> Blend:
        """Return images of a step, each with noise of its own."""
        x, y = self.center[:, step]
        depths = {"sky_rms": SKY_RMS, "exposure": self.instrument.exposure}
        depths = {name: torch.full((count,), float(value)) for name, value in depths.items()}
        light = self.light[step].sum(0).expand(count, 1, -1, -1)
        image = add_noise(light, self.instrument, generator=torch.Generator().manual_seed(seed), **depths)
        truth = {"flux": Tensor(FLUX)[:, None], "auto_flux": self.auto[step, :, None], "x": x, "y": y}
        return Blend(image, **depths, **{name: value.expand(count, *value.shape) for name, value in truth.items()})


def _step(
    scenes: Scenes,
    deblender: Deblender,
    guide: JointGuide | None,
    step: int,
    *,
    noise_draws: int,
    draws: int,
    seed: int,
) -> dict[str, NDArray]:
    """Return `scores` of every method's answers, for all images of a step."""
    found: dict[str, list[NDArray]] = {}
    for first in range(0, noise_draws, CHUNK):
        blend = scenes.blends(step, min(CHUNK, noise_draws - first), seed=seed_of(seed, step, first))
        number = seed + step * noise_draws + first
        answers = _answers(blend, deblender, draws=draws, seed=number)
        if guide is not None and first < REFINED:
            answers["refined"] = _refined(scenes.instrument, blend.select(slice(REFINED)), guide, seed=number)
        for method, posterior in answers.items():
            some = blend.select(slice(len(posterior)))
            truth = some.auto_flux if method == "sep" else some.flux
            # SEP's fluxes may be negative, and their errors are those of fluxes.
            found.setdefault(method, []).append(scores(posterior, truth[:, :, 0], linear=method == "sep"))
    return {method: np.concatenate(values, 1) for method, values in found.items()}


def _answers(blend: Blend, deblender: Deblender, **sampling: int) -> dict[str, Posterior]:
    network = deblender(blend.image, sky_rms=blend.sky_rms, calibrate=False, **sampling)
    answers = {"network": network}
    if deblender.calibrator is not None:
        answers = {"network": deblender.calibrator(network), "uncalibrated": network}
    x, y, exposure = (value.numpy() for value in (blend.x, blend.y, blend.exposure))
    known = {"x": x, "y": y, "exposure": exposure}
    return answers | {"sep": sep_posterior(blend.image.numpy(), blend.sky_rms.numpy(), **known, **sampling)}


def _refined(instrument: Instrument, blend: Blend, guide: JointGuide, *, seed: int) -> Posterior:
    """Refine; draws are NaN where the importance weights are unreliable."""
    ratio = blend.image / blend.sky_rms[:, None, None, None]
    model, observed = BlendModel(Prior.default(), instrument), Observed(ratio[:, 0], blend.sky_rms, blend.exposure)
    with torch.no_grad():
        start = guide(ratio).mean
    found = refine(model, observed, start, seed=seed)
    latents, *_ = model.split(torch.from_numpy(found.resampled(len(found.unknown), seed=seed)))
    flux = latents[..., 0].exp().numpy() * blend.sky_rms.numpy()[:, None]
    flux[:, ~found.usable] = np.nan
    return Posterior.from_draws(flux[None, ..., None], flux_kind="total", method="refined")


def scores(posterior: Posterior, truth: ArrayLike, *, linear: bool = False) -> NDArray[np.float64]:
    """Return z, the standard deviation of ln flux, and whether there is a flag ``(3, blend, quantity)``."""
    flux = posterior.draws("blend", "galaxy", "band")[:, :, 0].astype(np.float64)
    flux, truth = (np.concatenate([each, each.sum(1, keepdims=True)], 1) for each in (flux, np.asarray(truth, float)))
    draws, true = (flux, truth) if linear else (np.log(flux), np.log(truth))
    mean, sd = draws.mean(-1), draws.std(-1, ddof=1)
    flags = posterior.flags.values != 0 if "flags" in posterior.dataset else np.zeros((len(flux), 2), dtype=bool)
    flagged = np.column_stack([flags, flags.any(1)])
    return np.stack([(mean - true) / sd, sd / np.abs(mean) if linear else sd, flagged])


def judge(found: NDArray[np.float64], prior_sd: NDArray[np.float64], *, seed: int) -> list[dict[str, object]]:
    """Turn `scores` of all images of a step into one row per quantity."""
    rows = []
    for number, quantity in enumerate(QUANTITIES):
        known = np.isfinite(found[0, :, number])
        score, width, flagged = found[:, known, number]
        row = {"galaxy": quantity, "count": len(score), "abstained": 1 - known.mean()}
        numbers = dict.fromkeys(("flagged", "mean", "sd", "mean_error", "sd_error", "posterior_sd"), np.nan)
        if len(score) > 1:
            picks = np.random.default_rng(seed).integers(len(score), size=(RESAMPLES, len(score)))
            errors = {"mean_error": score[picks].mean(1).std(), "sd_error": score[picks].std(1, ddof=1).std()}
            numbers |= {"flagged": flagged.mean(), "mean": score.mean(), "sd": score.std(ddof=1)} | errors
            numbers["posterior_sd"] = np.median(width)
        ratio = numbers["posterior_sd"] / prior_sd[number]
        rows.append(row | numbers | {"prior_sd": prior_sd[number], "ratio": ratio})
    return rows


def tabulate(found: dict[str, list[NDArray]], separation: tuple[float, ...], *, fwhm: float, seed: int) -> Table:
    """Judge the `scores` of every method and step."""
    rows, prior_sd = [], _prior_sd()
    for method, steps in found.items():
        for apart, values in zip(separation, steps, strict=True):
            place = {"separation": apart, "separation_fwhm": apart / fwhm}
            rows += [{"method": method} | row | place for row in judge(values, prior_sd, seed=seed)]
    table = Table(rows)
    table["informed"] = table["ratio"] < INFORMED
    table["not_too_narrow"] = table["sd"] <= MOST_SCATTER
    table["not_too_wide"] = ~table["informed"] | (table["sd"] >= LEAST_SCATTER)
    table["unbiased"] = ~table["informed"] | (np.abs(table["mean"]) <= MOST_BIAS)
    table["holds"] = table["not_too_narrow"] & table["not_too_wide"] & table["unbiased"]
    for name in table.colnames[3:]:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".3f"
    return table


def _prior_sd() -> NDArray[np.float64]:
    """Return the standard deviation of ln flux in the population, of a galaxy, of another, and of the pair's total."""
    magnitude = Prior.default().sample(PRIOR_DRAWS, seed=0)["magnitude"].double().numpy()
    log_flux = -0.4 * math.log(10) * magnitude
    each = log_flux.std()
    return np.array([each, each, np.logaddexp(*log_flux.T).std()])


def plot(table: Table) -> Figure:
    """Show scatter and mean of z against separation: one column per galaxy and one for the total flux.

    Gray lines are where right errors are on average, dashed ones the bar; its lower end and that of the mean count only
    where the posterior is much narrower than the prior: filled symbols.
    """
    galaxies = list(dict.fromkeys(table["galaxy"]))
    figure = Figure(figsize=(1 + 3.6 * len(galaxies), 6.2), layout="constrained")
    panels = figure.subplots(2, len(galaxies), sharex=True, sharey="row", squeeze=False)
    for column, galaxy in enumerate(galaxies):
        rows = table[table["galaxy"] == galaxy]
        _draw(panels[0, column], rows, "sd", exact=1.0, bar=(LEAST_SCATTER, MOST_SCATTER))
        _draw(panels[1, column], rows, "mean", exact=0.0, bar=(-MOST_BIAS, MOST_BIAS))
        panels[0, column].set(title=galaxy, xscale="log", yscale="log")
        panels[1, column].set(xlabel="separation over the PSF's FWHM")
        panels[1, column].set_yscale("symlog", linthresh=1.0)
    for axis in (panels[0, 0].xaxis, panels[0, 0].yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    panels[0, 0].set(ylabel="standard deviation of z")
    panels[1, 0].set(ylabel="mean of z")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, rows: Table, name: str, *, exact: float, bar: tuple[float, float]) -> None:
    axes.axhline(exact, color=EXACT_COLOR, lw=1)
    for end in bar:
        axes.axhline(end, color=EXACT_COLOR, lw=1, ls="--")
    methods = list(dict.fromkeys(rows["method"]))
    for number, (method, color) in enumerate(zip(methods, PALETTE, strict=False)):
        found = rows[rows["method"] == method]
        x = found["separation_fwhm"] * np.exp(APART * (number - (len(methods) - 1) / 2))
        axes.errorbar(x, found[name], found[f"{name}_error"], fmt="o-", ms=4, lw=1, color=color, label=method)
        vague = ~found["informed"]
        axes.plot(x[vague], found[name][vague], "o", ms=4, mfc="w", mec=color, zorder=3)


if __name__ == "__main__":
    main()
