"""Blends of isolated galaxies, after Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 2.2).

Each galaxy is turned by quarters and flipped, made fainter within limits, and shifted by whole pixels; the first is the
central one. Two real stamps hold two skies. As published, they are added with both: the noise of the blend is then
larger than that of an observed one by the square root of two. With one sky, companions bring only the pixels of their
footprints, and the blend has the noise of the central galaxy's image, with more in those footprints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..photometry.detection import SEGMENTATION, detect
from ..photometry.images import cut_stamps
from ..photometry.noise import correlated_noise
from ..scene import STAMP_CENTER, STAMP_SIZE, Blend, Instrument
from ..simulation.prior import check_crowding
from ..simulation.separation import SEPARATIONS
from ..simulation.workers import in_batches
from .library import Library, identity_number

__all__ = ["PairRules", "PairScene", "blend_batch", "pair_blends"]

STAMP = (STAMP_SIZE, STAMP_SIZE)


@dataclass(frozen=True)
class PairRules:
    """How isolated galaxies become blends.

    Parameters
    ----------
    separation
        One of `~probdeblend.simulation.separation.SEPARATIONS`, rounded to whole pixels.
    max_difference
        Largest difference of a companion's magnitude from the central galaxy's.
    sky
        "one" sky, or "both" as published.
    dimming
        Largest number of magnitudes by which galaxies are made fainter. Their noise shrinks with them, and new noise
        restores that of the central galaxy's image.
    crowding
        Probabilities of one, two, three, ... galaxies in the stamp. The third and later ones lie anywhere.

    Raises
    ------
    ValueError
        If a rule is unknown or a number is out of its range.
    """

    separation: str = "published"
    max_difference: float = 2.0
    sky: Literal["one", "both"] = "one"
    dimming: float = 1.0
    crowding: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.separation not in SEPARATIONS:
            raise ValueError(f"separation must be one of {', '.join(SEPARATIONS)}, got {self.separation!r}")
        if self.sky not in ("one", "both"):
            raise ValueError(f"sky must be 'one' or 'both', got {self.sky!r}")
        if not self.max_difference > 0:
            raise ValueError(f"max_difference must be positive, got {self.max_difference}")
        if not self.dimming >= 0:
            raise ValueError(f"dimming must not be negative, got {self.dimming}")
        check_crowding(self.crowding)


def pair_blends(
    library: Library,
    count: int,
    *,
    instrument: Instrument,
    rules: PairRules | None = None,
    seed: int = 0,
    batch_size: int = 64,
    first: int = 0,
    workers: int = 0,
) -> Iterator[Blend]:
    """Blend isolated galaxies, batch by batch.

    Batch i depends on the seed, the library and i alone.

    Parameters
    ----------
    library
        The galaxies, of which those with `Library.keep` are used.
    count
        Number of blends.
    instrument
        Pixel scale, zero point and noise correlation of the blends.
    rules
        How to blend.
    seed
        Same seed, same blends.
    batch_size
        Blends per batch; the last one holds the remainder.
    first
        Number of the first batch to make.
    workers
        Number of processes; the blends do not depend on it.

    Returns
    -------
    iterator of Blend
        Blends with their truth: total and AUTO fluxes, masks (SEP's segmentation of each galaxy alone at 3 times the
        blend's sky noise), the galaxies' light with its noise, positions, types, identities and their number.

    Raises
    ------
    ValueError
        If the library has too few galaxies to blend, no zero points, or a number is negative.
    """
    make = partial(blend_batch, PairScene.of(library, instrument, rules or PairRules()))
    return in_batches(make, count, seed=seed, batch_size=batch_size, first=first, workers=workers)


@dataclass(frozen=True, eq=False)
class PairScene:
    """The galaxies to blend, with the stamps of each identity, and how to blend them; `PairScene.of` makes it."""

    library: Library
    footprint: NDArray[np.bool_]
    magnitude: NDArray[np.float64]
    stamps_of: list[NDArray[np.int64]]
    instrument: Instrument
    rules: PairRules

    @classmethod
    def of(cls, library: Library, instrument: Instrument, rules: PairRules) -> PairScene:
        """Take the galaxies to keep that have a magnitude."""
        kept = library.select(library.keep & np.isfinite(library.magnitude))
        stamps_of = [np.flatnonzero(kept.identity == name) for name in np.unique(kept.identity)]
        if len(stamps_of) < len(rules.crowding):
            raise ValueError(
                f"the library must hold {len(rules.crowding)} galaxies to keep, with magnitudes, got {len(stamps_of)}"
            )
        return cls(kept, kept.footprint, kept.magnitude, stamps_of, instrument.to("cpu"), rules)


def blend_batch(scene: PairScene, key: tuple[int, int], count: int) -> Blend:
    """Blend galaxies; the same key gives the same blends, and a smaller count gives the first of them."""
    rng = np.random.default_rng(key)
    rows = [_blend(scene, rng) for _ in range(count)]
    stacked = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return Blend(**{name: value.float() if value.dtype == torch.float64 else value for name, value in stacked.items()})


def _blend(scene: PairScene, rng: np.random.Generator) -> dict[str, NDArray]:
    rules, library = scene.rules, scene.library
    number = 1 + int(rng.choice(len(rules.crowding), p=rules.crowding))
    chosen, dimmed = _choose(scene, number, rng)
    shifts = _shifts(scene, chosen, rng)
    slots = max(len(rules.crowding), 2)
    light, truth = np.zeros((slots, *STAMP)), _no_galaxies(slots)
    image, variance = np.zeros(STAMP), 0.0
    gain = 10 ** (0.4 * (scene.instrument.zero_point - library.zero_point[chosen]) - 0.4 * dimmed)
    # Noise of the undimmed images: dimming does not make an image deeper.
    undimmed = (gain * 10 ** (0.4 * dimmed) * library.sky_rms[chosen]) ** 2
    wanted = float(undimmed.sum() if rules.sky == "both" else undimmed[0])
    for slot, (index, factor, shift) in enumerate(zip(chosen, gain, shifts, strict=True)):
        turn = int(rng.integers(4)), bool(rng.integers(2))
        center = _turned_center(library.x[index], library.y[index], *turn)
        # Whole pixels: the central galaxy ends up within a pixel of the middle, the others where the rule puts them.
        move = tuple(int(np.rint(STAMP_CENTER + by - at)) for by, at in zip(shift, center, strict=True))
        pixels = _moved(_turned(library.pixels[index], *turn), move)
        footprint = np.nan_to_num(_moved(_turned(scene.footprint[index], *turn), move)) > 0
        own = np.where(footprint, pixels, np.float32(0.0))
        light[slot] = factor * own
        center = center[0] + move[0], center[1] + move[1]
        if slot == 0 or rules.sky == "both":
            image += _filled(factor * pixels, factor * library.sky_rms[index], scene, rng)
            variance += (factor * library.sky_rms[index]) ** 2
        else:
            image += light[slot]
        truth["mask"][slot] = _mask(factor * own, np.sqrt(wanted), center)
        for name in ("flux", "auto_flux"):
            truth[name][slot] = factor * getattr(library, name)[index]
        for name in ("half_light_radius", "galaxy_type"):
            truth[name][slot] = getattr(library, name)[index]
        truth["x"][slot], truth["y"][slot] = center
        truth["identity"][slot] = identity_number(library.identity[index])
    if wanted > variance:
        image = image + np.sqrt(wanted - variance) * _noise(scene, rng)
    return {
        "image": image[None].astype(np.float32),
        "isolated": light[:, None].astype(np.float32),
        "sky_rms": np.array(np.sqrt(max(wanted, variance))),
        "exposure": np.array(library.exposure[chosen[0]] / gain[0]),
        "count": np.array(number),
    } | {name: value[:, None] if name in ("flux", "auto_flux") else value for name, value in truth.items()}


def _noise(scene: PairScene, rng: np.random.Generator) -> NDArray[np.float64]:
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return correlated_noise(STAMP, scene.instrument.noise_kernel, generator=generator).double().numpy()


def _filled(pixels: NDArray, rms: float, scene: PairScene, rng: np.random.Generator) -> NDArray:
    """Fill what the shift of a stamp leaves empty with noise like the stamp's."""
    empty = np.isnan(pixels)
    return np.where(empty, rms * _noise(scene, rng), pixels) if empty.any() else pixels


def _mask(light: NDArray, sky_rms: float, center: tuple[float, float]) -> NDArray[np.bool_]:
    """Pixels that SEP assigns to the galaxy at 3 times the blend's sky noise."""
    found = detect(light, sky_rms, **SEGMENTATION)
    if not len(found):
        return np.zeros(light.shape, dtype=bool)
    return found.segmentation == 1 + int(np.argmin(np.hypot(found.x - center[0], found.y - center[1])))


def _no_galaxies(slots: int) -> dict[str, NDArray]:
    truth = {name: np.full(slots, np.nan) for name in ("flux", "auto_flux", "x", "y", "half_light_radius")}
    truth |= {name: np.full(slots, -1) for name in ("galaxy_type", "identity")}
    return truth | {"mask": np.zeros((slots, *STAMP), dtype=bool)}


def _choose(scene: PairScene, number: int, rng: np.random.Generator) -> tuple[list[int], NDArray[np.float64]]:
    """Draw distinct galaxies, all identities equally likely, whose dimmed magnitudes differ little enough."""
    for _ in range(1000):
        picked = rng.choice(len(scene.stamps_of), size=number, replace=False)
        chosen = [int(rng.choice(scene.stamps_of[identity])) for identity in picked]
        dimmed = rng.uniform(0.0, scene.rules.dimming, number)
        magnitude = scene.magnitude[chosen] + dimmed
        if (np.abs(magnitude - magnitude[0]) < scene.rules.max_difference).all():
            return chosen, dimmed
    most = scene.rules.max_difference
    raise ValueError(f"library must contain {number} galaxies within {most} mag of each other, found none")


def _shifts(scene: PairScene, chosen: list[int], rng: np.random.Generator) -> list[tuple[float, float]]:
    radius = scene.library.half_light_radius[chosen] / scene.instrument.pixel_scale
    shifts = [(0.0, 0.0)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        for other in range(1, len(chosen)):
            rule = SEPARATIONS[scene.rules.separation if other == 1 else "anywhere"]
            dx, dy = rule(torch.tensor([[radius[0], radius[other]]]))
            shifts.append((round(float(dx[0])), round(float(dy[0]))))
    return shifts


def _turned(pixels: NDArray, quarters: int, flip: bool) -> NDArray:
    return np.rot90(pixels[:, ::-1] if flip else pixels, -quarters)


def _turned_center(x: float, y: float, quarters: int, flip: bool) -> tuple[float, float]:
    x = STAMP_SIZE - 1 - x if flip else x
    for _ in range(quarters):
        x, y = STAMP_SIZE - 1 - y, x
    return x, y


def _moved(pixels: NDArray, move: tuple[int, int]) -> NDArray:
    """Shift by whole pixels; what comes in from beyond is NaN."""
    return cut_stamps(pixels, (-move[0], -move[1]))[0]
