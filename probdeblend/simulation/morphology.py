"""The shapes of sources: from a source's type and size to the Sérsic components of its light, and their colors.

A spheroid is one component, a disk another; a bulge with a disk two, scaled so that the whole has the wanted half-light
radius. Two fifths of the disks and irregulars have a nucleus: a small bulge or a bar. A third of the disks, with or
without a bulge, has two spiral arms of three knots each, and a quarter is lopsided: a part of its light lies to one
side. An irregular is a disk with 3 to 8 knots scattered lopsidedly over it.
How much light is in knots, and how large they are, is chosen such that SEP splits blends as often as SExtractor splits
the published ones (``python -m benchmarks.training_sets``). Sérsic indices, bulge fractions and knots follow broad
distributions around the ranges that van der Wel et al. (2012, doi:10.1088/0067-0049/203/2/24) and, for knots, Guo et
al. (2015, doi:10.1088/0004-637X/800/1/39) see in CANDELS.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Beta, Gamma

from ..scene import GALAXY_TYPES, SOURCE_TYPES
from .profiles import Components

__all__ = ["MAX_COMPONENTS", "source_components"]

MAX_KNOTS = 8
MAX_KNOT_DISTANCE = 1.8  # arcsec
MAX_COMPONENTS = 2 + MAX_KNOTS
ARM_KNOTS = 3
SPIRAL_FRACTION = 0.35
LOPSIDED_FRACTION = 0.25
# Sérsic index of sources of a single profile, for each of `SOURCE_TYPES`: the least, and the range of its quantiles.
SMOOTH_INDEX = ((1.5, 4.5), (0.5, 1.3), (1.0, 3.0), (0.5, 1.3), (0.5, 0.0))
STAR_RADIUS = 1e-2  # pixels
NUCLEATED, NUCLEUS = 0.4, 0.4  # fraction of disks and irregulars with a nucleus; its light over that of a bulge
# Sérsic index of nuclei and of bulges: the least, and the range of its quantiles; and their least axis ratio.
INNER = ((0.5, 2.0, 0.3), (1.5, 4.0, 0.6))
INNER_RADIUS = (0.06, 0.7)  # over that of the disk


def source_components(
    sources: Mapping[str, Tensor], *, pixel_scale: float, smooth: bool = False
) -> tuple[Components, Tensor]:
    """Turn sources, as a population draws them, into the components of their light, of unit flux.

    The finer structure is drawn from torch's generator. A star is a profile far smaller than a pixel. If `smooth`,
    every galaxy is one Sérsic profile, a bulge with a disk having an index between 1 and 4.

    Parameters
    ----------
    sources
        Values ``(...)`` of `Population.source`, and centers ``x``, ``y`` in pixels.
    pixel_scale
        Arcsec per pixel.
    smooth
        Whether every galaxy is a single Sérsic profile.

    Returns
    -------
    components, slope
        The light ``(..., component)``, and the slope of ln flux with ln wavelength of each component: bulges are redder
        than disks, knots bluer.
    """
    kind, axis_ratio = sources["source_type"], sources["axis_ratio"]
    size = (*kind.shape, MAX_COMPONENTS)
    light = {name: torch.zeros(size) for name in ("flux", "dx", "dy")}
    light |= {name: torch.ones(size) for name in ("half_light_radius", "sersic_index", "axis_ratio")}
    light["angle"] = sources["angle"][..., None].expand(size).clone()
    present = (torch.arange(MAX_COMPONENTS) == 0).expand(size).clone()
    star = kind == SOURCE_TYPES.index("star")
    light["flux"][..., 0] = 1.0
    radius = sources["half_light_radius"] * axis_ratio.sqrt()
    light["half_light_radius"][..., 0] = torch.where(star, STAR_RADIUS * pixel_scale, radius)
    light["axis_ratio"][..., 0] = torch.where(star, 1.0, axis_ratio)
    least, span = torch.tensor(SMOOTH_INDEX)[kind].unbind(-1)
    light["sersic_index"][..., 0] = least + span * sources["sersic_quantile"]
    if not smooth:
        is_a = {name: kind == number for number, name in enumerate(GALAXY_TYPES)}
        nucleated = (is_a["disk"] | is_a["irr"]) & (torch.rand(kind.shape) < NUCLEATED)
        _add_disk(light, present, is_a["sphd"] | nucleated, sources)
        _add_arms(light, present, is_a["disk"] | is_a["sphd"])
        _add_knots(light, present, is_a["irr"])
    x, y = (sources[name][..., None] + light.pop(f"d{name}") / pixel_scale for name in "xy")
    slope = sources["slope"][..., None].expand(size).clone()
    slope[..., 0] += torch.where(present[..., 1], 0.5 + 0.3 * torch.randn(kind.shape), 0.0)
    slope[..., 2:] -= 0.4 + 0.3 * torch.randn(*kind.shape, 1)
    return Components(**light, x=x, y=y, present=present), slope


def _uniform(low: Tensor | float, high: Tensor | float, like: Tensor) -> Tensor:
    return low + (high - low) * torch.rand_like(like)


def _growth(radius: Tensor, sersic_index: Tensor) -> Tensor:
    """Fraction of a Sérsic profile's flux within `radius` in half-light radii."""
    shape = 2 * sersic_index
    scale = shape - 1 / 3 + 4 / (405 * sersic_index) + 46 / (25515 * sersic_index.square())
    return torch.special.gammainc(shape, scale * radius.clamp(min=0).pow(1 / sersic_index))


def _half_light_radius(fraction: Tensor, ratio: Tensor, bulge_index: Tensor) -> Tensor:
    """Half-light radius of bulge + exponential disk in units of the disk's, by bisection."""
    low, high = torch.zeros_like(ratio), torch.full_like(ratio, 2.0)
    for _ in range(30):
        middle = (low + high) / 2
        disk = _growth(middle, torch.ones_like(ratio))
        enclosed = fraction * _growth(middle / ratio, bulge_index) + (1 - fraction) * disk
        low, high = torch.where(enclosed < 0.5, middle, low), torch.where(enclosed < 0.5, high, middle)
    return (low + high) / 2


def _add_disk(light: dict[str, Tensor], present: Tensor, where: Tensor, sources: Mapping[str, Tensor]) -> None:
    """Make the galaxies `where` a bulge or a nucleus (component 0) with an exponential disk (component 1)."""
    bulge = sources["source_type"][where] == GALAXY_TYPES.index("sphd")
    least, span, flattest = torch.tensor(INNER)[bulge.long()].unbind(-1)
    fraction = torch.where(bulge, 1.0, NUCLEUS) * sources["bulge_fraction"][where]
    bulge_index = least + span * sources["sersic_quantile"][where]
    ratio = _uniform(*map(math.log, INNER_RADIUS), fraction).exp()
    disk_radius = light["half_light_radius"][where, 0] / _half_light_radius(fraction, ratio, bulge_index)
    total = light["flux"][where, 0]
    values = {
        "flux": (fraction * total, (1 - fraction) * total),
        "half_light_radius": (ratio * disk_radius, disk_radius),
        "sersic_index": (bulge_index, torch.ones_like(fraction)),
        "axis_ratio": (_uniform(flattest, 1.0, fraction), light["axis_ratio"][where, 0]),
    }
    for name, (bulge, disk) in values.items():
        light[name][where, 0], light[name][where, 1] = bulge, disk
    present[..., 1] |= where


def _add_knots(light: dict[str, Tensor], present: Tensor, where: Tensor) -> None:
    """Move part of the light of the galaxies `where` into knots scattered lopsidedly over the disk."""
    count = int(where.sum())
    exists = torch.arange(MAX_KNOTS) < torch.randint(3, MAX_KNOTS + 1, (count, 1))
    share = torch.rand(count, MAX_KNOTS).clamp(min=1e-3).log().neg() * exists
    # An exponential disk's radii are Gamma(2) distributed, with half the light within 1.678 scale lengths.
    distance = Gamma(2.0, 1.0).sample((count, MAX_KNOTS)).clamp(max=4.0) / 1.678
    side, spread = 2 * math.pi * torch.rand(count, 1), _uniform(0.5, 1.0, torch.empty(count, 1))
    turn = side + math.pi * (2 * torch.rand(count, MAX_KNOTS) - 1) * spread
    fraction = 0.05 + 0.3 * Beta(1.5, 3.0).sample((count, 1))
    blobs = {
        "flux": fraction * share / share.sum(-1, keepdim=True).clamp(min=1e-6),
        "along": distance * turn.cos(),
        "across": distance * turn.sin(),
        "half_light_radius": _uniform(0.15, 0.45, share),
        "sersic_index": _uniform(0.5, 1.0, share),
        "axis_ratio": _uniform(0.6, 1.0, share),
        "angle": torch.zeros_like(share),
    }
    _move_light(light, present, where, blobs, exists=exists)


def _add_arms(light: dict[str, Tensor], present: Tensor, where: Tensor) -> None:
    """Move part of the light of a disk into two logarithmic spiral arms, or into one patch on one side of it."""
    count = int(where.sum())
    step = torch.arange(MAX_KNOTS)
    kind = torch.rand(count, 1)
    spiral = kind < SPIRAL_FRACTION
    lopsided = (kind >= SPIRAL_FRACTION) & (kind < SPIRAL_FRACTION + LOPSIDED_FRACTION)
    exists = torch.where(spiral, step < ARM_KNOTS * 2, lopsided & (step < 1))
    place = (step // 2 + 0.5 * torch.rand(count, MAX_KNOTS)) / ARM_KNOTS
    distance = torch.where(spiral, 0.4 + 1.2 * place, _uniform(0.2, 0.7, place))
    pitch = _uniform(math.radians(12), math.radians(35), torch.empty(count, 1))
    hand = 1 - 2 * torch.randint(0, 2, (count, 1))
    turn = 2 * math.pi * torch.rand(count, 1) + hand * distance.log() / pitch.tan() + math.pi * (step % 2)
    share = torch.where(spiral, (-distance + 0.5 * torch.randn(count, MAX_KNOTS)).exp(), torch.ones(())) * exists
    fraction = torch.where(spiral, _uniform(0.05, 0.3, kind), _uniform(0.05, 0.25, kind))
    blobs = {
        "flux": fraction * share / share.sum(-1, keepdim=True).clamp(min=1e-6),
        "along": distance * turn.cos(),
        "across": distance * turn.sin(),
        "half_light_radius": torch.where(spiral, _uniform(0.2, 0.4, share), _uniform(0.5, 0.9, share)),
        "sersic_index": _uniform(0.5, 1.0, share),
        "axis_ratio": torch.where(spiral, _uniform(0.35, 0.6, share), _uniform(0.6, 1.0, share)),
        # An arm runs at its pitch from the tangent of the circle.
        "angle": turn + hand * (math.pi / 2 - pitch),
    }
    _move_light(light, present, where, blobs, exists=exists)


def _move_light(
    light: dict[str, Tensor], present: Tensor, where: Tensor, blobs: dict[str, Tensor], *, exists: Tensor
) -> None:
    """Make blobs (galaxy, knot) out of the light of the disks of the galaxies `where`.

    Fluxes are in units of the disk's; positions and radii in those of its half-light radius, in its plane seen face-on.
    """
    names = ("flux", "half_light_radius", "axis_ratio", "angle")
    disk = present[where, 1].long()
    total, radius, axis_ratio, angle = (light[name][where, disk][:, None] for name in names)
    major = radius * blobs["along"] / axis_ratio.sqrt()
    minor = radius * blobs["across"] * axis_ratio.sqrt()
    # Knots stay close to the galaxy, whatever its size.
    near = (MAX_KNOT_DISTANCE / torch.hypot(major, minor).clamp(min=1e-6)).clamp(max=1.0)
    major, minor = near * major, near * minor
    flux = blobs["flux"] * exists
    tilted = torch.atan2(axis_ratio.sqrt() * blobs["angle"].sin(), blobs["angle"].cos() / axis_ratio.sqrt())
    values = {
        "dx": major * angle.cos() - minor * angle.sin(),
        "dy": major * angle.sin() + minor * angle.cos(),
        "flux": total * flux,
        "half_light_radius": blobs["half_light_radius"] * radius.clamp(min=0.1),
        "sersic_index": blobs["sersic_index"],
        "axis_ratio": blobs["axis_ratio"],
        "angle": angle + tilted,
    }
    for name, value in values.items():
        light[name][where, 2:] = value
    light["flux"][where, disk] = (total * (1 - flux.sum(-1, keepdim=True)))[:, 0]
    present[where, 2:] = exists
