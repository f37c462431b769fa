"""Endless batches of training scenes, made of the templates of a bank.

Half of the batches are pairs of the published population in CANDELS F160W; the others hold 0 to 14 sources of any
camera, clustered, with signal-to-noise ratios from 5 to 3,000. Numbers, fluxes and positions follow the populations'
program; the sources are those of the bank, whose templates belong to the latest cameras of an endless sequence and move
on with the batches, so that no source is seen often. Batch number i depends on the seed and on i alone.

Beside the population's sources, fainter ones and neighbors that the edge cuts are in the images, but in no list. Some
listed positions belong to no source, and some sources are listed nowhere, as it is with any catalog.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import IterableDataset, get_worker_info

from ..photometry.noise import correlated_noise, noise_numbers
from ..scene import PSF_SIZE, seeded
from .bank import HALF, STORED_UNIT, Template, Templates, log_flux
from .population import Population
from .positions import Frame
from .scenes import paste

__all__ = ["SceneBatch", "SceneStream"]

BATCHES_PER_CAMERA = 4
ONE_BAND = 0.75  # fraction of the batches of crowds that have one band
LEAST_SNR = 5.0  # a fainter source does not count
FAINT = {True: 0.3, False: 1.0}  # mean number of fainter sources, beside pairs and in crowds
CUT, CUT_SNR = 0.4, 1000.0  # fraction of the crowds with a neighbor that the edge cuts, and its largest S/N
DROPPED = 0.08  # fraction of the batches in which one source is not listed
SPURIOUS = (0.82, 0.13, 0.05)  # probabilities of 0, 1 and 2 positions without a source
IN_LIGHT = 0.6  # fraction of these that lie in the light of sources
JITTER = 0.7  # pixels, largest standard deviation of listed positions
BAD = 0.1  # fraction of the batches in which a third of the scenes has bad pixels
MARGIN = 1.0  # pixels at the edge without centers: sources that it cuts in the middle are listed too
ALIKE, LEAST_SCENES = 6, 8  # crowded batches of several bands hold fewer scenes, and take as long as those of pairs
CROWDED, CELL = 6, 2  # sources that need the largest image; pixels on a side of a cell of the heat map

Source = tuple[int, Tensor, Tensor]
"""A template's number, the pixel x, y of its middle, and its flux over sky rms ``(band,)``."""


class SceneBatch(NamedTuple):
    """Input of the loss of the scene network; see `probdeblend.networks.scene_loss`."""

    image: Tensor
    good: Tensor
    psf: Tensor
    noise: Tensor
    x: Tensor
    y: Tensor
    light: Tensor
    rest: Tensor
    log_flux: Tensor
    shape: Tensor
    kind: Tensor
    heat: Tensor


@dataclass(eq=False)
class SceneStream(IterableDataset[SceneBatch]):
    """Endless batches of scenes from a bank of templates.

    Parameters
    ----------
    templates
        Where templates come from; its populations say what scenes are like.
    batch_size
        Scenes of a batch of pairs; crowded scenes and several bands make batches smaller.
    seed
        Seed of the scenes.
    first
        Number of the first batch.
    pairs
        Fraction of the batches that are pairs of the published population.
    size
        Sides of the scenes in pixels, multiples of 16.
    bank
        Number of cameras whose templates scenes are made of at a time; it takes about a second each to begin.
    """

    templates: Templates = field(default_factory=Templates)
    batch_size: int = 32
    seed: int = 0
    first: int = 0
    pairs: float = 0.5
    size: tuple[int, ...] = (64, 64, 80)
    bank: int = 160

    def __post_init__(self) -> None:
        self._make = lru_cache(maxsize=self.bank + 4)(self.templates.make)

    def __iter__(self) -> Iterator[SceneBatch]:
        worker = get_worker_info()
        number, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        yield from map(self.batch, count(number, step))

    def batch(self, number: int) -> SceneBatch:
        """Return one batch.

        Parameters
        ----------
        number
            Its number in the endless sequence.

        Returns
        -------
        SceneBatch
            The batch.
        """
        rng = np.random.default_rng((self.seed, 2, number))
        latest = number // BATCHES_PER_CAMERA + self.bank
        bank = [self._make(k) for k in range(latest - self.bank, latest)]
        pool = [template for template in bank if template.camera.native]
        if not (pair := rng.random() < self.pairs and bool(pool)):
            bands = sorted({len(template.camera) for template in bank})
            chosen = bands[0] if rng.random() < ONE_BAND else int(rng.choice(bands[1:] or bands))
            pool = [template for template in bank if len(template.camera) == chosen]
        population = self.templates.pairs if pair else self.templates.crowds
        listed = int(rng.choice(len(population.number), p=population.number))
        most = ALIKE * self.batch_size / (listed + 2) / len(pool[0].camera) ** 0.5
        scenes = int(np.clip(most, LEAST_SCENES, self.batch_size))
        seen = [pool[i] for i in rng.integers(len(pool), size=scenes)]
        with seeded(int(rng.integers(2**62))), torch.no_grad():
            return self._scenes(rng, seen, population, listed, pair=pair)

    def _scenes(
        self, rng: np.random.Generator, seen: list[Template], population: Population, listed: int, *, pair: bool
    ) -> SceneBatch:
        size = max(self.size) if listed > CROWDED else int(rng.choice(self.size))
        drawn = _draw(rng, seen, population, listed, size)
        real = listed - (1 if listed > 1 and rng.random() < DROPPED else 0)
        spurious = int(rng.choice(len(SPURIOUS), p=SPURIOUS)) if listed else 1
        scenes, bands = len(seen), len(seen[0].camera)
        image = torch.zeros(scenes, bands, size, size)
        light = torch.zeros(scenes, real, bands, size, size)
        heat = torch.zeros(scenes, 3, size // CELL, size // CELL)
        flux, shape = torch.zeros(scenes, real, bands, 2), torch.full((scenes, real, 6), torch.nan)
        kind = torch.zeros(scenes, real, dtype=torch.long)
        x, y = torch.zeros(2, scenes, real + spurious)
        for scene, (template, sources) in enumerate(zip(seen, drawn, strict=True)):
            unlisted = _unlisted(rng, template, size, pair=pair)
            for number, (which, middle, fluxes) in enumerate(sources + unlisted):
                own = torch.zeros(bands, size, size)
                paste(own, template.light[which], middle.long() - HALF)
                own *= (fluxes / STORED_UNIT)[:, None, None]
                image[scene] += own
                place = template.shape[which, :2] + middle
                snr = float((fluxes * template.norm[which]).square().sum().sqrt())
                _mark(heat[scene], place, counts=snr >= LEAST_SNR)
                if number < real:
                    light[scene, number] = own
                    flux[scene, number] = log_flux(template, which, fluxes)
                    shape[scene, number] = template.shape[which]
                    shape[scene, number, :2] = place
                    kind[scene, number] = template.source["source_type"][which]
                    x[scene, number], y[scene, number] = place
        jitter = JITTER * torch.rand(scenes, 1)
        for values in (x, y):
            values[:, :real] += jitter * torch.randn(scenes, real)
        _add_spurious(x, y, real, image, heat)
        noisy, noise = _observed(image, seen)
        good = _good(rng, scenes, bands, size)
        psf = torch.stack([_middle(t.camera.psf) for t in seen])
        rest, (x, y) = (image - light.sum(1)).clamp(min=0), (v.clamp(0, size - 1) for v in (x, y))
        return SceneBatch(noisy * good, good, psf, noise, x, y, light, rest, flux, shape, kind, heat)


def _draw(
    rng: np.random.Generator, seen: list[Template], population: Population, listed: int, size: int
) -> list[list[Source]]:
    """Choose templates for the sources of every scene, their fluxes and where they lie."""
    if not listed:
        return [[] for _ in seen]
    which = [_choose(rng, template, listed, population.max_difference) for template in seen]
    names = ("half_light_radius", "axis_ratio", "source_type")
    values = {n: torch.stack([t.source[n][w] for t, w in zip(seen, which, strict=True)]) for n in names}
    blur = torch.tensor([[t.camera.blur] for t in seen])
    frame = Frame((size, size), torch.tensor([[t.camera.pixel_scale] for t in seen]), blur, MARGIN)
    middle = population.positions(values, frame).clamp(1, size - 2).round()
    snr = [None] * len(seen) if population.snr is None else population.ln_snr((len(seen), listed)).sample().exp()
    fluxes = [_fluxes(*source) for source in zip(seen, which, snr, strict=True)]
    return [list(zip(w, m, f, strict=True)) for w, m, f in zip(which, middle, fluxes, strict=True)]


def _choose(rng: np.random.Generator, template: Template, listed: int, most: float) -> list[int]:
    """Choose templates, none twice in a pair, whose magnitudes differ from the first one's by `most`."""
    magnitude = template.source["magnitude"]
    for _ in range(100):
        which = rng.choice(len(magnitude), size=listed, replace=listed > 2).tolist()
        if float((magnitude[which] - magnitude[which[0]]).abs().max()) <= most:
            break
    return which


def _fluxes(template: Template, which: list[int], snr: Tensor | None) -> Tensor:
    """Fluxes over sky rms ``(source, band)``: by magnitudes or, if given, signal-to-noise ratios in the best band."""
    flux = template.color[which].exp() / template.camera.sky_rms
    if snr is None:
        magnitude = template.source["magnitude"][which, None] - torch.tensor(template.camera.zero_point)
        flux = flux * 10 ** (-0.4 * magnitude)
    else:
        flux = flux * (snr / (flux * template.norm[which]).amax(-1))[:, None]
    return flux * (template.brightest[which, None] / flux).amin(1, keepdim=True).clamp(max=1)


def _unlisted(rng: np.random.Generator, template: Template, size: int, *, pair: bool) -> list[Source]:
    """Choose faint sources, and in crowds a neighbor that the edge cuts."""
    place = rng.integers(-4, size + 4, (rng.poisson(FAINT[pair]), 2))
    snr = np.exp(rng.uniform(0, math.log(LEAST_SNR), len(place)))
    if not pair and rng.random() < CUT:
        beyond = rng.integers(1, 10)
        cut = rng.permutation([rng.integers(size), -beyond if rng.random() < 0.5 else size + beyond])
        place, snr = np.vstack([place, cut]), np.append(snr, np.exp(rng.uniform(*np.log([LEAST_SNR, CUT_SNR]))))
    which = rng.integers(len(template.norm), size=len(place)).tolist()
    fluxes = _fluxes(template, which, torch.from_numpy(snr).float())
    return list(zip(which, torch.from_numpy(place).float(), fluxes, strict=True))


def _mark(heat: Tensor, place: Tensor, *, counts: bool) -> None:
    """Mark the cell of a center; around one that is too faint to count, nothing counts."""
    cell = (place / CELL + 0.25).floor().long()
    column, row = cell.tolist()
    if not (0 <= row < heat.shape[1] and 0 <= column < heat.shape[2]):
        return
    if counts:
        heat[:, row, column] = torch.cat([torch.ones(1), place - (CELL * cell + 0.5)])
    elif heat[0, row, column] == 0:
        patch = heat[0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        patch[patch == 0] = -1


def _add_spurious(x: Tensor, y: Tensor, real: int, image: Tensor, heat: Tensor) -> None:
    """List places where there is no center: anywhere, or in the light of sources, such as their knots."""
    scenes, listed = x.shape
    far = 1 - functional.max_pool2d(heat[:, 0].abs(), 5, stride=1, padding=2)  # cells
    light = functional.avg_pool2d(image.amax(1).clamp(min=0).log1p(), CELL) + 1e-3
    for number in range(real, listed):
        weight = torch.where((torch.rand(scenes) < IN_LIGHT)[:, None, None], light, 1.0) * far + 1e-9
        cell, side = weight.flatten(1).multinomial(1)[:, 0], weight.shape[-1]
        x[:, number], y[:, number] = (CELL * (v + torch.rand(scenes)) - 0.5 for v in (cell % side, cell // side))


def _observed(image: Tensor, seen: list[Template]) -> tuple[Tensor, Tensor]:
    """Add sky and photon noise, in units of the sky's rms, and return the images and the numbers of the noise."""
    names = ("noise_kernel", "photon", "wavelength")
    kernel, photon, wavelength = (torch.stack([getattr(t.camera, name) for t in seen]) for name in names)
    rms = (1 + photon[..., None, None] * image).clamp(min=1e-6).sqrt()
    noisy = image + rms * correlated_noise(tuple(image.shape), kernel)
    return noisy, noise_numbers(kernel, photon, wavelength)


def _good(rng: np.random.Generator, scenes: int, bands: int, size: int) -> Tensor:
    """Map of good pixels; in some batches some scenes have a bad column or patch."""
    good = torch.ones(scenes, bands, size, size)
    if rng.random() < BAD:
        for scene in range(0, scenes, 3):
            column, row = rng.integers(size, size=2)
            rows, width = (slice(None), 1) if rng.random() < 0.5 else (slice(row, row + 4), 4)
            good[scene, :, rows, column : column + width] = 0
    return good


def _middle(psf: Tensor) -> Tensor:
    """Return the middle of PSFs ``(band, y, x)``, all of one size."""
    inner = slice((psf.shape[-1] - PSF_SIZE) // 2, (psf.shape[-1] + PSF_SIZE) // 2)
    return psf[..., inner, inner] / psf[..., inner, inner].sum((-2, -1), keepdim=True)
