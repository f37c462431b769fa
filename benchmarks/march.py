"""The marching companion: one galaxy moved past another in steps, with many noise draws of each scene.

Two galaxies of known fluxes, sizes and shapes stand in an image; step by step the companion comes nearer. At each step
the same noiseless light gets fresh sky and photon noise many times over, and for each image every method says both
fluxes and their errors. The error in units of the quoted one,

    z = (mean of the posterior of ln flux - ln of the true flux) / its standard deviation,

has mean 0 and standard deviation 1 *on average over the population* if the posterior is right, whatever its shape,
where it has a variance. For SEP it is the flux's error over the error that is quoted.

In one fixed scene that is more than a right posterior promises. A scatter of z above 1 says that errors are too small
for the noise alone. A scatter below 1 is right where a posterior includes what all noise draws have in common: galaxies
unlike each other, light that can be divided in several ways. What they have in common moves the mean of z, and so does
the pull of the prior. The bar is therefore one-sided where the image says little: the scatter of z is at most 1.15
everywhere; where the posterior is narrower than half the prior, it is at least 0.85 and the mean of z within 0.3.

The companion comes along a fixed direction, oblique to pixels and to both galaxies, so that the scatter of z at a step
is that of noise. The primary stays in the middle of the stamp and is galaxy 0. Where the two are closer than the PSF is
wide, a method may take one for the other; the total flux does not care.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from probdeblend._files import kept_arrays
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.sep import sep_posterior
from probdeblend.photometry.detection import auto_flux
from probdeblend.photometry.noise import add_noise
from probdeblend.posterior.draws import Posterior
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.refine import refine
from probdeblend.refinement.refiner import METHODS
from probdeblend.scene import STAMP_CENTER, Blend, Components, Instrument, seed_of
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.profiles import render

__all__ = ["QUANTITIES", "SEPARATIONS", "Scenes", "march", "report"]

SEPARATIONS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 13.0, 18.0, 25.0)
"""Steps of the march in pixels, of which the FWHM of the F160W PSF is three."""
QUANTITIES = ("central", "companion", "total")
AXIS_RATIOS, ANGLES, DIRECTION = (0.6, 0.75), (0.4, 1.9), 1.0
MOST_SCATTER, LEAST_SCATTER, MOST_BIAS, INFORMED = 1.15, 0.85, 0.3, 0.5
CHUNK = 64
REFINED = 40  # noise draws of a step, at a few seconds each
LEAST_DRAWS = 10
PRIOR_DRAWS = 20_000
RESAMPLES = 200


@dataclass(frozen=True)
class Scenes:
    """Two galaxies of one Sérsic profile each, and the steps that one of them takes.

    The defaults are galaxies of magnitudes 21.2 and 21.9 in the shallowest CANDELS images, of which each, alone, has a
    signal-to-noise ratio of 167 and 115 against all noise, correlations included.

    Parameters
    ----------
    flux
        Total fluxes of primary and companion in image units.
    half_light_radius
        Circularized half-light radii in arcsec.
    sersic_index
        Sérsic indices.
    separation
        Distances of the companion in pixels, one a step.
    sky_rms
        Sky noise of a pixel in image units.

    Raises
    ------
    ValueError
        If there are not two galaxies or no steps, a number is not positive, or a step leaves the stamp.
    """

    flux: tuple[float, float] = (80.0, 40.0)
    half_light_radius: tuple[float, float] = (0.4, 0.25)
    sersic_index: tuple[float, float] = (1.2, 3.0)
    separation: tuple[float, ...] = SEPARATIONS
    sky_rms: float = 8e-3

    def __post_init__(self) -> None:
        for name in ("flux", "half_light_radius", "sersic_index"):
            values = getattr(self, name)
            if len(values) != 2 or not all(0 < value < math.inf for value in values):
                raise ValueError(f"{name} must be two positive numbers, got {values}")
        if not self.separation or not all(0 < value <= STAMP_CENTER for value in self.separation):
            raise ValueError(f"separation must be above 0 and at most {STAMP_CENTER} pixels, got {self.separation}")
        if not 0 < self.sky_rms < math.inf:
            raise ValueError(f"sky_rms must be positive, got {self.sky_rms}")

    def __len__(self) -> int:
        return len(self.separation)

    def positions(self) -> Tensor:
        """Return the centers of both galaxies at every step.

        Returns
        -------
        Tensor
            ``(2, step, galaxy)``: x before y, in pixels of the stamp.
        """
        distance = torch.tensor([[0.0, value] for value in self.separation])
        return STAMP_CENTER + torch.stack([math.cos(DIRECTION) * distance, math.sin(DIRECTION) * distance])

    def light(self, instrument: Instrument) -> Tensor:
        """Render every step, without noise.

        Parameters
        ----------
        instrument
            PSF and pixel scale.

        Returns
        -------
        Tensor
            Image of each galaxy ``(step, galaxy, y, x)``.

        Raises
        ------
        ValueError
            If a Sérsic index is outside 0.5 to 6.
        """
        x, y = self.positions()
        shapes = (self.flux, self.half_light_radius, self.sersic_index, AXIS_RATIOS, ANGLES)
        values = [torch.tensor(value, dtype=x.dtype).expand_as(x) for value in shapes]
        fields = [value[..., None] for value in (*values, x, y, torch.ones_like(x, dtype=torch.bool))]
        return render(Components(*fields), instrument.psf, pixel_scale=instrument.pixel_scale)


def march(
    deblender: Deblender,
    *,
    scenes: Scenes | None = None,
    noise_draws: int = 500,
    start: Callable[[Tensor], Tensor] | None = None,
    draws: int = 400,
    passes: int = 16,
    seed: int = 0,
    kept: Path | None = None,
) -> Table:
    """Move a companion past its primary, and see how errors compare with those that are quoted.

    Every method sees the same images. SEP is given the true positions to match its detections with, and is judged by
    the Kron fluxes of each galaxy alone without noise, which are what it measures.

    Parameters
    ----------
    deblender
        The network; has an ``instrument`` and a ``calibrator``.
    scenes
        The galaxies and the steps; `Scenes` as they are if None.
    noise_draws
        Images of each step.
    start
        From images over the sky noise ``(blend, band, y, x)`` to a guess of all unknowns ``(blend, number)``, such as
        ``lambda image: guide(image).mean`` with a `~probdeblend.refinement.guide.JointGuide`: answers are refined from there under
        the generative model, 40 images a step. None does not refine.
    draws, passes
        Given to the deblender, and draws to SEP.
    seed
        Same seed, same table.
    kept
        A folder for what is found, step by step: what is there of an earlier run with the same arguments is used.

    Returns
    -------
    Table
        A row for each ``method`` ("network" as it ships; "uncalibrated" without its calibrator, where it has one;
        "sep"; "refined"), ``galaxy`` (one of `QUANTITIES`) and ``separation`` in pixels, over the PSF's FWHM
        ``separation_fwhm``. ``count`` answers; the fraction ``abstained``, where a galaxy was not found or a refinement
        says of itself that it is no use, and the fraction ``flagged`` of the others. ``mean`` and ``sd`` of z with
        their bootstrap standard errors ``mean_error`` and ``sd_error``. Median ``posterior_sd`` of ln flux (of SEP the
        relative error), ``prior_sd`` in the population at one depth, and their ``ratio``. The verdicts
        ``not_too_narrow``, ``not_too_wide`` and ``unbiased``, the last two of which are asked only where ``informed``,
        and ``holds``: all of them, from two answers at least. The bar is in the table's ``meta``.

    Raises
    ------
    ValueError
        If there are fewer than ten noise draws.
    """
    if noise_draws < LEAST_DRAWS:
        raise ValueError(f"noise_draws must be at least {LEAST_DRAWS}, got {noise_draws}")
    scenes = scenes or Scenes()
    prior_sd, fwhm = _prior_sd(), deblender.instrument.fwhm
    stage = _Stage.of(scenes, deblender.instrument.to("cpu"))
    settings = {"noise_draws": noise_draws, "draws": draws, "passes": passes, "seed": seed}
    rows: dict[str, list[dict[str, object]]] = {}
    with tqdm(total=len(scenes) * noise_draws, desc="march", unit="image", leave=False) as bar:
        for step, separation in enumerate(scenes.separation):
            path = None if kept is None else kept / f"step-{step:02d}.npz"
            scores = kept_arrays(path, partial(_step, stage, step, deblender, start, bar=bar, **settings))
            bar.update((step + 1) * noise_draws - bar.n)
            place = {"separation": separation, "separation_fwhm": separation / fwhm}
            for method, values in scores.items():
                judged = _judged(values, prior_sd, seed=seed)
                rows.setdefault(method, []).extend({"method": method} | row | place for row in judged)
    return _table(rows)


@dataclass(frozen=True, eq=False)
class _Stage:
    """Scenes without noise, and what is true of them."""

    scenes: Scenes
    instrument: Instrument
    isolated: Tensor  # (step, galaxy, y, x)
    auto: Tensor  # (step, galaxy): Kron fluxes of the galaxies alone

    @classmethod
    def of(cls, scenes: Scenes, instrument: Instrument) -> _Stage:
        isolated = scenes.light(instrument)
        auto = [[auto_flux(alone, scenes.sky_rms) for alone in step] for step in isolated.numpy()]
        return cls(scenes, instrument, isolated, torch.tensor(auto))

    def blend(self, step: int, count: int, *, seed: int) -> Blend:
        """Return images of a step, each with noise of its own."""
        x, y = self.scenes.positions()[:, step]
        depth = {"sky_rms": self.scenes.sky_rms, "exposure": self.instrument.exposure}
        depths = {name: torch.full((count,), float(value)) for name, value in depth.items()}
        light = self.isolated[step].sum(0).expand(count, 1, -1, -1)
        image = add_noise(light, self.instrument, generator=torch.Generator().manual_seed(seed), **depths)
        truth = {"flux": Tensor(self.scenes.flux)[:, None], "auto_flux": self.auto[step, :, None], "x": x, "y": y}
        return Blend(image, **depths, **{name: value.expand(count, *value.shape) for name, value in truth.items()})


def _step(
    stage: _Stage,
    step: int,
    deblender: Deblender,
    start: Callable[[Tensor], Tensor] | None,
    *,
    noise_draws: int,
    seed: int,
    bar: tqdm,
    **sampling: int,
) -> dict[str, NDArray]:
    """Return what `_scored` says of every method's answers, for all images of a step."""
    found: dict[str, list[NDArray]] = {}
    for first in range(0, noise_draws, CHUNK):
        blend = stage.blend(step, min(CHUNK, noise_draws - first), seed=seed_of(seed, step, first))
        number = seed + step * noise_draws + first
        answers = _answers(blend, deblender, seed=number, **sampling)
        if start is not None and first < REFINED:
            answers["refined"] = _refined(stage.instrument, blend.select(slice(REFINED)), start, seed=number)
        for method, posterior in answers.items():
            found.setdefault(method, []).append(_scored(posterior, blend.select(slice(len(posterior)))))
        bar.update(len(blend))
    return {method: np.concatenate(scores, 1) for method, scores in found.items()}


def _answers(blend: Blend, deblender: Deblender, *, draws: int, passes: int, seed: int) -> dict[str, Posterior]:
    sampling = {"draws": draws, "seed": seed}
    network = deblender(blend.image, sky_rms=blend.sky_rms, passes=passes, calibrate=False, **sampling)
    answers = {"network": network}
    if deblender.calibrator is not None:
        answers = {"network": deblender.calibrator(network), "uncalibrated": network}
    x, y, exposure = (value.numpy() for value in (blend.x, blend.y, blend.exposure))
    known = {"x": x, "y": y, "exposure": exposure}
    return answers | {"sep": sep_posterior(blend.image.numpy(), blend.sky_rms.numpy(), **known, **sampling)}


def _refined(instrument: Instrument, blend: Blend, start: Callable[[Tensor], Tensor], *, seed: int) -> Posterior:
    """Refine; draws are NaN where their weights say that they are no use."""
    ratio = blend.image / blend.sky_rms[:, None, None, None]
    model = BlendModel(Prior.default(), instrument)
    found = refine(
        model, Observed(ratio[:, 0], blend.sky_rms, blend.exposure), start(ratio), fits=METHODS["auto"], seed=seed
    )
    size = len(found.unknown)
    latents, *_ = model.split(torch.from_numpy(found.resampled(size, seed=seed)))
    flux = latents[..., 0].exp().numpy() * blend.sky_rms.numpy()[:, None]
    flux[:, ~found.usable] = np.nan
    return Posterior.from_draws(flux[None, ..., None], flux_kind="total", method="refined")


def _scored(posterior: Posterior, blend: Blend) -> NDArray[np.float64]:
    """Return z, the standard deviation of ln flux, and whether there is a flag ``(3, blend, quantity)``."""
    flux = posterior.draws("blend", "galaxy", "band")[:, :, 0].astype(np.float64)
    truth = (blend.auto_flux if posterior.dataset.attrs["flux_kind"] == "auto" else blend.flux)[:, :, 0].double()
    flux, truth = (np.concatenate([each, each.sum(1, keepdims=True)], 1) for each in (flux, truth.numpy()))
    # SEP's fluxes may be negative, and their errors are those of fluxes.
    linear = posterior.dataset.attrs["method"] == "sep"
    draws, true = (flux, truth) if linear else (np.log(flux), np.log(truth))
    mean, sd = draws.mean(-1), draws.std(-1, ddof=1)
    flags = posterior.flags.values != 0 if "flags" in posterior.dataset else np.zeros((len(flux), 2), dtype=bool)
    flagged = np.column_stack([flags, flags.any(1)])
    return np.stack([(mean - true) / sd, sd / np.abs(mean) if linear else sd, flagged])


def _judged(scores: NDArray[np.float64], prior_sd: NDArray[np.float64], *, seed: int) -> list[dict[str, object]]:
    """Turn what `_scored` returns for all images of a step into a row a quantity."""
    rows = []
    for number, quantity in enumerate(QUANTITIES):
        known = np.isfinite(scores[0, :, number])
        score, width, flagged = scores[:, known, number]
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


def _table(rows: dict[str, list[dict[str, object]]]) -> Table:
    table = Table([row for found in rows.values() for row in found])
    table.meta = {"sd": [LEAST_SCATTER, MOST_SCATTER], "mean": MOST_BIAS, "informed": INFORMED}
    table["informed"] = table["ratio"] < INFORMED
    table["not_too_narrow"] = table["sd"] <= MOST_SCATTER
    table["not_too_wide"] = ~table["informed"] | (table["sd"] >= LEAST_SCATTER)
    table["unbiased"] = ~table["informed"] | (np.abs(table["mean"]) <= MOST_BIAS)
    table["holds"] = table["not_too_narrow"] & table["not_too_wide"] & table["unbiased"]
    return table


def _prior_sd() -> NDArray[np.float64]:
    """Return the standard deviation of ln flux in the population, of a galaxy, of another, and of the pair's total."""
    magnitude = Prior.default().sample(PRIOR_DRAWS, seed=0)["magnitude"].double().numpy()
    log_flux = -0.4 * math.log(10) * magnitude
    each = log_flux.std()
    return np.array([each, each, np.logaddexp(*log_flux.T).std()])


def report(table: Table) -> str:
    """Say where the bar holds, and where it does not, in text.

    Parameters
    ----------
    table
        What `march` returns.

    Returns
    -------
    str
        A line a method and galaxy: at how many steps the bar holds, the range of both numbers over the steps, and
        at which separations in pixels errors are too small, too large, or biased.
    """
    least, most = table.meta["sd"]
    lines = []
    for method in dict.fromkeys(table["method"]):
        for galaxy in QUANTITIES:
            rows = table[(table["method"] == method) & (table["galaxy"] == galaxy)]
            line = {"method": method, "galaxy": galaxy, "holds at": f"{rows['holds'].sum()} of {len(rows)}"}
            for label, name in (("sd of z", "sd"), ("mean of z", "mean")):
                values = rows[name][np.isfinite(rows[name])]
                line[label] = f"{values.min():.2f} to {values.max():.2f}" if len(values) else "-"
            line["most abstained"] = f"{rows['abstained'].max():.0%}"
            for label, name in (("too narrow", "not_too_narrow"), ("too wide", "not_too_wide"), ("biased", "unbiased")):
                wrong = rows["separation"][~rows[name] & (rows["count"] > 1)]
                line[f"{label} at"] = ", ".join(f"{value:g}" for value in wrong) or "-"
            lines.append(line)
    bar = (
        f"The bar: sd of z at most {most:g}; where the posterior is narrower than {table.meta['informed']:g} of the "
        f"prior, at least {least:g}, and the mean of z within {table.meta['mean']:g}. Separations are in pixels."
    )
    return "\n".join([bar, "", *Table(lines).pformat(max_width=-1, max_lines=-1, align="<")])
