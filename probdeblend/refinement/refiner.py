"""Refinement for users: stamps in, posteriors out, each refined where that can be trusted and the network's where not.

Under a model that is right refinement comes to what can be known; under a wrong one its intervals are far too narrow,
and importance weights do not tell. A blend is refined only if

- its importance weights can be used: k-hat below ``min(1 - 1 / log10(draws), 0.7)``;
- the fit leaves no more light behind than noise would (`~probdeblend.refinement.residuals.misfit`);
- nothing is odd: the stamp is like the training set, a galaxy in its middle, without bad pixels, evenly noisy;
- the network, which was taught that galaxies have knots and arms, does not contradict: the refined fluxes lie where its
  own posterior is.

Else the network's fluxes and masks stay, and a flag says why. Where weights, fit or network speak against a refinement
both answers are in question, and nobody knows which is the better one: the network's moves half of the way to the other
one, and is wider by as much, so that it has the mean and the variance of both as equals.
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
from ..scene import Instrument, seed_of
from ..simulation.prior import Prior
from .expected import Appearance, appearance
from .guide import JointGuide
from .latents import LATENTS, to_components
from .model import BlendModel, Observed
from .refine import Fit, Refined, refine
from .residuals import misfit
from .variational import fit_elbo

__all__ = ["METHODS", "Refiner"]

METHODS: dict[str, tuple[Fit | None, ...]] = {
    "auto": (None, None, None, fit_elbo),
    "gauss-newton": (None,),
    "elbo": (fit_elbo,),
}
"""How proposals are made, by name: what `~probdeblend.refinement.refine.refine` takes as `fits`."""

FLUXES = [0, len(LATENTS)]
CONTESTED = Flag.POOR_WEIGHTS | Flag.MISFIT | Flag.DISAGREEMENT
UNSURE = Flag.UNFAMILIAR | Flag.OFF_CENTER | Flag.OUTSIDE_PRIOR | Flag.BAD_PIXELS | Flag.BAD_CENTER | Flag.OTHER_COUNT
LEAST_MISFIT_P = 0.01
LEAST_AGREEMENT_P = 0.001
LEAST_P = 1e-300
FARTHEST = 1.0  # in ln flux, of an answer that is taken into account
UNEVEN = 0.1  # by which the noise of a pixel may differ from the stamp's median
LARGEST_SKY = 3.0  # in units of the sky noise, in the darkest corner
CORNER = 16
LARGEST_K_HAT_OF_EVIDENCE = 0.5
LEAST_PROPOSALS = 100
CHUNK = 64
RENDERED = 64  # draws of each blend that become images and masks
PSF_TOLERANCE = 0.01


class Refiner:
    """A deblender, a guide and a generative model together: called as a `~probdeblend.deblending.deblender.Deblender`.

    Parameters
    ----------
    deblender
        Trained weights; or a `~probdeblend.deblending.counts.CountingDeblender`, which keeps stamps of other than two galaxies
        from being refined.
    guide
        A guide on the encoder of these weights.
    instrument
        PSF, noise correlation, zero point and exposure of the images; those of the weights if None.
    prior
        The population that the model takes galaxies from, each of one Sérsic profile; the default one if None.
    proposals
        Draws of each proposal.
    steps
        Most Gauss-Newton steps of a climb.
    method
        What the first proposal is: "gauss-newton", as wide as the curvature at the mode says; "elbo", fitted from
        there by `~probdeblend.refinement.variational.fit_elbo`; or "auto": where the first makes little of a blend it goes on from
        what was learned, twice, and then with the second. Blends with several modes have the first.

    Raises
    ------
    ValueError
        If there is no such method, pixels have another size than the weights were trained for, the zero point is not
        known, or the guide stands on another network.

    Warns
    -----
    UserWarning
        If the PSF is another one than that of the training: the model has the new one, the first guess has not.
    """

    def __init__(
        self,
        deblender: Deblender,
        guide: JointGuide,
        *,
        instrument: Instrument | None = None,
        prior: Prior | None = None,
        proposals: int = 400,
        steps: int = 40,
        method: str = "auto",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if proposals < LEAST_PROPOSALS:
            raise ValueError(f"proposals must be at least {LEAST_PROPOSALS}, got {proposals}")
        self.deblender, self.guide = deblender, guide.eval()
        self.instrument = deblender.instrument if instrument is None else instrument
        self.proposals, self.steps, self.fits = proposals, steps, METHODS[method]
        deblender.check_pixel_scale(self.instrument.pixel_scale)
        if guide.encoder is not deblender.network:
            raise ValueError("guide must stand on the deblender's own network, got one on another")
        if not np.isfinite(self.instrument.zero_point):
            raise ValueError(
                "zero_point must be finite, as the prior of the model is one of magnitudes, "
                f"got {self.instrument.zero_point}"
            )
        wider = self.instrument.fwhm / deblender.instrument.fwhm
        if abs(wider - 1) > PSF_TOLERANCE:
            warnings.warn(
                f"the PSF is {wider:.2f} times as wide as that of the guide's training: refinement uses it, "
                "the guess that it starts from does not",
                stacklevel=2,
            )
        self.model = BlendModel(prior or Prior.default(), self.instrument)

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
            As for the deblender.

        Returns
        -------
        Posterior
            Fluxes, masks and positions, refined where ``refined (blend,)`` says so; draws of ``half_light_radius``
            (circularized, arcsec), ``sersic_index``, ``axis_ratio`` and ``position_angle`` (degrees from the x axis),
            from the guide where a blend was not refined; each galaxy's noiseless ``image`` with ``image_std`` in image
            units; ``refined_flux`` and ``refined_flux_sd``, mean and standard deviation of what refinement says, in
            use or not; and ``k_hat``, ``effective_samples``, ``misfit_p``, ``chi_square``, ``log_evidence`` and
            ``log_evidence_error`` (NaN where k-hat is above 0.5).

        Raises
        ------
        ValueError
            As the deblender does, or if the sky has not been subtracted.
        """
        ratio, spoiled = self._ratio(image, sky_rms)
        network = self.deblender(image, sky_rms=sky_rms, draws=draws, passes=passes, seed=seed, calibrate=calibrate)
        scale = network.dataset["sky_rms"].values
        exposure = torch.full((len(scale),), float(self.instrument.exposure))
        observed = Observed(ratio, torch.tensor(scale, dtype=torch.float32), exposure)
        count = network.flux.sizes["chain"] * network.flux.sizes["draw"]
        guess, guided = self._guided(ratio, count, seed=seed)
        settings = {"draws": self.proposals, "steps": self.steps, "fits": self.fits}
        found = refine(self.model, observed, guess, **settings, seed=seed)
        unknown = found.resampled(count, seed=seed)
        tried = unknown[..., FLUXES]
        asked = np.log(network.draws("blend", "galaxy", "band")[:, :, 0] / scale[:, None, None]).transpose(2, 0, 1)
        flags, probability, anomaly = self._gates(network, found, observed, log_flux=(asked, tried), spoiled=spoiled)
        asked = _between(asked, tried.mean(0), (flags & int(CONTESTED)) > 0, seed=seed)
        kept = np.flatnonzero(flags)
        unknown[:, kept] = guided[:, kept]
        unknown[:, kept[:, None], FLUXES] = asked[:, kept]
        answer = self._assemble(network, unknown, found, flags=flags, probability=probability)
        tried = np.exp(tried) * scale[:, None]
        moments = {"refined_flux": tried.mean(0), "refined_flux_sd": tried.std(0)}
        named = {name: (("blend", "galaxy"), values) for name, values in moments.items()}
        return answer.with_anomaly(anomaly, **named)

    def _guided(self, ratio: torch.Tensor, count: int, *, seed: int) -> tuple[torch.Tensor, NDArray[np.float64]]:
        """Return the guide's mean ``(blend, number)`` and draws ``(draw, blend, number)``."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            parts = [self.guide.numbers(*self.guide.encode(part[:, None])) for part in ratio.split(CHUNK)]
            numbers, drawn = torch.cat(parts), []
            for blend in range(len(numbers)):
                torch.manual_seed(seed_of(seed, 2, blend))
                drawn.append(self.guide.head.sample(numbers[blend : blend + 1], count)[:, 0])
            return self.guide.head.distribution(numbers).mean, torch.stack(drawn, 1).double().numpy()

    def check_pixel_scale(self, pixel_scale: float) -> None:
        """Refuse images that are sampled otherwise than the training set.

        Parameters
        ----------
        pixel_scale
            Size of a pixel in arcsec.
        """
        self.deblender.check_pixel_scale(pixel_scale)

    def _ratio(self, image: ArrayLike, sky_rms: ArrayLike) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Return images over the sky noise ``(blend, y, x)``, and what their pixels speak against, as flags."""
        pixels, unit = stamp_pixels(image)
        if not len(pixels):
            raise ValueError(f"image must hold at least one stamp, got shape {pixels.shape}")
        noise = np.broadcast_to(noise_pixels(sky_rms, pixels, unit=unit), pixels.shape)
        middle = np.nanmedian(noise, axis=(1, 2, 3), keepdims=True)
        uneven = np.nanmax(np.abs(noise / middle - 1), axis=(1, 2, 3)) > UNEVEN
        # What is interpolated is smooth, and no data.
        patched = ~np.isfinite(pixels / noise).all((1, 2, 3))
        ratio = filled(pixels / noise)[:, 0].astype(np.float32)
        edges = (slice(CORNER), slice(-CORNER, None))
        corners = [np.median(ratio[:, rows, columns], axis=(1, 2)) for rows in edges for columns in edges]
        darkest = np.abs(corners).min(0)
        if (darkest > LARGEST_SKY).all():
            raise ValueError(
                f"image must be sky-subtracted for refinement, got {darkest.min():.1f} times the sky noise and more in "
                "the darkest corner of every stamp"
            )
        return torch.from_numpy(ratio), Flag.UNEVEN_NOISE * uneven | Flag.BAD_PIXELS * patched

    def _gates(
        self,
        network: Posterior,
        found: Refined,
        observed: Observed,
        *,
        log_flux: tuple[NDArray[np.float64], NDArray[np.float64]],
        spoiled: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return why each blend is not refined, as flags ``(blend,)``, the p-values of the misfit, and the anomaly score."""
        mean, covariance = found.moments()
        usable = found.usable
        probability = np.where(usable, misfit(self.model, observed, mean, covariance), np.nan)
        asked, refined = (draws.transpose(1, 2, 0) for draws in log_flux)
        offset = refined.mean(-1) - asked.mean(-1)
        spread = np.stack([np.cov(one) + np.cov(other) for one, other in zip(asked, refined, strict=True)])
        distance = np.einsum("bg,bgh,bh->b", offset, np.linalg.inv(spread), offset)
        apart = distance / stats.chi2.isf(LEAST_AGREEMENT_P, 2)
        misfitting = np.log(np.maximum(probability, LEAST_P)) / np.log(LEAST_MISFIT_P)
        anomaly = np.where(usable, np.fmax(np.sqrt(apart), misfitting), np.nan)
        odd = ((network.flags.values & int(UNSURE)) > 0).any(1)
        flags = Flag.POOR_WEIGHTS * ~usable | Flag.MISFIT * (usable & (probability < LEAST_MISFIT_P))
        flags = flags | Flag.DISAGREEMENT * (usable & (apart > 1)) | spoiled
        return (flags | Flag.NOT_REFINED * (odd | (flags > 0))).astype(np.int64), probability, anomaly

    def _assemble(
        self,
        network: Posterior,
        unknown: NDArray[np.float64],
        found: Refined,
        *,
        flags: NDArray[np.int64],
        probability: NDArray[np.float64],
    ) -> Posterior:
        dataset = network.dataset
        scale, refined = dataset["sky_rms"].values, flags == 0
        some = slice(None, None, max(1, len(unknown) // RENDERED))
        seen = appearance(self.model, unknown[some])
        flux = np.exp(unknown[..., FLUXES]) * scale[:, None]
        # So few draws have a mean of their own; images have that of all.
        unit = (scale[:, None] * flux.mean(0) / flux[some].mean(0))[..., None, None].astype(np.float32)
        draws = dataset["flux"].values.copy()
        own = refined | ((flags & int(CONTESTED)) > 0)
        draws[:, :, own] = flux.reshape(*draws.shape[:2], *flux.shape[1:], 1)[:, :, own]
        evidence = found.k_hat < LARGEST_K_HAT_OF_EVIDENCE
        pixels = ("blend", "galaxy", "y", "x")
        changed = {
            "flux": (dataset["flux"].dims, draws, dataset["flux"].attrs),
            "flags": (("blend", "galaxy"), network.flags.values | flags[:, None]),
            "refined": ("blend", refined),
            "k_hat": ("blend", found.k_hat),
            "effective_samples": ("blend", found.effective),
            "misfit_p": ("blend", probability),
            "chi_square": (("blend", "galaxy"), found.chi_square),
            "log_evidence": ("blend", np.where(evidence, found.log_evidence, np.nan)),
            "log_evidence_error": ("blend", np.where(evidence, found.log_evidence_error, np.nan)),
            "image": (pixels, seen.image * unit),
            "image_std": (pixels, seen.image_std * unit),
        }
        changed |= self._masks(network, seen, refined) | self._shapes(unknown, draws.shape[:2])
        for axis, name in enumerate(("x", "y")):
            place = np.median(unknown[..., [1 + axis, 1 + axis + len(LATENTS)]], axis=0) + (self.model.size - 1) / 2
            changed[name] = (("blend", "galaxy"), np.where(refined[:, None], place, dataset[name].values))
        attributes = {name: value for name, value in dataset.attrs.items() if name != "flux_prior"}
        kept = dataset.drop_vars(["flux_variance_within", "flux_variance_between"], errors="ignore")
        answer = kept.assign(changed)
        answer.attrs = attributes | {"method": "refined"}
        return Posterior(answer)

    def _masks(self, network: Posterior, seen: Appearance, refined: NDArray[np.bool_]) -> dict[str, tuple]:
        """Return masks, those of refined blends from their draws."""
        if "mask" not in network.dataset:
            return {}
        mask = np.where(refined[:, None, None, None], seen.mask, network.mask.values)
        changed = {"mask": (network.dataset["mask"].dims, mask.astype(np.float32))}
        for name in ("mask_std", "mask_information"):
            if name in network.dataset:
                values = np.where(refined[:, None, None, None], 0, network.dataset[name].values)
                changed[name] = (network.dataset[name].dims, values.astype(np.float32))
        return changed

    def _shapes(self, unknown: NDArray[np.float64], size: tuple[int, int]) -> dict[str, tuple]:
        """Return draws of the galaxies' shapes ``(chain, draw, blend, galaxy)``."""
        latents, _, _ = self.model.split(torch.from_numpy(unknown).float())
        components = to_components(latents.flatten(0, 1))
        values = {
            "half_light_radius": components.half_light_radius,
            "sersic_index": components.sersic_index,
            "axis_ratio": components.axis_ratio,
            "position_angle": components.angle.rad2deg(),
        }
        return {
            name: (("chain", "draw", "blend", "galaxy"), value[..., 0].numpy().reshape(*size, *latents.shape[1:3]))
            for name, value in values.items()
        }


def _between(
    log_flux: NDArray[np.float64], other: NDArray[np.float64], contested: NDArray[np.bool_], *, seed: int
) -> NDArray[np.float64]:
    """Move draws ``(draw, blend, galaxy)`` half of the way to another mean, and add as much as an error of both fluxes.

    An answer that is farther than `FARTHEST` is none.
    """
    half = (other - log_flux.mean(0)) / 2
    moved = log_flux.copy()
    for blend in np.flatnonzero(contested & (np.abs(2 * half) < FARTHEST).all(1)):
        rng = np.random.default_rng([seed, 3, blend])
        moved[:, blend] += (1 + rng.normal(size=(len(log_flux), 1))) * half[blend]
    return moved
