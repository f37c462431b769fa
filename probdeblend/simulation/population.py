"""The population of sources and scenes: sources are a Pyro program, and their positions follow.

A galaxy is a spheroid, a disk, a bulge with a disk, or an irregular, in the proportions of the 1,050 distinct galaxies
in the published test set of Boucaud et al. (2020, doi:10.1093/mnras/stz3056). Given its type, magnitude and logarithm
of the major-axis half-light radius are jointly a mixture of Gaussians fitted to those galaxies by ``python -m
benchmarks.published``; it is continued to fainter magnitudes along the fitted relation of size with magnitude. Axis
ratios, bulge fractions and Sérsic indices, which the table lacks, follow broad distributions around the ranges seen in
CANDELS by van der Wel et al. (2012, doi:10.1088/0067-0049/203/2/24). Colors follow from the slope of ln flux with ln
wavelength.

The program has the plates ``scenes`` (-2) and ``sources`` (-1), the site ``number`` per scene and, per source,
``source_type``, ``magnitude``, ``ln_radius``, ``flattening``, ``angle``, ``sersic_quantile``, ``bulge_fraction``,
``slope`` and, if fluxes follow from it, ``ln_snr``. What a scene lacks is masked. A limit on the difference of
magnitudes is a factor ``difference``.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..scene import GALAXY_TYPES, SOURCE_TYPES, check_least, check_positive, seeded
from .mixtures import TruncatedMixture, conditional, nested_tuples
from .positions import Frame, anywhere, clustered, paired

__all__ = ["Population"]

STAR = SOURCE_TYPES.index("star")
LAYOUTS = ("centered", "paired", "clustered", "anywhere")
RADIUS_RANGE = (0.03, 3.0)  # arcsec
# Least axis ratio, and the parameters of the beta distribution of flattening beyond it: spheroids, and all others.
FLATTENING = ((0.4, 1.2, 2.0), (0.2, 1.4, 1.6))
# Mean and deviation of the slope, by source type: with van der Wel et al. (2014, doi:10.1088/0004-637X/788/1/28)
# F814W - F160W is 0.23, 0.72 and 1.59 mag at the 5th, 50th and 95th percentile.
SLOPE = ((1.5, 0.6), (0.9, 0.45), (1.2, 0.5), (0.6, 0.35), (0.3, 1.2))
NEAR = (0.5, 0.95)  # probability that a source of a cluster lies near an earlier one, uniform over scenes
WIDE_FRACTION = 0.35  # of the sources, whose signal-to-noise ratio reaches ten times as far
STAR_RADIUS = math.exp(-1.0)  # pixels, in the laws of positions
NUMBERS = {0: 0.02, 1: 0.17, 2: 0.18, 3: 0.17, 4: 0.12, 5: 0.10, 6: 0.07, 8: 0.08, 11: 0.05, 14: 0.04}


@dataclass(frozen=True)
class Population:
    """What sources there are, how many in a scene, where they lie and how bright they are.

    Parameters
    ----------
    type_probabilities
        Probability of each of `GALAXY_TYPES`.
    weights, means, covariances
        For each type a Gaussian mixture over AB magnitude and ln(major-axis half-light radius in arcsec).
    magnitude_range
        Brightest and faintest magnitude.
    max_difference
        Largest difference of magnitude from the first source of the scene; infinite for none.
    star_fraction
        Fraction of the sources that are stars.
    number
        Probabilities of 0, 1, 2, ... sources in a scene.
    layout
        "centered": a galaxy in the middle and a companion by the published law of separations; "paired": such pairs
        anywhere in the image; "clustered"; or "anywhere".
    anywhere_fraction, close_fraction
        Fractions of the pairs that are farther apart, or closer.
    snr
        Least and largest signal-to-noise ratio in the best band, log-uniform between; a third of the sources reach up
        to ten times as far. None for fluxes that follow from the magnitudes.
    size_scatter
        Standard deviation that is added to ln of the radius, for cameras that see galaxies of any size.
    largest
        Largest major-axis half-light radius in pixels.

    Raises
    ------
    ValueError
        If the layout is unknown or a number is out of range.
    """

    type_probabilities: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    means: tuple[tuple[tuple[float, float], ...], ...]
    covariances: tuple[tuple[tuple[tuple[float, float], tuple[float, float]], ...], ...]
    magnitude_range: tuple[float, float] = (18.0, 26.0)
    max_difference: float = math.inf
    star_fraction: float = 0.0
    number: tuple[float, ...] = (0.0, 0.0, 1.0)
    layout: str = "anywhere"
    anywhere_fraction: float = 0.0
    close_fraction: float = 0.0
    snr: tuple[float, float] | None = None
    size_scatter: float = 0.0
    largest: float = math.inf

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        for name in ("anywhere_fraction", "close_fraction", "star_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("magnitude_range", "snr"):
            if (limits := getattr(self, name)) and not limits[0] < limits[1]:
                raise ValueError(f"{name} must increase, got {limits}")
        check_positive(max_difference=self.max_difference, largest=self.largest)
        if not self.number or min(self.number) < 0 or abs(sum(self.number) - 1) > 1e-6:
            raise ValueError(f"number must be probabilities that sum to 1, got {self.number}")

    @classmethod
    def published(cls) -> "Population":
        """Return the pairs of the published test set: magnitudes 18 to 23, a galaxy in the middle and a companion."""
        return cls(**_fitted("prior"), max_difference=2.0, layout="centered")

    @classmethod
    def pairs(cls) -> "Population":
        """Return the pairs that networks are trained on: the published ones to magnitude 26, anywhere in the image."""
        fractions = {"anywhere_fraction": 0.2, "close_fraction": 0.1}
        return cls(**_fitted("extended"), max_difference=2.0, layout="paired", **fractions)

    @classmethod
    def default(cls) -> "Population":
        """Return what networks are trained on besides pairs: 0 to 14 galaxies and stars of any camera, clustered."""
        number = tuple(NUMBERS.get(i, 0.0) for i in range(max(NUMBERS) + 1))
        wider = {"snr": (5.0, 300.0), "size_scatter": 0.3, "largest": 14.0, "star_fraction": 0.15}
        return cls(**_fitted("extended"), layout="clustered", number=number, **wider)

    def replace(self, **changes: object) -> "Population":
        """Return a population with some fields changed.

        Parameters
        ----------
        **changes
            New values by field name.

        Returns
        -------
        Population
            The changed population.
        """
        return replace(self, **changes)

    def magnitude(self, source_type: Tensor) -> TruncatedMixture:
        """Return the distribution of AB magnitude, given the type, an index into `SOURCE_TYPES`.

        Parameters
        ----------
        source_type
            Indices; the magnitudes of stars are nearly uniform.

        Returns
        -------
        TruncatedMixture
            With the batch shape of the type.
        """
        return TruncatedMixture(*self._mixture(source_type)[:3], *map(torch.tensor, self.magnitude_range))

    def ln_radius(self, source_type: Tensor, magnitude: Tensor, pixel_scale: float | Tensor) -> TruncatedMixture:
        """Return the distribution of ln of the major-axis half-light radius in arcsec, given type and magnitude.

        Parameters
        ----------
        source_type, magnitude, pixel_scale
            Type, magnitude, and arcsec per pixel for the largest radius.

        Returns
        -------
        TruncatedMixture
            With the batch shape of the type.
        """
        weight, mean, sd, radius, slope, scatter = self._mixture(source_type)
        away = magnitude[..., None] - mean
        weight = weight * torch.exp(-0.5 * (away / sd).square()) / sd + 1e-30
        scatter = (scatter.square() + self.size_scatter**2).sqrt()
        high = torch.as_tensor(self.largest * pixel_scale).log()
        return TruncatedMixture(weight, radius + slope * away, scatter, torch.tensor(-math.inf), high)

    def ln_snr(self, shape: tuple[int, ...] = ()) -> dist.TorchDistribution:
        """Return the distribution of ln of the signal-to-noise ratio in the best band.

        Parameters
        ----------
        shape
            Batch shape.

        Returns
        -------
        MixtureSameFamily
            Log-uniform up to either limit.
        """
        low, high = (math.log(limit) for limit in self.snr)
        ends = torch.tensor([high, high + math.log(10)]).expand(*shape, 2)
        limits = dist.Uniform(torch.full_like(ends, low), ends, validate_args=False)
        wide = dist.Categorical(torch.tensor([1 - WIDE_FRACTION, WIDE_FRACTION]).expand(*shape, 2))
        return dist.MixtureSameFamily(wide, limits, validate_args=False)

    def _types(self) -> Tensor:
        """Probability of each of `SOURCE_TYPES`, with magnitudes in the range."""
        within = self.magnitude(torch.arange(STAR)).log_mass.logsumexp(-1).exp().float()
        galaxies, stars = torch.tensor(self.type_probabilities) * within, torch.tensor([self.star_fraction])
        return torch.cat([galaxies / galaxies.sum() * (1 - stars), stars])

    def _mixture(self, source_type: Tensor) -> tuple[Tensor, ...]:
        """Weights, means and widths in magnitude, and mean, slope and scatter of ln radius ``(..., component)``."""
        table = conditional(self.weights, self.means, self.covariances, sum(self.magnitude_range) / 2)
        return tuple(values[source_type] for values in table)

    def source(self, pixel_scale: float | Tensor) -> dict[str, Tensor]:
        """Sample one source as a Pyro program; plates around it give it a batch shape.

        Parameters
        ----------
        pixel_scale
            Arcsec per pixel.

        Returns
        -------
        dict
            Values of its sites, and the ``half_light_radius`` (major axis, arcsec) and ``axis_ratio`` that follow.
        """
        kind = pyro.sample("source_type", dist.Categorical(self._types()))
        values = {"source_type": kind, "magnitude": pyro.sample("magnitude", self.magnitude(kind))}
        with pyro.poutine.mask(mask=kind != STAR):
            ln_radius = pyro.sample("ln_radius", self.ln_radius(kind, values["magnitude"], pixel_scale))
            round_ = kind == GALAXY_TYPES.index("sph")
            low, first, second = (torch.where(round_, *ends) for ends in zip(*FLATTENING, strict=True))
            flat = pyro.sample("flattening", dist.Beta(first, second))
            two = torch.full_like(low, 2.0)
            values |= {
                "half_light_radius": ln_radius.exp().clamp(*RADIUS_RANGE),
                "axis_ratio": 1 - flat * (1 - low),
                "angle": pyro.sample("angle", dist.Uniform(torch.zeros_like(low), math.pi)),
                "sersic_quantile": pyro.sample("sersic_quantile", dist.Beta(two, two)),
                "bulge_fraction": pyro.sample("bulge_fraction", dist.Beta(two, 2.2)),
            }
        values["slope"] = pyro.sample("slope", dist.Normal(*torch.tensor(SLOPE)[kind].unbind(-1)))
        if self.snr is not None:
            values["ln_snr"] = pyro.sample("ln_snr", self.ln_snr(kind.shape))
        return values

    def scenes(self, count: int, frame: Frame, *, number: int | None = None) -> dict[str, Tensor]:
        """Sample scenes as a Pyro program.

        Parameters
        ----------
        count
            Number of scenes.
        frame
            The image that sources lie in.
        number
            Number of sources in every scene; sampled if None.

        Returns
        -------
        dict
            Values ``(scene, source)`` of `source`, the centers ``x``, ``y`` in pixels, and which sources ``exists``.
        """
        most = max(len(self.number) - 1 if number is None else number, 1)
        with pyro.plate("scenes", count, dim=-2):
            if number is None:
                number = pyro.sample("number", dist.Categorical(torch.tensor(self.number)))
            exists = (torch.arange(most) < number).expand(count, most)
            with pyro.plate("sources", most, dim=-1), pyro.poutine.mask(mask=exists):
                values = self.source(frame.pixel_scale)
            if math.isfinite(self.max_difference):
                apart = (values["magnitude"] - values["magnitude"][:, :1]).abs() > self.max_difference
                pyro.factor("difference", torch.where((apart & exists).any(-1, keepdim=True), -math.inf, 0.0))
        x, y = self.positions(values, frame).unbind(-1)
        return values | {"x": x, "y": y, "exists": exists}

    def positions(self, values: Mapping[str, Tensor], frame: Frame) -> Tensor:
        """Draw centers x, y ``(scene, source, 2)``.

        Parameters
        ----------
        values
            Values ``(scene, source)`` of `source`.
        frame
            The image that they lie in.

        Returns
        -------
        Tensor
            Centers in pixels.
        """
        radius = values["half_light_radius"] / frame.pixel_scale
        radius = radius * values["axis_ratio"].sqrt() if self.layout == "clustered" else radius
        radius = torch.where(values["source_type"] == STAR, STAR_RADIUS, radius)
        if self.layout == "clustered":
            return clustered(radius, frame, NEAR[0] + (NEAR[1] - NEAR[0]) * torch.rand(len(radius)))
        if self.layout == "anywhere":
            return anywhere(radius, frame)
        fractions = {"anywhere_fraction": self.anywhere_fraction, "close_fraction": self.close_fraction}
        return paired(radius, frame, centered=self.layout == "centered", **fractions)

    def sample(self, count: int, frame: Frame, *, seed: int, number: int | None = None) -> dict[str, Tensor]:
        """Draw scenes; those whose magnitudes differ too much are drawn again.

        Parameters
        ----------
        count, frame, seed, number
            As for `scenes`; same seed, same scenes.

        Returns
        -------
        dict
            What `scenes` returns.

        Raises
        ------
        ValueError
            If a number is negative.
        """
        check_least(0, count=count, seed=seed, number=number or 0)
        drawn: list[dict[str, Tensor]] = []
        size = 2 * count + 8 if math.isfinite(self.max_difference) else max(count, 1)
        with seeded(seed), torch.no_grad(), pyro.poutine.block():
            while not drawn or sum(len(values["exists"]) for values in drawn) < count:
                tried = pyro.poutine.trace(self.scenes).get_trace(size, frame, number=number)
                values = tried.nodes["_RETURN"]["value"]
                if "difference" in tried.nodes:
                    good = tried.nodes["difference"]["fn"].log_factor[:, 0].isfinite()
                    values = {name: value[good] for name, value in values.items()}
                drawn.append(values)
        return {name: torch.cat([values[name] for values in drawn])[:count] for name in drawn[0]}


def _fitted(name: str) -> dict[str, object]:
    """Return the fields of a population that were fitted: "prior", or "extended" to fainter galaxies."""
    text = (files("probdeblend") / "data" / "prior_boucaud2020.json").read_text(encoding="utf-8")
    return {field: nested_tuples(value) for field, value in json.loads(text)[name].items()}
