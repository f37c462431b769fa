"""Fields of known truth, and what deblends them as users do: simulated, stored, or injected into a user's own images.

**Injection.** Simulated sources are seen through the PSF of an image, and their light is added to a window of it with
the photon noise of that light, so that sky, noise, defects and crowding are those of the survey. Sources that are there
already are listed with the injected ones, but nothing is known of them: their fluxes and light are NaN, and they count
neither as real nor as false.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from astropy.table import Table
from numpy.random import Generator
from torch import Tensor

from ..deblending.deblender import Deblender, Deblends, Positions
from ..deblending.inputs import Image, Observation, observe
from ..deblending.psfs import camera_of
from ..photometry.noise import add_noise
from ..posterior.draws import Posterior
from ..scene import GALAXY_TYPES, SOURCE_FIELDS, Scene, correlation_sum, seed_of
from ..simulation.cameras import Camera, Cameras
from ..simulation.light import SimulatedSources, Sources
from ..simulation.mixtures import nested_tuples
from ..simulation.population import Population
from ..simulation.scenes import GROUP_SIDE, Simulator

__all__ = ["AsImages", "Field", "injected_fields", "population_like", "simulated_fields"]

PAIRS = 0.3  # fraction of the simulated fields
NATIVE = 0.1  # fraction of the fields of crowds that CANDELS F160W sees
SIDE = 384  # pixels of a field
GROUPS = (4, 13)  # least number of groups in a field, and the first that is too large
SNR = (2.0, 300.0)  # of sources in crowds: as in the training, and fainter
SKY = 100.0  # sky noise of a pixel: the level of the sky that is added to images
TRIES = 20  # windows of an image, until one can be deblended
LEAST_GOOD = 0.5  # of a window's pixels
SEEING = 0.25  # arcsec: width of the PSF where the size of a pixel is not known
WIDTH = 0.664  # of a Gaussian (FWHM) over 1 / sqrt(sum of its squares)
RADIUS = "half_light_radius"
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
    known
        Further arguments of the deblender.
    """

    deblender: Deblender
    known: Mapping[str, object] = field(default_factory=dict)

    def scenes(self, scene: Scene, *, positions: Positions | None = None, seed: int = 0) -> Posterior:
        """Deblend the images of scenes; in each there are positions, if any are given."""
        answers = []
        for number, image in enumerate(scene.image + SKY * scene.sky_rms[..., None, None]):
            known = {"psf": scene.psf[number].numpy(), "seed": seed}
            for name, value in (("gain", scene.exposure), ("wavelength", scene.wavelength)):
                if bool(value[number].isfinite().all()):
                    known[name] = value[number].tolist()
            if positions is not None:
                known["positions"] = torch.stack([place[positions[0] == number] for place in positions[1:]], 1).numpy()
            answers.append(self.deblender(image.numpy(), **known | self.known))
            answers[-1].dataset.attrs["notes"] = ""
        return Posterior.concatenate(answers)


def simulated_fields(
    deblender: Deblender, numbers: Iterable[int], *, sources: Sources | None = None, seed: int = 0
) -> Iterator[Field]:
    """Simulate fields of sources like those that networks are trained on, but others.

    Each has 384 pixels on a side and holds 4 to 12 groups and, between them, sky. In three tenths of them the groups
    are pairs in CANDELS F160W, if the network was trained on that camera, in the others crowds of 0 to 14 sources, some
    too faint to count, of the cameras of its training; `sources` make their light, by default `SimulatedSources`. A
    field depends on its number, the seed and these cameras alone.
    """
    cameras = _trained_on(deblender)
    native = cameras.native_fraction if cameras.native_fraction in (0, 1) else NATIVE
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        pair = rng.random() < PAIRS * (native > 0)
        population, sizes = (Population.pairs(), 2) if pair else (_crowds(), None)
        camera = replace(cameras, native_fraction=1.0 if pair else native).sample(rng)
        groups = int(rng.integers(*GROUPS))
        simulator = Simulator(population, camera, (SIDE, SIDE), sizes, sources or SimulatedSources(), groups)
        yield number, next(simulator.batches(1, seed=seed_of(seed, number + 1))), AsImages(deblender)


def _trained_on(deblender: Deblender) -> Cameras:
    """Return the cameras of a network's training, as its weights state them."""
    try:
        return Cameras(**deblender.description.training["stream"]["templates"]["cameras"])
    except (AttributeError, KeyError, TypeError):  # made in another way
        return Cameras()


def _crowds() -> Population:
    return Population.default().replace(snr=SNR)


def injected_fields(
    deblender: Deblender,
    numbers: Sequence[int],
    *,
    images: Sequence[Image | Sequence[Image]],
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
            simulator = Simulator(population, sources=sources or SimulatedSources())
            for number in own[place]:
                rng = np.random.default_rng((seed, number))
                yield number, *_injected(deblender, seen, simulator, known.get("psf"), rng)


def _injected(
    deblender: Deblender, seen: Observation, simulator: Simulator, psf: object, rng: Generator
) -> tuple[Scene, AsImages]:
    """Inject sources into a random window of an image that can be deblended, in groups as dense as in simulations."""
    named = {} if camera_of(psf) is None else {"psf": psf}
    for _ in range(TRIES):
        try:
            camera, sky, noise = _window(seen, rng)
            groups = max(1, round(int(rng.integers(*GROUPS)) * sky[0].numel() / SIDE**2))
            simulate = replace(simulator, camera=camera, shape=tuple(sky.shape[1:]), groups=groups)
            scene = next(simulate.batches(1, seed=int(rng.integers(2**62)), batch_size=1))
            known = named | noise
            there = AsImages(deblender, known | {"draws": 1, "passes": 0}).scenes(replace(scene, image=sky[None]))
        except ValueError as error:
            reason = error
            continue
        light = scene.light * sky.isfinite()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        how = {"exposure": scene.exposure, "noise_kernel": scene.noise_kernel, "generator": generator}
        added = add_noise(light.sum(0, keepdim=True), sky_rms=torch.zeros_like(scene.sky_rms), **how)
        return _with_others(replace(scene, image=sky + added, light=light), there), AsImages(deblender, known)
    raise ValueError(f"image must have windows that can be deblended, got none in {TRIES} tries: {reason}")


def _window(seen: Observation, rng: Generator) -> tuple[Camera, Tensor, dict[str, object]]:
    """Return the camera, the pixels ``(band, y, x)`` over the sky's level and the given noise of a random window."""
    corner = [int(rng.integers(max(side - SIDE, 0) + 1)) for side in seen.shape]
    part = [slice(start, min(start + SIDE, side)) for start, side in zip(corner, seen.shape, strict=True)]
    given = seen.raw(*part), seen.noise_map(*part)
    pixels, noise = (seen.pixel_flux * np.stack(np.broadcast_arrays(*bands)) for bands in given)
    if np.isfinite(pixels).all(0).mean() < LEAST_GOOD:
        raise ValueError("more than half of the pixels of a window are bad")
    y, x = np.array([[side / 2, (own.start + own.stop) / 2] for side, own in zip(seen.shape, part, strict=True)])
    middle, rms = torch.from_numpy(seen.sky_rms(x, y)).float()
    exposure = (1 / (seen.photon * correlation_sum(seen.noise_kernel) * middle)).nan_to_num(math.inf, math.inf)
    points = seen.zero_point if np.isfinite(seen.zero_point).all() else (0.0,) * len(rms)
    camera = Camera(_pixel_scale(seen), seen.psf, rms, exposure, seen.noise_kernel, seen.wavelength, points)
    known = np.isfinite(noise).reshape(len(noise), -1).any(1).all()
    sky = torch.from_numpy(pixels - np.nanmedian(pixels, axis=(1, 2), keepdims=True))
    return camera, sky, {"sky_rms": noise} if known else {}


def _pixel_scale(seen: Observation) -> float:
    """Return the size of a pixel in arcsec, or one for which the PSF is as wide as usual."""
    return seen.pixel_scale if seen.pixel_scale != 1 else SEEING / WIDTH * float(seen.psf[0].square().sum()) ** 0.5


def _with_others(scene: Scene, there: Posterior) -> Scene:
    """Add the sources that are there already, of which nothing is known but where they are."""
    new = {name: torch.from_numpy(there.dataset[name].values).to(getattr(scene, name)) for name in ("scene", "x", "y")}
    for name in ("flux", "auto_flux", "light"):
        new[name] = getattr(scene, name).new_full((len(there), *getattr(scene, name).shape[1:]), math.nan)
    joined = {name: torch.cat([getattr(scene, name), values]) for name, values in new.items()}
    return replace(scene, **dict.fromkeys(SOURCE_FIELDS) | joined)


def population_like(catalog: Table, seen: Observation) -> Population:
    """Return a population of sources like those of a catalog, in the first band of an image.

    Magnitudes are in a column mag; fluxes, where there is none or the image has no zero point, in flux in the unit of
    the image's fluxes; circularized half-light radii in half_light_radius in arcsec, or in pixels if their size is not
    known. The band's name may follow after an underscore.
    """
    names = {name.removesuffix(f"_{seen.bands[0]}"): name for name in reversed(catalog.colnames)}
    absolute = bool(np.isfinite(seen.zero_point).all())
    kind = "mag" if absolute and "mag" in names else "flux"
    if not {kind, RADIUS} <= names.keys():
        wanted = f"flux, or mag for an image with zero points, and {RADIUS}"
        raise ValueError(f"catalog must have the columns {wanted}, got {', '.join(catalog.colnames)}")
    magnitude, radius = (np.ma.filled(np.ma.array(catalog[names[key]], dtype=float), np.nan) for key in (kind, RADIUS))
    if kind == "flux":
        if (unit := str(catalog[names[kind]].unit or seen.unit)) != seen.unit:
            raise ValueError(f"catalog must have flux in {seen.unit or 'no unit'}, as the image's fluxes, got {unit}")
        zero_point = seen.zero_point[0] if absolute else 0.0
        magnitude = zero_point - 2.5 * np.log10(np.where(magnitude > 0, magnitude, np.nan))
    rows = np.flatnonzero(np.isfinite(magnitude) & (radius > 0))
    if len(rows) < LEAST_ROWS:
        raise ValueError(f"catalog must have {LEAST_ROWS} sources with fluxes and radii, got {len(rows)}")
    rows = np.random.default_rng(0).permutation(rows)[:MOST_ROWS]
    magnitude, major = magnitude[rows], radius[rows] * _pixel_scale(seen) / seen.pixel_scale / AXIS_RATIO**0.5
    fields = {
        "weights": np.full(len(rows), 1 / len(rows)),
        "means": np.stack([magnitude, np.log(major)], 1),
        "covariances": np.tile(SCATTER**2 * np.eye(2), (len(rows), 1, 1)),
    }
    given = {name: nested_tuples([values.tolist()] * len(GALAXY_TYPES)) for name, values in fields.items()}
    limits = (float(magnitude.min()) - SCATTER, float(magnitude.max()) + SCATTER)
    return Population.default().replace(**given, magnitude_range=limits, snr=None, size_scatter=0.0)
