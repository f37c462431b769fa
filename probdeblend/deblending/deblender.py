"""A trained network with its instrument: images in, posteriors out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..networks.composite import Blend2Flux, Blend2Mask2Flux
from ..networks.dropout import NetworkDraws, draw
from ..networks.heads import NormalHead, StudentTHead, TotalRatioHead
from ..photometry.detection import bad_center, light_centers
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior, variance_parts
from ..posterior.flags import Flag
from ..posterior.reweight import FluxPrior
from ..scene import LN_FLUX_UNIT, PIXEL_SCALE_TOLERANCE, Instrument
from ..simulation.conditions import Conditions
from ..simulation.prior import Prior, nested_tuples
from .inputs import scaled_stamps

__all__ = ["FAMILIAR", "Deblender", "Deblends", "Description"]

ARCHITECTURES = {"Blend2Flux": Blend2Flux, "Blend2Mask2Flux": Blend2Mask2Flux}
HEADS = {head.__name__: head for head in (NormalHead, StudentTHead, TotalRatioHead)}
FAMILIAR = ("feature_mean", "feature_whitening", "feature_limit")  # mean, whitening matrix and largest usual distance
READOUT = ("cnn.dense.", "head.")  # the layers behind the encoder
PSF_TOLERANCE = 0.05  # of the relative difference in width
OFF_CENTER = 6.0  # pixels from the middle of the stamp beyond which a central galaxy is flagged


class Deblends(Protocol):
    """A callable that maps stamps to a `Posterior`: a network, a refiner, SEP, or a wrapper of one."""

    def __call__(self, image: ArrayLike, /, *, sky_rms: ArrayLike, **sampling: int) -> Posterior:
        """Deblend stamps ``(blend, y, x)``.

        Parameters
        ----------
        image
            Sky-subtracted stamps.
        sky_rms
            Standard deviation of the sky's pixels in image units: a number, one per blend, or a map.
        **sampling
            ``draws``, ``passes`` and ``seed``.

        Returns
        -------
        Posterior
            Fluxes, masks and positions of the galaxies of each stamp.
        """


@dataclass(frozen=True)
class Description:
    """What a network was built as and trained on, as its weights file states it.

    The prior (as from `Prior.describe`) and the conditions are those of simulated blends; for a stored set both are
    None. ``flux_range`` is that of flux over sky noise, ``max_difference`` that of a pair's magnitudes. ``training``
    has numbers and words by name; as ``encoder`` how the network was trained whose encoder it took over.
    """

    architecture: str
    head: str
    settings: dict[str, int | float | bool]
    flux_range: tuple[float, float]
    max_difference: float
    prior: str | None
    conditions: Conditions | None
    training: dict[str, object]

    @property
    def close_fraction(self) -> float:
        """Fraction of the batches of the training that were close pairs."""
        return float(self.training.get("close_fraction", 0.0))

    @property
    def encoder_close_fraction(self) -> float:
        """The same fraction in the training of the encoder, which makes the masks."""
        encoder = self.training.get("encoder")
        return self.close_fraction if encoder is None else replace(self, training=encoder).encoder_close_fraction

    def describe(self) -> str:
        """Return the description as JSON, to be stored beside the weights."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Description:
        """Make a description from what `describe` returns."""
        numbers = json.loads(text)
        if numbers["conditions"] is not None:
            ranges = {name: nested_tuples(value) for name, value in numbers["conditions"].items()}
            numbers["conditions"] = Conditions(**ranges)
        return cls(**numbers | {"flux_range": tuple(numbers["flux_range"])})

    def build(self) -> nn.Module:
        """Return the network, not yet trained."""
        for name, known in (("architecture", ARCHITECTURES), ("head", HEADS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value}")
        return ARCHITECTURES[self.architecture](**self.settings, head=HEADS[self.head])


class Deblender(nn.Module):
    """A trained network with its instrument: images in, posteriors out.

    Parameters
    ----------
    network
        The trained composite network.
    instrument
        The instrument that it was trained for.
    description
        What it was built as and trained on.
    features
        Hidden layer ``(blend, feature)`` for blends of the training family: stamps whose hidden layer is farther from
        its mean than that of all but one in a thousand of these are flagged. None if that is loaded from a file.
    """

    def __init__(
        self, network: nn.Module, instrument: Instrument, description: Description, *, features: Tensor | None = None
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.instrument, self.description = instrument, description
        self.calibrator: Calibrator | None = None
        for name, value in zip(FAMILIAR, (None,) * 3 if features is None else _familiar(features), strict=True):
            self.register_buffer(name, value)

    def forward(
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
        image
            Sky-subtracted stamps ``(y, x)``, ``(blend, y, x)`` or ``(blend, band, y, x)`` of 128 x 128 pixels, the
            central galaxy within a pixel of the middle: an array or tensor of any type and byte order, a masked
            array, a Quantity or an NDData. Masked and non-finite pixels are bad; they are interpolated.
        sky_rms
            Standard deviation of the sky's pixels in the image's units: a number, one per blend, or a map ``(y, x)``
            or ``(blend, y, x)``.
        draws
            Number of draws, rounded up to a multiple of `passes`.
        passes
            Number of dropout passes; 0 for none.
        seed
            Same seed, same draws, whatever else is in the batch.
        calibrate
            Whether the calibrator of the weights, if they have one, corrects the posterior.

        Returns
        -------
        Posterior
            Total fluxes in the image's units, mask probabilities, light-weighted positions and flags.

        Raises
        ------
        ValueError
            If a stamp has another size or no good pixel, or if the noise has another shape or is not positive.
        TypeError
            If the image is not an array of numbers.
        """
        ratio, noise, bad, unit = scaled_stamps(image, sky_rms)
        scale = np.nanmedian(np.broadcast_to(noise, ratio.shape), axis=(1, 2, 3))
        pixels = torch.from_numpy(ratio).to(self.feature_mean.device)
        answer = draw(self.network, pixels, draws=draws, passes=passes, seed=seed)
        posterior = self._posterior(answer, ratio, bad, scale=scale, unit=unit)
        return self.calibrator(posterior) if calibrate and self.calibrator is not None else posterior

    def _posterior(self, answer: NetworkDraws, ratio: NDArray, bad: NDArray, *, scale: NDArray, unit: str) -> Posterior:
        log_flux = answer.log_flux.double().numpy()
        flux = np.exp(log_flux) * scale[:, None]
        x, y, off_center = light_centers(ratio, None if answer.mask is None else answer.mask.numpy())
        distance = _distance(answer.features, self.feature_mean.cpu(), self.feature_whitening.cpu())
        limit = float(self.feature_limit)
        anomaly = np.maximum(distance / max(limit, 1e-9), off_center / OFF_CENTER)
        flags = self._outside(log_flux)
        flags |= (Flag.UNFAMILIAR * (distance > limit) | Flag.OFF_CENTER * (off_center > OFF_CENTER))[:, None]
        flags |= Flag.BAD_CENTER * bad_center(bad.any(1), x, y)
        flags |= Flag.BAD_PIXELS * (bad.mean((1, 2, 3)) > 0.1)[:, None]
        masks = {name: getattr(answer, name) for name in ("mask", "mask_std", "mask_information")}
        masks = {name: value.numpy() for name, value in masks.items() if value is not None}
        within, between = variance_parts(flux)
        variances = {"variance_within": within[..., None], "variance_between": between[..., None]}
        prior = None if self.flux_prior is None else self.flux_prior.describe()
        labels = {"pixel_scale": self.instrument.pixel_scale, "network": self.digest, "flux_prior": prior}
        found = {"x": x, "y": y, "flags": flags, "sky_rms": scale, "anomaly": anomaly} | masks | variances
        flux = flux[..., None].astype(np.float32)
        return Posterior.from_draws(flux, flux_kind="total", method="network", flux_unit=unit, **found, **labels)

    @cached_property
    def flux_prior(self) -> FluxPrior | None:
        """Density of ln(flux / sky_rms) of pairs in the training; None if that was not on simulated blends alone."""
        trained = self.description
        if trained.training.get("source") != "simulated stream":
            return None
        return Prior.parse(trained.prior).flux_prior(trained.conditions.sky_rms, self.instrument.zero_point)

    @cached_property
    def digest(self) -> str:
        """Digest of the network's weights, in hexadecimal digits."""
        return _digest(self.network.state_dict())

    @cached_property
    def encoder_digest(self) -> str:
        """Digest of the weights of the encoder alone."""
        state = self.network.state_dict()
        return _digest({name: state[name] for name in state if not name.startswith(READOUT)})

    def _outside(self, log_flux: NDArray) -> NDArray[np.int64]:
        """Flag fluxes beyond those of the training set ``(blend, galaxy)``."""
        median = np.median(log_flux, axis=(0, 1))
        low, high = np.log(self.description.flux_range)
        difference = LN_FLUX_UNIT * np.abs(median[:, 0] - median[:, 1])
        outside = (median < low) | (median > high) | (difference > self.description.max_difference)[:, None]
        return Flag.OUTSIDE_PRIOR * outside

    def use(self, calibrator: Calibrator) -> None:
        """Correct posteriors with a calibrator from now on.

        Parameters
        ----------
        calibrator
            Fitted on posteriors of these weights.

        Raises
        ------
        ValueError
            If it was fitted on other weights.
        """
        subject = {"flux_kind": "total", "method": "network", "pixel_scale": self.instrument.pixel_scale}
        calibrator.check(subject | {"network": self.digest})
        self.calibrator = calibrator

    def check_pixel_scale(self, pixel_scale: float) -> None:
        """Refuse images whose pixel scale differs from that of the training by more than 2 %.

        Parameters
        ----------
        pixel_scale
            Size of a pixel in arcsec.

        Raises
        ------
        ValueError
            If it differs by more.
        """
        trained = self.instrument.pixel_scale
        if not abs(pixel_scale / trained - 1) <= PIXEL_SCALE_TOLERANCE:
            raise ValueError(
                f'pixel_scale must be {trained:g}" within {PIXEL_SCALE_TOLERANCE:.0%}, which the weights were trained '
                f'for, got {pixel_scale:g}": resample the image or train weights for it'
            )

    def check_psf(self, psf: ArrayLike) -> None:
        """Refuse an effective PSF whose width differs from that of the training by more than 5 %.

        The width is the square root of the equivalent area, ``1 / sum(psf**2)``.

        Parameters
        ----------
        psf
            Effective PSF ``(y, x)`` at the instrument's pixel scale.

        Raises
        ------
        ValueError
            If it differs by more.
        """
        given, trained = np.asarray(psf, dtype=np.float64), self.instrument.psf.double().cpu().numpy()
        ratio = math.sqrt((trained**2).sum() / ((given / given.sum()) ** 2).sum())
        if not abs(ratio - 1) <= PSF_TOLERANCE:
            raise ValueError(
                f"psf must have the width that the weights were trained for within {PSF_TOLERANCE:.0%}, "
                f"got one {ratio:.2f} times as wide: train weights for it"
            )


def _digest(state: Mapping[str, Tensor]) -> str:
    names = hashlib.sha256()
    for name, value in sorted(state.items()):
        names.update(name.encode())
        names.update(value.detach().cpu().contiguous().numpy().tobytes())
    return names.hexdigest()[:16]


def _familiar(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and whitening matrix of features, and the distance that one in a thousand of them exceeds."""
    features = features.double()
    mean = features.mean(0)
    covariance = torch.cov(features.T) + (1e-3 * features.var(0).mean() + 1e-6) * torch.eye(features.shape[1])
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).float()
    distance = _distance(features.float(), mean.float(), whitening)
    return mean.float(), whitening, torch.tensor(float(np.quantile(distance, 0.999)))


def _distance(features: Tensor, mean: Tensor, whitening: Tensor) -> NDArray:
    return ((features - mean) @ whitening.T).norm(dim=-1).numpy()
