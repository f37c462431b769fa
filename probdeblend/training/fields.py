"""Fields of known truth, and what deblends them as users do: simulated, stored, or injected into a user's own images.

**Injection.** Simulated sources are seen through the PSF of an image, and their light is added to a window of it with
the photon noise of that light, so that sky, noise, defects and crowding are those of the survey. Sources that are there
already are listed with the injected ones, but nothing is known of them: their fluxes and light are NaN, and they count
neither as real nor as false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from astropy.nddata import NDData, StdDevUncertainty
from astropy.table import Table
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from ..deblending.deblender import Deblender, Deblends, Positions
from ..deblending.inputs import Image, Observation, observe
from ..deblending.psfs import PsfLike, camera_of
from ..photometry.images import open_mosaic
from ..photometry.noise import add_noise
from ..posterior.draws import Posterior
from ..scene import GALAXY_TYPES, SOURCE_FIELDS, Scene, correlation_sum, seed_of, seeded
from ..simulation.cameras import Camera, Cameras
from ..simulation.light import SimulatedSources, Sources
from ..simulation.mixtures import nested_tuples
from ..simulation.population import Population
from ..simulation.scenes import GROUP_SIDE, Simulator
from ..simulation.sets import count_scenes, read_scenes

__all__ = ["AsImages", "Field", "injected_fields", "population_like", "simulated_fields"]
__all__ += ["stored_fields", "stored_parts", "usual_count"]

PAIRS = 0.3  # fraction of the simulated fields
NATIVE = 0.1  # fraction of the fields of crowds that CANDELS F160W sees
SIDE = 384  # pixels of a field
GROUPS = (4, 13)  # least number of groups in a field, and the first that is too large
FAINTEST = 2.0  # signal-to-noise ratio of sources in crowds
SKY = 100.0  # sky noise of a pixel: the level of the sky in simulated images
CHUNK = 16  # stored scenes in a field
USUAL, LEAST_COUNT, MOST_COUNT = 250, 40, 1000  # windows of one band and of 384 pixels on a side
TRIES = 20  # windows of an image, until one can be deblended
LEAST_GOOD = 0.5  # of a window's pixels
SEEING = 0.25  # arcsec: width of the PSF where the size of a pixel is not known
WIDTH = 0.664  # of a Gaussian (FWHM) over 1 / sqrt(sum of its squares)
MAGNITUDES, FLUXES, RADIUS = ("mag", "magnitude", "mag_auto"), ("flux", "flux_auto"), "half_light_radius"
LEAST_ROWS, MOST_ROWS = 20, 500  # of a catalog
SCATTER = 0.1  # of magnitudes and ln radii around those of a catalog
AXIS_RATIO = 0.6  # typical one of galaxies

Field = tuple[int, Scene, Deblends]
"""Number of a field, its images with their truth, and what deblends them."""
Shape = tuple[int, int]


@dataclass(frozen=True)
class AsImages:
    """Deblends scenes as users' images: one by one, above a sky whose level, noise and correlation are measured.

    Parameters
    ----------
    deblender
        The deblender. It is given the PSF and, where they are known, the exposure as gain and the wavelengths.
    """

    deblender: Deblender

    def scenes(self, scene: Scene, *, positions: Positions | None = None, seed: int = 0) -> Posterior:
        """Deblend the images of scenes; in each there are positions, if any are given."""
        answers = []
        for number, image in enumerate(scene.image + SKY * scene.sky_rms[..., None, None]):
            known = {"psf": scene.psf[number].numpy()}
            for name, value in (("gain", scene.exposure), ("wavelength", scene.wavelength)):
                if value is not None and bool(value[number].isfinite().all()):
                    known[name] = value[number].tolist()
            own = None if positions is None else tuple(value[positions[0] == number] for value in positions)
            answers.append(_Window(self.deblender, image.numpy(), known).scenes(scene, positions=own, seed=seed))
        return Posterior.concatenate(answers)


@dataclass(frozen=True, eq=False)
class _Window:
    """Deblends an image of its own, with what is known of it."""

    deblender: Deblender
    image: Image | Sequence[Image]
    known: Mapping[str, object]

    def scenes(self, scene: Scene, *, positions: Positions | None = None, seed: int = 0) -> Posterior:
        given = {} if positions is None else {"positions": torch.stack(positions[1:], 1).numpy()}
        answer = self.deblender(self.image, **self.known, **given, seed=seed)
        answer.dataset.attrs["notes"] = ""
        return answer


def simulated_fields(
    deblender: Deblender, numbers: Iterable[int], *, sources: Sources | None = None, seed: int = 0
) -> Iterator[Field]:
    """Simulate fields of sources like those that networks are trained on, but others.

    Each has 384 pixels on a side and holds 4 to 12 groups and, between them, sky. In three tenths of them the groups
    are pairs in CANDELS F160W, in the others crowds of 0 to 14 sources, some too faint to count, of random cameras with
    one to three bands and white or drizzled noise; `sources` make their light, by default `SimulatedSources`. A field
    depends on its number and the seed alone.
    """
    crowds = _crowds()
    for field in numbers:
        rng = np.random.default_rng((seed, field))
        population, number, native = (Population.pairs(), 2, 1.0) if rng.random() < PAIRS else (crowds, None, NATIVE)
        camera, groups = Cameras(native_fraction=native).sample(rng), int(rng.integers(*GROUPS))
        how = {"sources": sources or SimulatedSources(), "groups": groups}
        simulator = Simulator(population, camera, (SIDE, SIDE), number, **how)
        yield field, next(simulator.batches(1, seed=seed_of(seed, field + 1))), AsImages(deblender)


def _crowds() -> Population:
    crowds = Population.default()
    return crowds.replace(snr=(FAINTEST, crowds.snr[1]))


def stored_fields(
    deblender: Deblends, parts: Sequence[tuple[str | PathLike[str], int, int]], numbers: Iterable[int]
) -> Iterator[Field]:
    """Read fields of stored sets, whose `parts` are a path, the first scene and the one after the last."""
    return ((number, read_scenes(*parts[number]), deblender) for number in numbers)


def stored_parts(paths: Iterable[str | PathLike[str]]) -> list[tuple[str | PathLike[str], int, int]]:
    """Return the parts of stored sets that are fields."""
    sizes = [(path, count_scenes(path)) for path in paths]
    return [(path, n, min(n + CHUNK, count)) for path, count in sizes for n in range(0, count, CHUNK)]


def usual_count(image: Sequence[str | PathLike[str]]) -> int:
    """Return the number of windows of an image, one file per band, that take a quarter of an hour on two cores."""
    with open_mosaic(image[0]) as opened:
        area = math.prod(min(side, SIDE) for side in opened.shape)
    return min(max(round(USUAL * SIDE**2 / (area * len(image))), LEAST_COUNT), MOST_COUNT)


def injected_fields(
    deblender: Deblender,
    images: Sequence[Image | Sequence[Image]],
    numbers: Sequence[int],
    *,
    catalog: Table | None = None,
    sources: Sources | None = None,
    seed: int = 0,
    **known: object,
) -> Iterator[Field]:
    """Inject sources into windows of images, which take turns in the numbers and are opened one after the other.

    What is `known` of each image are the arguments of `probdeblend.deblend`. Sources are like those of crowds, or as
    bright and as large as those of a `catalog`; `sources` make their light, by default `SimulatedSources`. A field
    depends on its number and the seed alone.
    """
    own = {place: [number for number in numbers if number % len(images) == place] for place in range(len(images))}
    for place in filter(own.get, own):
        with observe(images[place], **known) as seen:
            if min(seen.shape) < GROUP_SIDE:
                raise ValueError(f"image must be at least {GROUP_SIDE} pixels on a side, got shape {seen.shape}")
            population = _crowds() if catalog is None else population_like(catalog, seen)
            simulate = partial(_simulated, population, sources or SimulatedSources())
            look = lru_cache(maxsize=1)(partial(_look, deblender, seen, known.get("psf")))
            for number in own[place]:
                scene, window = _injected(look, seen.shape, simulate, np.random.default_rng((seed, number)))
                yield number, scene, _Window(deblender, *window)


class _Sky(NamedTuple):
    """A window of an image, and what is known of it: its camera, its pixels without sky, and the sources in it."""

    pixels: NDArray
    noise: list[NDArray]
    known: dict[str, object]
    camera: Camera
    image: Tensor
    there: Posterior


def _simulated(population: Population, sources: Sources, camera: Camera, shape: Shape, rng: Generator) -> Scene:
    """Simulate one scene of a shape, with groups as dense as in simulated fields."""
    groups = max(1, round(int(rng.integers(*GROUPS)) * math.prod(shape) / SIDE**2))
    simulator = Simulator(population, camera, shape, sources=sources, groups=groups)
    return next(simulator.batches(1, seed=int(rng.integers(2**62)), batch_size=1))


def _injected(
    look: Callable[..., _Sky], shape: Shape, simulate: Callable[..., Scene], rng: Generator
) -> tuple[Scene, tuple[list[NDData], dict[str, object]]]:
    """Inject sources into a random window of an image, at which one can look by its corner, that can be deblended."""
    for _ in range(TRIES):
        try:
            sky = look(*(int(rng.integers(max(side - SIDE, 0) + 1)) for side in shape))
        except ValueError as error:
            reason = error
            continue
        scene = simulate(sky.camera, tuple(sky.image.shape[1:]), rng)
        light = scene.light * torch.from_numpy(np.isfinite(sky.pixels).all(0))
        noise = {name: getattr(scene, name) for name in ("exposure", "noise_kernel")}
        noise["generator"] = torch.Generator().manual_seed(int(rng.integers(2**62)))
        added = add_noise(light.sum(0, keepdim=True), sky_rms=torch.zeros_like(scene.sky_rms), **noise)
        image = _bands(sky.pixels + added[0].double().numpy(), sky.noise)
        return _with_others(replace(scene, image=sky.image + added, light=light), sky.there), (image, sky.known)
    raise ValueError(f"image must have windows that can be deblended, got none in {TRIES} tries: {reason}")


def _look(deblender: Deblender, seen: Observation, psf: PsfLike | None, *corner: int) -> _Sky:
    """Look at a window of an image, in units of flux, and find the sources in it."""
    part = tuple(slice(n, min(n + SIDE, side)) for n, side in zip(corner, seen.shape, strict=True))
    pixels, noise = seen.pixel_flux * np.stack(seen.raw(*part)), [seen.pixel_flux * n for n in seen.noise_map(*part)]
    if np.isfinite(pixels).all(0).mean() < LEAST_GOOD:
        raise ValueError("more than half of the pixels of a window are bad")
    gain = 1 / (seen.photon * correlation_sum(seen.noise_kernel) * _middle_rms(seen))
    known: dict[str, object] = {"psf": psf if camera_of(psf) is not None else seen.psf.cpu().numpy()}
    finite = {name: v for name, v in (("gain", gain), ("wavelength", seen.wavelength)) if bool(v.isfinite().all())}
    known |= {name: values.tolist() for name, values in finite.items()}
    window = _bands(pixels, noise)
    with observe(window, **known) as own:
        rms = _middle_rms(own)
        camera = Camera(
            pixel_scale=_pixel_scale(seen),
            sky_rms=rms,
            exposure=gain.nan_to_num(math.inf, math.inf),
            zero_point=seen.zero_point if np.isfinite(seen.zero_point).all() else (0.0,) * len(rms),
            **{name: getattr(own, name) for name in ("psf", "noise_kernel", "wavelength")},
        )
        image = own.window(*(slice(0, side) for side in own.shape))[0] * rms[:, None, None]
    return _Sky(pixels, noise, known, camera, image, deblender(window, **known, draws=1, passes=0))


def _middle_rms(seen: Observation) -> Tensor:
    """Return the sky noise in the middle ``(band,)``."""
    return torch.from_numpy(seen.sky_rms(*(np.array([side / 2]) for side in seen.shape[::-1]))[0]).float()


def _pixel_scale(seen: Observation) -> float:
    """Return the size of a pixel in arcsec, or one for which the PSF is as wide as usual."""
    return seen.pixel_scale if seen.pixel_scale != 1 else SEEING / WIDTH * float(seen.psf[0].square().sum()) ** 0.5


def _bands(pixels: NDArray, noise: list[NDArray]) -> list[NDData]:
    """Return the bands of an image, with the noise that is given, which is NaN where there is none."""
    known = [StdDevUncertainty(own) if np.isfinite(own).any() else None for own in noise]
    return [NDData(own, uncertainty=error) for own, error in zip(pixels, known, strict=True)]


def _with_others(scene: Scene, there: Posterior) -> Scene:
    """Add the sources that are there already, of which nothing is known but where they are."""
    old = {name: getattr(scene, name) for name in SOURCE_FIELDS}
    new = {name: torch.from_numpy(there.dataset[name].values) for name in ("scene", "x", "y")}
    for name in ("flux", "auto_flux", "light"):
        new[name] = old[name].new_full((len(there), *old[name].shape[1:]), math.nan)
    joined = {name: torch.cat([old[name], values.to(old[name])]) for name, values in new.items()}
    return replace(scene, **dict.fromkeys(SOURCE_FIELDS) | joined)


def population_like(catalog: Table, seen: Observation) -> Population:
    """Return a population of sources like those of a catalog, in the first band of an image.

    Magnitudes are in a column mag, magnitude or mag_auto; fluxes, for images without zero points, in flux or flux_auto
    in the unit of the image's fluxes; circularized half-light radii in half_light_radius in arcsec. The band's name may
    follow after an underscore. Where there are no radii, they are those of galaxies of such magnitudes.
    """
    names = {name.removesuffix(f"_{seen.bands[0]}"): name for name in reversed(catalog.colnames)}
    absolute, scale, usual = bool(np.isfinite(seen.zero_point).all()), _pixel_scale(seen), Population.default()
    wanted = (*MAGNITUDES, *FLUXES) if absolute else FLUXES
    name = next((name for name in wanted if name in names), "")
    if not name or not (absolute or RADIUS in names):
        also = "" if absolute else f", and {RADIUS} for an image without a zero point"
        raise ValueError(f"catalog must have a column {' or '.join(wanted)}{also}, got {', '.join(catalog.colnames)}")
    columns = [catalog[names[own]] for own in (name, RADIUS) if own in names]
    brightness, *radius = (np.ma.filled(np.ma.array(column, dtype=float), np.nan) for column in columns)
    if name in FLUXES:
        if (unit := str(columns[0].unit or seen.unit)) != seen.unit:
            raise ValueError(f"catalog must have {name} in {seen.unit or 'no unit'}, as the image's fluxes, got {unit}")
        with np.errstate(invalid="ignore", divide="ignore"):
            brightness = (seen.zero_point[0] if absolute else 0.0) - 2.5 * np.log10(brightness)
    rows = np.flatnonzero(np.isfinite(brightness) & (radius[0] > 0 if radius else True))
    if len(rows) < LEAST_ROWS:
        raise ValueError(f"catalog must have {LEAST_ROWS} sources with fluxes and radii, got {len(rows)}")
    rows = np.random.default_rng(0).permutation(rows)[:MOST_ROWS]
    place = torch.from_numpy(brightness[rows]).float().expand(len(GALAXY_TYPES), -1)
    if radius:
        size = np.log(radius[0][rows] * scale / seen.pixel_scale / AXIS_RATIO**0.5)
        ln_radius = torch.from_numpy(size).float().expand_as(place)
    else:
        with seeded(0):
            ln_radius = usual.ln_radius(torch.arange(len(place))[:, None].expand_as(place), place, scale).sample()
    fields = {
        "weights": torch.full_like(place, 1 / len(rows)),
        "means": torch.stack([place, ln_radius], -1),
        "covariances": (SCATTER**2 * torch.eye(2)).expand(*place.shape, 2, 2),
        "magnitude_range": torch.stack([place.min() - SCATTER, place.max() + SCATTER]),
    }
    given = {field: nested_tuples(values.tolist()) for field, values in fields.items()}
    return usual.replace(**given, snr=None, size_scatter=0.0)
