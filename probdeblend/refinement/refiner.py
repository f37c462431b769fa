"""Refinement for users: stamps in, posteriors out, each refined where that can be trusted and the network's elsewhere.

If the model is right, refinement extracts all that can be known; if it is wrong, its intervals are far too narrow, and
importance weights do not show it. A blend is refined only if

- its importance weights are reliable: k-hat below ``min(1 - 1 / log10(draws), 0.7)``;
- the fit leaves no more light behind than noise would (`~probdeblend.refinement.residuals.misfit`);
- the stamp resembles the training set, with a galaxy at its center, no bad pixels, and uniform noise;
- the network, which was trained on galaxies with knots and arms, agrees: the refined fluxes lie within its posterior.

Otherwise the network's fluxes and masks stay, and a flag gives the reason. If the weights are poor, the fit is bad or
the two results disagree, we cannot tell which is right: the network's posterior is then shifted halfway toward the
refined mean and broadened to the mean and variance of an equal mixture of the two.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..deblending.deblender import Deblender
from ..deblending.inputs import filled, noise_pixels, stamp_pixels
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import MASK_THRESHOLD, Instrument, seed_of
from ..simulation.prior import Prior
from .guide import JointGuide
from .importance import Refined, refine
from .latents import FLUXES, LATENTS, POSITION, to_components
from .model import BlendModel, Observed
from .residuals import misfit

__all__ = ["Refiner"]

CONTESTED = Flag.POOR_WEIGHTS | Flag.MISFIT | Flag.DISAGREEMENT
UNSURE = Flag.UNFAMILIAR | Flag.OFF_CENTER | Flag.OUTSIDE_PRIOR | Flag.BAD_PIXELS | Flag.BAD_CENTER | Flag.OTHER_COUNT
LEAST_MISFIT_P = 0.01
LEAST_AGREEMENT_P = 0.001
LEAST_P = 1e-300
FARTHEST = 1.0  # in ln flux, of a refined answer that is taken into account
UNEVEN = 0.1  # by which the noise of a pixel may differ from the stamp's median
LARGEST_SKY = 3.0  # in units of the sky noise, in the darkest corner
CORNER = 16  # pixels
LARGEST_K_HAT_OF_EVIDENCE = 0.5
CHUNK = 64
RENDERED = 64  # draws of each blend that become images and masks
PSF_TOLERANCE = 0.01


class Refiner:
    """A deblender, a guide and a generative model together: called as a `~probdeblend.deblending.deblender.Deblender`.

    Parameters
    ----------
    deblender
        Trained weights; or a `~probdeblend.deblending.counts.CountingDeblender`, which keeps stamps of other than two
        galaxies from being refined.
    guide
        A guide on the encoder of these weights.
    instrument
        PSF, noise correlation, zero point and exposure of the images; those of the weights if None.
    prior
        The population of the model, in which each galaxy is one Sérsic profile; the default one if None.

    Raises
    ------
    ValueError
        If the weights were trained for another pixel scale, the zero point is unknown, or the guide was trained on
        another network.

    Warns
    -----
    UserWarning
        If the PSF differs from that of the training: the model uses the new one, the first guess does not.
    """

    def __init__(
        self,
        deblender: Deblender,
        guide: JointGuide,
        *,
        instrument: Instrument | None = None,
        prior: Prior | None = None,
    ) -> None:
        self.deblender, self.guide = deblender, guide.eval()
        self.instrument = instrument = instrument or deblender.instrument
        deblender.check_pixel_scale(instrument.pixel_scale)
        if guide.encoder is not deblender.network:
            raise ValueError("guide must be trained on the deblender's own network, got one on another")
        if not np.isfinite(instrument.zero_point):
            raise ValueError(f"zero_point must be finite, got {instrument.zero_point}: the prior is one of magnitudes")
        wider = instrument.fwhm / deblender.instrument.fwhm
        if abs(wider - 1) > PSF_TOLERANCE:
            warnings.warn(
                f"the PSF is {wider:.2f} times as wide as in training: the starting point from the guide may be poor",
                stacklevel=2,
            )
        self.model = BlendModel(prior or Prior.default(), instrument)

    def __call__(
        self,
        image: ArrayLike,
        *,
        sky_rms: ArrayLike,
        draws: int = 1000,
        passes: int = 32,
        seed: int = 0,
        calibrate: bool = True,
    ) -> Posterior:
        """Deblend stamps.

        Parameters
        ----------
        image, sky_rms, draws, passes, seed, calibrate
            As for the deblender; at least two draws.

        Returns
        -------
        Posterior
            Fluxes, masks and positions, refined where ``refined (blend,)`` is true; draws of ``half_light_radius``
            (circularized, arcsec), ``sersic_index``, ``axis_ratio`` and ``position_angle`` (degrees from the x axis),
            from the guide where a blend was not refined; each galaxy's noiseless ``image`` with ``image_std`` in image
            units; ``refined_flux`` and ``refined_flux_err``, mean and standard deviation by refinement, used or not;
            and ``k_hat``, ``effective_samples``, ``misfit_p``, ``chi_square``, ``log_evidence`` and
            ``log_evidence_error`` (NaN where k-hat is above 0.5).

        Raises
        ------
        ValueError
            As the deblender does, or if there are fewer than two draws or the sky has not been subtracted.
        """
        if draws < 2:
            raise ValueError(f"draws must be at least 2, got {draws}")
        ratio, spoiled = self._ratio(image, sky_rms)
        network = self.deblender(image, sky_rms=sky_rms, draws=draws, passes=passes, seed=seed, calibrate=calibrate)
        scale = network.dataset["sky_rms"].values
        exposure = torch.full((len(scale),), float(self.instrument.exposure))
        observed = Observed(ratio, torch.tensor(scale, dtype=torch.float32), exposure)
        count = network.flux.sizes["chain"] * network.flux.sizes["draw"]
        guess, guided = self._guided(ratio, count, seed=seed)
        found = refine(self.model, observed, guess, seed=seed)
        unknown = found.resampled(count, seed=seed)
        refined = unknown[..., FLUXES]
        own = np.log(network.draws("blend", "galaxy", "band")[:, :, 0] / scale[:, None, None]).transpose(2, 0, 1)
        probability = np.where(found.usable, misfit(self.model, observed, *found.moments()), np.nan)
        flags, anomaly = _gates(found.usable, probability, own, refined)
        odd = ((network.flags.values & int(UNSURE)) > 0).any(1)
        flags = (flags | spoiled | Flag.NOT_REFINED * (odd | (flags > 0) | (spoiled > 0))).astype(np.int64)
        own = _between(own, refined.mean(0), (flags & int(CONTESTED)) > 0, seed=seed)
        kept = np.flatnonzero(flags)
        unknown[:, kept] = guided[:, kept]
        unknown[:, kept[:, None], FLUXES] = own[:, kept]
        answer = self._assemble(network, unknown, found, flags=flags)
        flux = np.exp(refined) * scale[:, None]
        moments = {"refined_flux": flux.mean(0), "refined_flux_err": flux.std(0)}
        named = {name: (("blend", "galaxy"), values) for name, values in moments.items()}
        return answer.with_anomaly(anomaly, misfit_p=("blend", probability), **named)

    def check_pixel_scale(self, pixel_scale: float) -> None:
        """Raise an error if the weights were trained for another pixel scale (in arcsec).

        Parameters
        ----------
        pixel_scale
            Arcsec per pixel.

        Raises
        ------
        ValueError
            If it is another one.
        """
        self.deblender.check_pixel_scale(pixel_scale)

    def _guided(self, ratio: torch.Tensor, count: int, *, seed: int) -> tuple[torch.Tensor, NDArray[np.float64]]:
        """Return the guide's mean ``(blend, number)`` and draws ``(draw, blend, number)``."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            parts = [self.guide.numbers(*self.guide.encode(part[:, None])) for part in ratio.split(CHUNK)]
            numbers, drawn = torch.cat(parts), []
            for blend in range(len(numbers)):
                torch.manual_seed(seed_of(seed, 2, blend))
                drawn.append(self.guide.head.sample(numbers[blend : blend + 1], count)[:, 0])
            return self.guide.head.distribution(numbers).mean, torch.stack(drawn, 1).double().numpy()

    def _ratio(self, image: ArrayLike, sky_rms: ArrayLike) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Return images over the sky noise ``(blend, y, x)``, and the flags that their pixels raise ``(blend,)``."""
        pixels, unit = stamp_pixels(image)
        if not len(pixels):
            raise ValueError(f"image must hold at least one stamp, got shape {pixels.shape}")
        noise = np.broadcast_to(noise_pixels(sky_rms, pixels, unit=unit), pixels.shape)
        middle = np.nanmedian(noise, axis=(1, 2, 3), keepdims=True)
        uneven = np.nanmax(np.abs(noise / middle - 1), axis=(1, 2, 3)) > UNEVEN
        # Interpolated pixels are smooth and carry no information.
        patched = ~np.isfinite(pixels / noise).all((1, 2, 3))
        ratio = filled(pixels / noise)[:, 0].astype(np.float32)
        edges = (slice(CORNER), slice(-CORNER, None))
        darkest = np.abs([np.median(ratio[:, rows, columns], (1, 2)) for rows in edges for columns in edges]).min(0)
        if (darkest > LARGEST_SKY).all():
            raise ValueError(f"image must be sky-subtracted, got corners above {darkest.min():.1f} times the noise")
        return torch.from_numpy(ratio), Flag.UNEVEN_NOISE * uneven | Flag.BAD_PIXELS * patched

    def _assemble(
        self, network: Posterior, unknown: NDArray[np.float64], found: Refined, *, flags: NDArray[np.int64]
    ) -> Posterior:
        """Return the network's posterior with draws of all unknowns ``(draw, blend, number)`` in it."""
        dataset = network.dataset
        scale, refined = dataset["sky_rms"].values, flags == 0
        some = slice(None, None, max(1, len(unknown) // RENDERED))
        mean, std, mask = self._rendered(unknown[some])
        flux = np.exp(unknown[..., FLUXES]) * scale[:, None]
        # The mean of these few rendered draws is noisy: images are scaled to the mean of all draws.
        unit = (scale[:, None] * flux.mean(0) / flux[some].mean(0))[..., None, None].astype(np.float32)
        draws = dataset["flux"].values.copy()
        changing = refined | ((flags & int(CONTESTED)) > 0)
        draws[:, :, changing] = flux.reshape(*draws.shape[:2], *flux.shape[1:], 1)[:, :, changing]
        evidence = np.where(found.k_hat < LARGEST_K_HAT_OF_EVIDENCE, 1.0, np.nan)
        pixels = ("blend", "galaxy", "y", "x")
        changed = {
            "flux": (dataset["flux"].dims, draws, dataset["flux"].attrs),
            "flags": (("blend", "galaxy"), network.flags.values | flags[:, None]),
            "refined": ("blend", refined),
            "k_hat": ("blend", found.k_hat),
            "effective_samples": ("blend", found.effective),
            "chi_square": (("blend", "galaxy"), found.chi_square),
            "log_evidence": ("blend", evidence * found.log_evidence),
            "log_evidence_error": ("blend", evidence * found.log_evidence_error),
            "image": (pixels, mean * unit),
            "image_std": (pixels, std * unit),
        }
        # Masks and positions change for refined blends alone.
        x, y = (np.median(unknown[..., [one, one + len(LATENTS)]], 0) + (self.model.size - 1) / 2 for one in POSITION)
        for name, values in {"x": x, "y": y, "mask": mask, "mask_std": 0.0, "mask_information": 0.0}.items():
            if name in dataset:
                given = dataset[name]
                chosen = np.where(refined.reshape(-1, *(1,) * (given.ndim - 1)), values, given.values)
                changed[name] = (given.dims, chosen.astype(given.dtype))
        shapes = to_components(self.model.split(torch.from_numpy(unknown).float())[0].flatten(0, 1))
        shapes = vars(shapes) | {"position_angle": shapes.angle.rad2deg()}
        for name in ("half_light_radius", "sersic_index", "axis_ratio", "position_angle"):
            values = shapes[name].numpy().reshape(*draws.shape[:2], *unknown.shape[1:2], -1)
            changed[name] = (("chain", "draw", "blend", "galaxy"), values)
        answer = dataset.drop_vars(["flux_variance_within", "flux_variance_between"], errors="ignore").assign(changed)
        answer.attrs = {key: value for key, value in dataset.attrs.items() if key != "flux_prior"} | {
            "method": "refined"
        }
        return Posterior(answer)

    def _rendered(self, unknown: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
        """Render draws: mean and standard deviation of each galaxy's own light, and its mask ``(blend, galaxy, y, x)``.

        The mask is the fraction of draws in which the light exceeds three times the sky noise.
        """
        parts = []
        with torch.no_grad():
            for one in torch.from_numpy(unknown).float().unbind(1):
                latents, _, growth = self.model.split(one)
                light = self.model.light(latents, growth).clamp(min=0)
                parts.append((light.mean(0), light.std(0), (light > MASK_THRESHOLD).float().mean(0)))
        return tuple(torch.stack(values).numpy() for values in zip(*parts, strict=True))


def _gates(
    usable: NDArray[np.bool_], probability: NDArray[np.float64], own: NDArray[np.float64], refined: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return flags raised by weights, by the p-value of the misfit and by the answers, and anomaly scores ``(blend,)``.

    The answers are draws of ln flux ``(draw, blend, galaxy)``: the network's own, and the refined ones.
    """
    offset = refined.mean(0) - own.mean(0)
    spread = np.stack([np.cov(own[:, blend].T) + np.cov(refined[:, blend].T) for blend in range(len(usable))])
    apart = np.einsum("bg,bgh,bh->b", offset, np.linalg.inv(spread), offset) / stats.chi2.isf(LEAST_AGREEMENT_P, 2)
    misfitting = np.log(np.maximum(probability, LEAST_P)) / np.log(LEAST_MISFIT_P)
    flags = Flag.POOR_WEIGHTS * ~usable | Flag.MISFIT * (usable & (probability < LEAST_MISFIT_P))
    flags = flags | Flag.DISAGREEMENT * (usable & (apart > 1))
    return flags, np.where(usable, np.fmax(np.sqrt(apart), misfitting), np.nan)


def _between(
    log_flux: NDArray[np.float64], other: NDArray[np.float64], contested: NDArray[np.bool_], *, seed: int
) -> NDArray[np.float64]:
    """Move draws ``(draw, blend, galaxy)`` halfway to another mean, and add an error of both fluxes as large.

    Answers farther apart than `FARTHEST` stay as they are.
    """
    half = (other - log_flux.mean(0)) / 2
    moved = log_flux.copy()
    for blend in np.flatnonzero(contested & (np.abs(2 * half) < FARTHEST).all(1)):
        rng = np.random.default_rng([seed, 3, blend])
        moved[:, blend] += (1 + rng.normal(size=(len(log_flux), 1))) * half[blend]
    return moved
