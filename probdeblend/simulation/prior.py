"""The population of blends: one prior for the simulators, the Pyro model and the calibration tests.

A galaxy is a spheroid, a disk, a bulge with a disk, or an irregular, in the proportions of the 1,050 distinct galaxies
in the published test set of Boucaud et al. (2020, doi:10.1093/mnras/stz3056). Given its type, magnitude and logarithm
of the major-axis half-light radius are jointly a mixture of Gaussians fitted to those galaxies by
``python -m benchmarks.published``; the mixture is continued to fainter magnitudes along the fitted relation of size
with magnitude, down to a signal-to-noise ratio of about 5 in CANDELS. The published table has no profile shapes: Sérsic
indices, axis ratios, bulge fractions and knots follow broad distributions around the ranges seen in CANDELS by van der
Wel et al. (2012, doi:10.1088/0067-0049/203/2/24) and, for knots, Guo et al. (2015, doi:10.1088/0004-637X/800/1/39).

Two galaxies make a blend if their magnitudes differ by less than two; `separation` has the rules for their separation,
and `morphology` the shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..scene import GALAXY_TYPES, STAMP_CENTER, Components, Instrument
from .morphology import galaxy_components
from .separation import SEPARATIONS

__all__ = ["Prior", "check_crowding", "nested_tuples"]

PUBLISHED_PIXEL_SCALE = 0.06  # arcsec
RADIUS_RANGE = (0.06, 3.0)  # arcsec
# Least axis ratio, and the parameters of the beta distribution of flattening beyond it: spheroids, and all others.
FLATTENING = ((0.4, 1.2, 2.0), (0.2, 1.4, 1.6))
MOST_GALAXIES = 5
FAINT_MAGNITUDES = ((23.6, 0.6), (24.9, 0.6))  # mean and standard deviation of the Gaussians of the continuation


def check_crowding(crowding: Sequence[float]) -> None:
    """Raise a ValueError unless these are probabilities of one, two, three, ... galaxies in a stamp."""
    if not 0 < len(crowding) <= MOST_GALAXIES or min(crowding) < 0 or abs(sum(crowding) - 1) > 1e-6:
        raise ValueError(f"crowding must be up to {MOST_GALAXIES} probabilities that sum to 1, got {crowding}")


@dataclass(frozen=True)
class Prior:
    """The joint distribution of the two galaxies of a blend.

    Parameters
    ----------
    type_probabilities
        Probability of each of `GALAXY_TYPES`.
    weights, means, covariances
        For each type a Gaussian mixture over AB magnitude and ln(major-axis half-light radius in arcsec).
    magnitude_range
        Brightest and faintest magnitude.
    max_difference
        Largest difference of the pair's magnitudes.
    separation
        Rule for the separation: "published", "anywhere" or "close".
    anywhere_fraction
        Fraction of pairs whose companion lies anywhere instead.
    smooth
        Whether every galaxy is a single Sérsic profile, whatever its type.
    crowding
        Probabilities of one, two, three, ... galaxies in the stamp. The third and later ones lie anywhere.

    Raises
    ------
    ValueError
        If the rule for separations is unknown or a number is out of range.
    """

    type_probabilities: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    means: tuple[tuple[tuple[float, float], ...], ...]
    covariances: tuple[tuple[tuple[tuple[float, float], tuple[float, float]], ...], ...]
    magnitude_range: tuple[float, float] = (18.0, 26.0)
    max_difference: float = 2.0
    separation: str = "published"
    anywhere_fraction: float = 0.0
    smooth: bool = False
    crowding: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.separation not in SEPARATIONS:
            raise ValueError(f"separation must be one of {', '.join(SEPARATIONS)}, got {self.separation!r}")
        if not 0 <= self.anywhere_fraction <= 1:
            raise ValueError(f"anywhere_fraction must be between 0 and 1, got {self.anywhere_fraction}")
        low, high = self.magnitude_range
        if not low < high:
            raise ValueError(f"magnitude_range must increase, got {self.magnitude_range}")
        if not self.max_difference > 0:
            raise ValueError(f"max_difference must be positive, got {self.max_difference}")
        check_crowding(self.crowding)

    @classmethod
    def published(cls) -> Prior:
        """Return the population of the published test set: magnitudes 18 to 23."""
        text = (files("probdeblend") / "data" / "prior_boucaud2020.json").read_text(encoding="utf-8")
        return cls.parse(json.dumps(json.loads(text)["prior"]))

    @classmethod
    def default(cls) -> Prior:
        """Return the population that networks are trained on.

        It is the published one, continued to magnitude 26, with companions anywhere in a fifth of the blends.
        """
        return replace(cls.published().extended(0.3), anywhere_fraction=0.2)

    def extended(self, fraction: float) -> Prior:
        """Return the prior with a fraction of galaxies continued to magnitude 26 along the relation of size with it.

        Parameters
        ----------
        fraction
            Fraction of the galaxies, at least 0 and less than 1.

        Returns
        -------
        Prior
            The wider prior.

        Raises
        ------
        ValueError
            If the fraction is out of range.
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"fraction must be at least 0 and less than 1, got {fraction}")
        weights, means, covariances = [], [], []
        for w, m, c in zip(self.weights, self.means, self.covariances, strict=True):
            share = np.array(w)[:, None]
            mean = (share * np.array(m)).sum(0)
            spread = np.array(m) - mean
            total = (share[..., None] * (np.array(c) + spread[:, :, None] * spread[:, None, :])).sum(0)
            slope = total[0, 1] / total[0, 0]
            scatter = total[1, 1] - slope * total[0, 1]
            added = [(mag, float(mean[1] + slope * (mag - mean[0]))) for mag, _ in FAINT_MAGNITUDES]
            variances = [sd**2 for _, sd in FAINT_MAGNITUDES]
            width = [((v, slope * v), (slope * v, slope**2 * v + scatter)) for v in variances]
            weights.append([x * (1 - fraction) for x in w] + [fraction / len(added)] * len(added))
            means.append([*m, *added])
            covariances.append([*c, *width])
        mixture = {"weights": weights, "means": means, "covariances": covariances}
        mixture = {name: nested_tuples(value) for name, value in mixture.items()}
        return replace(self, **mixture, magnitude_range=(self.magnitude_range[0], 26.0))

    def magnitude_and_radius(self, galaxy_type: Tensor) -> dist.MixtureSameFamily:
        """Return the joint distribution of AB magnitude and ln(major-axis half-light radius in arcsec), given the type.

        It is not truncated, and has the batch shape of the type, an index into `GALAXY_TYPES`.

        Parameters
        ----------
        galaxy_type
            Indices into `GALAXY_TYPES`.

        Returns
        -------
        pyro.distributions.MixtureSameFamily
            With event shape (2,).
        """
        weights, means = torch.tensor(self.weights), torch.tensor(self.means)
        parts = dist.MultivariateNormal(means[galaxy_type], torch.tensor(self.covariances)[galaxy_type])
        return dist.MixtureSameFamily(dist.Categorical(weights[galaxy_type]), parts)

    def galaxies(self) -> dict[str, Tensor]:
        """Sample one galaxy as a Pyro program; plates around it give it a batch shape.

        Returns the values of its sites by name; ``shape`` is the quantile of the Sérsic index within its type.

        Returns
        -------
        dict
            Values of its sites.
        """
        kind = pyro.sample("galaxy_type", dist.Categorical(torch.tensor(self.type_probabilities)))
        round_ = kind == GALAXY_TYPES.index("sph")
        low, first, second = (torch.where(round_, *ends) for ends in zip(*FLATTENING, strict=True))
        flat = pyro.sample("flattening", dist.Beta(first, second))
        return {
            "galaxy_type": kind,
            "magnitude_and_radius": pyro.sample("magnitude_and_radius", self.magnitude_and_radius(kind)),
            "shape": pyro.sample("shape", dist.Beta(torch.full_like(low, 2.0), torch.full_like(low, 2.0))),
            "axis_ratio": 1 - flat * (1 - low),
            "angle": pyro.sample("angle", dist.Uniform(torch.zeros_like(low), math.pi)),
            "bulge_fraction": pyro.sample("bulge_fraction", dist.Beta(torch.full_like(low, 2.0), 2.2)),
        }

    def sample(self, count: int, *, seed: int) -> dict[str, Tensor]:
        """Draw the galaxies of blends.

        Parameters
        ----------
        count
            Number of blends.
        seed
            Same seed, same blends.

        Returns
        -------
        dict
            Tensors ``(blend, galaxy)``: ``galaxy_type``, ``magnitude``, ``half_light_radius`` (major axis, arcsec),
            ``shape`` (quantile of the Sérsic index within its type), ``axis_ratio``, ``angle``, ``bulge_fraction``, the
            centers ``x``, ``y`` in pixels, and which galaxies are ``present`` in the stamp.

        Raises
        ------
        ValueError
            If the count is negative.
        """
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn: list[dict[str, Tensor]] = []
            while sum(len(d["angle"]) for d in drawn) < count or not drawn:
                drawn.append(self._accepted(max(256, 2 * count)))
            pairs = {name: torch.cat([d[name] for d in drawn])[:count] for name in drawn[0]}
            pairs |= self.positions(pairs["half_light_radius"] / PUBLISHED_PIXEL_SCALE)
            return pairs | {"present": self._present(pairs["x"])}

    def _accepted(self, count: int) -> dict[str, Tensor]:
        with pyro.plate("galaxy", max(2, len(self.crowding)), dim=-1), pyro.plate("blend", count, dim=-2):
            pairs = self.galaxies()
        magnitude, log_radius = pairs.pop("magnitude_and_radius").unbind(-1)
        low, high = self.magnitude_range
        inside = (magnitude >= low) & (magnitude <= high)
        keep = inside.all(-1) & ((magnitude[:, 1:] - magnitude[:, :1]).abs() < self.max_difference).all(-1)
        pairs |= {"magnitude": magnitude, "half_light_radius": log_radius.exp().clamp(*RADIUS_RANGE)}
        return {name: value[keep] for name, value in pairs.items()}

    def positions(self, radius: Tensor) -> dict[str, Tensor]:
        """Draw centers ``x``, ``y (blend, galaxy)`` in pixels from torch's generator, for radii in published pixels.

        Parameters
        ----------
        radius
            Half-light radii ``(blend, galaxy)`` in pixels of the published images.

        Returns
        -------
        dict
            Positions by name.
        """
        dx, dy = SEPARATIONS[self.separation](radius[:, :2])
        far_x, far_y = SEPARATIONS["anywhere"](radius)
        anywhere = torch.rand(len(radius)) < self.anywhere_fraction
        x0, y0 = (STAMP_CENTER + 2 * torch.rand(2, len(radius)) - 1).unbind(0)
        offsets = [(torch.zeros_like(x0), torch.zeros_like(y0))]
        offsets.append((torch.where(anywhere, far_x, dx), torch.where(anywhere, far_y, dy)))
        offsets += [SEPARATIONS["anywhere"](radius) for _ in range(2, radius.shape[1])]
        dx, dy = (torch.stack(values, -1) for values in zip(*offsets, strict=True))
        return {"x": x0[:, None] + dx, "y": y0[:, None] + dy}

    def _present(self, x: Tensor) -> Tensor:
        if self.crowding == (0.0, 1.0):
            return torch.ones_like(x, dtype=torch.bool)
        number = 1 + dist.Categorical(torch.tensor(self.crowding)).sample((len(x),))
        return torch.arange(x.shape[1]) < number[:, None]

    def components(self, pairs: Mapping[str, Tensor], instrument: Instrument, *, seed: int) -> Components:
        """Turn galaxies into the Sérsic components of their light.

        Parameters
        ----------
        pairs
            What `sample` returns.
        instrument
            Pixel scale and zero point.
        seed
            Seed of the finer structure, which `sample` does not draw.

        Returns
        -------
        Components
            The light, in the instrument's units.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return galaxy_components(pairs, instrument, smooth=self.smooth)

    def describe(self) -> str:
        """Return the fields of the prior as a JSON object, to be stored with data and weights.

        Returns
        -------
        str
            A JSON object, which `parse` reads.
        """
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Prior:
        """Make a prior from the JSON that `describe` returns.

        Parameters
        ----------
        text
            What `describe` returned.

        Returns
        -------
        Prior
            The prior.
        """
        return cls(**{name: nested_tuples(value) for name, value in json.loads(text).items()})


def nested_tuples(value: object) -> object:
    """Return nested lists of numbers as nested tuples, as the fields of a prior are."""
    if isinstance(value, (list, tuple)):
        return tuple(nested_tuples(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value
