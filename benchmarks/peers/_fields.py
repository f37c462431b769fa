"""Fields in g, r and z of a DECam-like and an HSC-like camera, with the light and the mask of each source alone.

Galaxies are counted as in the LSST Science Book (LSST Science Collaboration 2009, arXiv:0912.0201, section 3.7.2): 46 x
10^(0.31 (m - 25)) per square arcmin are brighter than magnitude m, for which z is taken; their types, sizes, shapes and
colors are those of the package's population. Stars are as many as some 40 degrees from the plane of the Galaxy. Nothing
is clustered: sources overlap by chance.

Depth and seeing are medians of the Dark Energy Survey (Abbott et al. 2021, doi:10.3847/1538-4365/ac00b3) and of the
Wide layer of the Subaru Strategic Program (Aihara et al. 2019, doi:10.1093/pasj/psz103). The sky as bright as in Ivezic
et al. (2019, doi:10.3847/1538-4357/ab042c, table 2) tells how many photons make up that noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from probdeblend.photometry.noise import add_noise
from probdeblend.posterior.cutouts import Cutouts
from probdeblend.scene import MASK_THRESHOLD, SCENE_FIELDS, SOURCE_TYPES, Scene, seed_of, seeded
from probdeblend.simulation.cameras import Camera, random_psf
from probdeblend.simulation.light import Light, SimulatedSources
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import paste

__all__ = ["SURVEYS", "Field", "Survey", "compose", "draw_sources", "field", "flat_masks", "overlaps", "rgb"]

BANDS = ("g", "r", "z")
WAVELENGTH = (0.48, 0.62, 0.91)  # micron
SKY = (22.26, 21.20, 19.60)  # AB magnitudes per square arcsec
ZERO_POINT = 27.0
STAR = SOURCE_TYPES.index("star")
GALAXIES, SLOPE = 46.0, 0.31  # per square arcmin to magnitude 25, and dex per magnitude
STARS, STAR_SLOPE, STAR_FAINTEST = 8.0, 0.1, 24.0  # per square arcmin to the faintest, and dex per magnitude
BRIGHTEST, BRIGHTEST_STAR = 18.0, 16.5
VARIATION = 0.06  # standard deviation of ln of the seeing
WEIGHT = (0.7, 1.0, 1.5)  # of the bands in pictures, as z is the shallowest
CUTOUT, LARGEST_CUTOUT, FAINT = 64, 512, 0.03  # pixels on a side, and sky rms of light at the edge of a cutout


@dataclass(frozen=True)
class Survey:
    """What a survey's images are like.

    `seeing` has the FWHM in arcsec, `depth` the magnitudes at signal-to-noise ratio `ratio`, in an aperture of so many
    arcsec in diameter, or of a point source if that is None; `faintest` is the magnitude in z of the faintest galaxies.
    """

    pixel_scale: float
    seeing: tuple[float, float, float]
    depth: tuple[float, float, float]
    ratio: float
    diameter: float | None
    faintest: float

    def camera(self, rng: np.random.Generator) -> Camera:
        """Draw the camera of one field, whose seeing is about the survey's."""
        widths = np.multiply(self.seeing, np.exp(rng.normal(0, VARIATION))) / self.pixel_scale
        psf = torch.stack([random_psf(rng, width, kind="ground", fine=False)[0] for width in widths])
        if self.diameter is None:
            pixels = 1 / psf.square().sum((1, 2)).double().numpy()
        else:
            pixels = math.pi * (self.diameter / self.pixel_scale / 2) ** 2
        rms = _flux(self.depth) / self.ratio / np.sqrt(pixels)
        exposure = _flux(SKY) * self.pixel_scale**2 / rms**2
        numbers = (torch.from_numpy(values).float() for values in (rms, exposure))
        known = {"wavelength": torch.tensor(WAVELENGTH), "zero_point": (ZERO_POINT,) * len(BANDS)}
        return Camera(self.pixel_scale, psf, *numbers, **known)


SURVEYS = {
    "decam": Survey(0.263, (1.11, 0.95, 0.83), (24.7, 24.4, 23.1), 10, 1.95, 25.0),
    "hsc": Survey(0.168, (0.77, 0.76, 0.68), (26.6, 26.2, 25.3), 5, None, 26.5),
}


@dataclass(frozen=True, eq=False)
class Field:
    """One image and what is true of it: a scene whose sources come without light, and masks and light of each alone."""

    scene: Scene
    truth: Cutouts

    @property
    def snr(self) -> NDArray[np.float64]:
        """Matched-filter signal-to-noise ratio ``(source,)``, all bands together."""
        return np.array([np.sqrt((self._over(own) ** 2).sum()) for own in self.truth.image])

    @property
    def contested(self) -> NDArray[np.float64]:
        """Contested light ``(source,)`` (Bosch et al. 2018, doi:10.1093/pasj/psx080, section 4.9.11)."""
        cutouts = [self.truth.cutout("image", number) for number in range(len(self.truth))]
        total = np.zeros(self.scene.image.shape[1:])
        for cutout in cutouts:
            total[:, *cutout.slices] += self._over(cutout.data)
        own = np.array([(self._over(cutout.data) ** 2).sum() for cutout in cutouts])
        shared = [(total[:, *cutout.slices] * self._over(cutout.data)).sum() for cutout in cutouts]
        return 1 - own / np.maximum(shared, 1e-12)

    @property
    def star(self) -> NDArray[np.bool_]:
        """Whether each source is a star ``(source,)``."""
        return self.scene.source_type.numpy() == STAR

    def _over(self, light: NDArray) -> NDArray[np.float64]:
        return light / self.scene.sky_rms[0].double().numpy()[:, None, None]


def field(survey: Survey, side: int, *, seed: int) -> Field:
    """Simulate a square field, `side` pixels wide."""
    rng = np.random.default_rng(seed)
    camera, area = survey.camera(rng), (side * survey.pixel_scale / 60) ** 2
    galaxies = max(rng.poisson(area * GALAXIES * 10 ** (SLOPE * (survey.faintest - 25))), 1)
    stars = rng.poisson(area * STARS)
    magnitude = [_counted(rng, galaxies, SLOPE, BRIGHTEST, survey.faintest)]
    magnitude += [_counted(rng, stars, STAR_SLOPE, BRIGHTEST_STAR, STAR_FAINTEST)]
    star = np.arange(galaxies + stars) >= galaxies
    places = rng.uniform(-0.5, side - 0.5, (len(star), 2))
    drawn = draw_sources(np.concatenate(magnitude), star, places, camera.pixel_scale, seed=seed_of(seed, 1))
    return compose(drawn, camera, (side, side), seed=seed_of(seed, 2))


def draw_sources(
    magnitude: NDArray, star: NDArray, places: NDArray, pixel_scale: float, *, seed: int
) -> dict[str, Tensor]:
    """Draw from the population what sources look like that have magnitudes in z, and centers x, y ``(source, 2)``."""
    population = Population.default().replace(size_scatter=0.0, snr=None)
    chances = np.array(population.type_probabilities)
    types = np.random.default_rng(seed).choice(STAR, len(star), p=chances / chances.sum())
    given = {"source_type": np.where(star, STAR, types), "magnitude": magnitude.astype(np.float32)}
    given = {name: torch.from_numpy(values) for name, values in given.items()}
    with seeded(seed), torch.no_grad(), pyro.poutine.block(), pyro.plate("sources", len(star)):
        drawn = pyro.poutine.condition(population.source, data=given)(pixel_scale)
    return drawn | dict(zip("xy", torch.from_numpy(places).float().T, strict=True))


def compose(drawn: Mapping[str, Tensor], camera: Camera, shape: tuple[int, int], *, seed: int) -> Field:
    """Simulate an image of sources, given values of `Population.source`, with magnitudes in z, and their centers."""
    image, corners, images, masks = torch.zeros(1, len(camera), *shape), [], [], []
    with seeded(seed), torch.no_grad():
        light = SimulatedSources()(drawn, camera)
        for number in range(len(drawn["x"])):
            middle = torch.stack([drawn[name][number] for name in "xy"]).round().long()
            own, corner = _alone(light.select(slice(number, number + 1)), camera, drawn["magnitude"][number], middle)
            paste(image[0], own, corner)
            left, top = np.maximum(corner.tolist(), 0)
            right, bottom = np.minimum(np.add(corner.tolist(), own.shape[-1]), shape[::-1])
            own = own[:, top - corner[1] : bottom - corner[1], left - corner[0] : right - corner[0]]
            over = own / camera.sky_rms[:, None, None]
            corners.append((top, left))
            images.append(own.numpy())
            masks.append((over.square().sum(0) > MASK_THRESHOLD**2).numpy())
        known = {name: getattr(camera, name)[None] for name in SCENE_FIELDS[1:]}
        noise = {name: known[name] for name in ("sky_rms", "exposure", "noise_kernel")}
        image = add_noise(image, **noise, generator=torch.Generator().manual_seed(seed_of(seed, 1)))
    types = {name: drawn[name] for name in ("x", "y", "source_type")}
    scene = Scene(
        image=image,
        pixel_scale=camera.pixel_scale,
        zero_point=camera.zero_point,
        scene=torch.zeros(len(masks), dtype=torch.long),
        **types,
        **known,
    )
    return Field(scene, Cutouts(np.array(corners), shape, mask=masks, image=images))


def flat_masks(cutouts: Cutouts, *, threshold: float = 0.5) -> csr_array:
    """Return masks as a sparse matrix ``(source, pixel)`` over all pixels of the image."""
    owner, pixel = [np.zeros(0, dtype=int)], [np.zeros(0, dtype=int)]
    for number, (mask, corner) in enumerate(zip(cutouts.mask, cutouts.corner, strict=True)):
        y, x = np.nonzero(np.asarray(mask) >= threshold)
        owner.append(np.full(len(y), number))
        pixel.append((y + corner[0]) * cutouts.shape[1] + x + corner[1])
    entries = np.concatenate(owner), np.concatenate(pixel)
    return csr_array((np.ones(len(entries[0])), entries), shape=(len(cutouts), math.prod(cutouts.shape)))


def overlaps(first: csr_array, second: csr_array) -> NDArray[np.float64]:
    """Return the intersection over union of every mask with every other ``(first, second)``."""
    both = (first @ second.T).toarray()
    union = first.sum(1)[:, None] + second.sum(1)[None] - both
    return both / np.maximum(union, 1)


def rgb(image: NDArray, sky_rms: NDArray, *, stretch: float = 8.0, softening: float = 8.0) -> NDArray[np.float32]:
    """Return pixels ``(band, y, x)`` in three colors ``(y, x, 3)`` from 0 to 1: z, r and g about over their sky noise.

    The stretch of Lupton et al. (2004, doi:10.1086/382245) keeps colors however bright a pixel is; it is linear up to
    about `stretch` sky rms.
    """
    from astropy.visualization import make_lupton_rgb

    over = (image / sky_rms[:, None, None] * np.reshape(WEIGHT, (-1, 1, 1)))[::-1]
    return make_lupton_rgb(*over, minimum=-1.0, stretch=stretch, Q=softening).astype(np.float32) / 255


def _alone(light: Light, camera: Camera, magnitude: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Return the light ``(band, y, x)`` of a source on a cutout that is large enough, and its corner x, y."""
    size = CUTOUT
    while True:
        corner = middle - size // 2
        seen = light.seen(camera, corner=corner[None], size=size)
        flux = (seen.color[0] - seen.color[0, -1]).exp() * 10 ** (0.4 * (ZERO_POINT - magnitude))
        own = seen.image[0] * flux[:, None, None]
        edge = torch.stack([own[:, 0], own[:, -1], own[..., 0], own[..., -1]]).amax((0, -1))
        if size >= LARGEST_CUTOUT or bool((edge < FAINT * camera.sky_rms).all()):
            return own, corner
        size *= 2


def _flux(magnitude: tuple[float, ...]) -> NDArray[np.float64]:
    return 10 ** (0.4 * (ZERO_POINT - np.array(magnitude)))


def _counted(rng: np.random.Generator, count: int, slope: float, low: float, high: float) -> NDArray[np.float64]:
    """Draw magnitudes whose number grows by so many dex per magnitude."""
    ends = 10 ** (slope * np.array([low, high]))
    return np.log10(rng.uniform(*ends, count)) / slope
