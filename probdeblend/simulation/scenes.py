"""Scenes of known truth: sources of a population, seen by a camera, each rendered alone.

Every source is rendered on a cutout around its center, large enough for its light to drop below the noise, so that an
image of any size needs little memory. Its AUTO flux is what SEP measures on that cutout, without noise; where SEP would
not find the source, it is that of a brighter source of the same shape.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from ..photometry.detection import auto_flux
from ..photometry.noise import add_noise
from ..scene import SCENE_FIELDS, SOURCE_TYPES, STAMP_SIZE, Scene, check_least, seed_of, seeded
from .cameras import Camera
from .light import Light, SimulatedSources, Sources
from .population import Population
from .positions import Frame

__all__ = ["Simulator", "auto_over_total", "in_batches", "on_threads", "paste", "simulate"]

Maker = Callable[[tuple[int, int], int], Scene]

CUTOUT, LARGEST_CUTOUT = 128, 512  # pixels on a side
FAINTEST = 0.02  # sky rms; brighter light at the edge of a cutout makes it larger
GROUP_SIDE = 96  # pixels, of the squares that groups lie in
LIGHT_SIDE = 384  # pixels; larger images come without the light of every source
BATCH_PIXELS = 2**20  # pixels of a batch of scenes
AT_ONCE = 32  # sources
BOOST, BOOSTS = 4.0, 8  # how much brighter a source is made until SEP finds it


def auto_over_total(light: Tensor, flux: float) -> float:
    """AUTO over total flux of a source of unit flux ``(y, x)`` and a flux in sky rms; NaN if SEP never finds it."""
    light = light.double().numpy()
    for _ in range(BOOSTS):
        if light.max() * flux > 2 and math.isfinite(found := auto_flux(light * flux, 1.0)):
            return found / flux
        flux *= BOOST
    return math.nan


@dataclass(frozen=True)
class Simulator:
    """A population seen by a camera.

    Parameters
    ----------
    population
        What sources there are, and where.
    camera
        What images are taken with.
    shape
        Pixels ``(y, x)`` of the images.
    number
        Number of sources in every scene; drawn from the population if None.
    sources
        `SimulatedSources`, or real galaxies: `~probdeblend.surveys.RealGalaxies`, whose total fluxes are not known.
    groups
        Number of squares of 96 pixels, anywhere in the image, in each of which sources lie as in a scene of its own;
        0 if they lie in the whole image.
    """

    population: Population = field(default_factory=Population.published)
    camera: Camera = field(default_factory=Camera.candels_f160w)
    shape: tuple[int, int] = (STAMP_SIZE, STAMP_SIZE)
    number: int | None = None
    sources: Sources = field(default_factory=SimulatedSources)
    groups: int = 0

    def __post_init__(self) -> None:
        if min(self.shape) < (least := GROUP_SIDE if self.groups else 1):
            raise ValueError(f"shape must be at least {least} on a side, got {self.shape}")
        if self.population.snr is None and len(self.camera.zero_point) != len(self.camera):
            raise ValueError("camera must have zero points for a population whose fluxes follow from magnitudes")

    def batches(
        self, count: int, *, seed: int, batch_size: int | None = None, first: int = 0, workers: int = 0
    ) -> Iterator[Scene]:
        """Simulate scenes batch by batch.

        Batch i depends on the seed, the batch size and i alone, so that a longer set begins with the shorter one.

        Parameters
        ----------
        count
            Number of scenes.
        seed
            Same seed, same scenes; not negative.
        batch_size
            Scenes per batch; by default as many as fit in some memory.
        first
            Number of the first batch to make.
        workers
            Number of processes that simulate; 0 for this one alone. The scenes do not depend on it.

        Returns
        -------
        iterator of Scene
            Scenes with all their truth.

        Raises
        ------
        ValueError
            If a number is negative, or the batch size zero.
        """
        size = max(1, min(64, BATCH_PIXELS // math.prod(self.shape))) if batch_size is None else batch_size
        make = partial(self._batch, size=size)
        return in_batches(make, count, seed=seed, batch_size=size, first=first, workers=workers)

    def _batch(self, key: tuple[int, int], count: int, *, size: int) -> Scene:
        """Draw a batch of `size` scenes and keep the first `count`, which thus do not depend on `count`."""
        seeds = [int(n >> np.uint64(1)) for n in np.random.SeedSequence(key).generate_state(3, np.uint64)]
        square, groups = ((GROUP_SIDE, GROUP_SIDE), self.groups) if self.groups else (self.shape, 1)
        frame = Frame(square, self.camera.pixel_scale, self.camera.blur)
        drawn = self.population.sample(size * groups, frame, seed=seeds[0], number=self.number)
        exists = drawn.pop("exists")
        group = exists.nonzero()[:, 0]
        corner = np.random.default_rng(seeds[0]).random((size * groups, 2)) * np.subtract(self.shape, square)
        drawn = {name: value[exists] for name, value in drawn.items()}
        for name, start in zip("yx", torch.from_numpy(corner).float()[group].T, strict=True):
            drawn[name] = drawn[name] + start
        scene = group // groups
        with seeded(seeds[1]), torch.no_grad():
            kept = int((scene < count).sum())
            light = self.sources(drawn, self.camera).select(slice(kept))
            drawn = {name: value[:kept] for name, value in drawn.items()}
            image, truth = self._painted(drawn, light, scene[:kept], size)
        truth |= {"scene": scene[:kept], "identity": light.identity}
        return self._observed(drawn, image, truth, count, seeds[2])

    def _painted(
        self, drawn: Mapping[str, Tensor], light: Light, scene: Tensor, count: int
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Return the noiseless images, and the light of each source, and its total and AUTO flux by name."""
        bands, sources = len(self.camera), len(scene)
        image = torch.zeros(count, bands, *self.shape)
        alone = torch.zeros(sources, bands, *self.shape) if max(self.shape) <= LIGHT_SIDE else None
        total, auto = torch.zeros(2, sources, bands)
        middle = torch.stack([drawn["x"], drawn["y"]], -1).round().long()
        size = max(CUTOUT, self.camera.psf.shape[-1] + 1)
        # Scene by scene, as sums are rounded differently in other company.
        own = torch.arange(sources).split(torch.bincount(scene, minlength=count).tolist())
        todo = [some for numbers in own for some in numbers.split(AT_ONCE)]
        while todo:
            larger = []
            for some in todo:
                corner = middle[some] - size // 2
                cutout, *limits = light.select(some).seen(self.camera, corner=corner, size=size)
                flux = self._fluxes({name: value[some] for name, value in drawn.items()}, cutout, *limits)
                enough = self._is_enough(cutout, flux, size)
                larger.append(some[~enough])
                for i in enough.nonzero()[:, 0].tolist():
                    number, own = int(some[i]), cutout[i] * flux[i, :, None, None]
                    ratio = map(auto_over_total, cutout[i], (flux[i] / self.camera.sky_rms).tolist())
                    total[number], auto[number] = flux[i], flux[i] * torch.tensor([*ratio])
                    for pixels in (image[scene[number]], *([] if alone is None else [alone[number]])):
                        paste(pixels, own, corner[i])
            todo, size = [some for some in larger if len(some)], 2 * size
        total[light.identity >= 0] = torch.nan
        return image, {"light": alone, "flux": total, "auto_flux": auto}

    def _fluxes(self, drawn: Mapping[str, Tensor], cutout: Tensor, color: Tensor, brightest: Tensor) -> Tensor:
        """Total flux ``(source, band)`` in image units."""
        unit = 10 ** (0.4 * torch.tensor(self.camera.zero_point or (0.0,) * len(self.camera)))  # of flux, per AB flux
        flux = color.exp() * unit
        snr = flux * cutout.square().sum((-2, -1)).sqrt() / self.camera.sky_rms
        if self.population.snr is None:
            factor = 10 ** (-0.4 * drawn["magnitude"])
        else:
            factor = drawn["ln_snr"].exp() / snr.amax(1)
        return flux * torch.minimum(factor[:, None], (brightest[:, None] / snr).amin(1, keepdim=True))

    def _is_enough(self, cutout: Tensor, flux: Tensor, size: int) -> Tensor:
        """Whether the light at a cutout's edge is negligible, or the cutout as large as it need be."""
        if size >= min(LARGEST_CUTOUT, 2 * max(self.shape)):
            return torch.ones(len(cutout), dtype=torch.bool)
        edge = torch.stack([cutout[..., 0, :], cutout[..., -1, :], cutout[..., 0], cutout[..., -1]]).amax((0, -1))
        return (edge * flux / self.camera.sky_rms < FAINTEST).all(1)

    def _observed(
        self, drawn: Mapping[str, Tensor], image: Tensor, truth: Mapping[str, Tensor | None], count: int, seed: int
    ) -> Scene:
        """Add noise to a whole batch, on which the noise depends, and keep its first scenes."""
        camera = self.camera
        known = ((name, getattr(camera, name)) for name in SCENE_FIELDS[1:])
        values = {name: value.expand(len(image), *value.shape) for name, value in known}
        noise = {name: values[name] for name in ("sky_rms", "exposure", "noise_kernel")}
        star, real = drawn["source_type"] == SOURCE_TYPES.index("star"), truth["identity"] >= 0
        radius = drawn["half_light_radius"] * drawn["axis_ratio"].sqrt()
        return Scene(
            image=add_noise(image, **noise, generator=torch.Generator().manual_seed(seed))[:count],
            pixel_scale=camera.pixel_scale,
            zero_point=camera.zero_point,
            half_light_radius=radius.masked_fill(star | real, torch.nan),
            axis_ratio=drawn["axis_ratio"].masked_fill(star, 1.0).masked_fill(real, torch.nan),
            angle=drawn["angle"].masked_fill(star, 0.0).masked_fill(real, torch.nan),
            source_type=drawn["source_type"].masked_fill(real, -1),
            **{name: drawn[name] for name in "xy"},
            **{name: value[:count] for name, value in values.items()},
            **truth,
        )


def simulate(
    count: int,
    *,
    population: Population | None = None,
    camera: Camera | None = None,
    size: int | tuple[int, int] = STAMP_SIZE,
    number: int | None = None,
    seed: int = 0,
    sources: Sources | None = None,
    workers: int = 0,
) -> Scene:
    """Simulate scenes with their truth.

    Parameters
    ----------
    count
        Number of scenes, at least one; larger sets than fit in memory are made by `Simulator.batches`.
    population
        What sources there are, and where; ``Population.published()``, pairs of galaxies, by default.
    camera
        What images are taken with; CANDELS F160W by default.
    size
        Pixels on a side of the images, or ``(y, x)``. Images of more than 384 pixels on a side come without the light
        of every source.
    number
        Number of sources in every scene; drawn from the population if None.
    seed
        Same seed, same scenes; not negative.
    sources
        What makes their light: by default `SimulatedSources`, or `~probdeblend.surveys.RealGalaxies`.
    workers
        Number of processes that simulate; 0 for this one alone. The scenes do not depend on it.

    Returns
    -------
    Scene
        Scenes with all their truth.

    Raises
    ------
    ValueError
        If the count is not positive, or another number is negative.

    Examples
    --------
    >>> field = simulate(
    ...     1, population=Population.default(), camera=Cameras().sample(rng), size=1000, number=200
    ... )  # doctest: +SKIP
    """
    check_least(1, count=count)
    camera = Camera.candels_f160w() if camera is None else camera
    shape = (size, size) if isinstance(size, int) else tuple(size)
    simulator = Simulator(population or Population.published(), camera, shape, number, sources or SimulatedSources())
    return Scene.join(simulator.batches(count, seed=seed, workers=workers))


def paste(image: Tensor, cutout: Tensor, corner: Tensor) -> None:
    """Add a cutout ``(band, y, x)`` to an image, with its first pixel at the corner x, y."""
    left, top = corner.tolist()
    y, x = max(-top, 0), max(-left, 0)
    inside = image[:, max(top, 0) : max(top + cutout.shape[-2], 0), max(left, 0) : max(left + cutout.shape[-1], 0)]
    inside += cutout[:, y : y + inside.shape[-2], x : x + inside.shape[-1]]


def in_batches(
    make: Maker, count: int, *, seed: int, batch_size: int, first: int = 0, workers: int = 0
) -> Iterator[Scene]:
    """Make `count` scenes by ``make((seed, number of the batch), size)``, in order; 0 workers means in this process.

    Nothing starts before the first batch is asked for, and an error is that of its batch.
    """
    check_least(0, count=count, seed=seed, workers=workers)
    check_least(1, batch_size=batch_size)
    tasks = [((seed, i), min(batch_size, count - start)) for i, start in enumerate(range(0, count, batch_size))]
    return _made(make, tasks[first:], workers)


def _made(make: Maker, tasks: list[tuple[tuple[int, int], int]], workers: int) -> Iterator[Scene]:
    shared = Parallel(n_jobs=max(workers, 1), return_as="generator")
    yield from shared(delayed(_on_one_thread)(make, *task) for task in tasks)


def _on_one_thread(make: Maker, key: tuple[int, int], size: int) -> Scene:
    """Make a batch on one thread, as sums depend on how they are split: the same for any number of workers."""
    with seeded(seed_of(*key)), on_threads(1):
        return make(key, size)


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Use so many threads at most in the ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(number, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
