"""Blends of lone galaxies, after Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 2.2).

Each galaxy is turned by quarters and flipped, made fainter within limits, and shifted by whole pixels; the first is
the central one. Two real stamps hold two skies. As published, they are added with both: the noise of the blend is
then larger than that of an observed one by a square root of two. With one sky, the companions bring the pixels of
their footprints alone, and the blend has the noise of the central galaxy's image, with more in those footprints.
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
from ..photometry.noise import correlated_noise
from ..scene import STAMP_CENTER, STAMP_SIZE, Blend, Instrument
from ..simulation.prior import check_crowding
from ..simulation.separation import SEPARATIONS
from ..simulation.workers import in_order
from .library import Library, identity_number

__all__ = ["PairRules", "PairScene", "blend_batch", "pair_blends"]


@dataclass(frozen=True)
class PairRules:
    """How lone galaxies become blends.

    Parameters
    ----------
    separation
        One of `~probdeblend.simulation.separation.SEPARATIONS`, rounded to whole pixels.
    max_difference
        Largest difference of a companion's magnitude from the central galaxy's.
    sky
        "one" sky, or "both" as published.
    dimming
        A galaxy is made fainter by up to so many magnitudes; its noise then shrinks with it, and new noise brings
        the central galaxy's image back to what it was.
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
    """Blend lone galaxies, batch by batch.

    Batch i depends on the seed, the library and i alone.

    Parameters
    ----------
    library
        The galaxies, of which those with `Library.keep` are used.
    count
        Number of blends.
    instrument
        Pixel scale, and zero point and noise correlation of the blends.
    rules
        How to blend.
    seed
        Same seed, same blends.
    batch_size
        Blends a batch; the last one holds what is left.
    first
        Number of the first batch to make.
    workers
        Number of processes that blend; the blends do not depend on it.

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
    if count < 0 or seed < 0 or batch_size < 1:
        raise ValueError(f"count, seed and batch_size must not be negative, got {count}, {seed} and {batch_size}")
    scene = PairScene.of(library, instrument, rules or PairRules())
    tasks = [((seed, i), min(batch_size, count - start)) for i, start in enumerate(range(0, count, batch_size))]
    return in_order(partial(_numbered, scene=scene), tasks[first:], workers=workers)


@dataclass(frozen=True, eq=False)
class PairScene:
    """What blends are made of; `PairScene.of` makes it.

    Parameters
    ----------
    library
        The galaxies to keep that have a magnitude.
    footprint, magnitude
        Of each galaxy, as the library gives them.
    stamps_of
        Numbers of the stamps of each identity.
    instrument
        Pixel scale, zero point and noise correlation of the blends.
    rules
        How to blend.
    """

    library: Library
    footprint: NDArray[np.bool_]
    magnitude: NDArray[np.float64]
    stamps_of: list[NDArray[np.int64]]
    instrument: Instrument
    rules: PairRules

    @classmethod
    def of(cls, library: Library, instrument: Instrument, rules: PairRules) -> PairScene:
        """Prepare a library for blending.

        Parameters
        ----------
        library
            The galaxies.
        instrument
            Pixel scale, zero point and noise correlation of the blends.
        rules
            How to blend.

        Returns
        -------
        PairScene
            What `blend_batch` takes.

        Raises
        ------
        ValueError
            If too few galaxies are left to blend.
        """
        kept = library.select(library.keep & np.isfinite(library.magnitude))
        stamps_of = [np.flatnonzero(kept.identity == name) for name in np.unique(kept.identity)]
        if len(stamps_of) < len(rules.crowding):
            raise ValueError(
                f"the library must hold {len(rules.crowding)} galaxies to keep, with magnitudes, got {len(stamps_of)}"
            )
        return cls(kept, kept.footprint, kept.magnitude, stamps_of, instrument.to("cpu"), rules)


def _numbered(task: tuple[tuple[int, int], int], *, scene: PairScene) -> Blend:
    key, count = task
    return blend_batch(scene, count, key=key)


def blend_batch(scene: PairScene, count: int, *, key: tuple[int, ...]) -> Blend:
    """Blend galaxies.

    Parameters
    ----------
    scene
        What to blend, and how.
    count
        Number of blends, at least one.
    key
        Same key, same blends; fewer of them are the first ones.

    Returns
    -------
    Blend
        As `pair_blends` yields.
    """
    rng = np.random.default_rng(key)
    rows = [_blend(scene, rng) for _ in range(count)]
    stacked = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return Blend(**{name: value.float() if value.dtype == torch.float64 else value for name, value in stacked.items()})


def _blend(scene: PairScene, rng: np.random.Generator) -> dict[str, NDArray]:
    rules, library = scene.rules, scene.library
    number = 1 + int(rng.choice(len(rules.crowding), p=rules.crowding))
    chosen, dimmed = _choose(scene, number, rng)
    shifts = _shifts(scene, chosen, rng)
    slots = len(rules.crowding) if len(rules.crowding) > 1 else 2
    light = np.zeros((slots, STAMP_SIZE, STAMP_SIZE))
    truth = _no_galaxies(slots)
    image = np.zeros((STAMP_SIZE, STAMP_SIZE))
    variance = 0.0
    gain = 10 ** (0.4 * (scene.instrument.zero_point - library.zero_point[chosen]) - 0.4 * dimmed)
    wanted = _wanted_variance(scene, chosen, gain * 10 ** (0.4 * dimmed))
    for slot, (index, factor, shift) in enumerate(zip(chosen, gain, shifts, strict=True)):
        turn = int(rng.integers(4)), bool(rng.integers(2))
        center = _turned_center(library.x[index], library.y[index], *turn)
        # Whole pixels: the central galaxy comes within a pixel of the middle, the others where the rule wants.
        move = tuple(int(np.rint(STAMP_CENTER + by - at)) for by, at in zip(shift, center, strict=True))
        pixels = _moved(_turned(library.pixels[index], *turn), *move)
        footprint = _moved(_turned(scene.footprint[index], *turn), *move)
        light[slot] = factor * pixels * footprint
        whole = slot == 0 or rules.sky == "both"
        image += _whole(factor * pixels, factor * library.sky_rms[index], move, scene, rng) if whole else light[slot]
        variance += (factor * library.sky_rms[index]) ** 2 if whole else 0.0
        center = center[0] + move[0], center[1] + move[1]
        truth["mask"][slot] = _mask(pixels * footprint, factor, np.sqrt(wanted), center)
        truth["flux"][slot], truth["auto_flux"][slot] = factor * library.flux[index], factor * library.auto_flux[index]
        truth["x"][slot], truth["y"][slot] = center
        truth["half_light_radius"][slot] = library.half_light_radius[index]
        truth["galaxy_type"][slot] = library.galaxy_type[index]
        truth["identity"][slot] = identity_number(library.identity[index])
    if wanted > variance:
        noise = correlated_noise(image.shape, scene.instrument.noise_kernel, generator=_generator(rng))
        image = image + np.sqrt(wanted - variance) * noise.double().numpy()
    exposure = library.exposure[chosen[0]] / gain[0]
    return {
        "image": image[None].astype(np.float32),
        "isolated": light[:, None].astype(np.float32),
        "sky_rms": np.array(np.sqrt(max(wanted, variance))),
        "exposure": np.array(exposure),
        "count": np.array(number),
    } | {name: value[:, None] if name in ("flux", "auto_flux") else value for name, value in truth.items()}


def _whole(pixels: NDArray, rms: float, move: tuple[int, int], scene: PairScene, rng: np.random.Generator) -> NDArray:
    """Fill what a shift of a whole stamp leaves empty with noise like the stamp's."""
    if move == (0, 0):
        return pixels
    empty = ~_moved(np.ones(pixels.shape, dtype=bool), *move)
    noise = correlated_noise(pixels.shape, scene.instrument.noise_kernel, generator=_generator(rng)).double().numpy()
    return np.where(empty, rms * noise, pixels)


def _mask(light: NDArray, factor: float, sky_rms: float, center: tuple[float, float]) -> NDArray[np.bool_]:
    """Pixels that SEP gives to the galaxy at 3 times the blend's sky noise, dimmed as it is."""
    found = detect(factor * light, sky_rms, **SEGMENTATION)
    if not len(found):
        return np.zeros(light.shape, dtype=bool)
    return found.segmentation == 1 + int(np.argmin(np.hypot(found.x - center[0], found.y - center[1])))


def _wanted_variance(scene: PairScene, chosen: list[int], bright: NDArray[np.float64]) -> float:
    """Noise of the undimmed images: dimming does not make an image deeper."""
    own = (bright * scene.library.sky_rms[chosen]) ** 2
    return float(own.sum() if scene.rules.sky == "both" else own[0])


def _no_galaxies(slots: int) -> dict[str, NDArray]:
    truth = {name: np.full(slots, np.nan) for name in ("flux", "auto_flux", "x", "y", "half_light_radius")}
    truth |= {name: np.full(slots, -1) for name in ("galaxy_type", "identity")}
    return truth | {"mask": np.zeros((slots, STAMP_SIZE, STAMP_SIZE), dtype=bool)}


def _choose(scene: PairScene, number: int, rng: np.random.Generator) -> tuple[list[int], NDArray[np.float64]]:
    """Draw distinct galaxies, each identity as often as another, whose dimmed magnitudes differ little enough."""
    for _ in range(1000):
        picked = rng.choice(len(scene.stamps_of), size=number, replace=False)
        chosen = [int(rng.choice(scene.stamps_of[identity])) for identity in picked]
        dimmed = rng.uniform(0.0, scene.rules.dimming, number)
        magnitude = scene.magnitude[chosen] + dimmed
        if (np.abs(magnitude - magnitude[0]) < scene.rules.max_difference).all():
            return chosen, dimmed
    most = scene.rules.max_difference
    raise ValueError(f"the library must hold {number} galaxies within {most} mag of each other, found none")


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


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def _turned(pixels: NDArray, quarters: int, flip: bool) -> NDArray:
    return np.rot90(pixels[:, ::-1] if flip else pixels, -quarters)


def _turned_center(x: float, y: float, quarters: int, flip: bool) -> tuple[float, float]:
    x = STAMP_SIZE - 1 - x if flip else x
    for _ in range(quarters):
        x, y = STAMP_SIZE - 1 - y, x
    return x, y


def _moved(pixels: NDArray, dx: int, dy: int) -> NDArray:
    """Shift by whole pixels; what comes in from beyond is empty."""
    moved = np.zeros_like(pixels)
    size = STAMP_SIZE
    if abs(dx) < size and abs(dy) < size:
        to = slice(max(dy, 0), size + min(dy, 0)), slice(max(dx, 0), size + min(dx, 0))
        start = slice(max(-dy, 0), size + min(-dy, 0)), slice(max(-dx, 0), size + min(-dx, 0))
        moved[to] = pixels[start]
    return moved
