"""The joint distribution of the fluxes of a group of overlapping sources, in every band and of both kinds.

What neighbors exchange adds up to nothing: the total flux of a group is known better than its division. The Kron (auto)
fluxes F of a group of n sources therefore follow from two parts, a multivariate Student-t together. One is ln of the
total in each band. The other is the division, the n - 1 differences of ln F in an orthonormal basis; its covariance is
that of a matrix over sources and bands that is positive definite by construction: a variance for each flux, a factor
per source that its bands share, and for each pair of sources an exchange, which adds to one what it takes from the
other, once for all bands together and once per band. The change of variables from ln F to both parts has the constant
determinant ``n ** -0.5`` in each band, so the density is exact. Any order of the sources gives the same density, and a
group of one is its total.

The total flux of a source follows from its Kron flux by the aperture correction, ln(auto / total), a Student-t of its
own whose mean may depend on the Kron flux.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from scipy.linalg import helmert
from torch import Tensor
from torch.distributions import constraints

__all__ = ["AUTO", "FLUX_KINDS", "TOTAL", "FluxNumbers", "GroupFlux"]

FLUX_KINDS = ("auto", "total")
AUTO, TOTAL = 0, 1


class FluxNumbers(NamedTuple):
    """Parameters of `GroupFlux`; all of ln flux.

    - `mean`, `width`, `common (group, source, band)`: center, own scale, and a factor that its bands share.
    - `exchange`, `band_exchange (group, source, source, band)`: what a source gains in exchange with another.
    - `total_shift`, `total_width`, `total_common (group, band)`: of ln of the group's total.
    - `coupling (group, source, band)`: how the total depends on the division.
    - `freedom (group,)`: degrees of freedom.
    - `aperture`, `aperture_width`, `aperture_common`, `aperture_slope (group, source, band)`: of ln(auto / total).
    - `aperture_freedom ()`: degrees of freedom of the aperture correction.
    """

    mean: Tensor
    width: Tensor
    common: Tensor
    exchange: Tensor
    band_exchange: Tensor
    total_shift: Tensor
    total_width: Tensor
    total_common: Tensor
    coupling: Tensor
    freedom: Tensor
    aperture: Tensor
    aperture_width: Tensor
    aperture_common: Tensor
    aperture_slope: Tensor
    aperture_freedom: Tensor


def _in_full_precision(like: Tensor) -> torch.autocast:
    """Leave mixed precision: a covariance in bfloat16 need not be positive definite where errors are correlated."""
    return torch.autocast(like.device.type, enabled=False)


class GroupFlux(TorchDistribution):
    """Distribution of ln of the auto and the total fluxes of groups ``(group, source, band, kind)``.

    Parameters
    ----------
    numbers
        Its parameters, those of one group of sources per element of the batch.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(self, numbers: FluxNumbers) -> None:
        self.numbers = numbers
        groups, sources, bands = numbers.mean.shape
        # An orthonormal basis (source, source - 1) of the differences of sources.
        self._basis = torch.from_numpy(np.ascontiguousarray(helmert(sources).T)).to(numbers.mean)
        with _in_full_precision(numbers.mean):
            self._division_factor = self._scale_of_division()
            self._total_factor = _factor(numbers.total_width, numbers.total_common)
            self._aperture_factor = _factor(numbers.aperture_width, numbers.aperture_common)
        super().__init__(torch.Size((groups,)), torch.Size((sources, bands, len(FLUX_KINDS))), validate_args=False)

    def _scale_of_division(self) -> Tensor:
        """Cholesky factor of the scale of the division, ``(group, (source - 1) * band, same)``."""
        n = self.numbers
        groups, sources, bands = n.mean.shape
        same_band = torch.eye(bands, dtype=n.mean.dtype, device=n.mean.device)
        # Exchange between different sources; that of a source with itself is left out.
        other = 1 - torch.eye(sources, dtype=n.mean.dtype, device=n.mean.device)[..., None]
        together, alone = n.exchange * other, n.band_exchange * other
        across = -torch.einsum("gijb,gijc->gibjc", together, together.transpose(1, 2))
        across = across - torch.einsum("gijb,gijb,bc->gibjc", alone, alone.transpose(1, 2), same_band)
        own = torch.einsum("gijb,gijc->gibc", together, together) + n.common[..., :, None] * n.common[..., None, :]
        own = own + torch.diag_embed(alone.square().sum(2) + n.width.square())
        index = torch.arange(sources, device=n.mean.device)
        across[:, index, :, index] = own.transpose(0, 1)
        scale = torch.einsum("gibjc,ik,jl->gkblc", across, self._basis, self._basis)
        return torch.linalg.cholesky(scale.reshape(groups, (sources - 1) * bands, (sources - 1) * bands))

    def _total_mean(self, departure: Tensor) -> Tensor:
        """Mean of ln total ``(..., group, band)``, given the departure of the division from its mean."""
        coupling = self.numbers.coupling - self.numbers.coupling.mean(1, keepdim=True)
        return self.numbers.mean.logsumexp(1) + self.numbers.total_shift + (coupling * departure).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density.

        Parameters
        ----------
        value
            ln fluxes ``(..., group, source, band, kind)``.

        Returns
        -------
        Tensor
            Log-density ``(..., group)``.
        """
        auto = value[..., AUTO]
        return self.log_prob_auto(auto) + self.log_prob_aperture(value).sum(-1)

    def log_prob_auto(self, auto: Tensor) -> Tensor:
        """Return the log-density of the auto fluxes alone.

        Parameters
        ----------
        auto
            ln auto fluxes ``(..., group, source, band)``.

        Returns
        -------
        Tensor
            Log-density ``(..., group)``.
        """
        sources, bands = auto.shape[-2:]
        departure = auto - self.numbers.mean
        with _in_full_precision(auto):
            division = torch.einsum("...sb,sk->...kb", departure, self._basis)
            total = auto.logsumexp(-2) - self._total_mean(departure - departure.mean(-2, keepdim=True))
            # Both parts have one scale of the Student-t.
            parts = (self._division_factor, division.flatten(-2)), (self._total_factor, total)
            whitened = torch.cat([_solve(*part) for part in parts], -1)
        size = sum(_log_size(factor) for factor, _ in parts) + 0.5 * bands * math.log(sources)
        return student_t(whitened.square().sum(-1), sources * bands, self.numbers.freedom) - size

    def log_prob_aperture(self, value: Tensor) -> Tensor:
        """Return the log-density of the aperture corrections, given the auto fluxes.

        Parameters
        ----------
        value
            ln fluxes ``(..., group, source, band, kind)``.

        Returns
        -------
        Tensor
            Log-density ``(..., group, source)``.
        """
        n = self.numbers
        mean = n.aperture + n.aperture_slope * (value[..., AUTO] - n.mean)
        with _in_full_precision(value):
            whitened = _solve(self._aperture_factor, value[..., AUTO] - value[..., TOTAL] - mean)
        size = whitened.shape[-1], n.aperture_freedom
        return student_t(whitened.square().sum(-1), *size) - _log_size(self._aperture_factor)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ln fluxes, differentiably.

        Parameters
        ----------
        sample_shape
            Shape of the draws.

        Returns
        -------
        Tensor
            ln fluxes ``(*sample_shape, group, source, band, kind)``.
        """
        like = self.numbers.mean
        return self.transform(torch.randn(*sample_shape, len(like), self.normals, dtype=like.dtype, device=like.device))

    @property
    def normals(self) -> int:
        """Number of standard normals that a draw of a group takes."""
        sources, bands = self.numbers.mean.shape[1:]
        return _even(sources * bands) + sources * _even(bands)

    def transform(self, noise: Tensor) -> Tensor:
        """Turn standard normals into draws.

        Parameters
        ----------
        noise
            Standard normals ``(..., group, number)``, as many as `normals`.

        Returns
        -------
        Tensor
            ln fluxes ``(..., group, source, band, kind)``.
        """
        n = self.numbers
        sources, bands = n.mean.shape[1:]
        with _in_full_precision(noise):
            auto, aperture = noise.split([_even(sources * bands), sources * _even(bands)], -1)
            aperture = _student_t(aperture.unflatten(-1, (sources, -1)), n.aperture_freedom)[..., :bands]
            divided, total = _student_t(auto, n.freedom)[..., : sources * bands].tensor_split([-bands], -1)
            divided = (self._division_factor @ divided[..., None])[..., 0].unflatten(-1, (sources - 1, bands))
            departure = torch.einsum("...kb,sk->...sb", divided, self._basis)
            total = self._total_mean(departure) + (self._total_factor @ total[..., None])[..., 0]
            aperture = (self._aperture_factor @ aperture[..., None])[..., 0]
        division = departure + n.mean - n.mean.mean(1, keepdim=True)
        auto = division + (total - division.logsumexp(-2))[..., None, :]
        return torch.stack([auto, auto - n.aperture - n.aperture_slope * (auto - n.mean) - aperture], -1)


def _factor(width: Tensor, common: Tensor) -> Tensor:
    """Cholesky factor of a covariance of own widths and one common factor."""
    return torch.linalg.cholesky(torch.diag_embed(width.square()) + common[..., :, None] * common[..., None, :])


def _log_size(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _solve(factor: Tensor, values: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, values[..., None], upper=False)[..., 0]


def _even(number: int) -> int:
    return number + number % 2


def _student_t(normals: Tensor, freedom: Tensor) -> Tensor:
    """Turn an even number of normals ``(..., number)`` into a Student-t, pair by pair, each given those before.

    The length of a pair follows from that of the normals by a smooth map (Bailey 1994, Mathematics of Computation 62,
    779); given some of its numbers, the others of a Student-t are one with as many more degrees of freedom.
    """
    pairs = normals.unflatten(-1, (-1, 2))
    square = pairs.square().sum(-1)
    growth = square / (freedom[..., None] + torch.arange(0, normals.shape[-1], 2, device=normals.device))
    length = freedom[..., None] * (growth.cumsum(-1) - growth).exp() * growth.expm1()
    return (pairs * (length / square.clamp(min=1e-30)).sqrt()[..., None]).flatten(-2)


def student_t(squared: Tensor, size: int, freedom: Tensor) -> Tensor:
    """Log-density of a standard Student-t in `size` dimensions, at a squared distance from its center."""
    half = freedom / 2
    constant = torch.lgamma(half + size / 2) - torch.lgamma(half) - 0.5 * size * (freedom * math.pi).log()
    return constant - (half + size / 2) * torch.log1p(squared / freedom)
