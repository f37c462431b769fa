"""Mixtures of normal distributions: of magnitudes and radii, between limits."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["TruncatedMixture", "conditional", "nested_tuples"]

STAR_SPREAD = 20.0  # magnitudes: nearly uniform between any limits


class TruncatedMixture(dist.TorchDistribution):
    """Mixture of normal distributions in one dimension, between two limits.

    Weights, which need not sum to 1, means and standard deviations are ``(..., component)``, limits ``(...)``.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, weight: Tensor, mean: Tensor, sd: Tensor, low: Tensor, high: Tensor) -> None:
        self.mean_, self.sd = mean.double(), sd.double()
        self.low, self.high = (torch.as_tensor(v, dtype=mean.dtype).expand(mean.shape[:-1]) for v in (low, high))
        ends = [torch.special.ndtr((v.double()[..., None] - self.mean_) / self.sd) for v in (self.low, self.high)]
        self.below, share = ends[0], (ends[1] - ends[0]).clamp(min=1e-300)
        self.log_weight = weight.double().log().expand_as(share)
        self.log_mass = self.log_weight + share.log()
        super().__init__(mean.shape[:-1], (), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Between the limits."""
        return constraints.interval(self.low, self.high)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw values."""
        part = dist.Categorical(logits=self.log_mass).sample(sample_shape)[..., None]
        known = (self.mean_, self.sd, self.below, (self.log_mass - self.log_weight).exp())
        mean, sd, below, share = (v.expand(*part.shape[:-1], v.shape[-1]).gather(-1, part)[..., 0] for v in known)
        drawn = mean + sd * torch.special.ndtri(below + share * torch.rand_like(below))
        return torch.minimum(torch.maximum(drawn.to(self.low), self.low), self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density."""
        parts = dist.Normal(self.mean_, self.sd, validate_args=False).log_prob(value.double()[..., None])
        density = (self.log_weight + parts).logsumexp(-1) - self.log_mass.logsumexp(-1)
        inside = (value >= self.low) & (value <= self.high)
        return density.to(value).masked_fill(~inside, -math.inf)


def conditional(weights: Sequence, means: Sequence, covariances: Sequence, middle: float) -> tuple[Tensor, ...]:
    """Return tables ``(type, component)`` of mixtures over magnitude and ln radius, with a last row for stars.

    They are weight, mean and standard deviation of the magnitude, and mean, slope with magnitude and scatter of ln
    radius. The magnitudes of stars are broad around the middle.
    """
    weight, mean, covariance = (torch.tensor(v) for v in (weights, means, covariances))
    parts = weight.shape[1]
    weight = torch.cat([weight, torch.full((1, parts), 1 / parts)])
    mean = torch.cat([mean, torch.tensor([middle, 0.0]).expand(1, parts, 2)])
    covariance = torch.cat([covariance, torch.diag(torch.tensor([STAR_SPREAD**2, 1.0])).expand(1, parts, 2, 2)])
    variance, slope = covariance[..., 0, 0], covariance[..., 0, 1] / covariance[..., 0, 0]
    scatter = (covariance[..., 1, 1] - slope * covariance[..., 0, 1]).sqrt()
    return weight, mean[..., 0], variance.sqrt(), mean[..., 1], slope, scatter


def nested_tuples(value: object) -> object:
    """Return nested lists of numbers as nested tuples, as the fields of a population are."""
    return tuple(map(nested_tuples, value)) if isinstance(value, list | tuple) else value
