"""Heads whose distribution bends: mixtures of normals and spline flows, for posteriors with a skew or two modes.

Both start as the normal head does and have no blind spot for correlations: each component of the mixture has a full
covariance, and the flow is a spline of the normal distribution's whitened variable. That spline is the monotonic
rational-quadratic one of Durkan et al. (2019, arXiv:1906.04032), applied one coordinate after the other (Papamakarios
et al. 2017, arXiv:1705.07057): coordinate d is stretched by a spline that depends on the features and on the
coordinates before d. Data to noise is therefore one pass, noise to data one pass a coordinate; both are exact.

What a blend hides is how its light is divided, not how much there is. Where the division is uncertain, both log-fluxes
follow a curve along which the total stays what it is, and no ellipse does. In ln of the total flux and ln of the ratio
the curve is a straight line: with f1 + f2 = t and f2 / f1 = r, ln f1 = ln t - ln(1 + r), ln f2 = ln t - ln(1 + 1 / r).
The determinant of this map is one everywhere, as the two shares of the light are the derivatives of ln t, and they sum
to one: densities carry over as they are.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

from .heads import NormalHead

__all__ = ["MixtureHead", "SplineHead", "TotalRatioHead"]

_SPREAD = 0.3
_NODES = 32  # of the quadrature
_HIDDEN = 32
_BOUND = 5.0
_LEAST_BIN = 1e-3
_LEAST_SLOPE = 1e-3


class MixtureHead(NormalHead):
    """Features to a mixture of normal distributions with full covariances (Bishop 1994).

    The components start a little apart from each other, so that they can go separate ways.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes.
    components
        Number of normal distributions.

    Raises
    ------
    ValueError
        If there are no components.
    """

    def __init__(self, in_features: int, fluxes: int = 2, components: int = 4) -> None:
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        # The number of outputs depends on it.
        self.components = components
        super().__init__(in_features, fluxes)
        if components > 1:
            nn.init.normal_(self.out.bias[: components * fluxes], std=_SPREAD)

    @property
    def count(self) -> int:
        """Number of outputs a blend: those of a normal head and a weight, for each component."""
        return self.components * (super().count + 1)

    def numbers(self, features: Tensor, start: Tensor | float) -> Tensor:
        """Return the numbers that make the distribution.

        Parameters
        ----------
        features
            Features ``(blend, in_features)``.
        start
            What the location of every component is counted from ``(blend, flux)``.

        Returns
        -------
        Tensor
            ``(blend, count)``: the locations of all components first, their logarithmic weights last.
        """
        out = self.out(features).float()
        end = self.components * self.fluxes
        locations = [location + start for location in out[..., :end].split(self.fluxes, -1)]
        return torch.cat([*locations, out[..., end:]], -1)

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the mixture of normal distributions of the log-fluxes.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.

        Returns
        -------
        pyro.distributions.MixtureSameFamily
            With event shape (fluxes,).
        """
        n = self.fluxes
        sizes = (n, n, n * (n - 1) // 2, 1)
        parts = numbers.split([self.components * size for size in sizes], -1)
        *normal, weight = (part.unflatten(-1, (self.components, size)) for part, size in zip(parts, sizes, strict=True))
        location, factor = self.location_and_scale(torch.cat(normal, -1))
        return dist.MixtureSameFamily(
            dist.Categorical(logits=weight[..., 0], validate_args=False),
            dist.MultivariateNormal(location, scale_tril=factor, validate_args=False),
            validate_args=False,
        )


class SplineHead(NormalHead):
    """Features to a normal distribution of the log-fluxes that an autoregressive spline flow bends.

    The numbers are those of the normal head and the context of the splines: the share that the features have in the
    hidden layer, one a flux, from which the knots of the splines are computed. What the earlier fluxes add to that
    layer, and the layer behind it, are parameters of the head. Beyond five standard deviations nothing bends any more.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes.
    bins
        Number of bins of each spline.

    Raises
    ------
    ValueError
        If there are fewer than two bins.
    """

    def __init__(self, in_features: int, fluxes: int = 2, bins: int = 8) -> None:
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        super().__init__(in_features, fluxes)
        nn.init.normal_(self.out.weight[super().count :], std=in_features**-0.5)
        self.earlier = nn.Parameter(torch.randn(fluxes, _HIDDEN, fluxes) / fluxes**0.5)
        # Zeros would be the normal distribution itself, but give the parameters before them no gradient.
        self.weight = nn.Parameter(0.003 * torch.randn(fluxes, _HIDDEN, 3 * bins - 1))
        self.bias = nn.Parameter(torch.zeros(fluxes, 3 * bins - 1))

    @property
    def count(self) -> int:
        """Number of outputs a blend: those of the normal head and the context of the splines."""
        return super().count + self.fluxes * _HIDDEN

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the bent normal distribution of the log-fluxes.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.

        Returns
        -------
        pyro.distributions.TorchDistribution
            With event shape (fluxes,), exact ``log_prob`` and ``rsample``.
        """
        location, factor = self.location_and_scale(numbers)
        # The numbers may have been moved: draws are made on the CPU also for networks that are elsewhere.
        earlier, weight, bias = (value.to(numbers) for value in (self.earlier, self.weight, self.bias))
        return _BentNormal(
            location,
            factor,
            context=numbers[..., super().count :].unflatten(-1, (self.fluxes, _HIDDEN)),
            earlier=earlier * torch.ones_like(earlier[:, 0]).tril(-1)[:, None],
            weight=weight,
            bias=bias,
        )


class _BentNormal(dist.TorchDistribution):
    """A standard normal variable through inverse splines, then stretched by a Cholesky factor and shifted.

    Parameters
    ----------
    location, scale_tril
        Shift ``(..., flux)`` and Cholesky factor ``(..., flux, flux)``.
    context
        Share of the features in the hidden layer ``(..., flux, hidden)``.
    earlier
        Weights ``(flux, hidden, earlier flux)`` of the earlier coordinates in that layer.
    weight, bias
        Of the layer that gives the knots, ``(flux, hidden, knot)`` and ``(flux, knot)``.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, location: Tensor, scale_tril: Tensor, *, context: Tensor, earlier: Tensor, weight: Tensor, bias: Tensor
    ) -> None:
        self.location, self.scale_tril, self.context = location, scale_tril, context
        self.earlier, self.weight, self.bias = earlier, weight, bias
        super().__init__(location.shape[:-1], location.shape[-1:], validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: dist.TorchDistribution | None = None) -> _BentNormal:
        batch_shape, event = torch.Size(batch_shape), self.event_shape
        return _BentNormal(
            self.location.expand(batch_shape + event),
            self.scale_tril.expand(batch_shape + event + event),
            context=self.context.expand(batch_shape + self.context.shape[-2:]),
            earlier=self.earlier,
            weight=self.weight,
            bias=self.bias,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        # Half precision would make density and draws disagree.
        with torch.autocast(self.location.device.type, enabled=False):
            white = torch.linalg.solve_triangular(self.scale_tril, (value - self.location)[..., None], upper=False)
            white = white[..., 0]
            before = torch.einsum("...e,dhe->...dh", white.clamp(-_BOUND, _BOUND), self.earlier)
            hidden = nn.functional.silu(self.context + before)
            knots = torch.einsum("...dh,dhk->...dk", hidden, self.weight) + self.bias
            noise, log_slope = _spline(white, knots)
            normal = -0.5 * (noise.square() + math.log(2 * math.pi))
            return (normal + log_slope - self.scale_tril.diagonal(dim1=-2, dim2=-1).log()).sum(-1)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.location.dtype, device=self.location.device)
        with torch.autocast(self.location.device.type, enabled=False):
            layer, white = self.context.expand(shape + self.context.shape[-1:]), []
            for d in range(shape[-1]):
                knots = nn.functional.silu(layer[..., d, :]) @ self.weight[d] + self.bias[d]
                white.append(_inverse_spline(noise[..., d], knots))
                layer = layer + white[d].clamp(-_BOUND, _BOUND)[..., None, None] * self.earlier[..., d]
            return self.location + (self.scale_tril @ torch.stack(white, -1)[..., None])[..., 0]


def _bin(value: Tensor, knots: Tensor, *, inverse: bool) -> tuple[Tensor, ...]:
    """Return corner ``x, y``, width, height and slopes at both ends of the bins in which values are.

    Parameters
    ----------
    value
        Values ``(...)`` within the bound; of y if `inverse`, of x else.
    knots
        Free numbers ``(..., 3 * bins - 1)``: widths, heights, and slopes at the inner knots; zeros are the identity.
    inverse
        Whether to find the bins by y.

    Returns
    -------
    tuple of Tensor
        Each of the broadcast shape.
    """
    bins = (knots.shape[-1] + 1) // 3
    sizes, slope = knots[..., : 2 * bins].unflatten(-1, (2, bins)), knots[..., 2 * bins :]
    sizes = 2 * _BOUND * (_LEAST_BIN + (1 - bins * _LEAST_BIN) * sizes.softmax(-1))
    corners = nn.functional.pad(sizes.cumsum(-1)[..., :-1], (1, 0)) - _BOUND
    slope = _LEAST_SLOPE + nn.functional.softplus(slope + math.log(math.expm1(1 - _LEAST_SLOPE)))
    # Slopes of one at the ends join the identity outside.
    slope = nn.functional.pad(slope, (1, 1), value=1.0)
    (width, height), (x, y) = sizes.unbind(-2), corners.unbind(-2)
    index = (value[..., None] >= (y if inverse else x)[..., 1:]).sum(-1, keepdim=True)
    table = (x, y, width, height, slope[..., :-1], slope[..., 1:])
    return tuple(torch.take_along_dim(values, index, -1)[..., 0] for values in table)


def _spline(value: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spline's values and the logarithms of its slopes; outside the bound it is the identity."""
    x, y, width, height, left, right = _bin(value.clamp(-_BOUND, _BOUND), knots, inverse=False)
    mean = height / width
    t = (value.clamp(-_BOUND, _BOUND) - x) / width
    denominator = mean + (left + right - 2 * mean) * t * (1 - t)
    inside = y + height * t * (mean * t + left * (1 - t)) / denominator
    slope = right * t**2 + 2 * mean * t * (1 - t) + left * (1 - t) ** 2
    log_slope = slope.log() + 2 * (mean.log() - denominator.log())
    outside = value.abs() > _BOUND
    return torch.where(outside, value, inside), log_slope.masked_fill(outside, 0.0)


def _inverse_spline(value: Tensor, knots: Tensor) -> Tensor:
    """Return where the spline has these values: a quadratic equation, in the form that loses no digits."""
    x, y, width, height, left, right = _bin(value.clamp(-_BOUND, _BOUND), knots, inverse=True)
    mean, above = height / width, value.clamp(-_BOUND, _BOUND) - y
    bend = above * (left + right - 2 * mean)
    a, b, c = height * (mean - left) + bend, height * left - bend, -mean * above
    # It is positive; rounding must not make its root's gradient infinite.
    discriminant = (b**2 - 4 * a * c).clamp(min=torch.finfo(b.dtype).tiny)
    inside = x - 2 * c * width / (b + discriminant.sqrt())
    return torch.where(value.abs() > _BOUND, value, inside)


class TotalRatioHead(MixtureHead):
    """Features to a mixture of normal distributions of ln of a pair's total flux and ln of its flux ratio.

    Its answer is about both log-fluxes, as that of any head; the module says how they follow from total and ratio.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes: two.
    components
        Number of normal distributions.

    Raises
    ------
    ValueError
        If there are not two fluxes, or no components.
    """

    def __init__(self, in_features: int, fluxes: int = 2, components: int = 4) -> None:
        if fluxes != 2:
            raise ValueError(f"fluxes must be 2 to have a ratio, got {fluxes}")
        super().__init__(in_features, fluxes, components)
        self.division = _Division()

    def numbers(self, features: Tensor, start: Tensor | float) -> Tensor:
        """Return the numbers that make the distribution.

        Parameters
        ----------
        features
            Features ``(blend, in_features)``.
        start
            Log-fluxes, from whose total and ratio the location is counted ``(blend, flux)``; or one for both.

        Returns
        -------
        Tensor
            ``(blend, count)``: the locations of all components first, ln of total and of companion over central flux.
        """
        pair = torch.as_tensor(start, device=features.device).expand(len(features), 2)
        return super().numbers(features, self.division.inv(pair))

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the log-fluxes.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.

        Returns
        -------
        pyro.distributions.TransformedDistribution
            With event shape (fluxes,), and a mean.
        """
        return _Divided(super().distribution(numbers), self.division, validate_args=False)


class _Divided(dist.TransformedDistribution):
    """Both log-fluxes of a mixture over total and ratio."""

    @property
    def mean(self) -> Tensor:
        """Mean ``(..., 2)``; over the ratio of each component by Gauss-Hermite quadrature."""
        parts = self.base_dist.component_distribution
        nodes, weights = (torch.from_numpy(values).to(parts.mean) for values in hermegauss(_NODES))
        total, ratio = parts.mean[..., None, :].unbind(-1)
        ratio = ratio + parts.variance[..., None, 1].sqrt() * nodes
        means = weights / weights.sum() @ self.transforms[0](torch.stack([total.expand_as(ratio), ratio], -1))
        return (self.base_dist.mixture_distribution.probs[..., None] * means).sum(-2)


class _Division(Transform):
    """From ln of a pair's total flux and ln of its ratio to both log-fluxes."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def _call(self, whole: Tensor) -> Tensor:
        total, ratio = whole.unbind(-1)
        return torch.stack([total - softplus(ratio), total - softplus(-ratio)], -1)

    def _inverse(self, pair: Tensor) -> Tensor:
        central, companion = pair.unbind(-1)
        return torch.stack([torch.logaddexp(central, companion), companion - central], -1)

    def log_abs_det_jacobian(self, whole: Tensor, pair: Tensor) -> Tensor:
        """Return zeros: the determinant is one."""
        return torch.zeros_like(whole[..., 0])
