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
from itertools import groupby
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from astropy.nddata import NDData, StdDevUncertainty
from astropy.table import Table
from numpy.typing import NDArray
from torch import Tensor

from ..deblending.deblender import Deblender, Deblends, Positions
from ..deblending.inputs import Image, Observation, observe
from ..deblending.psfs import PsfLike, camera_of
from ..photometry.images import open_mosaic
from ..photometry.noise import add_noise
from ..posterior.draws import Posterior
from ..scene import GALAXY_TYPES, PSF_SIZE, SOURCE_FIELDS, Scene, correlation_sum, seed_of, seeded
from ..simulation.cameras import FINE, Camera, Cameras
from ..simulation.light import SimulatedSources, Sources
from ..simulation.mixtures import nested_tuples
from ..simulation.population import Population
from ..simulation.scenes import GROUP_SIDE, Simulator
from ..simulation.sets import count_scenes, read_scenes

__all__ = ["AsImages", "Field", "Injection", "injected_fields", "population_like", "simulated_fields"]
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


def simulated_fields(deblender: Deblender, numbers: Iterable[int], *, seed: int = 0) -> Iterator[Field]:
    """Simulate fields of sources like those that networks are trained on, but others.

    Each has 384 pixels on a side and holds 4 to 12 groups and, between them, sky. In three tenths of them the groups
    are pairs in CANDELS F160W, in the others crowds of 0 to 14 sources, some too faint to count, of random cameras with
    one to three bands and white or drizzled noise. A field depends on its number and the seed alone.
    """
    crowds = _crowds()
    for field in numbers:
        rng = np.random.default_rng((seed, field))
        population, number, native = (Population.pairs(), 2, 1.0) if rng.random() < PAIRS else (crowds, None, NATIVE)
        camera, groups = Cameras(native_fraction=native).sample(rng), int(rng.integers(*GROUPS))
        simulator = Simulator(population, camera, (SIDE, SIDE), number, groups=groups)
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
    injection: Injection,
    images: Sequence[Image | Sequence[Image]],
    numbers: Iterable[int],
    *,
    count: int,
    catalog: Table | None = None,
    **known: object,
) -> Iterator[Field]:
    """Inject sources into windows of images, which share `count` fields evenly and are opened one after the other.

    What is `known` of each image are the arguments of `probdeblend.deblend`. Sources are as bright and as large as
    those of a `catalog`, if there is one.
    """
    for place, own in groupby(numbers, lambda number: number * len(images) // count):
        with observe(images[place], **known) as seen:
            if min(seen.shape) < GROUP_SIDE:
                raise ValueError(f"image must be at least {GROUP_SIDE} pixels on a side, got shape {seen.shape}")
            if catalog is not None:
                injection = replace(injection, population=population_like(catalog, seen))
            look = lru_cache(maxsize=1)(partial(_look, injection.deblender, seen, _known(seen, known.get("psf"))))
            for number in own:
                yield number, *injection.field(look, seen.shape, number)


class _Sky(NamedTuple):
    """A window of an image: pixels and given noise of each band, the same without sky, and what is there already."""

    pixels: list[NDArray]
    noise: list[NDArray]
    known: Mapping[str, object]
    image: Tensor
    camera: Camera
    there: Posterior

    def with_light(self, light: Tensor) -> list[NDData]:
        """Return the image with the light ``(band, y, x)`` of other sources."""
        return _bands([own + new for own, new in zip(self.pixels, light.double().numpy(), strict=True)], self.noise)


@dataclass(frozen=True, eq=False)
class Injection:
    """How sources are injected into images.

    Parameters
    ----------
    deblender
        Finds the sources that are there already.
    population
        What sources are injected; those in groups lie within 96 pixels.
    sources
        What makes their light, as for a `Simulator`.
    seed
        Same seed, same fields.
    """

    deblender: Deblender
    population: Population
    sources: Sources
    seed: int = 0

    @classmethod
    def usual(cls, deblender: Deblender, *, seed: int = 0) -> Injection:
        """Return that of simulated sources like those of the training."""
        return cls(deblender, _crowds(), SimulatedSources(), seed)

    def field(self, look: Callable[..., _Sky], shape: tuple[int, int], number: int) -> tuple[Scene, Deblends]:
        """Inject sources into a random window of an image of some shape, at which one can `look` by its corner."""
        rng, reason = np.random.default_rng((self.seed, number)), ""
        for _ in range(TRIES):
            try:
                sky = look(*(int(rng.integers(max(size - SIDE, 0) + 1)) for size in shape))
            except ValueError as error:
                reason = str(error)
                continue
            seeds, sides = rng.integers(2**62, size=2).tolist(), sky.image.shape[1:]
            groups = max(1, round(int(rng.integers(*GROUPS)) * math.prod(sides) / SIDE**2))
            simulator = Simulator(self.population, sky.camera, tuple(sides), sources=self.sources, groups=groups)
            scene = next(simulator.batches(1, seed=seeds[0], batch_size=1))
            light = scene.light * torch.from_numpy(np.isfinite(sky.pixels).all(0))
            noise = {"sky_rms": torch.zeros_like(scene.sky_rms), "noise_kernel": scene.noise_kernel}
            noise |= {"exposure": scene.exposure, "generator": torch.Generator().manual_seed(seeds[1])}
            added = add_noise(light.sum(0, keepdim=True), **noise)
            scene = _with_others(replace(scene, image=sky.image + added, light=light), sky.there)
            return scene, _Window(self.deblender, sky.with_light(added[0]), sky.known)
        raise ValueError(f"image must have windows that can be deblended, got none in {TRIES} tries: {reason}")


def _look(deblender: Deblender, seen: Observation, known: Mapping[str, object], *corner: int) -> _Sky:
    """Look at a window of an image, and find the sources in it."""
    part = tuple(slice(n, min(n + SIDE, size)) for n, size in zip(corner, seen.shape, strict=True))
    pixels, noise = ([seen.pixel_flux * own for own in read(*part)] for read in (seen.raw, seen.noise_map))
    if np.isfinite(pixels).all(0).mean() < LEAST_GOOD:
        raise ValueError("more than half of the pixels of a window are bad")
    with observe(_bands(pixels, noise), **known) as own:
        rms = torch.from_numpy(own.sky_rms(*_middle(own))[0]).float()
        narrow = WIDTH / float(own.psf.square().sum((1, 2)).max()) ** 0.5 < FINE
        camera = Camera(
            pixel_scale=_pixel_scale(seen),
            psf=own.psf,
            sky_rms=rms,
            exposure=torch.tensor(known.get("gain", [np.inf] * len(rms))).float(),
            noise_kernel=own.noise_kernel,
            wavelength=own.wavelength,
            zero_point=seen.zero_point if np.isfinite(seen.zero_point).all() else (0.0,) * len(rms),
            fine_psf=torch.stack([_finer(psf) for psf in own.psf]) if narrow else None,
        )
        image = own.window(*(slice(0, side) for side in own.shape))[0] * rms[:, None, None]
    there = deblender(_bands(pixels, noise), **known, draws=1, passes=0)
    return _Sky(pixels, noise, known, image, camera, there)


def _known(seen: Observation, psf: PsfLike | None) -> dict[str, object]:
    """Return what is known of all windows of an image in units of flux."""
    known: dict[str, object] = {"psf": psf if camera_of(psf) is not None else seen.psf.cpu().numpy()}
    rms = torch.from_numpy(seen.sky_rms(*_middle(seen))[0])
    gain = 1 / (seen.photon * correlation_sum(seen.noise_kernel) * rms)
    for name, values in (("gain", gain), ("wavelength", seen.wavelength)):
        if bool(values.isfinite().all()):
            known[name] = values.tolist()
    return known


def _middle(seen: Observation) -> tuple[NDArray, NDArray]:
    return tuple(np.array([side / 2]) for side in seen.shape[::-1])


def _pixel_scale(seen: Observation) -> float:
    """Return the size of a pixel in arcsec, or one for which the PSF is as wide as usual."""
    width = WIDTH / float(seen.psf[0].square().sum()) ** 0.5
    return seen.pixel_scale if seen.pixel_scale != 1 else SEEING / width


def _bands(pixels: list[NDArray], noise: list[NDArray]) -> list[NDData]:
    """Return the bands of an image, with the noise that is given, which is NaN where there is none."""
    known = [StdDevUncertainty(own) if np.isfinite(own).any() else None for own in noise]
    return [NDData(own, uncertainty=error) for own, error in zip(pixels, known, strict=True)]


def _finer(psf: Tensor) -> Tensor:
    """Return a PSF ``(y, x)`` at twice the sampling."""
    import galsim

    image = galsim.Image(psf.double().cpu().numpy(), scale=1.0)
    drawn = galsim.InterpolatedImage(image, x_interpolant=galsim.Lanczos(15)).drawImage(
        nx=2 * PSF_SIZE - 1, ny=2 * PSF_SIZE - 1, scale=0.5, method="no_pixel", dtype=np.float32
    )
    return torch.from_numpy(drawn.array / drawn.array.sum())


def _with_others(scene: Scene, there: Posterior) -> Scene:
    """Add the sources that are there already, of which nothing is known but where they are."""
    count, known = len(there), {"scene": there.dataset["scene"], "x": there.dataset["x"], "y": there.dataset["y"]}
    added = {name: torch.from_numpy(values.values).to(getattr(scene, name)) for name, values in known.items()}
    unknown = {name: getattr(scene, name) for name in ("flux", "auto_flux", "light")}
    added |= {name: values.new_full((count, *values.shape[1:]), math.nan) for name, values in unknown.items()}
    added = {name: torch.cat([getattr(scene, name), values]) for name, values in added.items()}
    others = dict.fromkeys(name for name in SOURCE_FIELDS if name not in added)
    return replace(scene, **added, **others)


def population_like(catalog: Table, seen: Observation) -> Population:
    """Return a population of sources like those of a catalog, in the first band of an image.

    Magnitudes are in a column mag, magnitude or mag_auto; fluxes, for images without zero points, in flux or flux_auto
    in the unit of the image's fluxes; circularized half-light radii in half_light_radius in arcsec. The band's name may
    follow after an underscore. Where there are no radii, they are those of galaxies of such magnitudes.
    """
    names = {name.removesuffix(f"_{seen.bands[0]}"): name for name in reversed(catalog.colnames)}
    radius, scale = names.get(RADIUS), _pixel_scale(seen)
    absolute = bool(np.isfinite(seen.zero_point).all())
    if (name := next((names[name] for name in MAGNITUDES if absolute and name in names), None)) is not None:
        magnitude = _column(catalog, name)
    elif (name := next((names[name] for name in FLUXES if name in names), None)) is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            magnitude = (seen.zero_point[0] if absolute else 0.0) - 2.5 * np.log10(_column(catalog, name, seen.unit))
    else:
        wanted = " or ".join(MAGNITUDES * absolute + FLUXES)
        raise ValueError(f"catalog must have a column {wanted}, got {', '.join(catalog.colnames)}")
    if radius is None and not absolute:
        raise ValueError(f"catalog must have a column {RADIUS} for an image without a zero point")
    size = np.ones(len(catalog)) if radius is None else _column(catalog, radius) * scale / seen.pixel_scale
    rows = np.flatnonzero(np.isfinite(magnitude) & (size > 0) & np.isfinite(size))
    if len(rows) < LEAST_ROWS:
        raise ValueError(f"catalog must have {LEAST_ROWS} sources with fluxes and radii, got {len(rows)}")
    rows = np.random.default_rng(0).permutation(rows)[:MOST_ROWS]
    usual, place = Population.default(), torch.from_numpy(magnitude[rows]).float().expand(len(GALAXY_TYPES), -1)
    kind = torch.arange(len(GALAXY_TYPES))[:, None].expand_as(place)
    with seeded(0):
        ln_radius = usual.ln_radius(kind, place, scale).sample()
    if radius is not None:
        ln_radius = torch.from_numpy(np.log(size[rows] / AXIS_RATIO**0.5)).float().expand_as(place)
    limits = (float(place.min()) - SCATTER, float(place.max()) + SCATTER)
    return usual.replace(
        weights=nested_tuples(torch.full_like(place, 1 / len(rows)).tolist()),
        means=nested_tuples(torch.stack([place, ln_radius], -1).tolist()),
        covariances=nested_tuples((SCATTER**2 * torch.eye(2)).expand(*place.shape, 2, 2).tolist()),
        magnitude_range=limits,
        snr=None,
        size_scatter=0.0,
    )


def _column(catalog: Table, name: str, unit: str | None = None) -> NDArray[np.float64]:
    """Return the numbers of a column, NaN where masked, which must be in a unit if it has one."""
    column, own = catalog[name], str(catalog[name].unit or "")
    if unit is not None and own not in ("", unit):
        raise ValueError(f"catalog must have {name} in {unit or 'no unit'}, as the image's fluxes, got {own}")
    return np.ma.filled(np.ma.asarray(getattr(column, "value", column)).astype(np.float64), np.nan)
