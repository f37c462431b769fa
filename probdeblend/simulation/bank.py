"""A bank of templates, and an endless stream of training scenes made of them.

A template is a source alone, noiseless and of unit flux, in every band of one camera. Rendering it takes milliseconds;
adding it to a scene, moved by whole pixels and scaled, takes microseconds. The bank holds the templates of the latest
cameras of an endless sequence and moves on with the batches, so that no source is seen often. Batch number i depends on
the seed and on i alone.

Half of the batches are pairs of the published population in CANDELS F160W; the others hold 0 to 14 sources of any
camera, clustered, with signal-to-noise ratios from 5 to 3,000. Fainter sources are in the images, but in no list. Some
listed positions belong to no source, and some sources are listed nowhere, as it is with any catalog.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..photometry.detection import auto_flux
from ..scene import MASK_THRESHOLD, Instrument
from .cameras import Camera, Cameras, noise_numbers
from .morphology import galaxy_components
from .prior import Prior
from .profiles import render

__all__ = ["SceneBatch", "SceneStream", "Template", "Templates"]

TEMPLATE = 128  # pixels on a side
HALF = TEMPLATE // 2
STORED_UNIT = 4096.0  # so that half precision holds faint wings
AUTO_LEVELS = (10.0, 40.0, 160.0, 640.0, 2560.0, 20480.0)  # flux over sky rms where the auto flux is measured
LARGEST = 14.0  # pixels, major-axis half-light radius
TEMPLATES = {True: 24, False: 16}  # per camera, by whether it is native
STAR_FRACTION = 0.15
BANK = 160  # cameras in the bank
BATCHES_PER_CAMERA = 4
LEAST_SNR = 5.0
NUMBERS = {0: 0.02, 1: 0.17, 2: 0.18, 3: 0.17, 4: 0.12, 5: 0.10, 6: 0.07, 8: 0.08, 11: 0.05, 14: 0.04}
EDGE = 6.0  # pixels; centers of listed sources are farther inside
# Slope of ln flux with ln wavelength, by type: mean and standard deviation. With van der Wel et al. (2014) the color
# F814W - F160W is 0.23, 0.72 and 1.59 at the 5th, 50th and 95th percentile.
SLOPE = ((1.5, 0.6), (0.9, 0.45), (1.2, 0.5), (0.6, 0.35), (0.3, 1.2))
STAR = 4


class Template(NamedTuple):
    """Sources of one camera.

    - `light`: of unit flux ``(template, band, y, x)``, half precision, in units of 1 / 4096.
    - `color`: ln of the flux in each band over that in the first ``(template, band)``.
    - `auto`: ln of auto over total flux, at each of the levels ``(template, band, level)``.
    - `kind (template,)`, `shape (template, 6)`: type; offset of the center in x and y, ln radius in pixels, ellipticity,
      ln Sérsic index (NaN where there is none).
    - `magnitude (template,)`: of the published population.
    - `norm`: root of the sum of squares of the light ``(template, band)``.
    - `brightest`: flux over sky rms beyond which light would reach the template's edge ``(template,)``.
    """

    camera: Camera
    light: Tensor
    color: Tensor
    auto: Tensor
    kind: Tensor
    shape: Tensor
    magnitude: Tensor
    norm: Tensor
    brightest: Tensor


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


@dataclass(frozen=True)
class Templates:
    """The source of templates: number k of an endless sequence depends on the seed and on k alone."""

    prior: Prior = field(default_factory=Prior.default)
    cameras: Cameras = field(default_factory=Cameras)
    seed: int = 0

    def make(self, number: int) -> Template:
        """Draw a camera and its templates."""
        rng = np.random.default_rng((self.seed, 1, number))
        camera = self.cameras.sample(rng)
        many = TEMPLATES[camera.native]
        stars = int(rng.binomial(many, 0.0 if camera.native else STAR_FRACTION))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int(rng.integers(2**62)))
            drawn = self._galaxies(many, camera)
            return self._rendered(drawn, camera, stars)

    def _galaxies(self, count_: int, camera: Camera) -> dict[str, Tensor]:
        chosen: dict[str, Tensor] = {}
        wanted = count_
        while wanted:
            pairs = self.prior.sample(2 * wanted, seed=int(torch.randint(2**62, ())))
            pairs = {name: value[:, 0] for name, value in pairs.items()}
            if not camera.native:
                # Any size, within what the camera resolves and a template holds.
                pairs["half_light_radius"] = pairs["half_light_radius"] * torch.exp(0.3 * torch.randn(2 * wanted))
            good = pairs["half_light_radius"] / camera.pixel_scale < LARGEST
            picked = {name: value[good][:wanted] for name, value in pairs.items()}
            chosen = {n: torch.cat([chosen[n], v]) for n, v in picked.items()} if chosen else picked
            wanted = count_ - len(chosen["angle"])
        return chosen

    def _rendered(self, drawn: dict[str, Tensor], camera: Camera, stars: int) -> Template:
        number, bands = len(drawn["angle"]), len(camera.psf)
        offset = torch.rand(2, number) - 0.5
        drawn = {name: value[:, None] for name, value in drawn.items()} | {
            "present": torch.ones(number, 1, dtype=torch.bool)
        }
        drawn["x"], drawn["y"] = (HALF + offset)[..., None]
        instrument = Instrument(camera.pixel_scale, camera.psf[0], 0.0, 1.0)
        drawn["magnitude"], magnitude = torch.zeros_like(drawn["magnitude"]), drawn["magnitude"][:, 0]
        light = galaxy_components(drawn, instrument)
        kind = drawn["galaxy_type"][:, 0].clone()
        kind[:stars] = STAR
        light.present[:stars, :, 1:] = False
        for name, value in (("flux", 1.0), ("half_light_radius", 1e-2 * camera.pixel_scale), ("axis_ratio", 1.0)):
            getattr(light, name)[:stars, :, 0] = value
        slopes = _slopes(light, kind)
        wave = camera.wavelength if camera.wavelength.isfinite().all() else torch.linspace(0.5, 1.5, bands)
        images, color = [], []
        for band in range(bands):
            factor = (slopes * (wave[band] / wave[0]).log()).exp()
            flux = light.flux * factor * light.present
            color.append(flux.sum((1, 2)).log())
            scaled = {f: getattr(light, f) for f in light.__dataclass_fields__} | {
                "flux": flux / flux.sum((1, 2), keepdim=True)
            }
            images.append(_render(type(light)(**scaled), camera, band))
        image = torch.stack(images, 1)
        edge = torch.cat([image[..., :2, :].flatten(2), image[..., :2].flatten(2)], -1).amax((1, 2))
        shape = torch.full((number, 6), torch.nan)
        shape[:, :2] = offset.T
        q, angle = drawn["axis_ratio"][:, 0], drawn["angle"][:, 0]
        round_ = (1 - q) / (1 + q)
        galaxy = kind != STAR
        values = (
            (drawn["half_light_radius"][:, 0] * q.sqrt() / camera.pixel_scale).log(),
            round_ * (2 * angle).cos(),
            round_ * (2 * angle).sin(),
        )
        for column, value in enumerate(values, 2):
            shape[:, column] = torch.where(galaxy, value, torch.nan)
        single = galaxy & (light.present.sum(-1)[:, 0] == 1)
        shape[:, 5] = torch.where(single, light.sersic_index[:, 0, 0].log(), torch.nan)
        stored = (image * STORED_UNIT).half()
        return Template(
            camera, stored, torch.stack(color, 1), _auto(image), kind, shape, magnitude,
            image.square().sum((-2, -1)).sqrt(), 0.3 / edge.clamp(min=1e-9),
        )  # fmt: skip


def _slopes(light: object, kind: Tensor) -> Tensor:
    """Draw the slope of ln flux with ln wavelength of each component; bulges are redder than disks, knots bluer."""
    mean, spread = torch.tensor(SLOPE)[kind].unbind(-1)
    slope = (mean + spread * torch.randn(len(kind)))[:, None, None].expand(light.flux.shape).clone()
    double = light.present[:, :, 1] & (kind == 2)[:, None]
    slope[..., 0] += torch.where(double, 0.5 + 0.3 * torch.randn(double.shape), 0.0)
    slope[..., 2:] -= 0.4 + 0.3 * torch.randn(len(kind), 1, 1)
    return slope


def _render(light: object, camera: Camera, band: int) -> Tensor:
    """Render sources alone ``(template, y, x)``, on a grid twice as fine where the PSF needs it."""
    if camera.fine_psf is None:
        return render(light, camera.psf[band], pixel_scale=camera.pixel_scale, size=TEMPLATE)[:, 0]
    values = {f: getattr(light, f) for f in light.__dataclass_fields__}
    finer = type(light)(**values | {"x": 2 * light.x, "y": 2 * light.y})
    image = render(finer, camera.fine_psf[band], pixel_scale=camera.pixel_scale / 2, size=2 * TEMPLATE)
    return 4 * image[:, 0, ::2, ::2]


def _auto(image: Tensor) -> Tensor:
    """ln of auto over total flux ``(template, band, level)``, measured without noise at several levels of the sky."""
    ratio = np.full((*image.shape[:2], len(AUTO_LEVELS)), np.nan)
    for index in np.ndindex(*image.shape[:2]):
        light = image[index].numpy().astype(np.float64)
        for level, flux in enumerate(AUTO_LEVELS):
            ratio[(*index, level)] = (
                math.log(max(auto_flux(light * flux, 1.0), 1e-9) / flux) if light.max() * flux > 2 else np.nan
            )
        known = np.isfinite(ratio[index])
        if known.any():
            ratio[index] = np.interp(np.arange(len(AUTO_LEVELS)), np.flatnonzero(known), ratio[index][known])
    return torch.from_numpy(np.clip(np.nan_to_num(ratio, nan=-0.3), -1.5, 0.3)).float()


@dataclass(eq=False)
class SceneStream(IterableDataset[SceneBatch]):
    """Endless batches of scenes from a bank of templates; `first` is the number of the first one.

    Parameters
    ----------
    templates
        Where templates come from.
    batch_size
        Scenes per batch.
    seed
        Seed of the scenes.
    first
        Number of the first batch.
    pairs
        Fraction of the batches that are pairs of the published population.
    size
        Sides of the scenes in pixels, multiples of 16.
    """

    templates: Templates = field(default_factory=Templates)
    batch_size: int = 32
    seed: int = 0
    first: int = 0
    pairs: float = 0.5
    size: tuple[int, ...] = (64, 64, 80, 96)

    def __post_init__(self) -> None:
        self._make = lru_cache(maxsize=BANK + 4)(self.templates.make)

    def __iter__(self) -> Iterator[SceneBatch]:
        worker = get_worker_info()
        number, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        yield from map(self.batch, count(number, step))

    def batch(self, number: int) -> SceneBatch:
        """Return one batch."""
        rng = np.random.default_rng((self.seed, 2, number))
        latest = number // BATCHES_PER_CAMERA + BANK
        bank = [self._make(k) for k in range(latest - BANK, latest)]
        pair = rng.random() < self.pairs
        bands = {len(t.camera.psf) for t in bank}
        if pair:
            pool = [t for t in bank if t.camera.native] or bank
        else:
            chosen = 1 if rng.random() < 0.75 or bands == {1} else int(rng.choice(sorted(bands - {1})))
            pool = [t for t in bank if len(t.camera.psf) == chosen]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int(rng.integers(2**62)))
            return _scenes(rng, pool, self.batch_size, self.size, pair=pair)


def _scenes(
    rng: np.random.Generator, pool: list[Template], scenes: int, sizes: tuple[int, ...], *, pair: bool
) -> SceneBatch:
    listed = 2 if pair else int(rng.choice(list(NUMBERS), p=list(NUMBERS.values())))
    size = max(sizes) if listed > 6 else int(rng.choice(sizes))
    dropped = 1 if listed > 1 and rng.random() < 0.08 else 0
    spurious = int(rng.choice([0, 1, 2], p=[0.82, 0.13, 0.05])) if listed else 1
    cameras = [pool[i] for i in rng.integers(len(pool), size=scenes)]
    layout = [_layout(rng, template, listed, size, pair=pair) for template in cameras]
    bands = len(cameras[0].camera.psf)
    image = torch.zeros(scenes, bands, size, size)
    light = torch.zeros(scenes, listed - dropped, bands, size, size)
    heat = torch.zeros(scenes, 3, size // 2, size // 2)
    flux = torch.zeros(scenes, listed - dropped, bands, 2)
    shape = torch.full((scenes, listed - dropped, 6), torch.nan)
    kind = torch.zeros(scenes, listed - dropped, dtype=torch.long)
    x, y = (torch.zeros(scenes, listed - dropped + spurious) for _ in range(2))
    for scene, (template, sources) in enumerate(zip(cameras, layout, strict=True)):
        for number, (which, column, row, fluxes) in enumerate(sources):
            own = _placed(template, which, column, row, fluxes, size)
            image[scene] += own
            snr = _snr(template, which, fluxes)
            place = template.shape[which, :2] + torch.tensor([column, row])
            _mark(heat[scene], place, snr >= LEAST_SNR)
            if number >= listed - dropped:
                continue
            light[scene, number] = own
            flux[scene, number] = _log_flux(template, which, fluxes)
            shape[scene, number] = template.shape[which]
            shape[scene, number, :2] = place
            kind[scene, number] = template.kind[which]
            x[scene, number], y[scene, number] = place
    jitter = torch.rand(scenes, 1) * 0.7
    x[:, : listed - dropped] += jitter * torch.randn(scenes, listed - dropped)
    y[:, : listed - dropped] += jitter * torch.randn(scenes, listed - dropped)
    if spurious:
        _add_spurious(x, y, listed - dropped, size)
    noise = torch.stack([noise_numbers(t.camera) for t in cameras])
    noisy = _noisy(image, cameras)
    good = _good(rng, scenes, bands, size)
    psf = torch.stack([_fitting(t.camera.psf) for t in cameras])
    rest = (image - light.sum(1)).clamp(min=0)
    return SceneBatch(
        noisy * good, good, psf, noise, x.clamp(0, size - 1), y.clamp(0, size - 1), light, rest, flux, shape, kind, heat
    )


def _layout(
    rng: np.random.Generator, template: Template, listed: int, size: int, *, pair: bool
) -> list[tuple[int, int, int, Tensor]]:
    """Choose templates, places of their centers in whole pixels, and fluxes over sky rms for the sources of a scene."""
    bands = len(template.camera.psf)
    depth = torch.from_numpy(rng.normal(0, 0.7, bands)).float()
    depth = depth - depth.mean()
    if pair:
        which, fluxes = _published_pair(rng, template)
    else:
        which = rng.integers(len(template.kind), size=listed)
        wide = rng.random(listed) < 0.35
        snr = np.exp(rng.uniform(math.log(LEAST_SNR), np.where(wide, math.log(3000.0), math.log(300.0))))
        fluxes = [_flux_of_snr(template, w, s, depth) for w, s in zip(which, snr, strict=True)]
    radius = (template.shape[which, 2].nan_to_num(nan=-1.0)).exp().numpy() if listed else np.zeros(0)
    places = _pair_places(rng, template, which, size) if pair else _places(rng, radius, template, size)
    sources = [(int(w), c, r, f) for w, (c, r), f in zip(which, places, fluxes, strict=True)]
    for _ in range(rng.poisson(0.3 if pair else 1.0)):
        faint = int(rng.integers(len(template.kind)))
        flux = _flux_of_snr(template, faint, math.exp(rng.uniform(0, math.log(LEAST_SNR))), depth)
        sources.append((faint, *rng.integers(-4, size + 4, 2).tolist(), flux))
    if not pair and rng.random() < 0.4:
        # A neighbor that the edge cuts.
        cut = int(rng.integers(len(template.kind)))
        along, beyond = int(rng.integers(size)), int(rng.choice([-1, 1]) * rng.integers(1, 10))
        across = beyond if beyond < 0 else size + beyond
        flux = _flux_of_snr(template, cut, math.exp(rng.uniform(math.log(LEAST_SNR), math.log(1000))), depth)
        sources.append((cut, *((along, across) if rng.random() < 0.5 else (across, along)), flux))
    return sources


def _flux_of_snr(template: Template, which: int, snr: float, depth: Tensor) -> Tensor:
    """Flux over sky rms in each band, for a signal-to-noise ratio in the best band."""
    flux = (template.color[which] + depth).exp()
    best = (flux * template.norm[which]).amax()
    return (flux * (snr / best)).clamp(max=float(template.brightest[which]))


def _snr(template: Template, which: int, fluxes: Tensor) -> float:
    return float((fluxes * template.norm[which]).square().sum().sqrt())


def _published_pair(rng: np.random.Generator, template: Template) -> tuple[np.ndarray, list[Tensor]]:
    """Choose two galaxies whose magnitudes differ by less than two, with the fluxes of the population."""
    magnitude = template.magnitude.numpy()
    first = int(rng.integers(len(magnitude)))
    near = np.flatnonzero((np.abs(magnitude - magnitude[first]) < 2) & (np.arange(len(magnitude)) != first))
    second = int(rng.choice(near)) if len(near) else (first + 1) % len(magnitude)
    photon = float(template.camera.photon[0])
    # The depth follows from the photon noise, as both were drawn for the camera.
    sky_rms = _native_sky(photon)
    pair = np.array([first, second])
    flux = 10 ** (-0.4 * (magnitude[pair] - 25.9463)) / sky_rms
    return pair, [torch.tensor([min(f, float(template.brightest[w]))]).float() for f, w in zip(flux, pair, strict=True)]


def _native_sky(photon: float) -> float:
    return 1 / (3200.0 * photon * 5.0625)


def _pair_places(rng: np.random.Generator, template: Template, which: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Places of a pair with the published law of separations, a fifth of them anywhere and a tenth close."""
    q = (1 - np.hypot(*template.shape[which, 3:5].T.numpy())) / (1 + np.hypot(*template.shape[which, 3:5].T.numpy()))
    radius = template.shape[which, 2].exp().numpy() / np.sqrt(q)
    outer = min(4 * radius.min(), 64.0)
    inner = radius.max() if radius.max() <= outer else 0.8 * outer
    law = rng.random()
    separation = math.sqrt(rng.uniform(inner**2, max(outer, inner) ** 2))
    if law < 0.2:
        separation = math.sqrt(rng.uniform(4, (0.7 * size) ** 2))
    elif law < 0.3:
        separation = rng.uniform(1.0, 5.0)
    separation = min(separation, 0.8 * size)
    for _ in range(200):
        angle = rng.uniform(0, 2 * math.pi)
        step = separation * np.array([math.cos(angle), math.sin(angle)])
        first = rng.uniform(EDGE, size - EDGE, 2)
        second = first + step
        if (second > EDGE).all() and (second < size - EDGE).all():
            break
    return [
        tuple(np.round(first).astype(int).tolist()),
        tuple(np.round(np.clip(second, 1, size - 2)).astype(int).tolist()),
    ]


def _places(rng: np.random.Generator, radius: np.ndarray, template: Template, size: int) -> list[tuple[int, int]]:
    """Places of sources, each of which lies anywhere or, more often, near one of the earlier."""
    blur = 1.0 / math.sqrt(float(template.camera.psf[0].square().sum()))
    near = 0.5 + 0.45 * rng.random()
    places: list[np.ndarray] = []
    for number, own in enumerate(radius):
        for _ in range(20):
            place = rng.uniform(EDGE, size - EDGE, 2)
            if number and rng.random() < near:
                other = int(rng.integers(number))
                reach = 2.0 * (own + radius[other]) + 0.8 * blur
                distance = math.sqrt(rng.uniform((0.15 * blur) ** 2, reach**2))
                angle = rng.uniform(0, 2 * math.pi)
                place = places[other] + distance * np.array([math.cos(angle), math.sin(angle)])
            inside = (place > 3).all() and (place < size - 4).all()
            if inside and all(np.hypot(*(place - p)) > 0.25 * blur for p in places):
                break
        places.append(np.clip(place, 3, size - 4))
    return [tuple(np.round(place).astype(int).tolist()) for place in places]


def _placed(template: Template, which: int, column: int, row: int, fluxes: Tensor, size: int) -> Tensor:
    """Light of a template ``(band, y, x)`` with its middle on a pixel of a scene."""
    left, top = HALF - column, HALF - row
    rows, columns = slice(max(top, 0), top + size), slice(max(left, 0), left + size)
    cut = template.light[which, :, rows, columns].float() * (fluxes / STORED_UNIT)[:, None, None]
    image = torch.zeros(len(fluxes), size, size)
    image[:, max(-top, 0) : max(-top, 0) + cut.shape[1], max(-left, 0) : max(-left, 0) + cut.shape[2]] = cut
    return image


def _log_flux(template: Template, which: int, fluxes: Tensor) -> Tensor:
    """ln of auto and total flux over sky rms ``(band, 2)``."""
    total = fluxes.log()
    level = np.interp(total.numpy(), np.log(AUTO_LEVELS), np.arange(len(AUTO_LEVELS)))
    low = np.minimum(level.astype(int), len(AUTO_LEVELS) - 2)
    band = np.arange(len(total))
    table = template.auto[which].numpy()
    ratio = table[band, low] + (level - low) * (table[band, low + 1] - table[band, low])
    return torch.stack([total + torch.from_numpy(ratio).float(), total], -1)


def _mark(heat: Tensor, place: Tensor, counts: bool) -> None:
    """Mark the cell of a center; around one that is too faint to count, nothing counts."""
    cell = (place / 2 + 0.25).floor().long()
    column, row = cell.tolist()
    if not (0 <= row < heat.shape[1] and 0 <= column < heat.shape[2]):
        return
    if counts:
        heat[0, row, column] = 1
        heat[1:, row, column] = place - (2 * cell + 0.5)
    elif heat[0, row, column] == 0:
        patch = heat[0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        patch[patch == 0] = -1


def _add_spurious(x: Tensor, y: Tensor, real: int, size: int) -> None:
    """List places where there is nothing: anywhere, or in the light of a source."""
    scenes, listed = x.shape
    for number in range(real, listed):
        for values in (x, y):
            values[:, number] = EDGE + (size - 2 * EDGE) * torch.rand(scenes)
        if real:
            near, other = torch.rand(scenes) < 0.6, torch.randint(real, (scenes,))
            distance, angle = 3 + 9 * torch.rand(scenes), 2 * math.pi * torch.rand(scenes)
            scene = torch.arange(scenes)
            x[:, number] = torch.where(near, x[scene, other] + distance * angle.cos(), x[:, number])
            y[:, number] = torch.where(near, y[scene, other] + distance * angle.sin(), y[:, number])


def _noisy(image: Tensor, cameras: list[Template]) -> Tensor:
    """Add sky and photon noise, in units of the sky's rms."""
    scenes, bands, height, width = image.shape
    drizzle = torch.stack([t.camera.drizzle for t in cameras])[..., None, None]
    photon = torch.stack([t.camera.photon for t in cameras])[..., None, None]
    edge, corner = 0.2910 * drizzle, 0.1252 * drizzle
    white = torch.randn(scenes, bands, height + 2, width + 2)
    rows = white[..., 1:-1, :]
    beside = white[..., :-2, :] + white[..., 2:, :]
    middle = rows[..., 1:-1] + edge * (rows[..., :-2] + rows[..., 2:] + beside[..., 1:-1])
    noise = (middle + corner * (beside[..., :-2] + beside[..., 2:])) / (
        1 + 4 * edge.square() + 4 * corner.square()
    ).sqrt()
    return image + noise * (1 + photon * image).clamp(min=1e-6).sqrt()


def _good(rng: np.random.Generator, scenes: int, bands: int, size: int) -> Tensor:
    """Map of good pixels; in one batch of ten some scenes have a bad column or patch."""
    good = torch.ones(scenes, bands, size, size)
    if rng.random() < 0.1:
        for scene in range(0, scenes, 3):
            column, row = rng.integers(size, size=2)
            if rng.random() < 0.5:
                good[scene, :, :, column] = 0
            else:
                good[scene, :, row : row + 4, column : column + 4] = 0
    return good


def _fitting(psf: Tensor) -> Tensor:
    """The middle of PSFs ``(band, y, x)``, all of one size."""
    side, half = 41, 20
    middle = psf.shape[-1] // 2
    cut = psf[..., middle - half : middle + half + 1, middle - half : middle + half + 1]
    assert cut.shape[-1] == side
    return cut / cut.sum((-2, -1), keepdim=True)
